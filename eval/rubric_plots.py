"""The pictures of a judge whose rubric changes, in the style of `plots.py`: its scores, its failures and its time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .judge_log import JudgeLog, percent, words
from .plots import AFTER, BEFORE, HUES, QUIET, new_figure, save_figure, set_heading

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
    shown, unlike = score_curves(rows)
    if "judge" not in shown:
        raise ValueError(f"no line of metrics.jsonl has `{JUDGE}`: nothing was judged yet")
    figure = new_figure(10, 5)
    axes = figure.subplots()
    for colour, (name, curve) in zip(score_colours(len(shown)), shown.items(), strict=False):
        marks = {"marker": "o", "markersize": 4} if name == "held-out judge" or len(curve) == 1 else {}
        axes.plot(*curve.T, color=colour, linewidth=2.2 if name == "judge" else 1.6, label=name, **marks)
    for event in events:
        if event["event"] in EVENTS:
            axes.axvline(last_before(event), color=BEFORE, linewidth=1, linestyle=EVENTS[event["event"]], zorder=1)
        if event["event"] in ("accepted", "rolled_back"):
            place = {"xycoords": axes.get_xaxis_transform(), "xytext": (-2, -2), "textcoords": "offset points"}
            place |= {"bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0, "alpha": 0.8}}  # over the curves
            style = {"rotation": 90, "fontsize": 8.5, "color": QUIET, "va": "top", "ha": "right"}
            axes.annotate(f"v{event['version']}", (last_before(event), 1), **place, **style)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("mean score of the log line's batches, 0 to 1")
    finding = score_finding(shown["judge"], events)
    caption = "right of a solid line: scores by the version taken there; dashed: gone back to; dotted: one refused"
    left_out = f"; not on this scale: {', '.join(unlike)}" if unlike else ""
    set_heading(axes, finding, caption + left_out)
    save_figure(figure, path)


def score_curves(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return steps and values, shape (N, 2), of the judges' scores and of the rewards that share their scale.

    The second value has the names of the rewards that do not.
    """
    rows = [row for row in rows if "step" in row]
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith("rewards/") and key.endswith("/mean"))
    names = {key: key.removeprefix("rewards/").removesuffix("/mean") for key in keys if key != "rewards/judge/mean"}
    others = {name: _curve(rows, key) for key, name in names.items()}
    unlike = [name for name, curve in others.items() if len(curve) and not _on_scale(curve[:, 1])]
    curves = {"judge": _curve(rows, JUDGE)}
    curves |= {name: curve for name, curve in others.items() if name not in unlike}
    curves |= {"held-out judge": _curve(rows, HELD_OUT)}
    return {name: curve for name, curve in curves.items() if len(curve)}, unlike


def score_colours(count: int) -> tuple[str, ...]:
    """Return the colours of at least `count` curves, the judge's first."""
    return (AFTER, HUES[2], *HUES[3:6] * count)


def score_finding(scores: np.ndarray, events: Sequence[Mapping[str, Any]]) -> str:
    """Say how the judge's score went, shape (N, 2), and how often its rubric changed."""
    changes = sum(event["event"] == "accepted" for event in events)
    first, last = scores[[0, -1], 1]
    return f"Judge's score {first:.2f} to {last:.2f}, while its rubric changed {_times(changes)}"


def plot_judge_log(log: JudgeLog, path: Path) -> None:
    """Draw the judgements that failed, by cause, and the share of the step time that judging took, over the steps.

    Args:
        log (`JudgeLog`): of a run; what is not in it has no panel.
        path (`Path`): the PNG to write.

    Raises:
        ValueError: no judgement failed, and the log does not tell the time.
    """
    panels = []
    if log.failed:
        worst = next(iter(log.failed))
        finding = f"{percent(sum(log.failed.values()))} of the completions could not be judged"
        finding += f", mostly {words(worst)}" if len(log.failed) > 1 else f": {words(worst)}"
        panels.append((finding, "share of the completions", log.failed, log.failed_by_window))
    if log.took and log.took_by_window is not None:
        finding = f"Judging took {percent(log.took['judging'])} of the step time, meta steps "
        finding += percent(log.took["meta steps"])
        panels.append((finding, "share of the step time", log.took, log.took_by_window))
    if not panels:
        raise ValueError("no judgement failed, and no line of metrics.jsonl tells the time of a step")
    figure = new_figure(10, 3.6 * len(panels))
    figure.get_layout_engine().set(hspace=0.08)
    places = np.ravel(figure.subplots(len(panels), 1))
    for axes, (finding, label, shares, by_window) in zip(places, panels, strict=True):
        _stack(axes, log.edges, shares, by_window)
        lines = "a log line each" if log.lines == 1 else f"means of up to {log.lines} log lines"
        set_heading(axes, finding, f"{lines}; in the legend: of the whole run")
        axes.set_ylabel(label)
    save_figure(figure, path)


def _stack(axes: Axes, edges: np.ndarray, shares: Mapping[str, float], by_window: Mapping[str, np.ndarray]) -> None:
    """Draw shares as flat steps upon each other, the first at the bottom."""
    colours = [HUES[index % len(HUES)] for index in range(len(shares))]
    heights = [np.concatenate([by_window[name][:1], by_window[name]]) for name in shares]
    labels = [f"{words(name)}  {percent(share)}" for name, share in shares.items()]
    axes.stackplot(edges, heights, step="pre", colors=colours, labels=labels)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, 1.05 * max(1e-3, np.sum(heights, axis=0).max()))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlabel("optimizer step")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5), reverse=True)


def _curve(rows: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """Steps and values of a metric, shape (N, 2)."""
    return np.array([(row["step"], row[key]) for row in rows if row.get(key) is not None], dtype=float).reshape(-1, 2)


def last_before(event: Mapping[str, Any]) -> int:
    """The last step whose log line holds scores by the rubric before: a meta step comes after its batch was judged,
    and that batch is logged with the step that it is then trained in; a user's wish comes before its batch."""
    return event["step"] + (event.get("by") != "user")


def _on_scale(values: np.ndarray) -> bool:
    return bool((values >= 0).all() and (values <= 1).all())


def _times(number: int) -> str:
    return {0: "not once", 1: "once"}.get(number, f"{number} times")
