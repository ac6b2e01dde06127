"""Draw the documentation's pictures from the results that are kept: `python benchmarks/pictures.py`.

Each is one of what the full runs found; nothing is measured here.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from shared import ROOT, bootstrap

from metatune.eval.plots import HUES, QUIET, new_figure, save_figure, set_heading

RESULTS, IMAGES = ROOT / "benchmarks" / "results", ROOT / "docs" / "images"
STYLES = ("-", "--", "-.", ":")


def claims(name: str) -> tuple[dict[str, tuple[float, list[float]]], int]:
    """Return what a benchmark found, value and interval by claim, and the number of its seeds."""
    found = json.loads((RESULTS / f"{name}.json").read_text())["claims"]
    return {claim["claim"]: (claim["value"], claim["ci"]) for claim in found}, found[0]["seeds"]


def save(figure: Figure, file: str) -> None:
    """Save a picture in few colours, a third of the bytes."""
    save_figure(figure, IMAGES / file)
    Image.open(IMAGES / file).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(IMAGES / file, optimize=True)


def draw_lines(
    file: str, finding: str, caption: str, labels: tuple[str, str], lines: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    """Draw a line and the band of its interval for each name: positions, and rows of value, low and high."""
    figure = new_figure(8, 4.4)
    axes = figure.subplots()
    for (name, (where, values)), colour, style in zip(lines.items(), HUES, STYLES, strict=False):
        axes.plot(where, values[:, 0], style, color=colour, label=name)
        axes.fill_between(where, values[:, 1], values[:, 2], color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.legend(frameon=False)
    set_heading(axes, finding, caption)
    save(figure, file)


def draw_differences(
    file: str,
    finding: str,
    caption: str,
    label: str,
    rows: Mapping[str, Sequence[tuple[float, list[float]]]],
    kinds: Sequence[str] = (),
) -> None:
    """Draw differences with their intervals, a row for each name, a mark for each kind."""
    figure = new_figure(8, 0.9 + 0.45 * len(rows))
    axes = figure.subplots()
    names = list(rows)[::-1]
    for kind in range(len(next(iter(rows.values())))):
        for height, name in enumerate(names):
            value, (low, high) = rows[name][kind]
            shown = kinds[kind] if kinds and height == 0 else None
            at, colour = height - 0.2 * kind, HUES[kind]
            axes.plot([low, high], [at, at], color=colour, linewidth=2, alpha=0.6)
            axes.plot(value, at, "os"[kind], color=colour, label=shown)
    axes.axvline(0, color=QUIET, linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel(label)
    if kinds:
        axes.legend(frameon=False, loc="best")
    set_heading(axes, finding, caption)
    save(figure, file)


def draw_dump() -> None:
    runs = [json.loads(line) for line in (RESULTS / "dump_runs.jsonl").read_text().splitlines()]
    budget, lines = 60_000, {}
    tokens = np.linspace(0, budget, 13)
    for name, method in {"uniform": "uniform", "DUMP": "dump", "SEC": "sec", "stock TRL": "stock"}.items():
        curves = [np.array(run["curve"]) for run in runs if (run["mixture"], run["method"]) == ("skewed", method)]
        values = np.array([np.interp(tokens, curve[:, 0], curve[:, 1]) for curve in curves])
        found = [bootstrap(np.mean, column) for column in values.T]
        lines[name] = (tokens / 1000, np.array([[value, *ci] for value, ci in found]))
    draw_lines(
        "dump_mixture.png",
        "Choosing where to train gets there in half of the tokens",
        f"eleven distributions, three of them learnable; mean of {len(curves)} seeds, 95 % intervals",
        ("thousand rollout tokens", "held-out accuracy"),
        lines,
    )


def draw_mrt() -> None:
    found, seeds = claims("mrt")
    names = {"anytime": "anytime", "episode": "episode, by likelihood", "episode_rollouts": "episode, by 4 answers"}
    names |= {"prefix": "prefix", "prefix_no_bonus": "prefix, no bonus", "length_penalty": "length penalty"}
    works = ("equal rollouts", "equal compute")
    rows = {
        shown: [found[f"accuracy of {name} less grpo's, {work}"] for work in works] for name, shown in names.items()
    }
    caption = f"countdown, {seeds} seeds, 95 % intervals"
    label = "accuracy less that of GRPO"
    draw_differences("mrt_difference.png", "No form of progress beats GRPO", caption, label, rows, works)


def draw_reward() -> None:
    found, seeds = claims("reward")
    steps, lines = (0, 10, 20, 40, 80), {}
    methods = {"plain": "vanilla", "ensemble of four": "ensemble", "SwAV": "swav pairs", "MetaRM": "metarm"}
    for name, method in methods.items():
        values = [found[f"accuracy, {method}, after {step} steps"] for step in steps]
        lines[name] = (np.array(steps), np.array([[value, *ci] for value, ci in values]))
    draw_lines(
        "reward_shift.png",
        "Every reward model loses the policy that moves",
        f"pairs of the policy's own responses; mean of {seeds} seeds, 95 % intervals",
        ("GRPO steps of the policy", "accuracy"),
        lines,
    )


def draw_together() -> None:
    found, seeds = claims("together")
    arms = ("curriculum", "progress", "judge", "mpo", "reward model", "all", "all, total")
    names = {"judge": "judge, fixed rubric", "mpo": "judge with MPO", "all, total": "all, curriculum sees the total"}
    rows = {names.get(arm, arm): [found[f"accuracy, {arm} less stock"]] for arm in arms}
    caption = f"60,000 rollout tokens a run, {seeds} seeds, 95 % intervals"
    label = "held-out accuracy less that of stock TRL"
    draw_differences("together.png", "The curriculum is what earns here", caption, label, rows)


if __name__ == "__main__":
    for draw in (draw_dump, draw_mrt, draw_reward, draw_together):
        draw()
