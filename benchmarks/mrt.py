"""Does pay for progress buy accuracy per token, beyond what GRPO buys?

    python benchmarks/mrt.py [--seeds 10] [--quick] [--workers 2]

Every method trains the same checkpoint, the starter taught to keep searching (recipes/mrt/searcher.yaml, made at the
first run), on the same countdown problems (search by one attempt a line, which is an episode) with the same GRPO
settings; only what is paid differs:

- `stock`: TRL's own `GRPOTrainer`; `grpo`: ours with everything off, which goes on to twice the steps, so that a
  method that costs more is compared with GRPO of the same compute too;
- `prefix_no_bonus`: rollouts that start from stale prefixes, no bonus: what `prefix` owes to its starts alone;
- `length_penalty`: right answers are worth less the longer they are;
- `episode` (values by likelihood), `episode_rollouts` (by 4 forced answers), `episode_to_go` (every episode is paid
  for all progress from it on), `prefix`, `prefix_joint` (with the paper's joint baseline), `anytime` (by likelihood).

Held-out problems, sampled traces, forced answers at each budget (eval/test_time.py): accuracy at the trained length,
tokens of a trace, regret up to the trained length, accuracy extended to 2 and 4 times of it, and the tokens at equal
accuracy against GRPO, at the highest accuracy that both reach at some budget. Compute counts tokens through the model,
a trained one as three. Intervals: percentile bootstrap over seeds, paired by seed.

Finished runs are kept in benchmarks/results/mrt_runs.jsonl, so an interrupted benchmark goes on where it stopped;
delete the file after a change of a trainer or the starter. Seeds from 1000 on are for tuning.
"""

import argparse
import subprocess
import sys
import tempfile
import time

import numpy as np
from shared import CPU_RUN, ROOT, bootstrap, print_claims, run_jobs

RUNS = ROOT / "benchmarks" / "results" / "mrt_runs.jsonl"
PREFIX = {"progress": "prefix", "episodes": {"by": "delimiter"}}
EPISODE = {"progress": "episode", "episodes": {"by": "delimiter"}}
LIKELIHOOD = {**EPISODE, "success_estimator": "likelihood"}
METHODS = {
    "stock": None,
    "grpo": {"progress": "none"},
    "prefix_no_bonus": {**PREFIX, "terminating_generations": 0},
    "length_penalty": {"progress": "length_penalty", "progress_weight": 0.4},
    "episode": LIKELIHOOD,
    "episode_rollouts": {**EPISODE, "num_forced_answers": 4, "forced_answer_tokens": 16},
    "episode_to_go": {**LIKELIHOOD, "progress_decay": 1.0},
    "prefix": {**PREFIX, "forced_answer_tokens": 16},
    "prefix_joint": {**PREFIX, "prefix_baseline": "joint", "forced_answer_tokens": 16},
    "anytime": {"progress": "anytime", "success_estimator": "likelihood", "budgets": [24, 48, 72, 96]},
}
TASKS = {"countdown-3": 3, "countdown-4": 4}  # numbers, with + and -
STEPS, LENGTH, LEARNING_RATE = 60, 96, 1e-4
GROUPS, GENERATIONS = 16, 8
SEARCHER = ROOT / "runs" / "searcher"
OURS = {
    "curriculum": "uniform",
    "compact_generation": True,
    "length_grouping": True,
}
BUDGETS = (12, 24, 36, 48, 64, 80, 96)
EXTEND = (2, 4)


def make_searcher() -> None:
    """Train the checkpoint that every method begins with, unless it is there."""
    if not (SEARCHER / "model.safetensors").exists():
        recipe = ("sft", "--config", "recipes/mrt/searcher.yaml", "--output_dir", str(SEARCHER))
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run([sys.executable, "-m", "metatune.recipes.cli", *recipe], cwd=ROOT, check=True, **silent)


def tasks() -> list:
    """Return the distributions, 1,000 problems to train on and 120 held out of each, where there are as many."""
    from metatune.curricula import load_distributions

    sizes = {"train_size": 1000, "test_size": 120}
    options = [({"numbers": numbers, "operators": "+-"}, name) for name, numbers in TASKS.items()]
    return load_distributions([{"name": n, "source": "countdown", "config": c, **sizes} for c, n in options])


