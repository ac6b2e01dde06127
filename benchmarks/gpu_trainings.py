"""The part `trainings` of `gpu.py`: every trainer takes a few steps; what a GPU computes is compared with a CPU."""

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from datasets import Dataset
from gpu_report import PRECISIONS, TASKS, Report, pooled, run_part, training_options
from simulated_judge import PROGRAMS, SimulatedJudgeServer

TOKENS = 48
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic algorithms ask for it
EPISODES = {"episodes": {"by": "tokens", "tokens": 8}}
FORCED = {"forced_answer_tokens": 12, "num_forced_answers": 2}
LIKELIHOOD = {"progress": "episode", "success_estimator": "likelihood", **EPISODES}
FAST = {"compact_generation": True, "length_grouping": True}
POLICIES: dict[str, dict[str, Any]] = {  # options of MetaTrainer; without a judge it is the smaller trainers
    "DUMP, TRL's generation": {},
    "DUMP, compact, by length, evaluation": {**FAST, "eval_strategy": "steps", "eval_steps": 2},
    "DUMP, continuous batching": {
        "use_transformers_continuous_batching": True,
        # by default it takes most of the memory that is free
        "transformers_continuous_batching_config": {"num_blocks": 256, "block_size": 32, "max_batch_tokens": 512},
    },
    "DUMP, reference model, two iterations": {**FAST, "beta": 0.04, "num_iterations": 2},
    "DUMP, LoRA": FAST,
    "MRT, episode by likelihood": {**FAST, **LIKELIHOOD},
    "MRT, episode by rollouts": {"progress": "episode", **EPISODES, **FORCED},
    "MRT, prefix": {**FAST, "progress": "prefix", **EPISODES, "forced_answer_tokens": 12},
    "MRT, anytime": {**FAST, "progress": "anytime", **FORCED},
    "MRT, length penalty": {**FAST, "progress": "length_penalty", "progress_weight": 0.3},
    "MPO, simulated judge": {**FAST, "meta_every": 1, "meta_cases": 6, "gate_cases": 8},
    "all at once, with a reward model": {
        **FAST,
        **LIKELIHOOD,
        "meta_every": 1,
        "meta_cases": 6,
        "gate_cases": 8,
        "curriculum_reward": "gold",
    },
}
REWARD_MODELS = {
    "reward model, plain": {},
    "reward model, soft labels, SwAV, MetaRM": {
        "soft_labels": 0.1,
        "contrastive": "swav",
        "num_prototypes": 8,
        "meta_step": "normalised",
        "meta_step_size": 0.1,
        "per_device_meta_batch_size": 4,
    },
    "reward model, SimCSE, weights": {"contrastive": "simcse", "pair_weights": True},
}


def trainings(report: Report, folder: Path) -> None:
    """Run everything; the reward model that is trained first pays in `all at once`."""
    equal_to_stock(report, folder)
    for name, options in REWARD_MODELS.items():
        for precision, half in PRECISIONS.items():
            with report.case(f"{name}, {precision}") as say:
                say(train_reward_model(folder / f"rm {name} {precision}", half, report.on_gpu, options))
    scored_by = folder / "rm reward model, plain float32"
    policies(report, folder, scored_by, [name for name in POLICIES if "continuous" not in name])
    with report.case("sft, from the command's recipe") as say:
        say(train_sft(folder / "sft", report.on_gpu))
    evaluations(report, folder, ["compact", "transformers", "token budgets"])
    against_the_cpu(report, scored_by)
    if report.on_gpu:  # by far too slow on a CPU; last, because an engine with threads of its own may hang
        policies(report, folder, scored_by, [name for name in POLICIES if "continuous" in name])
        evaluations(report, folder, ["continuous_batching"])


def policies(report: Report, folder: Path, scored_by: Path, names: list[str]) -> None:
    for name in names:
        for precision, half in PRECISIONS.items():
            with report.case(f"{name}, {precision}") as say, judge_for(name) as judges:
                run = folder / f"{name} {precision}"
                say(train_policy(name, run, half, report.on_gpu, POLICIES[name], judges, scored_by))


# ---- trainers ----


