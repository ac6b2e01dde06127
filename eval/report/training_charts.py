"""The charts of a training run, from the lines of its `metrics.jsonl`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..plots import AFTER, BEFORE, HUES, INK, suffixes
from .charts import TOKENS, Chart, Line, change, colors_of, curve, hue, is_number, metric_line, short, smoothed

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
    """What one chart shows of the log.

    Args:
        label (`str`): name of the number, with its unit.
        lines (`dict[str, str]`): name of each curve by its key in `metrics.jsonl`; the title describes the first.
        percent (`bool`, *optional*, defaults to `False`): whether it is a share.
    """

    label: str
    lines: Mapping[str, str]
    percent: bool = False


LENGTHS = {f"completions/{kind}_length": kind for kind in ("mean", "min", "max")}
SPEEDS = {f"throughput/{kind}_tokens_per_second": kind for kind in ("rollout", "trained")}
SCORES = {f"{kind}_reward": kind for kind in ("mean", "min", "max")}
METRICS = (  # in the order of the page; metrics that a run did not log have no chart
    Metric("Loss", {"loss": "training", "eval_loss": "held out"}),
    Metric("Token accuracy", {"mean_token_accuracy": "training", "eval_mean_token_accuracy": "held out"}),
    Metric("Pair accuracy", {"accuracy": "training", "eval_accuracy": "held out"}),
    Metric("Margin of a pair", {"margin": "training", "eval_margin": "held out"}),
    Metric("Score of a response", SCORES),
    Metric("Learning rate", {"learning_rate": ""}),
    Metric("Gradient norm", {"grad_norm": ""}),
    Metric("Entropy in nats per token", {"entropy": ""}),
    Metric("Completion length in tokens", LENGTHS),
    Metric("Truncated completions", {"completions/clipped_ratio": ""}, percent=True),
    Metric("Tokens with a clipped ratio", {"clip_ratio/region_mean": ""}, percent=True),
    Metric("KL divergence in nats per token", {"kl": ""}),
    Metric("Groups without an advantage", {"frac_reward_zero_std": ""}, percent=True),
    Metric("Completions without a reward", {"unscorable": ""}, percent=True),
    Metric("Tokens per second", SPEEDS),
    Metric("Seconds per step", {"time/step": ""}),
)
ELSEWHERE = re.compile(  # shown in another section or chart, or not a measurement of training
    r"step|epoch|eval_.*|train_.*|total_flos|num_tokens|num_input_tokens_seen|rollout_tokens|step_time|reward|"
    r"(time|throughput|memory|vllm|curriculum|reward|rewards|pass_rate|completions|clip_ratio|judge|rubric|held_out_judge|"
    r"meta_judge)/.*"
)
MOST_OTHERS = 16  # charts of other metrics


def learning_charts(
    rows: Sequence[Row], before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> list[Chart]:
    """Return the charts of the training reward and the held-out accuracy by tokens; either may be missing."""
    tokens, reward = curve(rows, "reward", "rollout_tokens")
    charts = []
    if len(reward) and not np.allclose(reward, reward[0], rtol=1e-6, atol=0):
        mean, window = smoothed(reward)
        x = tokens.tolist()
        lines = [
            Line(
                name=f"mean of {window} log lines" if window > 1 else "mean reward",
                x=x,
                y=mean.tolist(),
                color=AFTER,
                width=2.4,
            )
        ]
        if window > 1:
            lines.insert(0, Line(name="log line", x=x, y=reward.tolist(), color=AFTER, width=1, opacity=0.35))
        caption = "of the prompts that the curriculum drew"
        title = f"Training reward {change(reward)}"
        charts.append(Chart(title=title, caption=caption, x=TOKENS, y="mean reward", lines=lines))
    lines = _accuracy_lines(rows, before, after, float(tokens[-1]) if len(tokens) else 0.0)
    if lines:
        caption = "diamonds: evaluation before and after, with interval" if lines[-1].interval else ""
        charts.append(
            Chart(
                title="Held-out accuracy",
                caption=caption,
                x=TOKENS,
                y="accuracy",
                lines=lines,
                span=(0, 1),
                percent=True,
            )
        )
    return charts


def _accuracy_lines(rows: Sequence[Row], before: Row | None, after: Row | None, last: float) -> list[Line]:
    names = suffixes(rows, "eval_accuracy/")
    colors = colors_of(names)
    lines = [metric_line(rows, f"eval_accuracy/{name}", name, colors[name], "rollout_tokens") for name in names]
    mixture = metric_line(rows, "eval_accuracy", "mixture", INK, "rollout_tokens")
    lines.append(None if mixture is None else replace(mixture, width=2.6, marker="circle"))
    ends = [(x, side) for x, side in ((0.0, before), (last, after)) if side and side["accuracy"] is not None]
    if ends:
        x, y, low, high = zip(
            *[(x, side["accuracy"], side["ci_low"], side["ci_high"]) for x, side in ends], strict=True
        )
        ends_line = Line(name="before and after", x=x, y=y, color=HUES[4], interval=(low, high))
        lines.append(replace(ends_line, marker="diamond", dash="dot", width=1.0))
    return [line for line in lines if line is not None]


def before_after_charts(before: Row, after: Row, comparison: Row) -> list[Chart]:
    """Return the chart of every distribution's accuracy before and after; empty where none was scored in both."""
    names = [
        name
        for name, part in before["distributions"].items()
        if part["accuracy"] is not None and after["distributions"].get(name, {}).get("accuracy") is not None
    ]
    if not names:
        return []
    lines = []
    for label, side, color, shift in (("before", before, BEFORE, 0.13), ("after", after, AFTER, -0.13)):
        parts = [side, *(side["distributions"][name] for name in reversed(names))]  # the mixture at the bottom
        lines.append(
            Line(
                name=label,
                x=[part["accuracy"] for part in parts],
                y=[place + shift for place in range(len(parts))],
                color=color,
                marker="circle",
                interval=([part["ci_low"] for part in parts], [part["ci_high"] for part in parts]),
            )
        )
    labels = ["mixture", *reversed(names)]
    title = f"Held-out accuracy {comparison['accuracy_before']:.3f} before, {comparison['accuracy_after']:.3f} after"
    caption = "with intervals; the table has the differences"
    x = "accuracy on held-out problems"
    return [Chart(title=title, caption=caption, x=x, lines=lines, percent=True, categories=labels)]


