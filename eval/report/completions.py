"""The training completions on a page: all if they fit, otherwise complete groups drawn at random."""

import heapq
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

MOST_CHARACTERS = 6_000_000  # of all texts of a page, about as much as the script that draws its charts
LONGEST = 8000  # characters of one text; a longer one is cut in the middle, because the answer is at the end
ROW = 150  # characters of a row in addition to its texts
FIXED = {"step", "prompt", "completion", "distribution", "reference", "correct"}
Group = list[dict[str, Any]]


@dataclass
class TrainingCompletions:
    """Rows for the page, and how many there were.

    Args:
        groups (`list[list[dict]]`): completions of one prompt at one step, the last step first.
        total (`int`): completions in the run's folder.
        faults (`list[str]`): files that could not be read, in words.
    """

    groups: list[Group] = field(default_factory=list)
    total: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows, group by group."""
        return [row for group in self.groups for row in group]

    def table(self) -> dict[str, Any]:
        """Return the rows in the format of `completions.js`, with prompts, references and distributions only once."""
        tables: dict[str, dict[str, int]] = {"prompt": {}, "reference": {}, "distribution": {}}
        numbers = list(dict.fromkeys(key for row in self.rows for key in row["numbers"]))
        rows = []
        for row in self.rows:
            places = {
                name: None if row[name] is None else seen.setdefault(row[name], len(seen))
                for name, seen in tables.items()
            }
            values = [row["numbers"].get(key) for key in numbers]
            rows.append({key: row[key] for key in ("step", "completion", "correct")} | places | {"numbers": values})
        lists = {f"{name}s": list(seen) for name, seen in tables.items()}
        return {"rows": rows, "numbers": numbers, **lists}


def read_training_completions(folder: Path, *, most: int = MOST_CHARACTERS) -> TrainingCompletions:
    """Read `completions/*.parquet` of a run; if they do not fit, keep complete groups drawn at random.

    Args:
        folder (`Path`): the run's.
        most (`int`, *optional*, defaults to [`MOST_CHARACTERS`]): characters of all texts together.
    """
    found = TrainingCompletions()
    rng = random.Random(0)
    kept: list[tuple[float, int, int, Group]] = []  # a heap; its top is the next group to drop
    size = number = 0
    for file in sorted((folder / "completions").glob("*.parquet")):
        try:
            rows = pyarrow.parquet.read_table(file).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            found.faults.append(f"{file.name} cannot be read ({error})")
            continue
        found.total += len(rows)
        for group in _groups(rows):
            characters = len(group[0]["prompt"]) + sum(len(row["completion"]) + ROW for row in group)
            heapq.heappush(kept, (-rng.random(), number, characters, group))
            size, number = size + characters, number + 1
            while size > most and len(kept) > 1:
                size -= heapq.heappop(kept)[2]
    found.groups = [group for _, _, _, group in sorted(kept, key=lambda entry: -entry[1])]
    return found


def _groups(rows: list[dict[str, Any]]) -> Iterator[Group]:
    """Yield the rows of each prompt, as the page shows them."""
    shown = [_shown(row) for row in rows if "completion" in row and "prompt" in row]
    for _, group in groupby(shown, key=lambda row: (row["step"], row["prompt"])):
        yield list(group)


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    step = row.get("step")
    numbers = {key: _number(value) for key, value in row.items() if key not in FIXED and _number(value) is not None}
    return {
        "step": int(step) if isinstance(step, int | float) and math.isfinite(step) else None,
        "prompt": cut_middle(plain(row["prompt"])),
        "completion": cut_middle(plain(row["completion"])),
        "distribution": None if row.get("distribution") is None else str(row["distribution"]),
        "reference": _text(row.get("reference")),
        "correct": _verdict(row),
        "numbers": numbers,
    }


def _number(value: object) -> float | str | None:
    """Format a reward or another logged value for the page; `None` if there is nothing to show."""
    if isinstance(value, str):
        return cut_middle(value, 80) if value else None
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return round(value, 4)
    return None


def _text(value: object) -> str | None:
    return None if value is None else cut_middle(str(value), 500)


def _verdict(row: Mapping[str, Any]) -> int | None:
    """Return 1 for right, 0 for wrong, -1 for not scored, and `None` without a gold reward."""
    if "correct" in row:
        return -1 if row["correct"] is None else int(bool(row["correct"]))
    if "correctness_reward" in row:  # written before there was a column `correct`
        reward = row["correctness_reward"]
        return -1 if reward is None or math.isnan(reward) else int(reward >= 1)
    return None


def plain(turns: object) -> str:
    """Format a prompt or completion from TRL's log, a text or the turns of a chat, as plain text."""
    if not (isinstance(turns, list) and all(isinstance(turn, dict) and "content" in turn for turn in turns)):
        return str(turns)
    if len(turns) == 1:
        return str(turns[0]["content"])
    return "\n\n".join(f"{turn.get('role')}: {turn['content']}" for turn in turns)


def cut_middle(text: str, longest: int = LONGEST) -> str:
    """Shorten a text in the middle, with a note; its end stays."""
    dropped = len(text) - longest
    if dropped <= 0:
        return text
    end = longest // 2
    return f"{text[: longest - end]}\n[… {dropped} characters left out …]\n{text[-end:]}"