@contextmanager
def judge_for(name: str) -> Iterator[Callable[[], tuple[list, dict]] | None]:
    """For what has a judge: a function that makes its reward and the trainer's further arguments."""
    if not ("judge" in name or "all at once" in name):
        yield None
        return
    from metatune.rewards import Judge, JudgeClient, JudgeReward, MetaJudge, Rubric, RubricItem

    rubric = Rubric("Answer.", tuple(RubricItem(item, *PROGRAMS[item][:2]) for item in ("rich", "care")))
    with SimulatedJudgeServer() as server:
        client = JudgeClient(server.url, retries=1)
        judge = JudgeReward(Judge(client, rubric))
        yield lambda: ([judge], {"meta_judge": MetaJudge(client, num_refinements=1)})


def train_policy(name, folder, half, on_gpu, options, judges, scored_by) -> str:
    """Train the starter and return what is to be said; raises if it did not train."""
    from peft import LoraConfig

    from metatune.recipes.adapters import STARTER
    from metatune.rewards import RewardModel, RewardModelReward, correctness_reward
    from metatune.trainers import MetaConfig, MetaTrainer

    rewards, more = judges() if judges else ([], {})
    if "reward model" in name:
        rewards.append(RewardModelReward(RewardModel(scored_by)))
    weights = [1.0, 0.5, 0.1][: 1 + len(rewards)]
    train, test = pooled()
    args = MetaConfig(
        **training_options(
            folder,
            half,
            on_gpu,
            **{
                "num_generations": 4,
                "max_completion_length": TOKENS,
                "num_generations_eval": 1,
                "log_completions": True,
                "num_completions_to_print": 0,
                "reward_weights": weights,
                "model_init_kwargs": {"dtype": "float32"},
                **({} if judges else {"meta_every": 0}),
                **options,
            },
        )
    )
    trainer = MetaTrainer(
        model=str(STARTER),
        reward_funcs=[correctness_reward, *rewards],
        args=args,
        train_dataset=train,
        eval_dataset=test,
        peft_config=LoraConfig(r=4, target_modules="all-linear") if "LoRA" in name else None,
        **more,
    )
    log = check_trained(trainer, on_gpu)
    said = f"loss {log[-1]['loss']:+.4f}, rollouts {log[-1]['throughput/rollout_tokens_per_second']:,.0f} tokens/s"
    return said + (f", rubric {log[-1]['rubric/version']:.0f}" if judges else "")


def train_reward_model(folder, half, on_gpu, options) -> str:
    """Train a small reward model from the starter, save it, and return what is to be said."""
    from metatune.recipes.adapters import STARTER
    from metatune.trainers import MetaRewardConfig, MetaRewardTrainer

    args = MetaRewardConfig(
        **training_options(folder, half, on_gpu, model_init_kwargs={"dtype": "float32"}, **options)
    )
    meta = None
    if "meta_step" in options:
        rows = [{"prompt": f"{i} + 1 = ", "responses": [f"{i}", f"{i + 1}", f"{i}{i}"]} for i in range(16)]
        meta = Dataset.from_list(rows)
    trainer = MetaRewardTrainer(str(STARTER), args=args, train_dataset=pairs(), meta_dataset=meta)
    log = check_trained(trainer, on_gpu)
    trainer.save_model()
    return f"loss {log[-1]['loss']:.4f}"


def pairs() -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": f"{i} + {3 * i} = ",
                "chosen": str(4 * i),
                "rejected": str(4 * i + 1 + i % 5),
                "strength": i % 3 - 0.5,
                "weight": 0.5 + i % 2,
            }
            for i in range(64)
        ]
    )


def check_trained(trainer, on_gpu: bool) -> list[dict]:
    """Train; raise unless every step has a finite loss, some step a gradient, and all weights moved on the device."""
    before = [parameter.detach().clone() for parameter in trainer.model.parameters() if parameter.requires_grad]
    trainer.train()
    log = [row for row in trainer.state.log_history if "loss" in row]
    after = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    if len(log) != trainer.args.max_steps or not all(math.isfinite(row["loss"] + row["grad_norm"]) for row in log):
        raise RuntimeError(f"losses {[row['loss'] for row in log]}, norms {[row['grad_norm'] for row in log]}")
    if {parameter.device.type for parameter in after} != {"cuda" if on_gpu else "cpu"}:
        raise RuntimeError("the weights are not on the device that was asked for")
    if not any(row["grad_norm"] > 0 for row in log):
        raise RuntimeError("no step had a gradient")
    if all(torch.equal(old.cpu(), new.cpu()) for old, new in zip(before, after, strict=True)):
        raise RuntimeError("no weight has changed")
    return log


