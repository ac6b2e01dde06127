"""The picture of a judge whose rubric changes, in the style of `plots.py`: its score, and others."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .plots import AFTER, BEFORE, HUES, new_figure, save_figure, set_heading

JUDGE, HELD_OUT = "judge/score", "held_out_judge/score"
EVENTS = {"accepted": "-", "rolled_back": "--", "refused": ":"}  # with the style of their lines


def plot_rubrics(rows: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the judge's score, the other rewards and the held-out judge's score over the steps, and the versions.

    Args:
        rows (`Sequence[Mapping]`): the lines of `metrics.jsonl`.
        events (`Sequence[Mapping]`): of a [`~metatune.rewards.RubricHistory`].
        path (`Path`): the PNG to write.

    Raises:
        ValueError: if no row has the judge's score.
    """
    rows = [row for row in rows if "step" in row]
    curves = {"judge": _curve(rows, JUDGE)}
    if not len(curves["judge"]):
        raise ValueError(f"no line of metrics.jsonl has `{JUDGE}`: nothing was judged yet")
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith("rewards/") and key.endswith("/mean"))
    names = {key: key.removeprefix("rewards/").removesuffix("/mean") for key in keys if key != "rewards/judge/mean"}
    curves |= {name: _curve(rows, key) for key, name in names.items()}
    curves |= {"held-out judge": _curve(rows, HELD_OUT)}

    figure = new_figure(10, 5)
    axes = figure.subplots()
    shown = {name: curve for name, curve in curves.items() if len(curve)}
    for colour, (name, curve) in zip((AFTER, HUES[2], *HUES[3:6] * len(shown)), shown.items(), strict=False):
        axes.plot(*curve.T, color=colour, linewidth=2.2 if name == "judge" else 1.6, label=name)
    for event in events:
        if event["event"] in EVENTS:
            axes.axvline(event["step"], color=BEFORE, linewidth=1, linestyle=EVENTS[event["event"]], zorder=1)
        if event["event"] in ("accepted", "rolled_back"):
            place = {"transform": axes.get_xaxis_transform(), "rotation": 90, "fontsize": 8.5}
            axes.text(event["step"], 0.99, f"v{event['version']} ", va="top", ha="right", color=BEFORE, **place)
    axes.legend(frameon=False, loc="lower right")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("mean of a batch")
    changes = sum(event["event"] == "accepted" for event in events)
    first, last = curves["judge"][[0, -1], 1]
    finding = f"Judge's score {first:.2f} to {last:.2f}, while its rubric changed {_times(changes)}"
    set_heading(axes, finding, "solid: a version taken, with its number; dashed: gone back to; dotted: refused")
    save_figure(figure, path)


def _curve(rows: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """Steps and values of a metric, shape (N, 2)."""
    return np.array([(row["step"], row[key]) for row in rows if row.get(key) is not None], dtype=float).reshape(-1, 2)


def _times(number: int) -> str:
    return {0: "not once", 1: "once"}.get(number, f"{number} times")
