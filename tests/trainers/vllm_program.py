"""Train with vLLM rollouts, then print as JSON how far the engine's log-probabilities are from each model's.

    python -m tests.trainers.vllm_program FOLDER [--mode colocate] [--port 8000] [--untied] [--lora] [--steps 2] …

(`--mode none` trains without vLLM.)

`before` and `after` compare the engine with the model being trained, before the first step and after the last, where
the weights have been sent once more; `…_first_weights` compare it with the model as it was at first.
"""

import argparse
import json
from pathlib import Path

import torch
from accelerate import PartialState
from peft import LoraConfig
from transformers import AutoModelForCausalLM, TrainerCallback

from metatune.curricula import build_tokenizer
from metatune.recipes.sharding import ShardingReport, shard_small_parameters
from metatune.trainers import DUMPTrainer, MRTConfig, MRTTrainer

from .dump_setup import config, digits, rows, tiny_model

PROMPT = [3, *range(10, 80)]  # longer than two blocks of the prefix cache, so that a stale one would show


def save_model(folder: Path, tied: bool) -> str:
    """Save a random model and its tokenizer where vLLM can load them."""
    model = tiny_model(tied=tied)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


def engine_logprobs(trainer: DUMPTrainer) -> tuple[list[int], torch.Tensor]:
    """Let the engine continue a fixed prompt greedily; return the tokens and their log-probabilities."""
    generation = trainer.vllm_generation
    keep = generation.temperature, generation.max_completion_length
    generation.temperature, generation.max_completion_length = 1.0, 8
    torch.manual_seed(0)
    _, completions, logprobs, _ = generation.generate(
        [PROMPT] * trainer.num_generations, None, trainer.num_generations
    )
    generation.temperature, generation.max_completion_length = keep
    return completions[0], torch.tensor([entry[0] for entry in logprobs[0]])


@torch.no_grad()
def model_logprobs(model, completion: list[int]) -> torch.Tensor:
    """Return the log-probabilities of `completion` after the prompt, by transformers."""
    logits = model(input_ids=torch.tensor([PROMPT + completion])).logits[0, len(PROMPT) - 1 : -1].float()
    return logits.log_softmax(-1)[torch.arange(len(completion)), completion]


class Compare(TrainerCallback):
    """Measures before the first step and after the last."""

    def __init__(self, first_weights: str):
        self.first = AutoModelForCausalLM.from_pretrained(first_weights, dtype=torch.float32)
        self.differences: dict[str, float] = {}
        self.trainer: DUMPTrainer | None = None

    def measure(self, name: str, model) -> None:
        completion, logprobs = engine_logprobs(self.trainer)
        with self.trainer._dist.gather_params(list(model.parameters())):
            self.differences[name] = (logprobs - model_logprobs(model, completion)).abs().max().item()
        self.differences[f"{name}_first_weights"] = (
            (logprobs - model_logprobs(self.first, completion)).abs().max().item()
        )

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.vllm_generation.sync_weights()
        self.measure("before", self.trainer.accelerator.unwrap_model(self.trainer.model))

    def on_train_end(self, args, state, control, **kwargs):
        self.trainer.vllm_generation.sync_weights()
        self.measure("after", self.trainer.accelerator.unwrap_model(self.trainer.model))


class Progress(TrainerCallback):
    """Tells a test that kills how far the run is."""

    def on_step_end(self, args, state, control, **kwargs):
        print(f"step {state.global_step}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mode", default="colocate", choices=["colocate", "server", "none"])
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--group_port", type=int, default=51216)
    parser.add_argument("--untied", action="store_true")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--progress", default="none", choices=["none", "episode", "prefix"])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--save_steps", type=int, default=1000)
    parser.add_argument("--learning_rate", type=float, default=1e-2)
    parser.add_argument("--resume_from_checkpoint")
    args = parser.parse_args()
    rank = PartialState(cpu=True).process_index
    model = args.folder / "model"
    if not model.exists() and rank == 0:
        save_model(model, tied=not args.untied)
    PartialState().wait_for_everyone()
    compare = Compare(str(model))
    measured = {"episodes": {"by": "tokens", "tokens": 4}, "forcing_suffix": "\nanswer ", "forced_answer_tokens": 4}
    training_args = config(
        args.folder / "run",
        MRTConfig,
        progress=args.progress,
        **(measured if args.progress != "none" else {}),
        max_steps=args.steps,
        save_strategy="steps",
        save_steps=args.save_steps,
        learning_rate=args.learning_rate,
        use_vllm=args.mode != "none",
        vllm_mode="server" if args.mode == "server" else "colocate",
        vllm_server_base_url=f"http://127.0.0.1:{args.port}",
        vllm_group_port=args.group_port,
        vllm_max_model_length=128,
        model_init_kwargs={"dtype": "float32"},
    )
    shard_small_parameters(training_args)
    trainer = (DUMPTrainer if args.progress == "none" else MRTTrainer)(
        model=str(model),
        reward_funcs=digits,
        args=training_args,
        train_dataset=rows(),
        callbacks=[Progress(), ShardingReport()],
        peft_config=LoraConfig(r=4, target_modules="all-linear") if args.lora else None,
    )
    if args.mode != "none":
        compare.trainer = trainer
        trainer.add_callback(compare)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    keys = ("sampling/sampling_logp_difference/max", "sampling/importance_sampling_ratio/mean", "time/sync")
    keys += ("vllm/prefix_cache_hit_rate", "progress/value_at_start", "progress/prefix_tokens")
    log = [{key: row[key] for key in keys if key in row} for row in trainer.state.log_history if "reward" in row]
    if rank == 0:
        print(json.dumps({**compare.differences, "log": log}))


if __name__ == "__main__":
    main()