def train_sft(folder: Path, on_gpu: bool) -> str:
    from metatune.recipes import sft

    recipe = {**training_options(folder, on_gpu, on_gpu), "model_name_or_path": "starter", "dtype": "float32"}
    recipe |= {"distributions": [TASKS[0]], "demonstrations": 64}
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(recipe))
    sft.main(*sft.make_parser().parse_args_and_config(["--config", str(path)]))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return f"loss {[row['loss'] for row in rows if 'loss' in row][-1]:.4f}"


# ---- all off is stock TRL ----


def equal_to_stock(report: Report, folder: Path) -> None:
    """Compare runs of one seed: stock TRL with itself, which a GPU need not repeat, and with everything off."""
    from trl import GRPOTrainer

    from metatune.trainers import MetaTrainer

    for precision, half in PRECISIONS.items():
        for kind in ("", ", deterministic algorithms"):
            torch.use_deterministic_algorithms(bool(kind))
            equal, stock, again = False, None, None
            with report.case(f"stock TRL twice, {precision}{kind}") as say:
                try:
                    stock = record(GRPOTrainer, folder, half, report.on_gpu)
                except RuntimeError as error:
                    if not kind or "determinis" not in str(error):
                        raise
                    say(f"refused: {str(error).splitlines()[0][:90]}; so where there are any")
                    torch.use_deterministic_algorithms(True, warn_only=True)
                    stock = record(GRPOTrainer, folder, half, report.on_gpu)
                again = record(GRPOTrainer, folder, half, report.on_gpu)
                say(difference(stock, again)[1])
            with report.case(f"MetaTrainer, all off, against stock TRL, {precision}{kind}") as say:
                ours = record(MetaTrainer, folder, half, report.on_gpu)
                equal, said = difference(ours, stock)
                say(said)
                report.claim(f"all off equals stock TRL bit for bit, {precision}{kind}", equal, goal="true", met=equal)
                if not equal and difference(stock, again)[0]:
                    raise RuntimeError(f"stock TRL repeats itself, and all off is {said}")
            torch.use_deterministic_algorithms(False)
            if equal:
                break


def record(trainer_class, folder: Path, half: bool, on_gpu: bool) -> tuple[list, list]:
    """Train four steps on one distribution; return the log's numbers and the weights."""
    from trl import GRPOConfig, GRPOTrainer

    from metatune.recipes.adapters import STARTER
    from metatune.rewards import correctness_reward
    from metatune.trainers import MetaConfig

    stock = trainer_class is GRPOTrainer
    off = {} if stock else {"curriculum": "uniform", "meta_every": 0}
    options = training_options(folder / "stock", half, on_gpu, max_steps=4, learning_rate=1e-3)
    options |= {"num_generations": 4, "max_completion_length": TOKENS, "model_init_kwargs": {"dtype": "float32"}}
    trainer = trainer_class(
        model=str(STARTER),
        reward_funcs=correctness_reward,
        args=(GRPOConfig if stock else MetaConfig)(**options, **off),
        train_dataset=pooled(names=("search",))[0],
    )
    trainer.train()
    log = [row for row in trainer.state.log_history if "loss" in row]
    curve = [[row[key] for key in ("loss", "grad_norm", "reward", "completions/mean_length")] for row in log]
    return curve, [parameter.detach().cpu() for parameter in trainer.model.parameters()]


def difference(mine: tuple[list, list], theirs: tuple[list, list]) -> tuple[bool, str]:
    """Tell whether two runs are equal bit for bit, and the largest differences of the losses and of the weights."""
    equal = mine[0] == theirs[0] and all(torch.equal(a, b) for a, b in zip(mine[1], theirs[1], strict=True))
    loss = np.abs(np.array(mine[0])[:, 0] - np.array(theirs[0])[:, 0]).max()
    weight = max((a - b).abs().max().item() for a, b in zip(mine[1], theirs[1], strict=True))
    return equal, "equal bit for bit" if equal else f"not equal: losses by up to {loss:.1e}, weights by {weight:.1e}"


# ---- evaluation ----


