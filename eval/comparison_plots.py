"""A curve of several runs in one picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import EngFormatter

from .plots import HUES, new_figure, running_mean, save_figure, set_heading
from .run_comparison import ComparedRun, Group, is_number

AXES = {"step": "optimizer step", "rollout_tokens": "rollout tokens"}
STYLES = ("-", "--", "-.", ":")  # so that groups can be told apart in grey, and beyond as many as there are hues
GRID_POINTS = 200  # of the mean over runs that were not logged at the same places


def plot_runs(groups: Sequence[Group], key: str, label: str, place: str, path: Path) -> None:
    """Draw a logged number of every run; a colour and a line style a group, its mean over seeds thick.

    A curve is smoothed over the last tenth of its own points. A mean is over the finished runs of a group, where there
    are any, and reaches as far as all of them do.

    Args:
        groups (`Sequence[Group]`): what [`~metatune.eval.run_comparison.compare_runs`] returned.
        key (`str`): what `metrics.jsonl` calls the number.
        label (`str`): what the axis calls it.
        place (`str`): what it is drawn over, a key of [`AXES`].
        path (`Path`): the PNG to write.

    Raises:
        ValueError: if no run logged the number at such a place.
    """
    figure = new_figure(5.75, 4.0 + 0.2 * len(groups))
    axes = figure.subplots()
    for number, group in enumerate(groups):
        curves = [(run, *_curve(run, key, place)) for run in group.runs]
        curves = [curve for curve in curves if len(curve[1])]
        if not curves:
            continue
        colour, style = HUES[number % len(HUES)], STYLES[(number + number // len(HUES)) % len(STYLES)]
        for _, x, y in curves if len(curves) > 1 else ():
            axes.plot(x, y, color=colour, linestyle=style, linewidth=0.8, alpha=0.35)
        finished = [curve[1:] for curve in curves if curve[0].finished]
        x, y = _mean_curve(finished or [curve[1:] for curve in curves])
        marker = "o" if len(x) == 1 else None
        axes.plot(x, y, color=colour, linestyle=style, linewidth=2, marker=marker, label=group.name)
    if not axes.get_lines():
        raise ValueError(f"no run has logged {key} with its {place}")
    axes.set_xlabel(AXES[place])
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.set_ylabel(label)
    several = any(len(group.runs) > 1 for group in groups)
    set_heading(axes, f"By {AXES[place]}", "thick: mean over seeds" if several else "a line each run")
    figure.legend(frameon=False, loc="outside lower left", handlelength=3.5)
    save_figure(figure, path)


def _curve(run: ComparedRun, key: str, place: str) -> tuple[np.ndarray, np.ndarray]:
    rows = [row for row in run.metrics if is_number(row.get(key)) and is_number(row.get(place))]
    x, y = (np.array([row[name] for row in rows], dtype=float) for name in (place, key))
    return x, running_mean(y, max(1, len(y) // 10)) if len(y) else y


def _mean_curve(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean of curves over the places that all of them reach; a single curve stays as it is."""
    if len(curves) == 1:
        return curves[0]
    start, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = np.linspace(start, end, GRID_POINTS) if start < end else np.array([start])
    return grid, np.mean([np.interp(grid, x, y) for x, y in curves], axis=0)
