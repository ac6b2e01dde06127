"""The page of traces: what a model wrote, episode by episode, coloured by the progress that each episode made.

    write_traces_page(read_traces("runs/mrt/traces.jsonl"), "runs/mrt/traces.html")

A trace is a JSON object, one a line of `traces.jsonl`:

| key | what it holds |
|---|---|
| `step` | the optimizer step that sampled it; `null` in an evaluation |
| `distribution` | where its problem comes from |
| `prompt` | the problem |
| `episodes` | texts of the n episodes |
| `values` | J_0 … J_n: success if stopped after as many episodes, the last the outcome; `null` where unscorable |
| `correct` | `true`, `false`, or `null` where unscorable |

Progress of episode j is J_j - J_{j-1}. Further keys are left alone.
"""

import json
import math
import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from .pages import cut, page_template, signed, write_page

MOST_TRACES = 60  # on a page; of more, as many are drawn at random
STRONGEST = 55  # percent of the colour behind an episode of progress 1; text must stay readable on it
KEYS = ("step", "distribution", "prompt", "episodes", "values", "correct")

# of the drawing of J, in pixels
STEP, WIDEST, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 44, 640, 72, 34, 16, 12, 22


def read_traces(path: str | Path) -> list[dict[str, Any]]:
    """Read `traces.jsonl`.

    Args:
        path (`str` or `Path`): the file.

    Returns:
        `list[dict]`: the traces, in the order of the lines.

    Raises:
        ValueError: the file cannot be read, or a line is no trace; it names the file, the line and what is wrong.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    traces = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            trace = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
        _check(trace, f"{path}, line {number}")
        traces.append(trace)
    return traces


def write_traces_page(traces: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Write one HTML file that opens offline and shows every trace; of more than 60, 60 drawn at random.

    Args:
        traces (`Sequence[Mapping]`): what [`read_traces`] returns.
        path (`str` or `Path`): the page to write.

    Returns:
        `Path`: the page.

    Raises:
        ValueError: there is no trace, or one is malformed; it names its number and what is wrong.
    """
    if not traces:
        raise ValueError("there are no traces to show")
    for number, trace in enumerate(traces, 1):
        _check(trace, f"trace {number}")
    places = list(range(len(traces)))
    if len(traces) > MOST_TRACES:
        places = sorted(random.Random(0).sample(places, MOST_TRACES))
    page = page_template("traces.html").render(
        total=len(traces),
        traces=[{"number": place + 1, **_shown(traces[place])} for place in places],
        scale=[_progress(0.0, value) for value in (-1.0, -0.5, 0.0, 0.5, 1.0)],
        facts=_facts(traces),
    )
    return write_page(Path(path), page)


def _check(trace: Any, where: str) -> None:
    if not isinstance(trace, Mapping):
        raise ValueError(f"{where}: a trace is a JSON object, not {type(trace).__name__}")
    missing = [key for key in KEYS if key not in trace]
    if missing:
        raise ValueError(f"{where}: a trace needs {', '.join(missing)}")
    episodes, values = trace["episodes"], trace["values"]
    for key, kinds in (("distribution", str), ("prompt", str), ("step", int | None), ("correct", bool | None)):
        if not isinstance(trace[key], kinds):
            raise ValueError(f"{where}: {key} cannot be {trace[key]!r}")
    if not isinstance(episodes, list | tuple) or not all(isinstance(text, str) for text in episodes):
        raise ValueError(f"{where}: episodes is not a list of texts")
    if not isinstance(values, list | tuple) or not all(value is None or _is_number(value) for value in values):
        raise ValueError(f"{where}: values is not a list of numbers and null")
    if len(values) != len(episodes) + 1 and (episodes or values):  # an empty completion may have none
        raise ValueError(
            f"{where}: {len(episodes)} episodes need {len(episodes) + 1} values, "
            f"one before the first and one after each; there are {len(values)}"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _shown(trace: Mapping[str, Any]) -> dict[str, Any]:
    values = trace["values"]
    episodes = [
        {"text": cut(text.strip("\n")), **_progress(before, after)}
        for text, (before, after) in zip(trace["episodes"], pairwise(values), strict=True)
    ]
    kept = {key: trace[key] for key in ("step", "distribution", "correct")}
    return kept | {"prompt": cut(trace["prompt"].strip("\n")), "episodes": episodes, "drawing": _drawing(values)}


def _progress(before: float | None, after: float | None) -> dict[str, Any]:
    """Say a change of J in a word, a number and a colour: its name, and how much of it, in percent."""
    progress = None if before is None or after is None else round(after - before, 2)
    kind = "unknown" if progress is None else "rise" if progress > 0 else "fall" if progress < 0 else "level"
    return {
        "kind": kind,
        "strength": round(STRONGEST * math.sqrt(min(1.0, abs(progress or 0.0)))),  # so that small ones can be seen
        "label": "\N{EN DASH}" if progress is None else signed(progress, 2) if progress else "0.00",
        "before": before,
        "after": after,
    }


def _drawing(values: Sequence[float | None]) -> dict[str, Any]:
    """Lay out J along the episodes: points, lines between neighbours that are both known, and the labels."""
    known = [value for value in values if value is not None]
    low, high = min([0.0, *known]), max([1.0, *known])
    step = min(STEP, WIDEST / max(1, len(values) - 1))

    def at(number: int, value: float) -> dict[str, float]:
        return {"x": round(LEFT + step * number, 1), "y": round(TOP + HEIGHT * (high - value) / (high - low), 1)}

    points = [
        at(number, value) | {"number": number, "value": value, "last": 0 < number == len(values) - 1}
        for number, value in enumerate(values)
        if value is not None
    ]
    lines = [
        {"kind": _progress(start["value"], end["value"])["kind"], "start": start, "end": end}
        for start, end in pairwise(points)
        if end["number"] == start["number"] + 1
    ]
    every = math.ceil(24 / step)  # labels need room
    return {
        "width": round(LEFT + step * max(1, len(values) - 1) + RIGHT),
        "height": TOP + HEIGHT + BOTTOM,
        "left": LEFT,
        "points": points,
        "lines": lines,
        "levels": [{"y": at(0, value)["y"], "label": f"{value:g}"} for value in dict.fromkeys((low, 0.0, 1.0, high))],
        "numbers": [{"x": at(number, low)["x"], "label": number} for number in range(0, len(values), every)],
        "told": ", ".join("unknown" if value is None else f"{value:.2f}" for value in values),
    }


def _facts(traces: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return what all traces, shown or not, say together."""
    scored = [trace["correct"] for trace in traces if trace["correct"] is not None]
    measured = [trace["values"] for trace in traces if trace["values"]]
    starts, ends = ([values[at] for values in measured if values[at] is not None] for at in (0, -1))
    right = f"{sum(scored)} of {len(scored)}"
    return {
        "Traces": str(len(traces)),
        "Right": right if len(scored) == len(traces) else f"{right} scored",
        "Episodes a trace": f"{sum(len(trace['episodes']) for trace in traces) / len(traces):.1f}",
        "Mean J, start to end": " → ".join(f"{sum(v) / len(v):.2f}" if v else "\N{EN DASH}" for v in (starts, ends)),
    }
