"""Where does the time of a GRPO step go on a CPU, and what do the two cheap gains buy?

    python benchmarks/step_time.py [--steps 10] [--repeats 5] [--quick]

Every variant takes the same steps from the packaged starter: 16 prompts × 8 completions of at most 96 tokens from five
distributions, one thread, float32. `stock` is TRL's `GRPOTrainer`; `compact` generates by dropping rows as they end,
`compact + grouping` also sorts each step's rows by length into micro-batches of 16. Sampling differs from variant to
variant, so times are also given by the token. The variants take turns; each time is the median over the repeats, with
the range; parts are timed around TRL's own methods, in the same run.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import defaultdict

import numpy as np
from shared import CPU_RUN, print_claims

PROMPTS, GENERATIONS = 16, 8
PARTS = ("generate", "score", "forward", "backward", "step")
# Name to micro-batch and options of DUMPTrainer; None is stock.
VARIANTS = {
    "stock, one batch": (128, None),
    "stock, micro-batches of 16": (16, None),
    "compact": (128, {"compact_generation": True}),
    "compact + grouping": (16, {"compact_generation": True, "length_grouping": True}),
}
DISTRIBUTIONS = [
    {"name": "countdown-3", "source": "countdown", "config": {"numbers": 3, "operators": "+-"}},
    {"name": "countdown-4", "source": "countdown", "config": {"numbers": 4, "operators": "+-*"}},
    {"name": "arithmetic-3", "source": "arithmetic", "config": {"terms": 3}},
    {"name": "arithmetic-6", "source": "arithmetic", "config": {"terms": 6}},
    {"name": "logic-4", "source": "logic", "config": {"people": 4}},
]


def timed(owner, name: str, part: str, seconds: dict[str, float]) -> None:
    """Replace a method of one object by itself with its wall-clock time added to `seconds[part]`."""
    method = getattr(owner, name)

    def wrapper(*args, **kwargs):
        start = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            seconds[part] += time.perf_counter() - start

    setattr(owner, name, wrapper)


def measure(variant: str, steps: int) -> dict[str, float]:
    """Train `steps` steps after one to warm up and return seconds a step by part, and completion tokens a step."""
    from datasets import concatenate_datasets
    from trl import GRPOConfig, GRPOTrainer

    from metatune.curricula import load_distributions
    from metatune.recipes.adapters import STARTER
    from metatune.rewards import correctness_reward
    from metatune.trainers import DUMPConfig, DUMPTrainer

    micro_batch, options = VARIANTS[variant]
    distributions = load_distributions([{**entry, "train_size": 200, "test_size": 10} for entry in DISTRIBUTIONS])
    common = {
        "output_dir": tempfile.mkdtemp(),
        "max_steps": steps + 1,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": PROMPTS * GENERATIONS // micro_batch,
        "num_generations": GENERATIONS,
        "max_completion_length": 96,
        "learning_rate": 1e-6,  # the lengths stay what they are
        "logging_steps": 1,
        **CPU_RUN,
        "model_init_kwargs": {"dtype": "float32"},
    }
    make_trainer, config = GRPOTrainer, None
    if options is None:
        config = GRPOConfig(**common)
    else:
        make_trainer, config = DUMPTrainer, DUMPConfig(**common, curriculum="uniform", **options)
    trainer = make_trainer(
        model=str(STARTER),
        reward_funcs=correctness_reward,
        args=config,
        train_dataset=concatenate_datasets([distribution.train for distribution in distributions]),
    )
    seconds: dict[str, float] = defaultdict(float)
    timed(trainer, "_generate_single_turn", "generate", seconds)
    timed(trainer, "_calculate_rewards", "score", seconds)
    timed(trainer, "_compute_loss", "forward", seconds)
    timed(trainer.accelerator, "backward", "backward", seconds)
    timed(trainer, "training_step", "step", seconds)
    tokens = []
    log = trainer.log

    def log_and_forget_the_first_step(logs, *args, **kwargs):
        log(logs, *args, **kwargs)
        if "completions/mean_length" in logs:
            if trainer.state.global_step == 1:
                seconds.clear()
            else:
                tokens.append(logs["completions/mean_length"] * PROMPTS * GENERATIONS)

    trainer.log = log_and_forget_the_first_step
    trainer.train()
    return {part: seconds[part] / steps for part in PARTS} | {"tokens": float(np.mean(tokens))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="the same path in a minute: 2 repeats of 3 steps")
    args = parser.parse_args()
    if args.quick:
        args.steps, args.repeats = 3, 2

    import datasets
    import torch

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    stdout = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # trainers print their logs
    results = defaultdict(list)
    for repeat in range(args.repeats):
        for variant in VARIANTS:
            results[variant].append(measure(variant, args.steps))
        print(f"repeat {repeat + 1} of {args.repeats} done", file=sys.stderr)
    os.dup2(stdout, 1)

    print(f"seconds a step, median of {args.repeats} [range]; {args.steps} steps each")
    print(f"{'variant':28}" + "".join(f"{part:>20}" for part in PARTS) + f"{'tokens':>9}{'ms/token':>10}")
    claims = []
    for variant, runs in results.items():
        cells = []
        for part in PARTS:
            values = [run[part] for run in runs]
            cells.append(f"{np.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]")
        tokens = float(np.median([run["tokens"] for run in runs]))
        per_token = [1000 * run["step"] / run["tokens"] for run in runs]
        print(
            f"{variant:28}" + "".join(f"{cell:>20}" for cell in cells) + f"{tokens:9.0f}{np.median(per_token):10.3f}"
        )
        claims.append(
            {
                "claim": f"milliseconds of a step per completion token, {variant}",
                "value": float(np.median(per_token)),
                "ci": [min(per_token), max(per_token)],
                "repeats": args.repeats,
            }
        )
    print_claims("step_time", claims)


if __name__ == "__main__":
    main()
