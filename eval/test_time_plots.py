"""The pictures of test-time compute: accuracy against the tokens spent, regret, and success along the episodes.

Drawn in the style of `plots.py`. The axis of tokens is what was really spent: of a trace that ended by itself its own
tokens, of a cut one also those of the forcing suffix and the mean answer.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from .plots import HUES, label_ends, new_figure, palette, save_figure, set_heading

Summary = Mapping[str, Any]


def plot_budgets(runs: Mapping[str, Summary], path: Path) -> None:
    """Draw accuracy against tokens spent, and normalised regret against the cutoff, for one run or several.

    Args:
        runs (`Mapping[str, dict]`): summaries of [`~metatune.eval.budget_evaluation.BudgetEvaluation`] by name; the
            first is the reference.
        path (`Path`): the PNG to write.

    Raises:
        ValueError: if no run has a scored budget.
    """
    curves = {name: [row for row in run["budgets"] if row["accuracy"] is not None] for name, run in runs.items()}
    if not any(curves.values()):
        raise ValueError("no run has a scored budget: there is nothing to draw")
    colours = {name: HUES[index % len(HUES)] for index, name in enumerate(runs)}
    regrets = {name: [row for row in run["regret"] if row["regret"] is not None] for name, run in runs.items()}
    measured = any(regrets.values())
    figure = new_figure(11.5 if measured else 6.5, 4.8)
    panels = figure.subplots(1, 1 + measured, squeeze=False)[0]
    left = panels[0]
    for name, run in runs.items():
        colour = colours[name]
        _line(left, [row["spent"] for row in curves[name]], curves[name], "accuracy", colour, label=name)
        extended = [row for row in run["extended"] if row["accuracy"] is not None]
        if extended and curves[name]:
            rows = [curves[name][-1], *extended]
            _line(left, [row["spent"] for row in rows], rows, "accuracy", colour, linestyle="--")
    dashed = "; dashed: extended past the largest budget" if any(run["extended"] for run in runs.values()) else ""
    set_heading(left, _budget_finding(runs), f"by forced answers, with intervals{dashed}")
    left.set_xlabel("tokens spent, forced answer included")
    left.set_ylabel("accuracy")
    if measured:
        _draw_regret(panels[1], runs, regrets, colours)
    for axes in panels:
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter())
    left.set_ylim(bottom=0)
    if len(runs) > 1:
        left.legend(frameon=False, loc="lower right")
    save_figure(figure, path)


def _draw_regret(
    axes: Axes, runs: Mapping[str, Summary], regrets: Mapping[str, Sequence[Summary]], colours: Mapping[str, str]
) -> None:
    for name, rows in regrets.items():
        _line(axes, [row["cutoff"] for row in rows], rows, "regret", colours[name], label=name)
    set_heading(axes, _regret_finding(runs), "0: right from the first token on; 1: never right")
    axes.set_xlabel("up to this many tokens of the trace")
    axes.set_ylabel("normalised regret")
    axes.set_ylim(0, 1.02)


def plot_episodes(summary: Summary, path: Path) -> None:
    """Draw the success if stopped after each episode, of every distribution, with the majority of the answers.

    Args:
        summary (`Mapping`): of a [`~metatune.eval.budget_evaluation.BudgetEvaluation`] with episodes.
        path (`Path`): the PNG to write.

    Raises:
        ValueError: if the evaluation has no scored episode.
    """
    parts = {
        name: [row for row in part["episodes"] if row["accuracy"] is not None]
        for name, part in summary["distributions"].items()
    }
    parts = {name: rows for name, rows in parts.items() if rows}
    if not parts:
        raise ValueError("no episode was scored: evaluate with `episodes`")
    last = max(row["episode"] for rows in parts.values() for row in rows)
    colours = palette(list(parts))
    figure = new_figure(9.5, 4.8)
    axes = figure.subplots()
    most = max((int(key.removeprefix("maj@")) for key in next(iter(parts.values()))[0] if "maj@" in key), default=0)
    ends = {}
    for name, rows in parts.items():
        places = [row["episode"] for row in rows] + [last]
        heights = [row["accuracy"] for row in rows]
        axes.plot(places, [*heights, heights[-1]], color=colours[name], linewidth=2, marker="o", markersize=4)
        if most:
            votes = [(row["episode"], row[f"maj@{most}"]) for row in rows if row[f"maj@{most}"] is not None]
            axes.plot(*zip(*votes, strict=True), color=colours[name], linewidth=1, linestyle=":")
        ends[name] = heights[-1]
    axes.set_ylim(0, 1)
    axes.set_xlim(0, max(last, 1))
    label_ends(axes, {name: f"{name}  {end:.2f}" for name, end in ends.items()}, ends, colours)
    dotted = f"; dotted: majority of {most} answers" if most else ""
    set_heading(axes, _episode_finding(summary["episodes"]), f"a trace that has ended keeps its outcome{dotted}")
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.set_xlabel("episodes of the trace before the answer is forced")
    axes.set_ylabel("success if stopped here")
    save_figure(figure, path)


def _line(
    axes: Axes,
    places: Sequence[float],
    rows: Sequence[Mapping[str, Any]],
    value: str,
    colour: str,
    *,
    linestyle: str = "-",
    label: str | None = None,
) -> None:
    heights = [row[value] for row in rows]
    axes.plot(places, heights, color=colour, linewidth=2, linestyle=linestyle, marker="o", markersize=4, label=label)
    lows = [max(0.0, row[value] - row["ci_low"]) for row in rows]
    highs = [max(0.0, row["ci_high"] - row[value]) for row in rows]
    axes.errorbar(places, heights, yerr=[lows, highs], fmt="none", ecolor=colour, elinewidth=1, capsize=2, alpha=0.6)


def _budget_finding(runs: Mapping[str, Summary]) -> str:
    """Say which run needs the fewest tokens for the accuracy of the reference, or how far accuracy goes."""
    reference, *others = runs
    ratios = {name: runs[name].get("against_reference", {}).get("tokens", {}).get("ratio") for name in others}
    ratios = {name: ratio for name, ratio in ratios.items() if ratio is not None}
    if ratios:
        best = max(ratios, key=lambda name: ratios[name]["value"])
        value, low, high = (ratios[best][key] for key in ("value", "low", "high"))
        if low > 1:
            return f"{best} needs {value:.2f}x fewer tokens [{low:.2f}, {high:.2f}]"
        return f"No run certainly needs fewer tokens than {reference}"
    rows = next(
        scored for run in runs.values() if (scored := [r for r in run["budgets"] if r["accuracy"] is not None])
    )
    return f"Accuracy {rows[0]['accuracy']:.2f} at once, {rows[-1]['accuracy']:.2f} at {rows[-1]['budget']} tokens"


def _regret_finding(runs: Mapping[str, Summary]) -> str:
    found = {name: run["regret"][-1]["regret"] for name, run in runs.items() if run["regret"]}
    scored = {name: regret for name, regret in found.items() if regret is not None}
    if not scored:
        return "Regret could not be measured"
    least = min(scored, key=scored.__getitem__)
    return f"Regret {scored[least]:.2f}" if len(runs) == 1 else f"Least regret: {least}, {scored[least]:.2f}"


def _episode_finding(rows: Sequence[Mapping[str, Any]]) -> str:
    """Name the episode that makes the most progress."""
    scored = [row for row in rows if row["accuracy"] is not None]
    heights = [row["accuracy"] for row in scored]
    steps = [after - before for before, after in pairwise(heights)]
    if not steps:
        return "Progress could not be measured"
    best = max(range(len(steps)), key=steps.__getitem__)
    share = steps[best] / (heights[-1] - heights[0]) if heights[-1] > heights[0] else 0
    if share <= 0:
        return "The traces make no progress"
    return f"Episode {scored[best + 1]['episode']} earns {min(share, 1):.0%} of the progress"
