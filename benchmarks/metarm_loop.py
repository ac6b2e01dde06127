"""Does a corrected reward model keep the policy right over the rounds of `metatune metarm`?

    python benchmarks/metarm_loop.py [--seeds 4] [--first_seed 100] [--pace starter hard] [--quick] [--workers 2]

Each run is recipes/metarm/starter.yaml from end to end, three rounds with verifiers as the gold that nothing trains
on: the held-out accuracy of each round's policy, and by how much its reward model prefers it to the policy before it
(each model on a scale of its own: only the sign is to be compared). `none` has the first reward model in every round.
A seed has its own pairs, draws and reward model, the same for all corrections; differences are paired by seed, the
intervals percentile bootstrap over seeds. A correction costs more than `none` (MetaRM's step, a fresh reward model a
round): the seconds stand beside it.

`hard` trains the policies 40 steps a round with twice the learning rate and half the KL penalty, so that the reward
models are exploited. Both paces were set on seed 0. Finished runs are kept in
benchmarks/results/metarm_loop_runs.jsonl; delete it after a change of a trainer or the starter.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from shared import ROOT, bootstrap, print_claims, run_jobs

RUNS = ROOT / "benchmarks" / "results" / "metarm_loop_runs.jsonl"
RECIPE = ROOT / "recipes" / "metarm" / "starter.yaml"
CORRECTIONS = ("none", "ocrm", "metarm")
PACES = {"starter": {}, "hard": {"learning_rate": 1.0e-4, "max_steps": 40, "beta": 0.05}}
QUICK = {"rounds": 1, "num_pairs": 32, "num_prompts": 16}
KEPT = ("gold", "accuracy", "length_correlation", "cut_off", "effective_sample_size")


def run_one(pace: str, correction: str, seed: int, quick: bool) -> dict:
    """Run the loop once and return its numbers round by round, the first policy before them."""
    recipe = yaml.safe_load(RECIPE.read_text())
    recipe |= {"correction": correction, "seed": seed, **(QUICK if quick else {})}
    recipe["grpo"] |= PACES[pace] | ({"max_steps": 2} if quick else {})
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump({**recipe, "output_dir": f"{folder}/run"}))
        command = [sys.executable, "-m", "metatune.recipes.cli", "metarm", "--config", str(path)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
        summaries = json.loads((Path(folder) / "run" / "rounds.json").read_text())
    rounds = [{name: row.get(name) for name in KEPT} | {"rise": rise(row)} for row in summaries]
    seconds = round(time.perf_counter() - started)
    return {"pace": pace, "correction": correction, "seed": seed, "quick": quick, "seconds": seconds, "rounds": rounds}


def rise(summary: dict) -> float | None:
    """Return by how much the round's reward model prefers the new policy to the one before."""
    return summary["score"] - summary["score_before"] if "score" in summary else None


def show(values: list[float]) -> str:
    mean, (low, high) = bootstrap(np.mean, values)
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def summarise(pace: str, runs: dict[str, list[dict]]) -> list[dict]:
    """Print gold and proxy over rounds and return the claims."""
    claims = []
    numbers = range(1, len(runs["none"][0]["rounds"]))

    def claim(what: str, values: list[float]) -> str:
        mean, ci = bootstrap(np.mean, values)
        claims.append({"pace": pace, "claim": what, "value": mean, "ci": ci, "seeds": len(values)})
        return f"{mean:+.3f} [{ci[0]:+.3f}, {ci[1]:+.3f}]"

    start = [run["rounds"][0]["gold"] for run in runs["none"]]
    print(f"\n{pace}: gold before {show(start)}; after rounds {', '.join(map(str, numbers))}")
    for correction, each in runs.items():
        seconds = np.mean([run["seconds"] for run in each])
        print(f"{correction} ({seconds:.0f} s)")
        for name, what in (("gold", "gold accuracy"), ("rise", "rise of the proxy"), ("accuracy", "proxy's accuracy")):
            cells = []
            for number in numbers:
                values = [run["rounds"][number][name] for run in each]
                known = [value for value in values if value is not None]  # without a right response nothing compares
                cells.append(claim(f"{what}, {correction}, round {number}", known) if known else "none")
            print(f"  {what:20}" + "".join(f"{cell:>26}" for cell in cells))
        if correction != "none":
            cells = []
            for number in numbers:
                pairs = zip(each, runs["none"], strict=True)
                gains = [mine["rounds"][number]["gold"] - other["rounds"][number]["gold"] for mine, other in pairs]
                cells.append(claim(f"gold accuracy, {correction} minus none, round {number}", gains))
            print(f"  {'gold minus none':20}" + "".join(f"{cell:>26}" for cell in cells))
    return claims


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--first_seed", type=int, default=100)
    parser.add_argument("--pace", nargs="+", choices=PACES, default=list(PACES))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one seed, one round, two steps")
    args = parser.parse_args()
    seeds = range(args.first_seed, args.first_seed + (1 if args.quick else args.seeds))
    wanted = [(pace, each, seed, args.quick) for pace in args.pace for seed in seeds for each in CORRECTIONS]
    done = run_jobs(run_one, wanted, RUNS, ("pace", "correction", "seed", "quick"), args.workers)
    claims = []
    for pace in args.pace:
        runs = {each: [done[pace, each, seed, args.quick] for seed in seeds] for each in CORRECTIONS}
        claims += summarise(pace, runs)
    print_claims("metarm_loop", claims)


if __name__ == "__main__":
    main()
