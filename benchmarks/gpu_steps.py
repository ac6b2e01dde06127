"""The parts `rollouts`, `step` and `memory` of `gpu.py`: random models of Qwen's shapes, one process, bf16 autocast.

Without a GPU the models are tiny and the vocabulary is the starter's.
"""

import gc
import json
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from gpu_report import Report, pooled, run_part, training_options
from shared import percentile_interval

VOCABULARY = 151_936
SHAPES = {
    "0.5B": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    "1.5B": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
    "Qwen3 0.6B": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
TOKENS = {True: 128, False: 16}  # of a completion in the part `step`, on a GPU or not
PARTS = ("generate", "score", "forward_backward")
GIB = 2**30


def random_model(shape: str, tokenizer, on_gpu: bool, ends: int = 1):
    """Make a model of that shape on the device; a completion ends with any of the last `ends` ids."""
    from transformers import AutoConfig, AutoModelForCausalLM, set_seed

    size = len(tokenizer)
    config = AutoConfig.for_model(
        "qwen3" if shape.startswith("Qwen3") else "qwen2",
        **(SHAPES[shape] if on_gpu else TINY),
        vocab_size=size,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    set_seed(0)
    with torch.device("cuda" if on_gpu else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(size - ends, size)]
    return model


def wide_tokenizer(on_gpu: bool):
    """Return the starter's tokenizer, on a GPU with words that no text has up to Qwen2.5's vocabulary."""
    from tokenizers import Tokenizer

    from metatune.curricula import build_tokenizer

    tokenizer = build_tokenizer()
    written = json.loads(tokenizer.backend_tokenizer.to_str())
    size = VOCABULARY if on_gpu else 512
    written["model"]["vocab"] |= {f"~{number}": number for number in range(len(tokenizer), size)}
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(written))
    return tokenizer


# ---- rollouts ----

ENGINES = {"TRL's generation": None, "compact": 0.125, "compact, drops a half": 0.5, "compact, drops none": 1.0}


def rollouts(report: Report, folder: Path) -> None:
    """Let the engines sample the same 8 prompts x 8 completions in turns; the first rounds show what a start costs."""
    from metatune.trainers import DUMPConfig, DUMPTrainer, generation

    tokenizer = wide_tokenizer(report.on_gpu)
    limit, rounds = TOKENS[report.on_gpu], 3 if report.quick or not report.on_gpu else 8
    options = training_options(folder / "rollouts", True, report.on_gpu, max_completion_length=limit)
    model = random_model("0.5B", tokenizer, report.on_gpu, ends=len(tokenizer) // 50)
    trainer: Any = DUMPTrainer(
        model, lambda completions, **_: [0.0], DUMPConfig(**options), pooled(200)[0], processing_class=tokenizer
    )
    prompts = [tokenizer.encode("a" * (20 + number))[:64] for number in range(8) for _ in range(8)]
    seconds: dict[str, list[float]] = defaultdict(list)
    tokens: dict[str, int] = defaultdict(int)
    with report.case("tokens a second of rollouts") as say:
        for done in range(rounds):
            for name, fraction in ENGINES.items():
                trainer._compact = fraction is not None
                generation.MIN_DROPPED_FRACTION = fraction
                torch.manual_seed(done)
                started = time.perf_counter()
                completions, _ = trainer._generate_single_turn(prompts, None, {}, 8)
                if report.on_gpu:
                    torch.cuda.synchronize()
                seconds[name].append(time.perf_counter() - started)
                tokens[name] += sum(map(len, completions))
            took = sum(max(values) for values in seconds.values())
            if report.seconds_left < took + 10:
                break
        say(f"{done + 1} rounds, 8 prompts x 8 completions of up to {limit} tokens")
    for name, values in seconds.items():
        rate = tokens[name] / sum(values)
        report.row(f"rollouts, {name}", f"{rate:,.0f} tokens/s; seconds {', '.join(f'{v:.2f}' for v in values)}")
        report.claim(f"rollout tokens a second, {name}", rate, seconds=values)


# ---- seconds of a step ----

SIDES = {
    "stock TRL": {},
    "all off": {},
    "curriculum, progress, compact, by length": {"fast": True, "progress": "episode"},
}


def step(report: Report, folder: Path) -> None:
    """Let the three sides take turns step by step in one trainer, which changes its class and its options."""
    with report.case("seconds of a step") as say:
        seconds, parts, tokens = take_turns(report, folder)
        rounds = len(seconds["all off"])
        say(f"{rounds} rounds of three steps, 8 prompts x 8 completions, up to {TOKENS[report.on_gpu]} tokens")
        for side, values in seconds.items():
            how = ", ".join(f"{part} {np.median(parts[side][part]):.3f}" for part in PARTS)
            rate = sum(tokens[side]) / sum(parts[side]["generate"])
            length = np.mean(tokens[side]) / 64
            median, spread = float(np.median(values)), f"[{min(values):.3f}, {max(values):.3f}]"
            report.row(
                f"step, {side}", f"{median:.3f} s {spread}: {how}; {rate:,.0f} tokens/s of {length:.0f} a rollout"
            )
            report.claim(f"seconds of a step, {side}", median, range=[min(values), max(values)], rounds=rounds)
            report.claim(f"rollout tokens a second, {side}", rate, rounds=rounds)
        for side in list(SIDES)[1:]:
            ratio, ci = ratio_of_medians(seconds[side], seconds["stock TRL"])
            goal = {"goal": "<= 1.02", "met": ratio <= 1.02} if side == "all off" else {}
            report.row(f"step over stock TRL's, {side}", f"{ratio:.3f} [{ci[0]:.3f}, {ci[1]:.3f}]")
            report.claim(f"step over stock TRL's, {side}", ratio, ci=ci, rounds=rounds, **goal)


def ratio_of_medians(ours: list[float], base: list[float]) -> tuple[float, list[float]]:
    """Return the ratio of the medians and its 95 % percentile bootstrap interval over rounds."""
    rounds = np.array(list(zip(ours, base, strict=True)))
    draws = np.random.default_rng(0).integers(0, len(rounds), (2_000, len(rounds)))
    above, below = (np.median(rounds[:, side][draws], axis=1) for side in (0, 1))
    return float(np.median(rounds[:, 0]) / np.median(rounds[:, 1])), percentile_interval(above / below)


def take_turns(report: Report, folder: Path) -> tuple[dict, dict, dict]:
    """Train until the time is over; return seconds, seconds by part, and rollout tokens of each side's steps.

    One id in 50 ends a completion, so that lengths differ as a real model's do: geometric, cut off at the limit.
    """
    from transformers import TrainerCallback
    from trl import GRPOTrainer

    from metatune.curricula import make_curriculum
    from metatune.trainers import MetaConfig, MetaTrainer

    on_gpu, wanted = report.on_gpu, 3 if report.quick or not report.on_gpu else 8
    tokenizer = wide_tokenizer(on_gpu)
    seconds: dict[str, list[float]] = defaultdict(list)
    parts: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    tokens: dict[str, list[float]] = defaultdict(list)
    order = list(SIDES)

    class TakingTurns(TrainerCallback):
        """Changes the trainer before each step; the first round warms up."""

        def on_step_begin(self, args, state, control, **kwargs):
            if on_gpu:
                torch.cuda.synchronize()
            now, done = time.perf_counter(), state.global_step
            trainer._throughput.times.stop()
            if done >= len(order):
                side = order[done % 3 - 1]
            if done > len(order):
                seconds[side].append(now - self.start)
                for part, value in self.parts().items():
                    parts[side][part].append(value)
                tokens[side].append(trainer._rollouts)
            self.choose(order[done % 3], args)
            self.start = time.perf_counter()

        def parts(self) -> dict[str, float]:
            times = trainer._throughput.times
            return {**times.seconds, "forward_backward": times.total - sum(times.seconds.values())}

        def choose(self, side: str, args) -> None:
            stock, fast = side == "stock TRL", SIDES[side].get("fast", False)
            trainer.__class__ = Stock if stock else Ours
            args.progress = SIDES[side].get("progress", "none")
            args.length_grouping = trainer._compact = fast
            trainer.curriculum = curricula["dump" if fast else "uniform"]
            trainer._throughput.times.reset()

        def on_step_end(self, args, state, control, **kwargs):
            round_over = state.global_step % 3 == 0
            took = 3 * max((max(each) for each in seconds.values()), default=0.0)
            if round_over and report.seconds_left < took + 10:
                control.should_training_stop = True

    class Counted:
        """Counts a step's rollout tokens on either side, before TRL pads them."""

        def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
            self._rollouts = sum(map(len, completion_ids_list))
            return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

    class Ours(Counted, MetaTrainer):
        pass

    class Stock(Counted, GRPOTrainer):
        """Stock TRL, timed around the same two methods."""

        def _generate_single_turn(self, *args, **kwargs):
            with self._throughput.phase("generate"):
                return super()._generate_single_turn(*args, **kwargs)

        def _calculate_rewards(self, *args, **kwargs):
            with self._throughput.phase("score"):
                return super()._calculate_rewards(*args, **kwargs)

    def coin(completions, **kwargs):
        """A random model is never right: any reward that differs within a group."""
        return [float(len(completion[0]["content"]) % 2) for completion in completions]

    args = MetaConfig(
        **training_options(
            folder / "step",
            True,
            on_gpu,
            max_steps=3 * (wanted + 1) + 1,
            per_device_train_batch_size=16,
            gradient_accumulation_steps=4,
            num_generations=8,
            max_completion_length=TOKENS[on_gpu],
            learning_rate=1e-6,
            progress="episode",
            success_estimator="likelihood",
            episodes={"by": "tokens", "tokens": TOKENS[on_gpu] // 4},
            forcing_suffix="\nanswer ",
            curriculum="dump",
            meta_every=0,
        )
    )
    model = random_model("0.5B", tokenizer, on_gpu, ends=len(tokenizer) // 50)
    trainer: Any = Ours(model, coin, args, pooled(200)[0], processing_class=tokenizer, callbacks=[TakingTurns()])
    uniform = make_curriculum("uniform", trainer.curriculum.arms, seed=args.seed)
    curricula = {"dump": trainer.curriculum, "uniform": uniform}
    # The trainer's own callback would measure and reset at every log line: here only its clock is wanted.
    trainer._throughput.on_step_end = lambda *args, **kwargs: None
    trainer.train()
    shortest = min(len(seconds[side]) for side in SIDES)
    if not shortest:
        raise RuntimeError("no round was over in time: give the part a larger limit")
    return (
        {side: values[:shortest] for side, values in seconds.items()},
        {side: {part: each[:shortest] for part, each in values.items()} for side, values in parts.items()},
        {side: values[:shortest] for side, values in tokens.items()},
    )


# ---- memory ----

# Shape, rows of a micro-batch, tokens of a prompt and of a completion, gradient checkpointing; math_1gpu.yaml's first.
WORK = {
    "1.5B, 32 x (256 + 2048)": ("1.5B", 32, 256, 2048, True),
    "1.5B, 8 x (256 + 1024)": ("1.5B", 8, 256, 1024, True),
    "0.5B, 32 x (256 + 2048)": ("0.5B", 32, 256, 2048, True),
    "0.5B, 8 x (256 + 1024), no checkpointing": ("0.5B", 8, 256, 1024, False),
    # Not yet run when the formula was written that the four above led to.
    "1.5B, 16 x (512 + 3072)": ("1.5B", 16, 512, 3072, True),
    "0.5B, 16 x (256 + 1024), no checkpointing": ("0.5B", 16, 256, 1024, False),
    "Qwen3 0.6B, 16 x (256 + 2048)": ("Qwen3 0.6B", 16, 256, 2048, True),
}


def memory(report: Report, folder: Path) -> None:
    """Two optimizer steps of two micro-batches each, the rollouts given, as by an engine that sleeps meanwhile."""
    tokenizer = wide_tokenizer(report.on_gpu)
    for name, work in list(WORK.items())[: 2 if report.quick and report.on_gpu else None]:
        with report.case(f"peak memory, {name}") as say:
            say(peak(report, name, tokenizer, folder, *work))
        gc.collect()
        if report.on_gpu:
            torch.cuda.empty_cache()


def peak(report: Report, name, tokenizer, folder, shape, rows, prompt_length, length, checkpointing) -> str:
    """Train, and return the peak beside doctor's estimate of the same run."""
    from metatune.recipes.examine import workload_of
    from metatune.recipes.memory import estimate, shape_of
    from metatune.recipes.target import Hardware, Launch
    from metatune.trainers import DUMPConfig, DUMPTrainer

    on_gpu = report.on_gpu
    rows, prompt_length, length = (rows, prompt_length, length) if on_gpu else (4, 16, 32)
    total = torch.cuda.get_device_properties(0).total_memory if on_gpu else 16 * GIB
    options = training_options(folder / "memory", True, on_gpu, max_steps=2)
    options |= {"per_device_train_batch_size": rows, "num_generations": 4, "max_completion_length": length}
    options |= {"gradient_checkpointing": checkpointing, "epsilon_high": 0.28, "beta": 0.0, "learning_rate": 1e-6}
    args = DUMPConfig(**options)
    model = random_model(shape, tokenizer, on_gpu)
    config = model.config
    hardware = Hardware(gpus=int(on_gpu), gpu_memory=total, memory=None, told=False)
    work = workload_of("grpo", args, "float32", Launch(), prompt_length, hardware, on_gpu)
    expected = estimate(shape_of(config), replace(work, generated=0)).as_dict()
    words = "a" * (prompt_length - 2)  # a token each, and two of the chat template
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": words}], "distribution": "all"}] * 64)
    rng = np.random.default_rng(0)
    widths = []

    class Given(DUMPTrainer):
        def _generate_single_turn(self, prompt_ids, *more, **kwargs):
            widths.append(max(map(len, prompt_ids)))
            return [rng.integers(8, len(tokenizer), length).tolist() for _ in prompt_ids], None

    def coin(completions, **kwargs):
        return [float(number % 2) for number in range(len(completions))]

    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    trainer = Given(model, coin, args, data, processing_class=tokenizer)
    trainer.train()
    log = [row for row in trainer.state.log_history if "loss" in row]
    if widths != [prompt_length] * 2 or not all(np.isfinite(row["grad_norm"]) and row["grad_norm"] for row in log):
        raise RuntimeError(f"prompts of {widths} tokens, norms {[row.get('grad_norm') for row in log]}")
    if not on_gpu:
        return f"doctor's estimate {expected['peak'] / GIB:.3f} GiB; nothing is measured on a CPU"
    held = max(row["memory/peak_gib"] for row in log)
    reserved = torch.cuda.max_memory_reserved() / GIB
    ratio = held * GIB / expected["peak"]
    about = {"rows": rows, "prompt": prompt_length, "completion": length, "reserved_gib": reserved}
    about |= {"estimate_gib": {part: round(value / GIB, 2) for part, value in expected.items() if value}}
    claim = f"peak memory over doctor's estimate, {name}"
    report.claim(claim, ratio, goal="0.9 to 1.1", met=0.9 <= ratio <= 1.1, allocated_gib=held, **about)
    seconds = ", ".join(f"{row['time/step']:.1f}" for row in log)
    told = f"{held:.1f} GiB allocated, {reserved:.1f} reserved; estimate {expected['peak'] / GIB:.1f}: {ratio:.3f}"
    return f"{told}; steps of {seconds} s"


if __name__ == "__main__":
    run_part({"rollouts": rollouts, "step": step, "memory": memory})
