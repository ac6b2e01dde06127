"""The page of a run: `report.html`, one file that opens offline, and the pictures and the traces' page beside it.

It is made of what the run's folder holds and says plainly what it does not hold:

| piece | what it gives |
|---|---|
| `before/`, `after/` | saved evaluations: the table, the difference with its interval, completions side by side |
| `summary.json` | the comparison as the run itself wrote it; computed from the evaluations when it is absent |
| `metrics.jsonl` | the pictures of reward, accuracy and curriculum |
| `completions/*.parquet` | completions of the last logged training step |
| `traces.jsonl` | `traces.html`, a page of its own: traces with their episodes coloured by progress |
| `rubrics/` | versions of a judge's rubric and the cases behind them; with `metrics.jsonl`, its failures and time |
| `recipe.yaml`, `config.json` | the recipe and the model's architecture |
"""

import base64
import json
import platform
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import yaml

from ..rewards.rubric_history import RubricHistory
from .evaluation import Completion, Evaluation, compare
from .files import write_atomically
from .judge_log import JudgeLog, read_judge_log, steps_of_a_batch
from .pages import cut, page_template
from .plots import plot_before_after, plot_learning, plot_probabilities
from .rubric_page import describe_judge_log, describe_rubrics
from .rubric_plots import plot_judge_log, plot_rubrics
from .traces import read_traces, write_traces_page

PHASES = ("generate", "sync", "score", "forward_backward")  # `time/…` of a log line; they add up to `time/step`
RATES = {"rollout": "generate", "trained": "forward_backward"}  # tokens a second are counted over this phase
PACKAGES = ("metatune", "torch", "transformers", "trl", "accelerate", "datasets", "peft")
TRAINING_ROWS = 4  # completions of the last training step that are shown


@dataclass
class Run:
    """What was found in a run's folder.

    Args:
        folder (`Path`): the folder.
        before (`Evaluation`, *optional*): the evaluation before training.
        after (`Evaluation`, *optional*): the evaluation after it.
        comparison (`dict`, *optional*): what [`~metatune.eval.compare`] returns for the two, with the run's totals.
        metrics (`list[dict]`): lines of `metrics.jsonl`.
        log_faults (`list[str]`): what of `metrics.jsonl` could not be read, in words.
        training (`list[dict]`): completions of the last logged training step.
        rubrics (`RubricHistory`, *optional*): of its judge.
        recipe (`str`, *optional*): the text of `recipe.yaml`.
        missing (`list[str]`): what the report lacks, in words.
    """

    folder: Path
    before: Evaluation | None = None
    after: Evaluation | None = None
    comparison: dict[str, Any] | None = None
    metrics: list[dict[str, Any]] = field(default_factory=list)
    log_faults: list[str] = field(default_factory=list)
    training: list[dict[str, Any]] = field(default_factory=list)
    rubrics: RubricHistory | None = None
    recipe: str | None = None
    missing: list[str] = field(default_factory=list)


