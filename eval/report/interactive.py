"""Interactive charts and the scripts of a page: all inline, so that a page is one file that opens offline.

plotly's Python package contains the JavaScript that draws the charts. Without JavaScript, a page shows static images.
"""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from plotly import graph_objects
from plotly.offline import get_plotlyjs

from .charts import Chart, Line

SCRIPTS = Path(__file__).parents[1] / "templates"
HEIGHT, LEGEND_ROW = 300, 20  # pixels
MOST_POINTS = 2000  # of a curve
MOST_LEGEND = 600  # pixels; otherwise plotly scrolls a legend that is higher than half of the chart
MARK = "#8a8a8a"  # of vertical lines, on light and on dark paper


def as_json(value: Any) -> Markup:
    """Serialize data for a `<script type="application/json">`: ASCII, escaped so that it cannot end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def scripts(*names: str, with_plotly: bool) -> list[Markup]:
    """Return the scripts of a page, in the order in which they run.

    Args:
        names (`str`): files in `templates/`.
        with_plotly (`bool`): whether plotly's script, 4.8 MB, comes first.
    """
    own = [Markup((SCRIPTS / name).read_text(encoding="utf-8")) for name in names]
    return ([_plotly()] if with_plotly else []) + own


def content_security_policy(page_scripts: Sequence[str]) -> str:
    """Return a policy under which a page loads nothing and runs only these inline scripts."""
    allowed = " ".join(f"'sha256-{_digest(script)}'" for script in page_scripts) or "'none'"
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"


def interactive(chart: Chart) -> dict[str, Any]:
    """Return a chart in the format of `charts.js`: its title and caption, and plotly's figure."""
    figure = graph_objects.Figure(
        data=[trace for line in chart.lines for trace in _traces(chart, line)], layout=_layout(chart)
    )
    return {"title": chart.title, "caption": chart.caption, "figure": json.loads(figure.to_json(engine="json"))}


def text(name: str, longest: int = 40) -> str:
    """Escape a name for plotly, which renders some HTML tags, and shorten it in the middle."""
    cut = (
        name if len(name) <= longest else f"{name[: longest // 2]}\N{HORIZONTAL ELLIPSIS}{name[-(longest // 2 - 1) :]}"
    )
    return html.escape(cut)


@cache
def _plotly() -> Markup:
    return Markup(get_plotlyjs().replace("\r\n", "\n"))


@cache
def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _traces(chart: Chart, line: Line) -> list[graph_objects.Scatter]:
    mode = "lines+markers" if line.marker or len(line.x) == 1 else "lines"
    value = ("x" if chart.categories else "y") + (":.1%" if chart.percent else ":.4~g")
    style: dict[str, Any] = {
        "mode": "markers" if chart.categories else mode,
        "line": {"color": line.color, "width": line.width, "dash": line.dash},
        "marker": {"symbol": line.marker or "circle", "size": 7, "color": line.color},
        "opacity": line.opacity,
        "name": text(line.name),
        "showlegend": bool(line.name) and chart.num_named > 1,
        "hovertemplate": f"%{{{value}}}" + ("" if line.name else "<extra></extra>"),
    }
    if chart.stacked:
        style |= {"stackgroup": "all", "line": {"width": 0.5, "color": line.color}, "fillcolor": line.color}
    if line.interval is not None:
        values = line.x if chart.categories else line.y
        low, high = line.interval
        upper = [top - value for top, value in zip(high, values, strict=True)]
        lower = [value - bottom for bottom, value in zip(low, values, strict=True)]
        bars = {"array": upper, "arrayminus": lower, "symmetric": False, "thickness": 1.4, "width": 3}
        style["error_x" if chart.categories else "error_y"] = bars
    x, y = (line.x, line.y) if chart.categories else thinned(line.x, line.y)
    return [graph_objects.Scatter(x=list(x), y=list(y), **style)]


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """Limit the points of a curve: average neighbors, placed at the last of them, and round to six digits."""
    parts = np.array_split(np.arange(len(x)), min(MOST_POINTS, len(x)))
    values = np.asarray(y, dtype=float)
    return [x[part[-1]] for part in parts], [float(f"{values[part].mean():.6g}") for part in parts]


def _layout(chart: Chart) -> dict[str, Any]:
    x_axis = {"title": {"text": chart.x}, "automargin": True}
    y_axis: dict[str, Any] = {
        "automargin": True,
        "tickformat": ".3~%" if chart.percent else "",
        "exponentformat": "power",
    }
    height = HEIGHT
    if chart.categories is not None:
        names = [text(name) for name in chart.categories]
        x_axis |= {"range": [-0.02, 1.02], "tickformat": ".0%", "hoverformat": ".1%"}
        y_axis |= {"tickvals": list(range(len(names))), "ticktext": names, "tickformat": ""}
        y_axis |= {"range": [-0.6, len(names) - 0.4], "zeroline": False}
        height = 110 + 34 * len(names)
    else:
        x_axis |= _numbered_axis(chart)
    if chart.span is not None:
        y_axis |= {"range": list(chart.span)}
    shapes = [
        {
            "type": "line",
            "x0": x,
            "x1": x,
            "yref": "paper",
            "y0": 0,
            "y1": 1,
            "line": {"width": 1, "dash": "dot", "color": MARK},
        }
        for x, _ in chart.marks
    ]
    labels = {"yref": "paper", "y": 1, "showarrow": False, "xanchor": "right", "yanchor": "top", "textangle": -90}
    return {
        "template": "none",
        "shapes": shapes,
        "annotations": [{"x": x, "text": text(name), **labels} for x, name in chart.marks],
        "xaxis": x_axis,
        "yaxis": y_axis,
        "hovermode": "closest" if chart.categories else "x unified",
        "height": height + (LEGEND_ROW * (1 + chart.num_named // 3) if chart.num_named > 1 else 0),
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "maxheight": MOST_LEGEND},
    }


def _numbered_axis(chart: Chart) -> dict[str, Any]:
    """Return an axis of steps or tokens, with ticks at whole numbers."""
    places = [x for line in chart.lines for x in line.x]
    across = max(places, default=0) - min(places, default=0)
    axis: dict[str, Any] = {
        "hoverformat": ",d",
        "tickformat": "~s" if across >= 1000 else "d",
        "unifiedhovertitle": {"text": f"{chart.x} %{{x:,d}}"},
        "zeroline": False,
    }
    return axis | ({"dtick": 1} if across <= 8 else {})  # plotly would put ticks between the steps
