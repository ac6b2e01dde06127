"""The pictures of a run. Each title says what the picture shows; the numbers are those of the run's own files.

Colours are shades of the colour-blind-safe set of Okabe and Ito: one hue for a family of distributions (the names that
share what stands before their first `-`), from light to dark within it, and bands are labelled where they lie.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from .files import write_atomically

HUES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C6D31", "#666666")
INK, QUIET, GRID = "#222222", "#6b6b6b", "#e4e4e4"
BEFORE, AFTER = "#9a9a9a", "#0072B2"
Row = Mapping[str, Any]
RGB = tuple[float, float, float]


def plot_learning(
    rows: Sequence[Row], path: Path, *, before: Mapping[str, Any] | None = None, after: Mapping[str, Any] | None = None
) -> None:
    """Draw the training reward, and the held-out accuracy, against the rollout tokens.

    Args:
        rows (`Sequence[Mapping]`): the lines of `metrics.jsonl`.
        path (`Path`): the PNG to write.
        before (`Mapping`, *optional*): summary of the evaluation before training; drawn with its interval.
        after (`Mapping`, *optional*): summary of the evaluation after it.

    Raises:
        ValueError: if no row has both `reward` and `rollout_tokens`.
    """
    training = [row for row in rows if _has(row, "reward", "rollout_tokens")]
    evaluations = [row for row in rows if _has(row, "eval_accuracy", "rollout_tokens")]
    if not training:
        raise ValueError("no line of metrics.jsonl has both `reward` and `rollout_tokens`: nothing was trained yet")
    tokens = np.array([row["rollout_tokens"] for row in training], dtype=float)
    reward = np.array([row["reward"] for row in training], dtype=float)
    window = max(1, len(reward) // 10)

    ends = [(x, s) for x, s in ((0, before), (tokens[-1], after)) if s and s.get("accuracy") is not None]
    measured = bool(evaluations or ends)
    figure = new_figure(11.5 if measured else 6.5, 4.4)
    panels = figure.subplots(1, 1 + measured, squeeze=False)[0]
    left = panels[0]
    left.plot(tokens, reward, color=AFTER, alpha=0.3, linewidth=1)
    left.plot(tokens, running_mean(reward, window), color=AFTER, linewidth=2.2)
    caption = f"of the prompts that the curriculum drew; bold: mean of {window} log lines"
    set_heading(left, f"Training reward {_change(reward[:window].mean(), reward[-window:].mean())}", caption)
    left.set_ylabel("mean reward")
    if measured:
        _draw_accuracy(panels[1], evaluations, ends)
    for axes in panels:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.set_xlabel("rollout tokens")
        axes.set_xlim(0 - tokens[-1] * 0.02, tokens[-1] * 1.02)
    save_figure(figure, path)


def _draw_accuracy(axes: Axes, evaluations: Sequence[Row], ends: Sequence[tuple[float, Mapping[str, Any]]]) -> None:
    """Draw the held-out accuracy of the evaluations during training, and of those before and after it."""
    names = suffixes(evaluations, "eval_accuracy/")
    colours = palette(names)
    for name in names:
        points = [(row["rollout_tokens"], row[key]) for row in evaluations if (key := f"eval_accuracy/{name}") in row]
        axes.plot(*zip(*points, strict=True), color=colours[name], linewidth=1.3)
    if evaluations:
        last = {name: row[key] for name in names for row in evaluations if (key := f"eval_accuracy/{name}") in row}
        label_ends(axes, {name: f"{name}  {last[name]:.2f}" for name in names}, last, colours)
        points = [(row["rollout_tokens"], row["eval_accuracy"]) for row in evaluations]
        axes.plot(*zip(*points, strict=True), color=INK, linewidth=2.4, marker="o", markersize=4)
    for x, summary in ends:
        low, high = summary["accuracy"] - summary["ci_low"], summary["ci_high"] - summary["accuracy"]
        axes.errorbar([x], [summary["accuracy"]], yerr=[[low], [high]], color=HUES[4], marker="D", capsize=4, zorder=4)
    marks = {"black: mixture": evaluations, "diamonds: evaluation before, after, with interval": ends}
    set_heading(
        axes, _accuracy_finding(evaluations, ends), "; ".join(mark for mark, points in marks.items() if points)
    )
    axes.set_ylim(0, 1)
    axes.set_ylabel("accuracy")


def plot_probabilities(rows: Sequence[Row], path: Path) -> None:
    """Draw the curriculum's probabilities over the steps as a stacked area.

    Args:
        rows (`Sequence[Mapping]`): the lines of `metrics.jsonl`.
        path (`Path`): the PNG to write.

    Raises:
        ValueError: if no row has `curriculum/probability/…`.
    """
    prefix = "curriculum/probability/"
    rows = [row for row in rows if "step" in row and any(key.startswith(prefix) for key in row)]
    names = suffixes(rows, prefix)
    if not names:
        raise ValueError(f"no line of metrics.jsonl has `{prefix}…`: this run had no curriculum")
    steps = np.array([row["step"] for row in rows])
    shares = np.array([[row.get(prefix + name, 0.0) for row in rows] for name in names], dtype=float)
    if len(steps) == 1:  # an area needs two edges
        steps, shares = np.array([steps[0] - 1, steps[0]]), shares.repeat(2, axis=1)
    colours = palette(names)

    figure = new_figure(10, 5)
    axes = figure.subplots()
    axes.stackplot(steps, shares, colors=[colours[name] for name in names], edgecolor="white", linewidth=0.5)
    axes.set_xlim(steps[0], steps[-1])
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("share of the prompts drawn next")
    middles = np.cumsum(shares[:, -1]) - shares[:, -1] / 2
    labels = {name: f"{name}  {share:.0%}" for name, share in zip(names, shares[:, -1], strict=True)}
    label_ends(axes, labels, dict(zip(names, middles, strict=True)), colours)
    set_heading(axes, _effort_finding(names, shares), "at the right: share at the end")
    save_figure(figure, path)


def plot_before_after(
    before: Mapping[str, Any], after: Mapping[str, Any], comparison: Mapping[str, Any], path: Path
) -> None:
    """Draw the accuracy of every distribution before and after training, with intervals.

    Args:
        before (`Mapping`): summary of the evaluation before training.
        after (`Mapping`): summary of the evaluation after it.
        comparison (`Mapping`): what [`~metatune.eval.compare`] returned for the two.
        path (`Path`): the PNG to write.

    Raises:
        ValueError: if the two evaluations share no scored distribution.
    """
    names = [
        name
        for name, part in before["distributions"].items()
        if part["accuracy"] is not None and after["distributions"].get(name, {}).get("accuracy") is not None
    ]
    if not names:
        raise ValueError("the evaluations before and after have no scored distribution in common")
    entries = [(name, before["distributions"][name], after["distributions"][name]) for name in names]
    entries.append(("mixture", before, after))

    figure = new_figure(9, 1.9 + 0.42 * len(entries))
    axes = figure.subplots()
    for row, (name, first, second) in enumerate(reversed(entries)):
        axes.plot([first["accuracy"], second["accuracy"]], [row, row], color="#cfcfcf", linewidth=4, zorder=1)
        for part, colour, shift in ((first, BEFORE, 0.13), (second, AFTER, -0.13)):
            axes.plot([part["ci_low"], part["ci_high"]], [row + shift] * 2, color=colour, linewidth=1.6, zorder=2)
            axes.plot(part["accuracy"], row + shift, "o", color=colour, markersize=8, zorder=3)
        change = comparison if name == "mixture" else comparison["distributions"].get(name)
        if change is not None:
            certain = change["ci_low"] > 0 or change["ci_high"] < 0
            text = f"{change['difference']:+.2f}  [{change['ci_low']:+.2f}, {change['ci_high']:+.2f}]"
            text = text.replace("-", "\N{MINUS SIGN}")
            style = {"color": INK if certain else QUIET, "fontweight": "bold" if certain else "normal"}
            transform = axes.get_yaxis_transform()
            axes.text(1.02, row, text, transform=transform, va="center", fontsize=9.5, **style)
    axes.axhline(0.5, color=GRID, linewidth=1)
    axes.set_yticks(range(len(entries)), [drawable(name) for name, *_ in reversed(entries)])
    axes.get_yticklabels()[0].set_fontweight("bold")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.6, len(entries) - 0.4)
    axes.grid(axis="y", visible=False)
    size = after["num_completions"] / after["num_problems"]
    axes.set_xlabel(f"accuracy on {after['num_problems']:,} held-out problems, {size:.3g} samples each")
    for label, colour in (("before", BEFORE), ("after", AFTER)):
        axes.plot([], [], "o-", color=colour, label=label, linewidth=1.6)
    axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1.0), borderaxespad=0.2)
    confidence = round(100 * comparison.get("confidence", 0.95))
    set_heading(axes, _gain_finding(names, comparison), f"at the right: difference with its {confidence} % interval")
    save_figure(figure, path)


def palette(names: Sequence[str]) -> dict[str, RGB]:
    """Choose a colour for every distribution: a hue for each family, from light to dark within it."""
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(name.split("-")[0], []).append(name)
    colours = {}
    for index, members in enumerate(families.values()):
        base = np.array(to_rgb(HUES[index % len(HUES)]))
        for tone, name in zip(_tones(len(members)), members, strict=True):
            towards = np.ones(3) if tone > 0 else np.zeros(3)
            red, green, blue = (base + abs(tone) * (towards - base)).tolist()
            colours[name] = (red, green, blue)
    return {name: colours[name] for name in names}


def _tones(count: int) -> np.ndarray:
    """From light (above 0, the share of white) to dark (below 0, the share of black)."""
    return np.linspace(0.55, -0.4, count) if count > 1 else np.zeros(1)


def _accuracy_finding(evaluations: Sequence[Row], ends: Sequence[tuple[float, Mapping[str, Any]]]) -> str:
    points = [row["eval_accuracy"] for row in evaluations]
    if len(ends) == 2:  # the larger evaluations, where there are any
        points = [summary["accuracy"] for _, summary in ends]
    points = points or [summary["accuracy"] for _, summary in ends]
    return f"Held-out accuracy {_change(points[0], points[-1])}"


def _change(first: float, last: float) -> str:
    if abs(last - first) < 0.005:
        return f"stayed at {last:.2f}"
    return f"{'rose' if last > first else 'fell'} from {first:.2f} to {last:.2f}"


def _effort_finding(names: Sequence[str], shares: np.ndarray) -> str:
    """Name the distributions that got the most and the least of the prompts over the run."""
    means = shares.mean(axis=1)
    if len(names) == 1:
        return f"One distribution, {names[0]}: nothing to choose"
    if np.ptp(shares) < 1e-3:
        return f"The curriculum drew all {len(names)} distributions alike"
    most, least = int(means.argmax()), int(means.argmin())
    return (
        f"Most effort went to {names[most]} ({means[most]:.0%} of the prompts), least to {names[least]} "
        f"({means[least]:.0%})"
    )


def _gain_finding(names: Sequence[str], comparison: Mapping[str, Any]) -> str:
    changes = [comparison["distributions"][name] for name in names if name in comparison["distributions"]]
    better, worse = sum(c["ci_low"] > 0 for c in changes), sum(c["ci_high"] < 0 for c in changes)
    tail = f", {worse} got worse" if worse else ""
    mixture = f"{comparison['difference']:+.2f}".replace("-", "\N{MINUS SIGN}")
    return f"{better} of {len(changes)} distributions got better{tail}; mixture {mixture}"


def label_ends(
    axes: Axes, labels: Mapping[str, str], heights: Mapping[str, float], colours: Mapping[str, RGB]
) -> None:
    """Write names at the right of axes that reach from 0 to 1, pushed apart where they would overlap."""
    names = sorted(labels, key=heights.__getitem__)
    for name, height in zip(names, _spread([heights[name] for name in names]), strict=True):
        line = {"transform": axes.transAxes, "clip_on": False, "color": colours[name], "linewidth": 2}
        axes.add_line(Line2D([1.008, 1.022, 1.04, 1.05], [heights[name]] * 2 + [height] * 2, **line))
        axes.text(1.06, height, drawable(labels[name]), transform=axes.transAxes, va="center", fontsize=9.5)


def _spread(heights: Sequence[float]) -> np.ndarray:
    """Move ascending heights as little as possible until labels at them do not overlap: pool adjacent violators."""
    gap = min(0.055, 1 / max(1, len(heights) - 1))
    offsets = gap * np.arange(len(heights))
    pools: list[list[float]] = []
    for height in np.asarray(heights) - offsets:
        pools.append([height])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    placed = np.concatenate([np.full(len(pool), np.mean(pool)) for pool in pools]) if pools else np.empty(0)
    return np.clip(placed, 0, 1 - offsets[-1] if len(offsets) else 1) + offsets


def drawable(text: str, longest: int = 40) -> str:
    """Escape a name for matplotlib, where a dollar sign would begin a formula, and shorten it in the middle."""
    if len(text) > longest:
        text = f"{text[: longest // 2]}\N{HORIZONTAL ELLIPSIS}{text[-(longest // 2 - 1) :]}"
    return text.replace("$", r"\$")


def new_figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def set_heading(axes: Axes, finding: str, caption: str) -> None:
    """Set the title, the caption below it, and the common style."""
    axes.set_title(drawable(finding, 120), loc="left", fontsize=12.5, fontweight="bold", color=INK, pad=24)
    place = {"xy": (0, 1), "xycoords": "axes fraction", "xytext": (0, 7), "textcoords": "offset points"}
    axes.annotate(drawable(caption, 160), **place, fontsize=9.5, color=QUIET, va="bottom")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b5b5b5")
    axes.tick_params(color="#b5b5b5", labelcolor=INK)
    if axes.get_lines():  # an area needs no grid
        axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def save_figure(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))


def _has(row: Row, *keys: str) -> bool:
    return all(row.get(key) is not None for key in keys)


def suffixes(rows: Sequence[Row], prefix: str) -> list[str]:
    """List what follows `prefix` in the rows' keys, in order of appearance."""
    return list(dict.fromkeys(key.removeprefix(prefix) for row in rows for key in row if key.startswith(prefix)))


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` values at each place, of fewer at the start."""
    sums = np.cumsum(values)
    sums[window:] = sums[window:] - sums[:-window]
    return sums / np.minimum(np.arange(1, len(values) + 1), window)