def write_report(run: Run | str | Path) -> Path:
    """Write `report.html` and its pictures into a run's folder.

    Args:
        run ([`Run`], `str` or `Path`): the folder that a training recipe or the quickstart wrote, or what
            [`read_run`] found in it.

    Returns:
        `Path`: the page.

    Raises:
        ValueError: if the folder is missing, or holds nothing of a run.
    """
    run = run if isinstance(run, Run) else read_run(Path(run))
    judge_log = _judge_log(run)
    before, after = (None if side is None else side.summary() for side in (run.before, run.after))
    page = page_template("report.html").render(
        title=run.folder.resolve().name,
        comparison=run.comparison,
        rows=_table(before, after, run.comparison),
        summaries=[before, after],
        pictures=_draw_pictures(run, before, after, judge_log),
        times=time_spent(run.metrics),
        samples=_samples(run),
        training=run.training,
        num_traces=_write_traces(run),
        rubrics=None if run.rubrics is None else describe_rubrics(run.rubrics),
        judge_log=describe_judge_log(judge_log),
        recipe=run.recipe,
        architecture=_text(run.folder / "config.json"),
        settings={name: side.settings for name, side in (("before", run.before), ("after", run.after)) if side},
        versions=_versions(),
        missing=run.missing,
    )
    path = run.folder / "report.html"
    write_atomically(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return path


def read_run(folder: Path) -> Run:
    """Read the pieces of a run; see the head of this file.

    Raises:
        ValueError: if the folder is missing, or holds nothing of a run.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; name the output_dir of a run")
    pieces = ("metrics.jsonl", "before", "after", "completions", "traces.jsonl")
    if not any((folder / piece).exists() for piece in pieces):
        raise ValueError(f"{folder}: not a run's folder, it holds none of {', '.join(pieces)}")
    run = Run(folder)
    run.before, run.after = (_evaluation(run, name) for name in ("before", "after"))
    run.comparison = _comparison(run)
    run.metrics, run.log_faults = _metrics(_text(folder / "metrics.jsonl"))
    run.missing += run.log_faults
    run.training = _training_completions(run)
    run.rubrics = _rubrics(run)
    run.recipe = _text(folder / "recipe.yaml")
    if run.recipe is None:
        run.missing.append("The recipe: there is no recipe.yaml in the folder.")
    return run


def _evaluation(run: Run, name: str) -> Evaluation | None:
    if not (run.folder / name).is_dir():
        run.missing.append(f"The evaluation {name} training: there is no folder {name}.")
        return None
    try:
        return Evaluation.load(run.folder / name)
    except ValueError as error:
        run.missing.append(f"The evaluation {name} training: {error}.")
        return None


def _comparison(run: Run) -> dict[str, Any] | None:
    text = _text(run.folder / "summary.json")
    if text is not None:
        try:
            summary = json.loads(text)
        except ValueError as error:
            run.missing.append(f"The run's own summary: summary.json is not JSON ({error}).")
        else:
            keys = {"accuracy_before", "accuracy_after", "difference", "ci_low", "ci_high", "distributions"}
            if isinstance(summary, dict) and keys <= summary.keys():
                return summary
            run.missing.append("The run's own summary: summary.json is not a comparison of two evaluations.")
    if run.before is None or run.after is None:
        return None
    try:
        return compare(run.before, run.after)
    except ValueError as error:
        run.missing.append(f"The comparison: {error}.")
        return None


def _metrics(text: str | None) -> tuple[list[dict[str, Any]], list[str]]:
    """Read the lines of `metrics.jsonl`, and say which could not be read."""
    if text is None:
        return [], ["What was logged during training: there is no metrics.jsonl."]
    rows, faults = [], []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:  # the last line of a run that was killed while it wrote
            faults.append(f"Line {number} of metrics.jsonl: it is not a JSON object and was left out.")
    if not rows:
        faults.append("What was logged during training: metrics.jsonl is empty.")
    return rows, faults


def _training_completions(run: Run) -> list[dict[str, Any]]:
    """Draw a few completions of the last logged step, at random."""
    files = sorted((run.folder / "completions").glob("*.parquet"))
    if not files:
        run.missing.append("Completions of training: there is no completions/*.parquet (set log_completions: true).")
        return []
    try:
        rows = pyarrow.parquet.read_table(files[-1]).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        run.missing.append(f"Completions of training: {files[-1].name} cannot be read ({error}).")
        return []
    shown = random.Random(0).sample(rows, min(TRAINING_ROWS, len(rows)))
    texts = ("prompt", "completion")
    return [
        {key: cut(_plain(value)) if key in texts else value for key, value in row.items() if value is not None}
        for row in shown
    ]


def _plain(turns: object) -> str:
    """Write a prompt or completion as TRL logs it, a text or the turns of a chat, as a reader reads it."""
    if not (isinstance(turns, list) and all(isinstance(turn, dict) and "content" in turn for turn in turns)):
        return str(turns)
    if len(turns) == 1:
        return str(turns[0]["content"])
    return "\n\n".join(f"{turn.get('role')}: {turn['content']}" for turn in turns)


def _rubrics(run: Run) -> RubricHistory | None:
    if not (run.folder / "rubrics").is_dir():
        return None
    try:
        return RubricHistory.read(run.folder / "rubrics")
    except (ValueError, OSError) as error:
        run.missing.append(f"The judge's rubrics: {error}.")
        return None


def _judge_log(run: Run) -> JudgeLog | None:
    """Sum up what the log tells of a judge whose rubrics can be read."""
    if run.rubrics is None:
        return None
    try:
        recipe = yaml.safe_load(run.recipe or "")
    except yaml.YAMLError:
        recipe = None
    batch_steps = steps_of_a_batch(recipe if isinstance(recipe, dict) else None)
    log = read_judge_log(run.metrics, run.rubrics.events, batch_steps)
    if log is not None and log.took is None:
        run.missing.append(
            "The share of the step time that judging took: it needs `time/step` in metrics.jsonl and, where not every "
            "step has a line, `steps_per_generation` in recipe.yaml."
        )
    return log


def _write_traces(run: Run) -> int:
    """Write the traces' page where the run left traces, and return how many it left."""
    path = run.folder / "traces.jsonl"
    if not path.is_file():
        return 0
    try:
        traces = read_traces(path)
        write_traces_page(traces, path.with_suffix(".html"))
    except ValueError as error:
        run.missing.append(f"The page of traces: {error}.")
        return 0
    return len(traces)


def _draw_pictures(
    run: Run, before: dict | None, after: dict | None, judge_log: JudgeLog | None
) -> list[dict[str, str]]:
    """Draw what can be drawn; each picture is inlined, with its alternative text."""
    folder, comparison, rubrics = run.folder, run.comparison, run.rubrics
    drawings: dict[str, tuple[str, Callable[[Path], None]]] = {}
    if before is not None and after is not None and comparison is not None:
        drawings["before_after.png"] = (
            "Accuracy of every distribution before and after training",
            lambda path: plot_before_after(before, after, comparison, path),
        )
    if run.metrics:
        drawings["learning.png"] = (
            "Training reward and held-out accuracy against rollout tokens",
            lambda path: plot_learning(run.metrics, path, before=before, after=after),
        )
        drawings["curriculum.png"] = (
            "Share of the prompts of every distribution over the steps",
            lambda path: plot_probabilities(run.metrics, path),
        )
    if rubrics is not None and run.metrics:
        drawings["rubrics.png"] = (
            "The judge's score, the other rewards and the versions of the rubric over the steps",
            lambda path: plot_rubrics(run.metrics, rubrics.events, path),
        )
    if judge_log is not None and (judge_log.failed or judge_log.took):
        drawings["judge.png"] = (
            "Judgements that failed, by cause, and the share of the step time that judging took, over the steps",
            lambda path: plot_judge_log(judge_log, path),
        )
    pictures = []
    for name, (text, draw) in drawings.items():
        try:
            draw(folder / name)
        except ValueError as error:
            run.missing.append(f"The picture {name}: {error}.")
            continue
        pictures.append({"name": name, "text": text, "data": base64.b64encode((folder / name).read_bytes()).decode()})
    return pictures


def time_spent(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Sum up where the time of the steps went, `None` where no line has it.

    Args:
        metrics (`Sequence[Mapping]`): lines of `metrics.jsonl`; see `metatune.trainers.throughput` for their keys.

    Returns:
        `dict`: `step`, seconds a step; `phases`, the same of each phase that occurred; `rates`, tokens a second over
        the whole run; `memory`, the peak in GiB; `hit_rate`, the mean of vLLM's prefix cache or `None`.
    """
    lines = [line for line in metrics if line.get("time/step")]
    if not lines:
        return None
    seconds = {phase: sum(line.get(f"time/{phase}", 0.0) for line in lines) for phase in PHASES}
    tokens = {
        name: sum(
            line.get(f"throughput/{name}_tokens_per_second", 0.0) * line.get(f"time/{of}", 0.0) for line in lines
        )
        for name, of in RATES.items()
    }
    hits = [line[key] for line in lines if (key := "vllm/prefix_cache_hit_rate") in line]
    return {
        "step": sum(line["time/step"] for line in lines) / len(lines),
        "phases": {phase: spent / len(lines) for phase, spent in seconds.items() if spent},
        "rates": {name: tokens[name] / seconds[of] for name, of in RATES.items() if seconds[of]},
        "memory": max(line.get("memory/peak_gib", 0.0) for line in lines),
        "hit_rate": sum(hits) / len(hits) if hits else None,
    }


def _table(before: dict | None, after: dict | None, comparison: dict | None) -> list[dict[str, Any]]:
    """One row a distribution, and last the mixture: its two summaries and the difference."""
    sides = [side for side in (before, after) if side is not None]
    names = dict.fromkeys(name for side in sides for name in side["distributions"])
    rows = [
        {
            "name": name,
            "before": before and before["distributions"].get(name),
            "after": after and after["distributions"].get(name),
            "change": comparison and comparison["distributions"].get(name),
        }
        for name in names
    ]
    mixture = {"name": "mixture", "before": before, "after": after, "change": comparison}
    return [*rows, mixture] if sides else []


def _samples(run: Run) -> list[dict[str, Any]]:
    """Draw one problem of every distribution at random, with its first completion before and after."""
    sides = {name: side for name, side in (("before", run.before), ("after", run.after)) if side is not None}
    firsts = {
        name: {(c.distribution, c.key): c for c in side.completions if c.sample == 0} for name, side in sides.items()
    }
    if not firsts:
        return []
    problems = list(next(iter(firsts.values())))
    samples = []
    for name in dict.fromkeys(distribution for distribution, _ in problems):
        problem = random.Random(name).choice([problem for problem in problems if problem[0] == name])
        shown: dict[str, Completion] = {side: first[problem] for side, first in firsts.items() if problem in first}
        first = next(iter(shown.values()))
        texts = {side: {"text": cut(c.completion), "completion": c} for side, c in shown.items()}
        samples.append({"name": name, "prompt": cut(first.prompt), "reference": first.reference, "sides": texts})
    return samples


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
