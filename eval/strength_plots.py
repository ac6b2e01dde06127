"""The picture of preference strength, in the style of `plots.py`: how it spreads, and how far the votes differ."""

from pathlib import Path

import numpy as np

from .plots import AFTER, HUES, INK, new_figure, save_figure, set_heading


def plot_strength(strength: np.ndarray, std: np.ndarray, path: Path) -> None:
    """Draw the histogram of the strength, and the deviation of the votes against it.

    Args:
        strength (`np.ndarray` of shape (N,)): mean margin of every pair, in units of the score.
        std (`np.ndarray` of shape (N,)): population deviation of its margins.
        path (`Path`): the PNG to write.

    Raises:
        ValueError: without any pair.
    """
    if not len(strength):
        raise ValueError("no pair has a strength: there is nothing to draw")
    figure = new_figure(11.5, 4.4)
    left, right = figure.subplots(1, 2)
    width = (np.ptp(strength) or 1.0) / min(60, max(20, len(strength) // 20))
    edges = width * np.arange(np.floor(strength.min() / width), np.floor(strength.max() / width) + 2)  # one is 0
    for part, colour in ((strength[strength < 0], HUES[4]), (strength[strength >= 0], AFTER)):
        left.hist(part, bins=edges, color=colour, edgecolor="white", linewidth=0.5)
    left.axvline(0, color=INK, linewidth=1)
    set_heading(left, f"{(strength < 0).mean():.0%} of {len(strength)} pairs have a negative strength", "red: below 0")
    left.set_ylabel("pairs")

    right.scatter(strength, std, s=6, color=AFTER, alpha=0.35, linewidths=0, rasterized=True)
    parts = np.array_split(np.argsort(strength, kind="stable"), min(10, len(strength)))
    means = [[values[part].mean() for part in parts] for values in (strength, std)]
    right.plot(*means, color=INK, marker="o", markersize=4)
    right.axvline(0, color=INK, linewidth=1)
    finding = f"Votes deviate by {std.mean():.2g}, on the weakest tenth by {std[parts[0]].mean():.2g}"
    set_heading(right, finding, "a point is a pair; black: means of tenths by strength")
    right.set_ylabel("standard deviation of the votes")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xlabel("preference strength (mean margin)")
    save_figure(figure, path)
