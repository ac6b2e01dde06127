"""Read a run's folder: evaluations, log, completions, rubrics, rounds and the recipe."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...rewards.rubric_history import RubricHistory
from ..evaluation import Evaluation, compare
from .charts import is_number
from .completions import TrainingCompletions, read_training_completions

PIECES = ("metrics.jsonl", "before", "after", "completions", "traces.jsonl", "rounds.json", "strength.json")
KINDS = {  # kinds of runs, and their names on the page
    "grpo": "GRPO",
    "sft": "Supervised fine-tuning",
    "reward": "Reward model",
    "metarm": "MetaRM rounds",
    "star": "STaR rounds",
    "strength": "Preference strength",
    "other": "Training",
}


@dataclass
class Run:
    """The contents of a run's folder.

    Args:
        folder (`Path`): the folder.
        before (`Evaluation`, *optional*): the evaluation before training.
        after (`Evaluation`, *optional*): the evaluation after it.
        comparison (`dict`, *optional*): what [`~metatune.eval.compare`] returns for the two.
        summary (`dict`): `summary.json`, if the run wrote one with its evaluations.
        metrics (`list[dict]`): lines of `metrics.jsonl`.
        log_faults (`list[str]`): sentences about unreadable parts of `metrics.jsonl`.
        training (`TrainingCompletions`): completions of training.
        rubrics (`RubricHistory`, *optional*): of its judge.
        rounds (`list[dict]`): summaries of the rounds of `metatune star` and `metatune metarm`.
        strength (`dict`): `strength.json` of `metatune strength`.
        recipe (`str`, *optional*): the text of `recipe.yaml`.
        missing (`list[str]`): sentences about what the report lacks.
    """

    folder: Path
    before: Evaluation | None = None
    after: Evaluation | None = None
    comparison: dict[str, Any] | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    log_faults: list[str] = field(default_factory=list)
    training: TrainingCompletions = field(default_factory=TrainingCompletions)
    rubrics: RubricHistory | None = None
    rounds: list[dict[str, Any]] = field(default_factory=list)
    strength: dict[str, Any] = field(default_factory=dict)
    recipe: str | None = None
    missing: list[str] = field(default_factory=list)

    @cached_property
    def kind(self) -> str:
        """A key of [`KINDS`], by what the run logged."""
        if self.strength:
            return "strength"
        if self.rounds:
            return "star" if "right" in self.rounds[-1] else "metarm"
        logged = {key for row in self.metrics for key in row}
        if "reward" in logged:
            return "grpo"
        if logged & {"min_reward", "margin"}:
            return "reward"
        return "sft" if "mean_token_accuracy" in logged else "other"

    @property
    def steps(self) -> int | None:
        """Optimizer steps made, as far as the log goes."""
        return max((int(row["step"]) for row in self.metrics if is_number(row.get("step"))), default=None)

    @property
    def seconds(self) -> float | None:
        """Seconds of training over all launches; `None` if the log does not have them."""
        total = [row["time/run"] for row in self.metrics if is_number(row.get("time/run"))]
        if total:
            return max(total)
        runtimes = [row["train_runtime"] for row in self.metrics if is_number(row.get("train_runtime"))]
        resumed = "resume_from_checkpoint" in (self.recipe or "")
        return runtimes[-1] if runtimes and not resumed else None

    @property
    def tokens(self) -> int | None:
        """Rollout tokens over all launches, or the tokens trained on if nothing was sampled."""
        rollout = [int(row["rollout_tokens"]) for row in self.metrics if is_number(row.get("rollout_tokens"))]
        if rollout:
            return max(rollout)
        counts = [int(row["num_tokens"]) for row in self.metrics if is_number(row.get("num_tokens"))]
        restarts = [last for last, now in pairwise(counts) if now < last]  # TRL restarts the count
        return counts[-1] + sum(restarts) if counts else None

    @property
    def finished(self) -> bool:
        """Whether the log has the end of training."""
        return any("train_runtime" in row for row in self.metrics)


def read_run(folder: Path) -> Run:
    """Read the pieces of a run.

    Raises:
        ValueError: if the folder is missing, or contains no file of a run.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; name the output_dir of a run")
    rounds = _read_rounds(folder)
    if not rounds and not any((folder / piece).exists() for piece in PIECES):
        raise ValueError(f"{folder}: not a run's folder, it holds none of {', '.join(PIECES)}")
    run = Run(folder, rounds=rounds)
    run.strength = _json(run, "strength.json") or {}
    if not rounds and not run.strength:
        run.metrics, run.log_faults = _metrics(text_of(folder / "metrics.jsonl"))
        run.missing += run.log_faults
    _read_evaluations(run)
    _read_completions(run)
    run.rubrics = _rubrics(run)
    run.recipe = text_of(folder / "recipe.yaml")
    if run.recipe is None:
        run.missing.append("The recipe: there is no recipe.yaml in the folder.")
    return run


