"""What does it cost to measure progress?

    python benchmarks/progress_cost.py [--steps 40] [--quick]

Seconds of a GRPO step of the starter on countdown, 4 prompts of 8 completions, from its beginning to that of the
next: without progress, with values by likelihood (goal: at most 1.3 times), and with 4 forced answers a prefix (goal:
at most 2 times). One trainer does each kind of step in turn, with a learning rate of 0, so that all see the same model
and what slows the machine slows all. Once as TRL generates, once with `compact_generation` and `length_grouping`,
where a step is shorter and the same work weighs more. Ratios of medians, bootstrap over rounds of three steps. Also:
the seconds of the measuring in such a step.
"""

import argparse
import contextlib
import os
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from shared import CPU_RUN, percentile_interval, print_claims

KINDS = {"none": ("none", "likelihood"), "likelihood": ("episode", "likelihood"), "rollouts": ("episode", "rollouts")}
GOALS = {"likelihood": 1.3, "rollouts": 2.0}
TASKS = {"countdown-3": (3, "+-"), "countdown-4": (4, "+-"), "countdown-3-times": (3, "+-*")}


def measure(fast: bool, rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return the seconds of every step by kind, and of the measuring in it."""
    import datasets
    import torch
    from transformers import TrainerCallback

    from metatune.curricula import load_distributions
    from metatune.recipes.adapters import STARTER
    from metatune.rewards import correctness_reward
    from metatune.trainers import MRTConfig, MRTTrainer

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    seconds, measuring = defaultdict(list), defaultdict(list)

    class TakingTurns(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            now = time.perf_counter()
            if state.global_step:
                kind = list(KINDS)[(state.global_step - 1) % 3]
                seconds[kind].append(now - self.start)
                measuring[kind].append(trainer.measured)
            kind = list(KINDS)[state.global_step % 3]
            args.progress, args.success_estimator = KINDS[kind]
            trainer.measured = 0.0
            self.start = time.perf_counter()

    entries = [
        {
            "name": name,
            "source": "countdown",
            "config": {"numbers": n, "operators": ops},
            "train_size": 300,
            "test_size": 4,
        }
        for name, (n, ops) in TASKS.items()
    ]
    config = MRTConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=3 * (rounds + 2) + 1,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=2,
        num_generations=8,
        max_completion_length=96,
        learning_rate=0.0,
        progress="episode",
        episodes={"by": "delimiter"},
        forced_answer_tokens=16,
        curriculum="uniform",
        compact_generation=fast,
        length_grouping=fast,
        logging_steps=1,
        **CPU_RUN,
        model_init_kwargs={"dtype": "float32"},
    )
    trainer = MRTTrainer(
        model=str(STARTER),
        reward_funcs=correctness_reward,
        args=config,
        train_dataset=datasets.concatenate_datasets([d.train for d in load_distributions(entries)]),
        callbacks=[TakingTurns()],
    )
    estimate = trainer._estimate

    def timed(*args):
        start = time.perf_counter()
        values = estimate(*args)
        trainer.measured += time.perf_counter() - start
        return values

    trainer._estimate = timed
    with Path(os.devnull).open("w") as quiet, contextlib.redirect_stdout(quiet):
        trainer.train()
    warm = 2  # rounds that are not counted
    return {k: v[warm:] for k, v in seconds.items()}, {k: v[warm:] for k, v in measuring.items()}


def ratio_of_medians(ours: list[float], base: list[float]) -> tuple[float, list[float]]:
    """Return the ratio of the medians and its 95 % percentile bootstrap interval over rounds."""
    rounds = np.array(list(zip(ours, base, strict=False)))
    draws = np.random.default_rng(0).integers(0, len(rounds), (4_000, len(rounds)))
    ours_d, base_d = (np.median(rounds[:, side][draws], axis=1) for side in (0, 1))
    return float(np.median(rounds[:, 0]) / np.median(rounds[:, 1])), percentile_interval(ours_d / base_d)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="steps of each kind")
    parser.add_argument("--quick", action="store_true", help="the same path in a minute: 10 steps of each kind")
    args = parser.parse_args()
    steps = 10 if args.quick else args.steps
    claims = []
    print(f"{'generation':24}{'values by':12}{'s a step':>9}{'of it measuring':>17}   times a step without [95 %]")
    for name, fast in (("TRL's", False), ("compact, by length", True)):
        seconds, measuring = measure(fast, steps)
        for kind in KINDS:
            median = float(np.median(seconds[kind]))
            ratio, ci = ratio_of_medians(seconds[kind], seconds["none"])
            share = float(np.median(measuring[kind]))
            print(f"{name:24}{kind:12}{median:9.3f}{share:17.3f}   {ratio:.2f} [{ci[0]:.2f}, {ci[1]:.2f}]", flush=True)
            if kind in GOALS:
                claims.append(
                    {
                        "claim": f"step with values by {kind} over one without, {name} generation",
                        "value": ratio,
                        "ci": ci,
                        "goal": f"<= {GOALS[kind]}",
                        "met": ratio <= GOALS[kind],
                        "steps": len(seconds[kind]),
                    }
                )
    print_claims("progress_cost", claims)


if __name__ == "__main__":
    main()