def curriculum_chart(rows: Sequence[Row]) -> Chart | None:
    """Return the stacked shares of the prompts, or `None` where no curriculum chose anything."""
    prefix = "curriculum/probability/"
    rows = [row for row in rows if "step" in row and any(key.startswith(prefix) for key in row)]
    names = suffixes(rows, prefix)
    if not chose(rows):
        return None
    colors = colors_of(names)
    steps = [row["step"] for row in rows]
    lines = [
        Line(name=name, x=steps, y=[row.get(prefix + name, 0.0) for row in rows], color=colors[name]) for name in names
    ]
    title = "Share of the prompts of each distribution"
    return Chart(title=title, y="share of the prompts", lines=lines, span=(0, 1), percent=True, stacked=True)


def chose(rows: Sequence[Row]) -> bool:
    """Return whether a curriculum drew distributions unequally at some step, of at least two steps."""
    prefix = "curriculum/probability/"
    shares = [[value for key, value in row.items() if key.startswith(prefix)] for row in rows]
    shares = [share for share in shares if len(share) > 1]
    return len(shares) > 1 and any(max(share) - min(share) > 1e-3 for share in shares)


@dataclass(frozen=True)
class Undrawn:
    """Numbers that have no chart, each as `"name: value"`: those that never changed, and those logged only once."""

    constant: list[str] = field(default_factory=list)
    once: list[str] = field(default_factory=list)

    def sentences(self) -> list[str]:
        """Return what the page says about them."""
        words = [f"The same in every log line: {'; '.join(self.constant)}."] if self.constant else []
        if self.once:
            words.append(
                f"Logged only once, so there is no curve: {'; '.join(self.once)}. "
                "For curves set logging_steps (or eval_steps) to less than half of the training steps."
            )
        return words


