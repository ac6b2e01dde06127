"""A fabricated run folder, as the grpo recipe and the quickstart leave one."""

import json
import math
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet

from metatune.eval import Completion, Evaluation, compare

DISTRIBUTIONS = {
    "countdown-2": (0.75, 0.94),
    "countdown-3": (0.45, 0.78),
    "countdown-4": (0.12, 0.20),
    "arithmetic-4": (0.60, 0.88),
    "arithmetic-8": (0.20, 0.55),
    "logic-3": (0.40, 0.42),
}


def make_evaluation(side: int, problems: int = 40, samples: int = 4) -> Evaluation:
    """`side` 0 is before training, 1 after it."""
    rng = random.Random(side)
    rows = []
    for name, accuracies in DISTRIBUTIONS.items():
        for problem in range(problems):
            ease = random.Random(f"{name} {problem}").gauss(0, 0.25)
            for sample in range(samples):
                correct = rng.random() < accuracies[side] + ease
                rows.append(
                    Completion(
                        distribution=name,
                        key=str(problem),
                        sample=sample,
                        prompt=f"<b>problem</b> {problem} & more",
                        reference="24",
                        completion=f"4*6={'24 ok' if correct else '23 <script>alert(1)</script>'}\nanswer 4*6",
                        extracted="4*6" if correct else "4*5",
                        tokens=20 + rng.randrange(40),
                        truncated=rng.random() < 0.05,
                        correct=correct,
                    )
                )
    settings = {"num_samples": samples, "temperature": 1.0, "max_new_tokens": 96, "model": "starter"}
    return Evaluation(rows, settings, seconds=12.0)


def make_metrics(steps: int = 60) -> list[dict]:
    rng = random.Random(0)
    rows, tokens, last = [], 0, steps - 1
    for step in range(1, steps + 1):
        tokens += 5000 + rng.randrange(500)
        progress = 1 - math.exp(-3 * step / steps)
        levels = {name: low + (high - low) * progress for name, (low, high) in DISTRIBUTIONS.items()}
        weights = {name: math.exp(12 * p * (1 - p)) + rng.random() for name, p in levels.items()}
        mean = sum(levels.values()) / len(levels)
        row = {"step": step, "reward": mean + rng.gauss(0, 0.04), "rollout_tokens": tokens}
        for name, weight in weights.items():
            row[f"curriculum/probability/{name}"] = weight / sum(weights.values())
            row[f"curriculum/learnability/{name}"] = weight / 10
            row[f"pass_rate/{name}"] = levels[name]
        rows.append(row)
        if step % 10 == 0 or step == last:
            evaluation = {"step": step, "rollout_tokens": tokens}
            evaluation |= {f"eval_accuracy/{name}": p + rng.gauss(0, 0.02) for name, p in levels.items()}
            evaluation["eval_accuracy"] = mean
            rows.append(evaluation)
    return rows


def make_run_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    before, after = make_evaluation(0), make_evaluation(1)
    before.save(folder / "before")
    after.save(folder / "after")
    rows = make_metrics()
    summary = compare(before, after) | {"seconds": 512.3, "generated_tokens": rows[-1]["rollout_tokens"]}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "completions").mkdir(exist_ok=True)
    for step in (1, 30, 60):
        table = pyarrow.table(
            {
                "step": [step] * 4,
                "prompt": ["<user>make 24 from 4 6<assistant>"] * 4,
                "completion": [f"4+6=10 no\n4*6=24 ok\nanswer 4*6 <i>{i}</i>" for i in range(4)],
                "correctness_reward": [1.0, 0.0, None, 1.0],
                "advantage": [0.5, -1.0, 0.0, 0.5],
            }
        )
        pyarrow.parquet.write_table(table, folder / "completions" / f"completions_{step:05d}.parquet")
    return folder