def grpo_options(output_dir: str, steps: int, seed: int, learning_rate: float) -> dict:
    """Return the options that all methods share."""
    return {
        "output_dir": output_dir,
        "max_steps": steps,
        "seed": seed,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": GROUPS * GENERATIONS // 16,
        "num_generations": GENERATIONS,
        "max_completion_length": LENGTH,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 10,
        "adam_beta2": 0.98,
        "logging_steps": 1,
        **CPU_RUN,
        "model_init_kwargs": {"dtype": "float32"},
    }


def run_one(method: str, seed: int, steps: int, learning_rate: float) -> dict:
    """Train once and return what each evaluation found, with the compute spent until then."""
    import datasets
    import torch
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from metatune.eval import CompactEngine, evaluate_at_budgets
    from metatune.rewards import Forcing, correctness_reward
    from metatune.trainers import MRTConfig, MRTTrainer

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    started = time.perf_counter()
    distributions = tasks()
    held_out = datasets.concatenate_datasets([d.test for d in distributions])
    tokenizer = AutoTokenizer.from_pretrained(SEARCHER)
    points = []
    last_step = 2 * steps if method == "grpo" else steps
    compute = {"tokens": 0, "counting": True}

    def count(module, args, kwargs):
        if compute["counting"]:
            compute["tokens"] += kwargs["input_ids"].numel() * (3 if torch.is_grad_enabled() else 1)

    class HeldOut(TrainerCallback):
        """Evaluates at the end, and at three points where GRPO is to be compared at equal compute."""

        rollout_tokens = 0

        def on_log(self, args, state, control, logs=None, **kwargs):
            mean = logs.get("completions/mean_length")
            if mean is not None:
                by_now = self.rollout_tokens + round(mean * GROUPS * GENERATIONS)
                self.rollout_tokens = logs.get("rollout_tokens", by_now)

        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step in (steps, steps * 3 // 2, 2 * steps):
                compute["counting"] = False
                points.append({"step": state.global_step, "compute": compute["tokens"], **self.evaluate(model)})
                compute["counting"] = True

        def evaluate(self, model):
            found = evaluate_at_budgets(
                CompactEngine(model, tokenizer, 256),
                tokenizer,
                held_out,
                forcing=Forcing(tokenizer),
                budgets=BUDGETS,
                num_samples=3,
                num_answers=2,
                answer_tokens=16,
                extrapolate=EXTEND,
            ).budgets.summary()
            return {
                "accuracy": [row["accuracy"] for row in found["budgets"]],
                "spent": [row["spent"] for row in found["budgets"]],
                "regret": found["regret"][-1]["regret"],
                "extended": [row["accuracy"] for row in found["extended"]],
                "tokens": found["mean_tokens"],
                "by_task": {name: part["budgets"][-1]["accuracy"] for name, part in found["distributions"].items()},
            }

    callback = HeldOut()
    common = grpo_options(tempfile.mkdtemp(), last_step, seed, learning_rate)
    options = METHODS[method]
    if options is None:
        config = GRPOConfig(**common)
    else:
        config = MRTConfig(**common, **OURS, **options)
    trainer = (GRPOTrainer if options is None else MRTTrainer)(
        model=str(SEARCHER),
        reward_funcs=correctness_reward,
        args=config,
        train_dataset=datasets.concatenate_datasets([d.train for d in distributions]),
        callbacks=[callback],
    )
    trainer.model.register_forward_pre_hook(count, with_kwargs=True)
    trainer.train()
    return {
        "method": method,
        "seed": seed,
        "steps": steps,
        "learning_rate": learning_rate,
        "points": points,
        "rollout_tokens": callback.rollout_tokens,
        "seconds": round(time.perf_counter() - started, 1),
    }


def at_compute(points: list[dict], compute: float, key: str) -> np.ndarray:
    """Read GRPO's evaluations at another method's compute, on the line between its neighbours."""
    spent = [point["compute"] for point in points]
    values = np.array([np.atleast_1d(point[key]) for point in points])
    return np.array([np.interp(compute, spent, column) for column in values.T])


def tokens_ratio(reference: np.ndarray, other: np.ndarray) -> float:
    """Tokens of the reference over those of the other, at the highest accuracy that both mean curves reach.

    Each is of shape (seeds, 2, budgets): tokens spent, accuracy.
    """
    from metatune.eval.budget_curves import tokens_at

    (x, a), (y, b) = reference.mean(0), other.mean(0)
    level = min(a.max(), b.max())
    return tokens_at(x, a, level) / tokens_at(y, b, level)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean(b - a))


