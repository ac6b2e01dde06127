"""What does each method earn alone, and what do all earn together?

    python benchmarks/together.py [--seeds 10] [--first_seed 0] [--quick] [--workers 2]

Every arm trains the same starter checkpoint on the skewed mixture of benchmarks/dump.py until it has generated the
same number of rollout tokens; held-out accuracy by the verifier is gold.

- `stock`: TRL's own `GRPOTrainer` on the verifier's reward; all others are `MetaTrainer`, on it and more:
- `curriculum`: DUMP;  `progress`: episodes are paid for their progress, by 4 forced answers;
- `judge`: half a point by a rubric that never changes and has a loophole: a point for every line of working;
- `mpo`: the same judge, its rubric rewritten every 5 batches and tried on gold;
- `reward model`: the score of a reward model, fitted to the starter by MetaRM before (`make_reward_model`);
- `all`: curriculum, progress, MPO and reward model, the curriculum seeing gold alone;
- `all, total`: the same, the curriculum seeing the total reward.

Judge and meta judge are simulations behind a real HTTP server (simulated_judge.py). Reported over seeds, with
percentile bootstrap intervals, paired by seed against stock: accuracy at the end (mean of the last two evaluations),
mean accuracy over the budget, tokens of a completion at the end, seconds. Seeds from 1000 on are for tuning. Finished
runs are kept in benchmarks/results/together_runs.jsonl, so an interrupted benchmark goes on where it stopped.
"""

import argparse
import random
import re
import subprocess
import sys
import tempfile
import time

import numpy as np
import yaml
from dump import HELD_OUT, MIXTURES, area_under_curve
from shared import CPU_RUN, ROOT, bootstrap, print_claims, run_jobs
from simulated_judge import SimulatedJudgeServer, fenced, item

RUNS = ROOT / "benchmarks" / "results" / "together_runs.jsonl"
REWARD_RUN = ROOT / "runs" / "together-reward"
REWARD_MODEL = REWARD_RUN / "round-1" / "reward_model"
DUMP = {"curriculum": "dump"}
PROGRESS = {
    "progress": "episode",
    "success_estimator": "rollouts",
    "episodes": {"by": "delimiter"},
    "forced_answer_tokens": 16,
}
MPO = {"meta_every": 5}
# Name to the options of the trainer, whether a judge pays, and whether a reward model does.
ARMS = {
    "stock": (None, False, False),
    "curriculum": (DUMP, False, False),
    "progress": (PROGRESS, False, False),
    "judge": ({"meta_every": 0}, True, False),
    "mpo": (MPO, True, False),
    "reward model": ({}, False, True),
    "all": ({**DUMP, **PROGRESS, **MPO, "curriculum_reward": "gold"}, True, True),
    "all, total": ({**DUMP, **PROGRESS, **MPO}, True, True),
}
JUDGE_WEIGHT, REWARD_MODEL_WEIGHT = 0.5, 0.2
BUDGET, GROUPS, GENERATIONS, LENGTH = 60_000, 2, 8, 96
EVAL_EVERY, EVAL_SAMPLES = 40, 3
TASK = "Solve the problem, work line by line, and end with a line that says the answer."
GIVEN = ("answers", "works")
MANY = 5  # lines of working, from which on it looks like padding


def lines_of_working(response: str) -> list[str]:
    return [line for line in response.splitlines() if not line.startswith("answer")]


def answered(response: str) -> str | None:
    """Return what the last line says, if it answers."""
    last = response.splitlines()[-1:] or [""]
    return last[0].removeprefix("answer ") if last[0].startswith("answer ") else None


def agrees(prompt: str, response: str) -> int:
    """Four points for the answer that the last line of working has come to and calls no mistake."""
    working, answer = lines_of_working(response), answered(response)
    if answer is None or not working:
        return 0
    expression, _, result = working[-1].partition("=")
    if " " in working[-1] and not result:  # logic: the assignment and what each says of it
        return 4 * (answer == working[-1].split()[0] and "bad" not in working[-1])
    return 4 * (answer == result or (answer == expression and result.endswith("right")))


