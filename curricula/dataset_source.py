"""Distributions read from data: `source: dataset`, from JSONL or Parquet files or from the hub.

How rows become a training and a held-out part:

- The data has the splits `train` and `test` (or the entry names both): these are the parts.
- Otherwise all rows are one pool. The `test_size` rows with the lowest key hashes are held out, and the rest is for
  training; without `test_size` about a fifth is held out (`held_out_keys`). The choice depends neither on the order
  nor on the seed, and a smaller held-out part is a subset of a larger one.

The key of a row is its normalized prompt text; that of a conversation with more than one turn is all turns with
their roles. A key occurs once in a part, and `load_distributions` drops from training every key that any held-out part
of the same load contains.
"""

import json
import logging
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ..rewards import check_reference
from .cells import cell, read_answer, read_prompt, text_problem
from .dataset_files import Row, file_splits, hub_splits, local_files
from .entry import Entry, MissingDataError, Parts, nearest
from .problem import Message, Problem, held_out_keys

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DatasetSource(Entry):
    """A dataset with one prompt a row, and its reference answer if there is one.

    Args:
        path (`str` or `list[str]`): a `.jsonl` or `.parquet` file, a folder of them, a glob, a list of these, or alone
            the name of a dataset on the hub. What exists locally is never looked up on the hub.
        verifier (`str`, *optional*): verifier of the answers. Without one nothing says what is right: such a
            distribution is for judges and reward models.
        prompt_column (`str`, *optional*): column of the question, a text or a conversation (a list of role and
            content); by default `prompt`, or `messages` where a row has no `prompt`. A final assistant turn is left
            out of the prompt. This and the other columns may be dotted paths into nested columns, such as
            `reward_model.ground_truth` or `messages.1.content`.
        answer_column (`str`, *optional*): column of the reference answer, `answer` where there is a verifier. Without
            one it is read only if it is given, for a judge's `reference_column: answer`. Text or a number.
        answer_after (`str`, *optional*): the reference is what follows the last occurrence of this mark.
        info_columns (`list[str]`, *optional*): columns that the verifier needs beside the reference.
        split_by (`str`, *optional*): column whose values make one distribution each, named `name-value`. `file` is the
            stem of the row's file; for a hub dataset, the split's name.
        subset (`str`, *optional*): configuration of a hub dataset.
        train_split (`str`, *optional*): split to train on: the stem of local files, or a hub dataset's split.
        test_split (`str`, *optional*): split to hold out.

    Raises:
        ValueError: `answer_after` is given and no reference is read.
    """

    path: str | list[str]
    verifier: str | None = None
    prompt_column: str | None = None
    answer_column: str | None = None
    answer_after: str | None = None
    info_columns: list[str] = field(default_factory=list)
    split_by: str | None = None
    subset: str | None = None
    train_split: str | None = None
    test_split: str | None = None

    def __post_init__(self) -> None:
        if self.answer_after is not None and self._answer_column is None:
            raise ValueError("answer_after is of a reference that nothing reads: give verifier or answer_column")

    @property
    def _answer_column(self) -> str | None:
        return self.answer_column or ("answer" if self.verifier else None)

    def check(self, where: str, rows: int | None = None) -> None:
        """Check the first `rows` rows of each split that is used."""
        splits, train_names, test_names = self._splits(where)
        for name in train_names + test_names:
            for location, row in islice(splits[name], rows):
                self._problem(location, row, where)
                self._value(location, row, where)

    def _splits(self, where: str) -> tuple[dict[str, Iterable[Row]], list[str], list[str]]:
        """Return the rows of each split, and the names of the training and held-out splits."""
        paths = [self.path] if isinstance(self.path, str) else self.path
        if not paths:
            raise ValueError(f"{where}: path is an empty list; name at least one file")
        found = {path: local_files(path, where) for path in paths}
        if isinstance(self.path, list) and (missing := [path for path in paths if not found[path]]):
            raise MissingDataError(
                f"{where}: no data at {missing[0]!r}; a list may contain only local files and folders"
            )
        files = [file for files in found.values() for file in files]
        splits = file_splits(files) if files else hub_splits(str(self.path), self.subset, where)
        if files and self.subset is not None:
            raise ValueError(f"{where}: subset {self.subset!r} is for hub datasets, but {self.path!r} is local")
        return splits, *self._choose(list(splits), where)

    def load(self, where: str) -> dict[str, Parts]:
        """Read the rows and divide them as the module's docstring describes."""
        splits, train_names, test_names = self._splits(where)
        if unused := [name for name in splits if name not in (*train_names, *test_names)]:
            logger.warning(
                "%s: the splits %s are not used; select others with train_split and test_split",
                where,
                ", ".join(unused),
            )
        parts = self._read((row for name in train_names for row in splits[name]), where)
        held_out = self._read((row for name in test_names for row in splits[name]), where)
        if not parts and not held_out:
            raise ValueError(f"{where}: {self.path!r} has no items in split {', '.join(train_names + test_names)}")
        empty = _Rows()
        loaded = {}
        for value in sorted({*parts, *held_out}, key=_natural):
            name = self.name if self.split_by is None else f"{self.name}-{value}"
            pool, test = parts.get(value, empty), held_out.get(value, empty)
            loaded[name] = pool.divided(test) if test_names else self._divide(pool, f"{where}: {name}")
        return loaded

    def _divide(self, pool: "_Rows", where: str) -> Parts:
        """Hold out `test_size` rows of a pool, or about a fifth without `test_size`."""
        if self.test_size is not None and self.test_size >= len(pool.problems):
            raise ValueError(
                f"{where}: test_size {self.test_size} of {len(pool.problems)} distinct rows leaves none to train on; "
                "lower it, or hold out a split (test_split)"
            )
        held_out = held_out_keys(pool.problems, self.test_size)
        train = [problem for key, problem in pool.problems.items() if key not in held_out]
        return Parts(train, [problem for key, problem in pool.problems.items() if key in held_out], pool.duplicates)

    def _choose(self, names: list[str], where: str) -> tuple[list[str], list[str]]:
        """Pick the splits to train on and to hold out; no split to hold out means that the keys decide."""
        for option in ("train_split", "test_split"):
            name = getattr(self, option)
            if name is not None and name not in names:
                raise ValueError(f"{where}: {option} {name!r} is not in {self.path!r}; {nearest(name, names)}")
        train = self.train_split or ("train" if "train" in names else None)
        test = self.test_split or ("test" if "test" in names and train else None)
        if train is not None and train == test:
            raise ValueError(
                f"{where}: train_split and test_split are both {train!r}; leave test_split out to part it"
            )
        return [train] if train else [name for name in names if name != test], [test] if test else []

    def _read(self, rows: Iterable[Row], where: str) -> dict[str, "_Rows"]:
        """Read each row as a problem, grouped by `split_by` value; of rows with equal keys, keep the first."""
        read: dict[str, _Rows] = {}
        known: dict[str, _Rows] = {}
        for location, row in rows:
            problem = self._problem(location, row, where)
            if problem.key in known:
                known[problem.key].duplicates += 1
                continue
            members = read.setdefault(self._value(location, row, where), _Rows())
            members.problems[problem.key] = problem
            known[problem.key] = members
        return read

    def _value(self, location: str, row: dict[str, Any], where: str) -> str:
        if self.split_by is None:
            return ""
        value = _column(row, self.split_by, "split_by", location, where)
        if not isinstance(value, str | int) or (isinstance(value, str) and text_problem(value)):
            raise ValueError(
                f"{where}: {location}: split_by column {self.split_by!r} has {value!r}; text or int needed"
            )
        return str(value)

    def _problem(self, location: str, row: dict[str, Any], where: str) -> Problem:
        column = self.prompt_column or ("messages" if "prompt" not in row and "messages" in row else "prompt")
        prompt = _parsed(read_prompt, row, column, "prompt_column", location, where)
        try:
            if self.system is not None and not isinstance(prompt, str):
                self.messages(prompt)
        except ValueError as error:
            raise ValueError(f"{where}: {location}: {error}") from error
        info = {name: _column(row, name, "info_columns", location, where) for name in self.info_columns}
        try:
            if info:
                json.dumps(info, ensure_ascii=False).encode()
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {location}: info_columns {self.info_columns} are not JSON: {error}") from error
        return Problem(
            prompt=prompt,
            answer=self._answer(location, row, where),
            verifier=self.verifier or "",
            key=normalised(prompt),
            info=info,
        )

    def _answer(self, location: str, row: dict[str, Any], where: str) -> str:
        column = self._answer_column
        if column is None:
            return ""
        answer = _parsed(read_answer, row, column, "answer_column", location, where)
        if self.answer_after is not None:
            if self.answer_after not in answer:
                raise ValueError(f"{where}: {location}: answer_column {column!r} lacks the mark {self.answer_after!r}")
            answer = answer.rpartition(self.answer_after)[2]
        if not answer.strip():
            raise ValueError(f"{where}: {location}: answer_column {column!r} is empty")
        try:
            check_reference(self.verifier, answer)
        except ValueError as error:
            raise ValueError(f"{where}: {location}: answer_column {column!r}: {error}") from error
        return answer.strip()


