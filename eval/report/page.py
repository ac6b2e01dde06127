"""The page of a run: `report.html`, one file that opens offline, with the image files and the page of traces.

It shows the contents of the run's folder and lists what is missing:

| file | section of the page |
|---|---|
| `before/`, `after/` | saved evaluations: the table, the difference with its interval, completions side by side |
| `metrics.jsonl` | the charts of training, of reward, accuracy and curriculum, and where the time went |
| `completions/*.parquet` | completions of training, to search and filter |
| `traces.jsonl` | `traces.html`, a page of its own: traces with their episodes colored by progress |
| `rubrics/` | versions of a judge's rubric and the cases behind them; with `metrics.jsonl`, its failures and time |
| `rounds.json`, `round-*/summary.json` | the rounds of `metatune metarm` and `metatune star` |
| `strength.json`, `strength.png` | the strengths of `metatune strength` |
| `recipe.yaml`, `config.json` | the recipe and the model's architecture |

Charts are interactive. Without JavaScript, and in print, the page shows a static image of each.
"""

import base64
import platform
import random
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from ..evaluation import Completion
from ..judge_log import JudgeLog, read_judge_log, steps_of_a_batch
from ..pages import page_template, write_page
from ..rubric_page import describe_judge_log, describe_rubrics
from ..traces import read_traces, write_traces_page
from .charts import Chart
from .completions import cut_middle
from .facts import facts_of, sample_size
from .interactive import as_json, content_security_policy, interactive, scripts
from .pictures import inline, sections_of
from .round_charts import round_table
from .run import KINDS, Run, read_run, text_of
from .times import time_spent

PACKAGES = ("metatune", "torch", "transformers", "trl", "accelerate", "datasets", "peft")
TRAINING_ROWS = 4  # completions that are shown without JavaScript


def write_report(run: Run | str | Path) -> Path:
    """Write `report.html` and its pictures into a run's folder.

    Args:
        run ([`Run`], `str` or `Path`): the folder that a training recipe or the quickstart wrote, or what
            [`read_run`] found in it.

    Returns:
        `Path`: the page.

    Raises:
        ValueError: if the folder is missing, or contains no file of a run.
    """
    run = run if isinstance(run, Run) else read_run(Path(run))
    judge_log = _judge_log(run)
    before, after = (None if side is None else side.summary() for side in (run.before, run.after))
    sections, charts = _draw_sections(run, before, after, judge_log)
    completions = run.training.table()
    names = (["charts.js"] if charts else []) + (["completions.js"] if run.training.groups else [])
    page_scripts = scripts(*names, with_plotly=bool(charts))
    page = page_template("report.html").render(
        title=run.folder.resolve().name,
        kind=KINDS[run.kind],
        finished=run.finished or not run.metrics,
        facts=facts_of(run, before or after),
        comparison=run.comparison,
        rows=_table(before, after, run.comparison),
        sections=sections,
        rounds=round_table(run.rounds) if run.rounds else None,
        strength=_strength(run),
        times=time_spent(run.metrics),
        samples=_samples(run),
        training=run.training,
        steps=sorted({row["step"] for row in run.training.rows if row["step"] is not None}),
        distributions=completions["distributions"],
        verdicts=any(row["correct"] is not None for row in run.training.rows),
        training_rows=[group[0] for group in run.training.groups[:TRAINING_ROWS]],
        num_traces=_write_traces(run),
        rubrics=None if run.rubrics is None else describe_rubrics(run.rubrics),
        judge_log=describe_judge_log(judge_log),
        recipe=run.recipe,
        architecture=text_of(run.folder / "config.json"),
        settings={name: side.settings for name, side in (("before", run.before), ("after", run.after)) if side},
        versions=_versions(),
        missing=run.missing,
        chart_data=as_json([interactive(chart) for chart in charts]) if charts else None,
        completion_data=as_json(completions) if run.training.groups else None,
        scripts=page_scripts,
        policy=content_security_policy(page_scripts),
    )
    return write_page(run.folder / "report.html", page)


def _draw_sections(
    run: Run, before: dict[str, Any] | None, after: dict[str, Any] | None, judge_log: JudgeLog | None
) -> tuple[list[dict[str, Any]], list[Chart]]:
    """Draw the figures of the page by section; returns the sections and all charts, in their order."""
    sections: list[dict[str, Any]] = []
    charts: list[Chart] = []
    for section in sections_of(run, before, after, judge_log):
        figures = inline(run.folder, section.figures, run.missing)
        for figure in figures:
            figure["numbers"] = " ".join(str(len(charts) + place) for place in range(len(figure["charts"])))
            charts += figure["charts"]
        sections.append({"title": section.title, "figures": figures, "words": section.words})
    return sections, charts


def _judge_log(run: Run) -> JudgeLog | None:
    """Summarize the judge's log lines if the run has readable rubrics."""
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
    """Write the page of traces if the run has traces, and return their number."""
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


def _table(before: dict | None, after: dict | None, comparison: dict | None) -> list[dict[str, Any]]:
    """Return one row per distribution, and last the mixture: both summaries and the difference."""
    sides = [side for side in (before, after) if side is not None]
    names = dict.fromkeys(name for side in sides for name in side["distributions"])
    rows = [
        {
            "name": name,
            "before": before and before["distributions"].get(name),
            "after": after and after["distributions"].get(name),
            "change": comparison and comparison["distributions"].get(name),
            "size": sample_size(sides[-1]["distributions"].get(name)),
        }
        for name in names
    ]
    mixture = {"name": "mixture", "before": before, "after": after, "change": comparison}
    mixture["size"] = sample_size(after or before)
    return [*rows, mixture] if sides else []


def _samples(run: Run) -> list[dict[str, Any]]:
    """Sample one problem of each distribution, with its first completion before and after."""
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
        texts = {side: {"text": cut_middle(c.completion), "completion": c} for side, c in shown.items()}
        samples.append(
            {"name": name, "prompt": cut_middle(first.prompt), "reference": first.reference, "sides": texts}
        )
    return samples


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _strength(run: Run) -> dict[str, Any] | None:
    """Return the scalar values of `strength.json`, and the image."""
    if not run.strength:
        return None
    path = run.folder / "strength.png"
    data = base64.b64encode(path.read_bytes()).decode() if path.is_file() else None
    numbers = {key: value for key, value in run.strength.items() if isinstance(value, int | float | str)}
    return {"numbers": numbers, "data": data}
