"""The page that sets runs side by side: `comparison.html`, one file that opens offline."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from .comparison_plots import AXES, runs_chart
from .pages import page_template, write_page
from .report.charts import Chart
from .report.interactive import as_json, content_security_policy, interactive, scripts
from .report.pictures import inline, panels
from .run_comparison import MIN_SEEDS, Group, differing_options, log_ends

CURVES = {  # what `metrics.jsonl` calls it: what the page does
    "reward": "training reward",
    "loss": "training loss",
    "mean_token_accuracy": "training accuracy of tokens",
    "accuracy": "training accuracy of pairs",
    "eval_accuracy": "held-out accuracy",
    "completions/mean_length": "completion length in tokens",
    "completions/clipped_ratio": "share of truncated completions",
    "entropy": "entropy of a token in nats",
    "kl": "KL divergence of a token in nats",
    "grad_norm": "gradient norm",
}


def write_comparison_page(groups: Sequence[Group], path: str | Path) -> Path:
    """Write the page that sets runs side by side.

    Args:
        groups (`Sequence[Group]`): what [`~metatune.eval.run_comparison.compare_runs`] returned.
        path (`str` or `Path`): the page; links to the runs' own pages are relative to it.

    Returns:
        `Path`: the page.
    """
    path = Path(path)
    found = _charts(groups)
    charts = [chart for pair in found.values() for chart in pair]
    page_scripts = scripts(*(["charts.js"] if charts else []), with_plotly=bool(charts))
    page = page_template("comparison.html").render(
        groups=groups,
        runs=[run for group in groups for run in group.runs],
        page_of=lambda run: quote(Path(os.path.relpath(run.folder / "report.html", path.parent)).as_posix()),
        options=differing_options(groups),
        ends=log_ends(groups),
        pictures=_pictures(found, ", ".join(group.name for group in groups)),
        min_seeds=MIN_SEEDS,
        chart_data=as_json([interactive(chart) for chart in charts]) if charts else None,
        scripts=page_scripts,
        policy=content_security_policy(page_scripts),
    )
    return write_page(path, page)


def _charts(groups: Sequence[Group]) -> dict[str, list[Chart]]:
    """Return the charts of each metric of [`CURVES`] that a run logged and that varies, by title."""
    charts: dict[str, list[Chart]] = {}
    for key, label in CURVES.items():
        for place in AXES:
            chart = runs_chart(groups, key, label, place)
            if chart is not None and len({value for line in chart.lines for value in line.y}) > 1:
                charts.setdefault(label[0].upper() + label[1:], []).append(chart)
    return charts


def _pictures(charts: dict[str, list[Chart]], names: str) -> dict[str, dict]:
    """Draw the static picture of each title's charts."""
    pictures, first = {}, 0
    with tempfile.TemporaryDirectory() as folder:
        for title, pair in charts.items():
            text = f"{title} by {' and by '.join(chart.x for chart in pair)}, of {names}"
            (picture,) = inline(Path(folder), [panels("picture.png", text, pair)], [])
            numbers = " ".join(str(first + place) for place in range(len(pair)))
            pictures[title] = picture | {"numbers": numbers}
            first += len(pair)
    return pictures