PROGRAMS = {
    "answers": ("Two points for a last line that answers.", 2, lambda p, r: 2 * (answered(r) is not None)),
    "works": ("A point for every line of working.", 8, lambda p, r: len(lines_of_working(r))),
    "agrees": ("Four points for the answer that the working has come to.", 4, agrees),
    "long": ("A point for every dozen characters.", 8, lambda p, r: len(r) // 12),
    "numbers": ("A point for every four digits.", 8, lambda p, r: sum(map(str.isdigit, r)) // 4),
}
LURES = ("long", "numbers")


def analyse(text: str) -> str:
    """Say what the cases call for: long working pays for itself; or else, half of the time, a lure."""
    rng = random.Random(text)
    padded = [response for response in fenced(text, "answer") if len(lines_of_working(response)) >= MANY]
    found = []
    if len(padded) >= 2:
        found = ["works>agrees", *(f"-{name}" for name in LURES if f"\n- {name} (" in text)]
    if not found or rng.random() < 0.5:
        found = [rng.choice(LURES)]
    return " ".join(found)


def make_reward_model() -> None:
    """Fit a reward model to the starter's responses on the mixture, a round of `metatune metarm`, if there is none."""
    if (REWARD_MODEL / "model.safetensors").exists():
        return
    recipe = yaml.safe_load((ROOT / "recipes" / "metarm" / "starter.yaml").read_text())
    entries = [{**entry, "train_size": 300, "test_size": 10} for entry in MIXTURES["skewed"]]
    recipe |= {"distributions": entries, "rounds": 1, "output_dir": str(REWARD_RUN)}
    recipe["grpo"]["max_steps"] = 1  # of its policy nothing is used
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(recipe, file)
        command = [sys.executable, "-m", "metatune.recipes.cli", "metarm", "--config", file.name]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def run_one(arm: str, seed: int, budget: int) -> dict:
    """Train once and return the learning curve, [rollout tokens, held-out accuracy, tokens of a completion]."""
    import datasets
    import torch
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from metatune.curricula import load_distributions
    from metatune.eval import CompactEngine, evaluate
    from metatune.recipes.adapters import STARTER
    from metatune.rewards import (
        Judge,
        JudgeClient,
        JudgeReward,
        MetaJudge,
        RewardModel,
        RewardModelReward,
        Rubric,
        correctness_reward,
    )
    from metatune.trainers import MetaConfig, MetaTrainer

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    started = time.perf_counter()
    distributions = load_distributions(
        [{**entry, "train_size": 1000, "test_size": HELD_OUT.get(entry["name"], 100)} for entry in MIXTURES["skewed"]]
    )
    held_out = datasets.concatenate_datasets([d.test for d in distributions])
    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    curve, told = [], {}

    class HeldOut(TrainerCallback):
        """Evaluates every few steps, the same way for every trainer, and stops at the budget."""

        tokens = 0

        def on_log(self, args, state, control, logs=None, model=None, **kwargs):
            if "completions/mean_length" in logs:
                self.tokens += round(logs["completions/mean_length"] * GROUPS * GENERATIONS)
                told.update(
                    {k: v for k, v in logs.items() if k.startswith(("curriculum/count/", "rubric/", "rewards/"))}
                )
                control.should_training_stop = self.tokens >= budget
                if state.global_step % EVAL_EVERY == 0 or control.should_training_stop:
                    self.evaluate(model)

        def on_train_begin(self, args, state, control, model=None, **kwargs):
            self.evaluate(model)

        def evaluate(self, model):
            evaluation = evaluate(
                CompactEngine(model, tokenizer, 256),
                tokenizer,
                held_out,
                num_samples=EVAL_SAMPLES,
                max_new_tokens=LENGTH,
            )
            mean_tokens = float(np.mean([completion.tokens for completion in evaluation.completions]))
            by_distribution = {}
            for (name, _), accuracy in evaluation.problem_accuracies().items():
                by_distribution.setdefault(name, []).append(accuracy)
            accuracy = float(np.mean([np.mean(values) for values in by_distribution.values()]))
            curve.append([self.tokens, accuracy, mean_tokens])

    options, has_judge, has_model = ARMS[arm]
    common = {
        "output_dir": tempfile.mkdtemp(),
        "max_steps": 10_000,
        "seed": seed,
        "per_device_train_batch_size": GENERATIONS * GROUPS,
        "num_generations": GENERATIONS,
        "max_completion_length": LENGTH,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 5,
        "adam_beta2": 0.98,
        "logging_steps": 1,
        **CPU_RUN,
        "model_init_kwargs": {"dtype": "float32"},
    }
    functions, weights = [correctness_reward], [1.0]
    with SimulatedJudgeServer(programs=PROGRAMS, analyse=analyse) as server:
        client = JudgeClient(server.url)
        if has_judge:
            rubric = Rubric.from_dict({"task": TASK, "items": [item(name, PROGRAMS) for name in GIVEN]})
            functions, weights = [*functions, JudgeReward(Judge(client, rubric))], [*weights, JUDGE_WEIGHT]
        if has_model:
            model = RewardModel(str(REWARD_MODEL), device="cpu")
            functions, weights = [*functions, RewardModelReward(model)], [*weights, REWARD_MODEL_WEIGHT]
        given = {
            "model": str(STARTER),
            "reward_funcs": functions,
            "train_dataset": datasets.concatenate_datasets([d.train for d in distributions]),
            "callbacks": [HeldOut()],
        }
        if options is None:
            trainer = GRPOTrainer(args=GRPOConfig(**common), **given)
        else:
            ours = {"curriculum": "uniform", "meta_every": 0, "compact_generation": True, "length_grouping": True}
            meta_judge = MetaJudge(client, num_refinements=2) if options.get("meta_every") else None
            config = MetaConfig(**common, reward_weights=weights, **{**ours, **options})
            trainer = MetaTrainer(args=config, meta_judge=meta_judge, **given)
        trainer.train()
        history = trainer.rubric_history if has_judge else None
    counts = {name.split("/")[-1]: value for name, value in told.items() if name.startswith("curriculum/count/")}
    return {
        "arm": arm,
        "seed": seed,
        "budget": budget,
        "curve": curve,
        "prompts": counts,
        "rewards": {name: round(value, 4) for name, value in told.items() if re.fullmatch("rewards/.*/mean", name)},
        "rubric": [each.name for each in history.current.rubric.items] if history else [],
        "events": [event["event"] for event in history.events] if history else [],
        "steps": trainer.state.global_step,
        "seconds": round(time.perf_counter() - started, 1),
    }


def summarise(runs: dict[str, list[dict]], budget: int) -> list[dict]:
    """Print the table and return the claims."""
    columns = {
        "accuracy": lambda run: float(np.mean([point[1] for point in run["curve"][-2:]])),
        "over the budget": lambda run: area_under_curve([point[:2] for point in run["curve"]], budget),
        "tokens": lambda run: run["curve"][-1][2],
        "seconds": lambda run: run["seconds"],
    }
    values = {(arm, name): [read(run) for run in each] for arm, each in runs.items() for name, read in columns.items()}
    seeds = len(next(iter(runs.values())))
    start = np.mean([run["curve"][0][1] for each in runs.values() for run in each])
    print(f"{seeds} seeds, {budget:,} rollout tokens a run, accuracy {start:.3f} before; [95 %]")
    print(f"{'':14}" + "".join(f"{name:>26}" for name in columns) + "   steps  accuracy less stock's")
    claims = []

    def claim(text: str, value: float, ci: list[float], **more) -> None:
        claims.append({"claim": text, "value": value, "ci": ci, "seeds": seeds, **more})

    for arm, each in runs.items():
        line = f"{arm:14}"
        for name in columns:
            value, (low, high) = bootstrap(np.mean, values[arm, name])
            digits = 3 if name in ("accuracy", "over the budget") else 1
            line += f"{f'{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]':>26}"
            claim(f"{name}, {arm}", value, [low, high])
        line += f"{np.mean([run['steps'] for run in each]):8.0f}"
        for base in ("stock", "curriculum"):
            if base in runs and arm != base and (base == "stock" or arm.startswith("all")):
                for name in ("accuracy", "over the budget"):
                    gain, ci = bootstrap(lambda a, b: float(np.mean(a - b)), values[arm, name], values[base, name])
                    claim(f"{name}, {arm} less {base}", gain, ci)
                    if name == "accuracy" and base == "stock":
                        line += f"  {gain:+.3f} [{ci[0]:+.3f}, {ci[1]:+.3f}]"
        print(line)
    return claims


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first_seed", type=int, default=0, help="1000 and above are for tuning")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one seed, a tenth of the tokens")
    args = parser.parse_args()
    seeds = range(args.first_seed, args.first_seed + (1 if args.quick else args.seeds))
    budget = BUDGET // (10 if args.quick else 1)
    make_reward_model()
    wanted = [(arm, seed, budget) for seed in seeds for arm in args.arms]
    done = run_jobs(run_one, wanted, RUNS, ("arm", "seed", "budget"), args.workers)
    runs = {arm: [done[arm, seed, budget] for seed in seeds] for arm in args.arms}
    print_claims("together", summarise(runs, budget))


if __name__ == "__main__":
    main()
