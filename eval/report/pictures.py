"""The figures of a run's page: a static image each, and the interactive charts that replace it."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..judge_log import JudgeLog
from ..plots import plot_before_after, plot_learning, plot_probabilities, suffixes
from ..rubric_plots import plot_judge_log, plot_rubrics
from .charts import Chart, draw_panels
from .judge_charts import log_charts, score_charts
from .round_charts import round_charts
from .run import Run
from .training_charts import before_after_charts, curriculum_chart, learning_charts, other_charts, training_charts

MOST_PANELS = 6  # of a picture


@dataclass
class Figure:
    """A picture of the page.

    Args:
        file (`str`): the PNG in the run's folder.
        text (`str`): its alternative text.
        draw (`Callable[[Path], None]`): draws it; raises `ValueError` if there is nothing to draw.
        charts (`list[Chart]`): the interactive charts that replace it, if any.
    """

    file: str
    text: str
    draw: Callable[[Path], None]
    charts: list[Chart] = field(default_factory=list)


@dataclass
class Section:
    """Figures with a heading, and sentences for metrics that a chart would not show.

    Args:
        title (`str`): the heading.
        figures (`list[Figure]`): its figures.
        words (`list[str]`): sentences.
    """

    title: str
    figures: list[Figure] = field(default_factory=list)
    words: list[str] = field(default_factory=list)


def sections_of(
    run: Run, before: dict[str, Any] | None, after: dict[str, Any] | None, judge_log: JudgeLog | None
) -> list[Section]:
    """Return the sections with figures of a run's page; empty ones are left out."""
    sections = [
        Section("Before and after", _before_after(run, before, after)),
        _learning(run, before, after),
        _panels("Training", "training", *training_charts(run.metrics, by_pairs=run.kind == "reward")),
        _judge(run, judge_log),
        _panels("Other numbers of the log", "other_numbers", *other_charts(run.metrics)),
        _panels("Rounds", "rounds", round_charts(run.rounds), []),
    ]
    return [section for section in sections if section.figures or section.words]


def inline(folder: Path, figures: Sequence[Figure], missing: list[str]) -> list[dict[str, Any]]:
    """Draw figures into a run's folder and return them with the encoded images; append failures to `missing`."""
    drawn = []
    for figure in figures:
        path = folder / figure.file
        try:
            figure.draw(path)
        except ValueError as error:
            missing.append(f"The picture {figure.file}: {error}.")
            continue
        data = base64.b64encode(path.read_bytes()).decode()
        drawn.append({"text": figure.text, "data": data, "charts": figure.charts})
    return drawn


def panels(file: str, text: str, charts: list[Chart]) -> Figure:
    """Return a figure whose picture shows the same charts."""
    return Figure(file, text, lambda path: draw_panels(charts, path), charts)


def _panels(title: str, file: str, charts: list[Chart], words: list[str]) -> Section:
    """Return a section with images that each fit a printed page: training.png, training_2.png, …"""
    section = Section(title, words=words)
    for number, first in enumerate(range(0, len(charts), MOST_PANELS), 1):
        part = charts[first : first + MOST_PANELS]
        text = f"{title}: " + "; ".join(chart.title for chart in part)
        section.figures.append(panels(f"{file}.png" if number == 1 else f"{file}_{number}.png", text, part))
    return section


def _before_after(run: Run, before: dict[str, Any] | None, after: dict[str, Any] | None) -> list[Figure]:
    comparison = run.comparison
    if before is None or after is None or comparison is None:
        return []
    text = "Accuracy of every distribution before and after training"
    charts = before_after_charts(before, after, comparison)
    return [Figure("before_after.png", text, lambda path: plot_before_after(before, after, comparison, path), charts)]


def _learning(run: Run, before: dict[str, Any] | None, after: dict[str, Any] | None) -> Section:
    """Return the section with reward, held-out accuracy and the curriculum's choices."""
    section = Section("Learning")
    if run.kind != "grpo":
        return section
    charts = learning_charts(run.metrics, before, after)
    rewards = {row["reward"] for row in run.metrics if row.get("reward") is not None}
    if charts:
        text = "Training reward and held-out accuracy against rollout tokens"
        section.figures.append(
            Figure(
                "learning.png", text, lambda path: plot_learning(run.metrics, path, before=before, after=after), charts
            )
        )
    if len(rewards) == 1:
        section.words.append(f"The training reward is {rewards.pop():.3g} in every log line.")
    if not any("eval_accuracy" in row for row in run.metrics):
        section.words.append("Held-out accuracy was not measured during training (set eval_strategy: steps).")
    shares = curriculum_chart(run.metrics)
    if shares is not None:
        text = "Share of the prompts of every distribution over the steps"
        section.figures.append(
            Figure("curriculum.png", text, lambda path: plot_probabilities(run.metrics, path), [shares])
        )
        return section
    names = suffixes(run.metrics, "curriculum/probability/")
    if len(names) > 1:
        section.words.append(f"The curriculum gave its {len(names)} distributions equal shares of the prompts.")
    return section


def _judge(run: Run, judge_log: JudgeLog | None) -> Section:
    section, rubrics = Section("The judge's scores"), run.rubrics
    if rubrics is not None and run.metrics:
        text = "The judge's score, the other rewards and the versions of the rubric over the steps"
        section.figures.append(
            Figure(
                "rubrics.png",
                text,
                lambda path: plot_rubrics(run.metrics, rubrics.events, path),
                score_charts(run.metrics, rubrics.events),
            )
        )
    if judge_log is not None and (judge_log.failed or judge_log.took):
        text = "Judgements that failed, by cause, and the share of the step time that judging took, over the steps"
        draw = partial(plot_judge_log, judge_log)
        section.figures.append(Figure("judge.png", text, draw, log_charts(judge_log)))
    return section
