"""A judge's rubric: what is asked for, and the items that points are given or taken for.

A judge gives every item a whole number of points with its reason. An item with `points` above 0 earns 0 to `points`;
one below 0 takes `points` to 0 off. The reward is the sum, normalised by what the rubric makes attainable:

    total = (sum - lowest) / (highest - lowest),  in [0, 1]

MPO (arXiv 2504.20157) pays the raw sum, and its code sums any integers over any number of items: what an essay could
earn rose from 5 to about 125 while the rubric was rewritten, which no learning of the policy has to do with. Here the
scale stays when the rubric changes, a rubric is bounded in number and length, and a total comes of exactly the
items that are asked for, each in its range.
"""

import difflib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .fencing import HIDDEN, KEPT

NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
MAX_RATIONALE_CHARACTERS = 600
ITEM_KEYS, RUBRIC_KEYS = ("name", "criterion", "points"), ("task", "items")


@dataclass(frozen=True)
class RubricItem:
    """One thing that is judged.

    Args:
        name (`str`): lower-case letters, digits and underscores, at most 40, a letter first.
        criterion (`str`): what earns how many points.
        points (`int`): the most that it gives (above 0) or takes (below 0).

    Raises:
        ValueError: for what is none of these.
    """

    name: str
    criterion: str
    points: int

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise ValueError(f"an item's name is up to 40 of a-z, 0-9 and _, a letter first, not {self.name!r}")
        _check_text(self.criterion, f"the criterion of '{self.name}'")
        if not _is_whole(self.points) or self.points == 0:
            raise ValueError(f"the points of '{self.name}' are a whole number other than 0, not {self.points!r}")

    @property
    def range(self) -> tuple[int, int]:
        """The least and the most that it can give."""
        return min(0, self.points), max(0, self.points)


@dataclass(frozen=True)
class Rubric:
    """What a judge judges by.

    Args:
        task (`str`): what the judged texts were to do.
        items (`tuple[RubricItem, ...]`): with different names, at least one of which gives points.

    Raises:
        ValueError: no item gives points, or two share a name.
    """

    task: str
    items: tuple[RubricItem, ...]

    def __post_init__(self) -> None:
        _check_text(self.task, "the task")
        names = [item.name for item in self.items]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"several items are called '{doubled[0]}': give each a name of its own")
        if not any(item.points > 0 for item in self.items):
            raise ValueError("no item gives points: at least one must have points above 0")

    @property
    def lowest(self) -> int:
        """The least sum that can be attained."""
        return sum(item.range[0] for item in self.items)

    @property
    def highest(self) -> int:
        """The largest sum that can be attained."""
        return sum(item.range[1] for item in self.items)

    def total(self, scores: Mapping[str, int]) -> float:
        """Return the normalised total of the scores of all items, 0 to 1.

        Raises:
            ValueError: an item is missing, unknown, no whole number, or out of its range.
        """
        known = {item.name for item in self.items}
        for name in scores:
            if name not in known:
                raise ValueError(f"a score for '{name}', which the rubric does not have{nearest(name, known)}")
        for item in self.items:
            if item.name not in scores:
                raise ValueError(f"no score for '{item.name}'")
            score, (low, high) = scores[item.name], item.range
            if not _is_whole(score) or not low <= score <= high:
                raise ValueError(f"the score of '{item.name}' is a whole number from {low} to {high}, not {score!r}")
        return (sum(scores.values()) - self.lowest) / (self.highest - self.lowest)

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of a judgement: for each item, in their order, a rationale and then a score."""
        return _object({item.name: _judgement_schema(item) for item in self.items})

    def to_dict(self) -> dict[str, Any]:
        """Return the rubric as JSON values."""
        items = [{key: getattr(item, key) for key in ITEM_KEYS} for item in self.items]
        return {"task": self.task, "items": items}

    @classmethod
    def from_dict(cls, values: Any, bounds: "RubricBounds | None" = None) -> "Rubric":
        """Read what `to_dict` returns.

        Args:
            values (`dict`): with `task` and `items`.
            bounds (`RubricBounds`, *optional*): that it must keep.

        Raises:
            ValueError: a key is missing or unknown, a value is of another kind, or a bound is passed. Names the item.
        """
        _check_keys(values, RUBRIC_KEYS, "a rubric")
        if not isinstance(values["items"], list | tuple) or not values["items"]:
            raise ValueError("items is a list of at least one item, each with name, criterion and points")
        items = []
        for number, item in enumerate(values["items"], start=1):
            try:
                _check_keys(item, ITEM_KEYS, "an item")
                items.append(RubricItem(**item))
            except ValueError as error:
                raise ValueError(f"item {number}: {error}") from None
        rubric = cls(values["task"], tuple(items))
        if bounds is not None:
            bounds.check(rubric)
        return rubric


@dataclass(frozen=True)
class RubricBounds:
    """How large a rubric may grow: a judge reads all of it for every completion.

    Args:
        max_items (`int`, *optional*, defaults to 12): number of items.
        max_points (`int`, *optional*, defaults to 10): that one item gives or takes.
        max_criterion_characters (`int`, *optional*, defaults to 800): of one criterion.
        max_task_characters (`int`, *optional*, defaults to 2000): of the task.
    """

    max_items: int = 12
    max_points: int = 10
    max_criterion_characters: int = 800
    max_task_characters: int = 2000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not _is_whole(value) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")

    def check(self, rubric: Rubric) -> None:
        """Raise `ValueError` for the first bound that a rubric passes."""
        sizes = [("the task has {} characters", len(rubric.task), self.max_task_characters)]
        sizes += [("the rubric has {} items", len(rubric.items), self.max_items)]
        for item in rubric.items:
            criterion = f"the criterion of '{item.name}' has {{}} characters"
            sizes += [(criterion, len(item.criterion), self.max_criterion_characters)]
            sizes += [(f"'{item.name}' has {{}} points", abs(item.points), self.max_points)]
        for what, size, bound in sizes:
            if size > bound:
                raise ValueError(f"{what.format(size)}, and {bound} are allowed: shorten it, or raise the bound")

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of the items of a rubric, which is what a meta judge writes: the task stays."""
        points = [{"type": "integer", "minimum": 1, "maximum": self.max_points}]
        points += [{"type": "integer", "minimum": -self.max_points, "maximum": -1}]
        item = {
            "name": {"type": "string", "pattern": f"^{NAME.pattern}$"},
            "criterion": {"type": "string", "minLength": 1, "maxLength": self.max_criterion_characters},
            "points": {"anyOf": points},
        }
        items = {"type": "array", "minItems": 1, "maxItems": self.max_items, "items": _object(item)}
        return _object({"items": items})