def evaluations(report: Report, folder: Path, kinds: list[str]) -> None:
    """Run `metatune eval`, greedily, by engines of transformers, or at token budgets."""
    from metatune.recipes import cli

    for kind in kinds:
        name, options = f"metatune eval, {kind}", {"engine": kind, "max_new_tokens": TOKENS}
        if kind == "token budgets":
            options = {"budgets": [16, 32, TOKENS]}
        with report.case(name) as say:
            out = folder / name
            values = {"model": "starter", "distributions": [{**task, "test_size": 24} for task in TASKS]}
            values |= {"temperature": 0.0, "output_dir": str(out), **options}
            path = folder / f"{name}.yaml"
            path.write_text(yaml.safe_dump(values))
            if report.on_gpu:
                torch.cuda.reset_peak_memory_stats()
                held = torch.cuda.memory_allocated()
            code = cli.main(["eval", "--config", str(path)])
            if code or (report.on_gpu and torch.cuda.max_memory_allocated() <= held):
                raise RuntimeError(f"exit code {code}; on the GPU: {report.on_gpu and torch.cuda.memory_allocated()}")
            say(f"greedy accuracy {json.loads((out / 'summary.json').read_text())['accuracy']:.3f}")


# ---- the same numbers on both ----


def against_the_cpu(report: Report, reward_model: Path) -> None:
    """Compute in float32 on both devices what is computed without sampling."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from metatune.eval.likelihood import response_log_probabilities
    from metatune.recipes.adapters import STARTER
    from metatune.rewards import RewardModel
    from metatune.trainers.answer_likelihood import AnswerTrie, Branch, Tree, success_probabilities
    from metatune.trainers.generation import sample_completions

    found: dict[str, list] = {}
    with report.case("computing on both devices"):
        tokenizer = AutoTokenizer.from_pretrained(STARTER)
        model = AutoModelForCausalLM.from_pretrained(STARTER, dtype=torch.float32).eval()
        prompts = pooled()[1]["prompt"]
        ids = [tokenizer.apply_chat_template(each, add_generation_prompt=True, return_dict=False) for each in prompts]
        stops = {"eos_token_ids": [tokenizer.eos_token_id], "pad_token_id": tokenizer.pad_token_id}
        texts = ["1 + 2 = 3", "4 - 1", "answer 7"]
        for device in ("cpu", "cuda" if report.on_gpu else "cpu"):
            model.to(device)
            greedy = sample_completions(model, ids, max_new_tokens=TOKENS, temperature=0.0, **stops)
            found.setdefault("greedy", []).append(greedy)
            traces = [[*prompt, *made] for prompt, made in zip(ids, found["greedy"][0], strict=True)]
            trie = AnswerTrie(tokenizer("\nanswer ")["input_ids"], [tokenizer(each)["input_ids"] for each in texts])
            trees = [Tree(each, [Branch(cut, trie) for cut in (4, len(each) // 2, len(each))]) for each in traces]
            values = success_probabilities(model, trees, [tokenizer.eos_token_id])
            found.setdefault("log success by likelihood", []).append(np.log(np.array(values).flatten()))
            answers = [[{"role": "assistant", "content": text}] for text in texts * len(prompts)][: len(prompts)]
            values = response_log_probabilities(model, tokenizer, list(prompts), answers)
            found.setdefault("log-probabilities of responses", []).append(values)
            scorer = RewardModel(reward_model, device=device)
            scores = scorer.score([f"{i} + 1 = " for i in range(8)], [str(i) for i in range(8)])
            found.setdefault("scores of a reward model", []).append(scores)
    with report.case("GPU against CPU: greedy completions") as say:
        same = sum(mine == theirs for mine, theirs in zip(*found["greedy"], strict=True))
        say(f"{same} of {len(ids)} equal")
    for name in list(found)[1:]:
        with report.case(f"GPU against CPU: {name}") as say:
            off = float(np.abs(np.array(found[name][0]) - np.array(found[name][1])).max())
            say(f"differ by up to {off:.1e}")
            report.claim(f"largest difference of {name}, float32, GPU and CPU", off, goal="<= 1e-3", met=off <= 1e-3)
            if not off <= 1e-3:
                raise RuntimeError(f"differ by {off}")


if __name__ == "__main__":
    run_part({"trainings": trainings})
