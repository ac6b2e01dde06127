"""Charts of one metric of several runs."""

from collections.abc import Sequence

import numpy as np

from .plots import HUES
from .report.charts import Chart, Line, curve, smoothed
from .run_comparison import ComparedRun, Group

AXES = {"step": "optimizer step", "rollout_tokens": "rollout tokens"}
DASHES = ("solid", "dash", "dashdot", "dot")  # distinguish groups in gray, and if there are more groups than hues
MOST_NAMED = 8  # runs of a group that the legend names one by one
GRID_POINTS = 200  # of the mean over runs that were not logged at the same places


def runs_chart(groups: Sequence[Group], key: str, label: str, place: str) -> Chart | None:
    """Return the chart of a metric of all runs: one color and dash per group, with the mean over seeds in bold.

    A curve is smoothed over the last tenth of its own points. A mean is over the finished runs of a group, where there
    are any, and reaches as far as all of them do.

    Args:
        groups (`Sequence[Group]`): what [`~metatune.eval.run_comparison.compare_runs`] returned.
        key (`str`): what `metrics.jsonl` calls the number.
        label (`str`): what the axis calls it.
        place (`str`): what it is drawn over, a key of [`AXES`].

    Returns:
        `Chart`: `None` if no run logged the metric at two places.
    """
    lines: list[Line] = []
    for number, group in enumerate(groups):
        curves = [(run, *_curve(run, key, place)) for run in group.runs]
        curves = [found for found in curves if len(found[1])]
        if not curves:
            continue
        color, dash = HUES[number % len(HUES)], DASHES[(number + number // len(HUES)) % len(DASHES)]
        for run, x, y in curves if len(curves) > 1 else ():
            name = run.name if len(group.runs) <= MOST_NAMED else ""
            line = Line(name=name, x=x.tolist(), y=y.tolist(), color=color, dash=dash, width=0.8, opacity=0.35)
            lines.append(line)
        finished = [found[1:] for found in curves if found[0].finished]
        x, y = _mean_curve(finished or [found[1:] for found in curves])
        lines.append(Line(name=group.name, x=x.tolist(), y=y.tolist(), color=color, dash=dash))
    if all(len(line.x) < 2 for line in lines):
        return None
    several = any(len(group.runs) > 1 for group in groups)
    caption = "bold: mean over seeds" if several else "a line for each run"
    return Chart(title=f"By {AXES[place]}", caption=caption, x=AXES[place], y=label, lines=lines)


def _curve(run: ComparedRun, key: str, place: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = curve(run.metrics, key, place)
    return x, smoothed(y)[0]


def _mean_curve(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean of curves over the places that all of them reach; a single curve stays as it is."""
    if len(curves) == 1:
        return curves[0]
    start, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = np.linspace(start, end, GRID_POINTS) if start < end else np.array([start])
    return grid, np.mean([np.interp(grid, x, y) for x, y in curves], axis=0)