def read_rubric(path: str | Path, bounds: RubricBounds | None = None) -> Rubric:
    """Read a rubric from a JSON or YAML file.

    Raises:
        ValueError: the file is missing, unreadable or no rubric. Names the file.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            values = json.loads(text, object_pairs_hook=_without_doubles)
        else:
            values = yaml.load(text, _YamlLoader)
        return Rubric.from_dict(values, bounds)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error


def diff_rubrics(old: Rubric, new: Rubric) -> list[str]:
    """Return what changed, in sentences, in the order of the new items; removed ones last."""
    before = {item.name: item for item in old.items}
    both = before.keys() & {item.name for item in new.items}
    changes = [] if old.task == new.task else [f"~ task: {old.task!r} -> {new.task!r}"]
    orders = [[item.name for item in one.items if item.name in both] for one in (old, new)]
    if orders[0] != orders[1]:
        changes.append(f"~ order: {', '.join(orders[0])} -> {', '.join(orders[1])}")
    for item in new.items:
        was = before.pop(item.name, None)
        if was is None:
            changes.append(f"+ {item.name} ({item.points:+d}): {item.criterion}")
            continue
        if was.points != item.points:
            changes.append(f"~ {item.name}: {was.points:+d} -> {item.points:+d} points")
        if was.criterion != item.criterion:
            changes.append(f"~ {item.name}: {was.criterion!r} -> {item.criterion!r}")
    return changes + [f"- {item.name} ({item.points:+d}): {item.criterion}" for item in before.values()]


def _judgement_schema(item: RubricItem) -> dict[str, Any]:
    low, high = item.range
    return _object(
        {
            "rationale": {"type": "string", "maxLength": MAX_RATIONALE_CHARACTERS},
            "score": {"type": "integer", "minimum": low, "maximum": high},
        }
    )


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object with exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _check_text(value: Any, what: str) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{what} is a text that says something, not {value!r}")
    for character in value:
        if unicodedata.category(character) in HIDDEN and character not in KEPT:
            raise ValueError(f"{what} has the control character {character!a}: take it out")


def _check_keys(values: Any, keys: Iterable[str], what: str) -> None:
    if not isinstance(values, Mapping):
        raise ValueError(f"{what} is a mapping with {', '.join(keys)}, not {type(values).__name__}")
    for key in values:
        if key not in keys:
            raise ValueError(f"unknown key '{key}' in {what}{nearest(key, keys)}")
    for key in keys:
        if key not in values:
            raise ValueError(f"{what} needs '{key}'")


def _without_doubles(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    values = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key '{key}' stands twice in one mapping")
        values[key] = value
    return values


class _YamlLoader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would keep the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        _without_doubles((key.value, None) for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        return super().construct_mapping(node, deep)


def nearest(name: Any, valid: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the valid name most like `name`, or an empty string where none is like it."""
    matches = difflib.get_close_matches(str(name), list(valid), n=1)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
