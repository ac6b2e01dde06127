"""The charts and the table of a run that is made of rounds (`metatune star`, `metatune metarm`)."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..plots import AFTER
from .charts import Chart, Line, is_number

LABELS = {
    "right": "right traces",
    "kept": "problems with a kept trace",
    "success_at_once": "success at once, J_0",
    "gold": "gold accuracy",
    "score": "score of the round's reward model",
    "score_before": "its score of the policy before",
    "cut_off": "truncated",
}
SHARES = {"right", "kept", "cut_off", "gold", "success_at_once", "accuracy", "accuracy_on_pairs"}


def round_charts(rounds: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Return a chart for each measurement of the rounds that changes; counts are only in the table."""
    charts = []
    for key in dict.fromkeys(key for row in rounds for key in row):
        rows = [row for row in rounds if is_number(row.get(key))]
        values = [row[key] for row in rows]
        if len(set(values)) < 2 or all(isinstance(value, int) for value in values):
            continue
        intervals = [row.get(f"{key}_interval") for row in rows]
        bounds = tuple(zip(*intervals, strict=True)) if all(intervals) else None
        label = LABELS.get(key, key.replace("_", " "))
        places = [row["round"] for row in rows]
        line = Line(name="", x=places, y=values, color=AFTER, marker="circle", interval=bounds)
        title = label[0].upper() + label[1:]
        charts.append(Chart(title=title, x="round", y=label, lines=[line], percent=key in SHARES))
    return charts


def round_table(rounds: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return a row per metric of the rounds: its name, then its value in each round."""
    logged = dict.fromkeys(key for row in rounds for key in row)
    keys = [key for key in logged if any(is_number(row.get(key)) or isinstance(row.get(key), list) for row in rounds)]
    return [[LABELS.get(key, key.replace("_", " ")), *(_cell(row.get(key)) for row in rounds)] for key in keys]


def _cell(value: Any) -> str:
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, list):
        return f"[{', '.join(f'{part:.3f}' for part in value)}]"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
