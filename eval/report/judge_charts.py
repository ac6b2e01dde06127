"""The charts of a judge whose rubric changes: its scores, its failures and its time."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..judge_log import JudgeLog, percent, words
from ..rubric_plots import last_before, score_colours, score_curves, score_finding
from .charts import Chart, Line, hue

EVENTS = {"accepted": "version {}", "rolled_back": "back to {}", "refused": "refused"}


def score_charts(rows: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Return the chart of the judge's score, the other rewards and the versions of the rubric, if there is a score."""
    curves, unlike = score_curves(rows)
    if "judge" not in curves or all(len(curve) < 2 for curve in curves.values()):
        return []
    lines = [
        Line(name=name, x=curve[:, 0].tolist(), y=curve[:, 1].tolist(), color=color, width=1.8)
        for color, (name, curve) in zip(score_colours(len(curves)), curves.items(), strict=False)
    ]
    marks = [
        (last_before(event), EVENTS[event["event"]].format(event.get("version")))
        for event in events
        if event["event"] in EVENTS
    ]
    caption = f"not on this scale: {', '.join(unlike)}" if unlike else ""
    title = score_finding(curves["judge"], events)
    return [Chart(title=title, caption=caption, y="mean score", lines=lines, marks=marks)]


def log_charts(log: JudgeLog) -> list[Chart]:
    """Return the charts of failed judgments and of the judge's time; each may be missing."""
    parts = (
        ("Completions that could not be judged", log.failed, log.failed_by_window),
        ("Share of the step time that judging took", log.took or {}, log.took_by_window or {}),
    )
    charts = []
    for title, shares, by_window in parts:
        if not shares or not by_window or len(log.edges) < 3:  # an area chart needs two windows
            continue
        ends = np.asarray(log.edges[1:]).tolist()
        lines = [
            Line(name=f"{words(name)} {percent(share)}", x=ends, y=by_window[name].tolist(), color=hue(number))
            for number, (name, share) in enumerate(shares.items())
        ]
        charts.append(
            Chart(title=title, caption="in the legend: of the whole run", lines=lines, percent=True, stacked=True)
        )
    return charts