def summarise(runs: dict[str, list[dict]], steps: int) -> list[dict]:
    """Print the table and return the claims."""
    claims = []

    def claim(text: str, value: float, ci: list[float], **more) -> None:
        claims.append({"claim": text, "value": value, "ci": ci, "seeds": len(runs["grpo"]), **more})

    print(f"\n{len(runs['grpo'])} seeds, {steps} steps of {GROUPS} prompts of {GENERATIONS}; mean over seeds")
    columns = ("accuracy", "tokens", "regret", "at 2x", "at 4x", "compute")
    print(f"{'method':18}" + "".join(f"{column:>10}" for column in columns) + "  seconds")
    for method, rows in runs.items():
        ends = [row["points"][0] for row in rows]
        numbers = [
            np.mean([end["accuracy"][-1] for end in ends]),
            np.mean([end["tokens"] for end in ends]),
            np.mean([end["regret"] for end in ends]),
            *np.mean([end["extended"] for end in ends], axis=0),
        ]
        millions = np.mean([end["compute"] for end in ends]) / 1e6
        cells = "".join(f"{number:10.1f}" if index == 1 else f"{number:10.3f}" for index, number in enumerate(numbers))
        print(f"{method:18}{cells}{millions:9.2f}M  {np.mean([row['seconds'] for row in rows]):.0f}")

    grpo = runs["grpo"]
    print("\nagainst grpo, at equal rollouts | at equal compute [95 %]")
    for method, rows in runs.items():
        if method == "grpo":
            continue
        ends = [row["points"][0] for row in rows]
        for how in ("rollouts", "compute"):
            if how == "rollouts":
                base = [row["points"][0] for row in grpo]
            else:
                base = [
                    {
                        key: at_compute(row["points"], end["compute"], key)
                        for key in ("accuracy", "spent", "extended", "regret")
                    }
                    for row, end in zip(grpo, ends, strict=True)
                ]
            curves = [np.array([[p["spent"], p["accuracy"]] for p in side]) for side in (base, ends)]
            ratio, ratio_ci = bootstrap(tokens_ratio, *curves)
            accuracy, accuracy_ci = bootstrap(difference, *(c[:, 1, -1] for c in curves))
            regret, regret_ci = bootstrap(difference, *([np.ravel(p["regret"])[0] for p in s] for s in (base, ends)))
            longest, longest_ci = bootstrap(difference, *([p["extended"][-1] for p in s] for s in (base, ends)))
            print(
                f"{method:18}{how:9} tokens grpo / method {ratio:.2f} [{ratio_ci[0]:.2f}, {ratio_ci[1]:.2f}]"
                f"  accuracy {accuracy:+.3f} [{accuracy_ci[0]:+.3f}, {accuracy_ci[1]:+.3f}]"
                f"  regret {regret:+.3f} [{regret_ci[0]:+.3f}, {regret_ci[1]:+.3f}]"
                f"  at 4x {longest:+.3f} [{longest_ci[0]:+.3f}, {longest_ci[1]:+.3f}]"
            )
            goal = {"goal": ">= 1.5", "met": ratio >= 1.5} if method in ("episode", "prefix", "anytime") else {}
            claim(f"tokens at equal accuracy, grpo over {method}, equal {how}", ratio, ratio_ci, **goal)
            claim(f"accuracy of {method} less grpo's, equal {how}", accuracy, accuracy_ci)
            claim(f"regret of {method} less grpo's, equal {how}", regret, regret_ci)
            claim(f"accuracy at 4 times the length of {method} less grpo's, equal {how}", longest, longest_ci)
    return claims


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first_seed", type=int, default=0, help="1000 and above are for tuning")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--learning_rate", type=float, default=LEARNING_RATE)
    parser.add_argument(
        "--quick", action="store_true", help="the same path in a few minutes: 1 seed, a tenth of steps"
    )
    args = parser.parse_args()
    seeds = range(args.first_seed, args.first_seed + (1 if args.quick else args.seeds))
    steps = args.steps // 10 if args.quick else args.steps

    make_searcher()
    # Seeds outermost: an interrupted benchmark has whole seeds.
    wanted = [(method, seed, steps, args.learning_rate) for seed in seeds for method in args.methods]
    done = run_jobs(run_one, wanted, RUNS, ("method", "seed", "steps", "learning_rate"), args.workers)

    runs = {method: [done[method, seed, steps, args.learning_rate] for seed in seeds] for method in args.methods}
    claims = summarise(runs, steps)
    print_claims("mrt", claims)


if __name__ == "__main__":
    main()
