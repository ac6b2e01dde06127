"""Charts as data, which matplotlib draws as a static image and plotly as an interactive chart."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from ..plots import AFTER, HUES, drawable, new_figure, palette, running_mean, save_figure, set_heading

STEP, TOKENS = "optimizer step", "rollout tokens"
DASHES = {"solid": "-", "dash": "--", "dashdot": "-.", "dot": ":"}  # plotly's names, and matplotlib's
WIDTH, HEIGHT = 5.75, 3.6  # inches of a panel of a static image


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve of a [`Chart`].

    Args:
        name (`str`): its name in the legend and the hover text; empty for none.
        x (`Sequence[float]`): N places, ascending.
        y (`Sequence[float]`): N values.
        color (`str`): hexadecimal.
        width (`float`, *optional*, defaults to `2.0`): in points.
        dash (`str`, *optional*, defaults to `"solid"`): one of [`DASHES`].
        opacity (`float`, *optional*, defaults to `1.0`): from 0 to 1.
        marker (`str`, *optional*, defaults to `""`): `"circle"` or `"diamond"`.
        interval (`tuple`, *optional*): the N lower and the N upper bounds.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: str
    width: float = 2.0
    dash: str = "solid"
    opacity: float = 1.0
    marker: str = ""
    interval: tuple[Sequence[float], Sequence[float]] | None = None


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One pair of axes with its curves.

    Args:
        title (`str`): what the chart shows, as a finding.
        caption (`str`, *optional*, defaults to `""`): how to read it.
        x (`str`, *optional*, defaults to [`STEP`]): label of the horizontal axis.
        y (`str`, *optional*, defaults to `""`): label of the vertical axis.
        lines (`Sequence[Line]`): at least one; the first at the bottom of a stack.
        span (`tuple`, *optional*): bounds of the vertical axis.
        percent (`bool`, *optional*, defaults to `False`): whether values are shares.
        stacked (`bool`, *optional*, defaults to `False`): whether lines are stacked areas.
        marks (`Sequence[tuple[float, str]]`, *optional*): places of vertical lines, and their labels.
        categories (`Sequence[str]`, *optional*): labels of the vertical axis at 0, 1, …; the lines' values are
            places on it, and hovering shows the horizontal value.
    """

    title: str
    lines: Sequence[Line]
    caption: str = ""
    x: str = STEP
    y: str = ""
    span: tuple[float, float] | None = None
    percent: bool = False
    stacked: bool = False
    marks: Sequence[tuple[float, str]] = ()
    categories: Sequence[str] | None = None

    @property
    def num_named(self) -> int:
        """Number of lines that the legend shows."""
        return sum(bool(line.name) for line in self.lines)


def is_number(value: object) -> bool:
    """Return whether a value of the log can be plotted and averaged."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def curve(rows: Sequence[Mapping], key: str, place: str = "step") -> tuple[np.ndarray, np.ndarray]:
    """Return the places and values of a metric, shape (N,) each; log lines without either are left out."""
    points = [(row[place], row[key]) for row in rows if is_number(row.get(key)) and is_number(row.get(place))]
    x, y = np.array(points, dtype=float).reshape(-1, 2).T
    return x, y


def smoothed(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the running mean over a tenth of the values, and the size of the window."""
    window = max(1, len(values) // 10)
    return (running_mean(values, window) if len(values) else values), window


def change(values: np.ndarray) -> str:
    """Describe how a number changed, from the mean of its first tenth to that of its last."""
    window = max(1, len(values) // 10)
    first, last = (float(np.mean(part)) for part in (values[:window], values[-window:]))
    if short(first) == short(last):
        constant = {short(float(value)) for value in values} == {short(last)}
        return f"{'stayed' if constant else 'began and ended'} at {short(last)}"
    return f"{'rose' if last > first else 'fell'} from {short(first)} to {short(last)}"


def short(value: float) -> str:
    """Format a number with three significant digits, and large ones in full."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"


def colors_of(names: Sequence[str]) -> dict[str, str]:
    """Choose a color for every distribution, as [`~metatune.eval.plots.palette`] does."""
    return {name: to_hex(color) for name, color in palette(names).items()}


def draw_panels(charts: Sequence[Chart], path: Path) -> None:
    """Draw charts into one PNG, two beside each other.

    Args:
        charts (`Sequence[Chart]`): at least one.
        path (`Path`): the PNG to write.
    """
    columns = min(2, len(charts))
    rows = math.ceil(len(charts) / columns)
    legend = 0.2 * max(chart.num_named for chart in charts)
    figure = new_figure(WIDTH * columns, (HEIGHT + min(legend, 1.6)) * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, chart in zip(panels, charts, strict=False):
        _draw(axes, chart)
    for axes in panels[len(charts) :]:
        axes.remove()
    save_figure(figure, path)


def _draw(axes: Axes, chart: Chart) -> None:
    if chart.stacked:
        colors = [line.color for line in chart.lines]
        values, names = [line.y for line in chart.lines], [drawable(line.name) for line in chart.lines]
        axes.stackplot(chart.lines[0].x, values, colors=colors, labels=names, edgecolor="white", linewidth=0.5)
    for line in chart.lines if not chart.stacked else ():
        style = {"color": line.color, "linewidth": line.width, "linestyle": DASHES[line.dash], "alpha": line.opacity}
        marker = {"circle": "o", "diamond": "D"}.get(line.marker, "o" if len(line.x) == 1 else "")
        axes.plot(line.x, line.y, marker=marker, markersize=4, label=drawable(line.name) or None, **style)
        if line.interval is not None:
            low, high = (np.abs(np.subtract(bound, line.y)) for bound in line.interval)
            axes.errorbar(line.x, line.y, yerr=[low, high], fmt="none", ecolor=line.color, capsize=3)
    if chart.span is not None:
        axes.set_ylim(*chart.span)
    axes.set_xlabel(chart.x)
    axes.set_ylabel(drawable(chart.y))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter())
    if chart.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    set_heading(axes, _wrapped(chart.title), chart.caption)
    if chart.num_named > 1:
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.16), fontsize=8.5, ncols=2)


def _wrapped(title: str, width: int = 52) -> str:
    return title if len(title) <= width else f"{title[: width - 1]}\N{HORIZONTAL ELLIPSIS}"


def metric_line(rows: Sequence[Mapping], key: str, name: str, color: str = AFTER, place: str = "step") -> Line | None:
    """Return the curve of a metric, or `None` if it was not logged."""
    x, y = curve(rows, key, place)
    if not len(x):
        return None
    return Line(name=name, x=x.tolist(), y=y.tolist(), color=color, width=1.8)


def hue(number: int) -> str:
    """Return the color of the curve with this number."""
    return HUES[number % len(HUES)]