def _read_rounds(folder: Path) -> list[dict[str, Any]]:
    """Read the summaries of the finished rounds, in order; round 0 is the model before training."""
    try:
        if (folder / "rounds.json").is_file():
            rounds = json.loads((folder / "rounds.json").read_text(encoding="utf-8"))
        else:
            files = folder.glob("round-*/summary.json")
            rounds = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        return sorted(rounds, key=lambda row: row["round"])
    except (ValueError, KeyError, TypeError, OSError):  # a file of something else
        return []


def _read_evaluations(run: Run) -> None:
    there = [name for name in ("before", "after") if (run.folder / name).is_dir()]
    run.before, run.after = (_evaluation(run, name) if name in there else None for name in ("before", "after"))
    if run.kind in ("grpo", "sft", "other"):
        lacking = [name for name in ("before", "after") if name not in there]
        run.missing += [
            f"The evaluation {name} training: there is no folder {name} (`metatune eval --into RUN` writes it)."
            for name in lacking
        ]
    run.summary = _json(run, "summary.json") or {}
    run.comparison = _comparison(run)


def _evaluation(run: Run, name: str) -> Evaluation | None:
    try:
        return Evaluation.load(run.folder / name)
    except ValueError as error:
        run.missing.append(f"The evaluation {name} training: {error}.")
        return None


def _comparison(run: Run) -> dict[str, Any] | None:
    """Compare the two evaluations; if one is missing, use the run's own summary."""
    if run.before is None or run.after is None:
        keys = {"accuracy_before", "accuracy_after", "difference", "ci_low", "ci_high", "distributions"}
        return run.summary if keys <= run.summary.keys() else None
    try:
        return compare(run.before, run.after)
    except ValueError as error:
        run.missing.append(f"The comparison: {error}.")
        return None


def _json(run: Run, name: str) -> dict[str, Any] | None:
    text = text_of(run.folder / name)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        run.missing.append(f"{name}: not JSON ({error}).")
        return None
    if not isinstance(value, dict):
        run.missing.append(f"{name}: not a JSON object.")
        return None
    return value


def _read_completions(run: Run) -> None:
    run.training = read_training_completions(run.folder)
    run.missing += [f"Completions of training: {fault}." for fault in run.training.faults]
    if run.kind == "grpo" and not run.training.groups and not run.training.faults:
        run.missing.append("Completions of training: there is no completions/*.parquet (set log_completions: true).")


def _metrics(text: str | None) -> tuple[list[dict[str, Any]], list[str]]:
    """Read the lines of `metrics.jsonl`; returns the rows, and sentences about unreadable lines."""
    if text is None:
        return [], ["What was logged during training: there is no metrics.jsonl."]
    rows, faults = [], []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line)
            if "\\ud" in line.lower():  # an unpaired surrogate can be neither drawn nor written
                row = json.loads(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace"))
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:  # the last line of a run that was killed while it wrote
            faults.append(f"Line {number} of metrics.jsonl: it is not a JSON object and was left out.")
    if not rows:
        faults.append("What was logged during training: metrics.jsonl is empty.")
    return rows, faults


def _rubrics(run: Run) -> RubricHistory | None:
    if not (run.folder / "rubrics").is_dir():
        return None
    try:
        return RubricHistory.read(run.folder / "rubrics")
    except (ValueError, OSError) as error:
        run.missing.append(f"The judge's rubrics: {error}.")
        return None


def text_of(path: Path) -> str | None:
    """Return the text of a file, `None` if it does not exist."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