@dataclass
class _Rows:
    """The rows of one distribution before they are divided: problems by key, and how many rows repeated a key."""

    problems: dict[str, Problem] = field(default_factory=dict)
    duplicates: int = 0

    def divided(self, held_out: "_Rows") -> Parts:
        """Return these rows as the training part for a given held-out part."""
        return Parts(
            list(self.problems.values()), list(held_out.problems.values()), self.duplicates + held_out.duplicates
        )


def normalised(prompt: str | list[Message]) -> str:
    """Return a prompt's canonical key: NFC-normalized, case-folded, with single spaces.

    A conversation of one user turn has the key of its text; a longer one has all its turns in the key.
    """
    if not isinstance(prompt, str):
        if len(prompt) > 1:
            prompt = "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
        else:
            prompt = prompt[0]["content"]
    return " ".join(unicodedata.normalize("NFC", prompt).casefold().split())


def _natural(text: str) -> list[str | int]:
    """Return a sort key that puts `people10` after `people3`: text at even places, numbers at odd ones."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", text))]


def _column(row: dict[str, Any], column: str, option: str, location: str, where: str) -> Any:
    try:
        return cell(row, column)
    except KeyError as error:
        part, known = error.args
        raise ValueError(
            f"{where}: {location}: there is no column {column!r} ({option}); {nearest(part, known)}"
        ) from None


def _parsed(
    read: Callable[[Any], Any], row: dict[str, Any], column: str, option: str, location: str, where: str
) -> Any:
    """Read a column's value with a function of `cells`, and add the row and the column to its errors."""
    try:
        return read(_column(row, column, option, location, where))
    except ValueError as error:
        if str(error).startswith(where):
            raise
        raise ValueError(f"{where}: {location}: {option} {column!r} {error}") from error