def training_charts(rows: Sequence[Row], *, by_pairs: bool) -> tuple[list[Chart], list[str]]:
    """Return the charts of the training log, and sentences about metrics that never changed.

    Args:
        rows (`Sequence[Mapping]`): the lines of `metrics.jsonl`.
        by_pairs (`bool`): whether `accuracy` and `eval_accuracy` are those of a reward model's pairs.
    """
    charts: list[Chart] = []
    undrawn = Undrawn()
    for metric in METRICS:
        if metric.label == "Pair accuracy" and not by_pairs:
            continue
        lines = [metric_line(rows, key, name, hue(n)) for n, (key, name) in enumerate(metric.lines.items())]
        _add(charts, undrawn, metric, [line for line in lines if line is not None])
    for prefix, label in (("pass_rate/", "Right completions"), ("rewards/", "Mean of each reward function")):
        family = _family(rows, prefix)
        if len(family) > 1:
            _add(charts, undrawn, Metric(label, {}, percent=prefix == "pass_rate/"), family)
    return charts, undrawn.sentences()


def other_charts(rows: Sequence[Row]) -> tuple[list[Chart], list[str]]:
    """Return charts of the metrics that no other section shows, and sentences about those left out."""
    shown = {key for metric in METRICS for key in metric.lines}
    logged = dict.fromkeys(key for row in rows for key, value in row.items() if is_number(value))
    rest = [key for key in logged if key not in shown and not ELSEWHERE.fullmatch(key)]
    charts: list[Chart] = []
    undrawn = Undrawn()
    for key in rest:
        line = metric_line(rows, key, "")
        if line is not None:
            _add(charts, undrawn, Metric(key, {}), [line])
    words = undrawn.sentences()
    if len(charts) > MOST_OTHERS:
        words.append(f"{len(charts) - MOST_OTHERS} further numbers of metrics.jsonl are not drawn.")
    return charts[:MOST_OTHERS], words


def _family(rows: Sequence[Row], prefix: str) -> list[Line]:
    """Return a smoothed curve for each name below a prefix of the log."""
    names = suffixes(rows, prefix)
    if prefix == "rewards/":
        names = [name for name in names if name.endswith("/mean")]
    colors = colors_of(names)
    lines = []
    for name in names:
        x, y = curve(rows, prefix + name)
        if len(x):
            mean, _ = smoothed(y)
            lines.append(
                Line(name=name.removesuffix("/mean"), x=x.tolist(), y=mean.tolist(), color=colors[name], width=1.6)
            )
    return lines


def _add(charts: list[Chart], undrawn: Undrawn, metric: Metric, lines: list[Line]) -> None:
    """Add a chart, or the number in words where there is nothing to draw: it never changed, or was logged once."""
    varied = [line for line in lines if not np.allclose(line.y, line.y[0], rtol=1e-6, atol=0)]
    label = f"{metric.label[0].lower()}{metric.label[1:]}"
    if not varied:
        if lines:
            parts = [f"{line.name} {short(line.y[0])}".strip() for line in lines]
            words = undrawn.constant if any(len(line.y) > 1 for line in lines) else undrawn.once
            words.append(f"{label}: {', '.join(dict.fromkeys(parts))}")
        return
    main, values = varied[0], np.asarray(varied[0].y, dtype=float)
    title = f"{metric.label} {change(values)}"
    if not metric.lines and len(lines) > 1:  # of a family a constant one is drawn too, to compare
        title, varied = metric.label, lines
    if len(values) > 20 and main.name in ("", "training"):
        mean, window = smoothed(values)
        bold = replace(main, name=f"mean of {window}", y=mean.tolist(), width=2.4)
        varied = [replace(main, opacity=0.35, width=1.0), bold, *varied[1:]]
    charts.append(Chart(title=title, y=label, lines=varied, percent=metric.percent))
