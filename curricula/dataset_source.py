"""Distributions read from data: `source: dataset`, from JSONL or Parquet files or from the hub.

How rows become a training and a held-out part:

- The data has the splits `train` and `test` (or the entry names both): these are the parts.
- Otherwise all rows are one pool, and each row's key decides (`is_held_out`): the partition survives reordering.

The key of a row is its normalised prompt text. A key occurs once in a part, and `load_distributions` drops from
training every key that any held-out part of the same load has.
"""

import glob
import json
import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet

from ..rewards import check_reference
from .entry import Entry, MissingDataError, Parts, nearest
from .problem import Problem, is_held_out

logger = logging.getLogger(__name__)

SUFFIXES = (".jsonl", ".parquet")
Row = tuple[str, dict[str, Any]]  # where the row stands, and its columns


@dataclass(frozen=True, kw_only=True)
class DatasetSource(Entry):
    """A dataset with one prompt a row, and its reference answer if there is one.

    Args:
        path (`str` or `list[str]`): a `.jsonl` or `.parquet` file, a folder of them, a glob, a list of these, or alone
            the name of a dataset on the hub. What exists locally is never looked up on the hub.
        verifier (`str`, *optional*): verifier of the answers. Without one nothing says what is right: such a
            distribution is for judges and reward models.
        prompt_column (`str`, *optional*, defaults to `"prompt"`): column of the question.
        answer_column (`str`, *optional*): column of the reference answer, `answer` where there is a verifier. Without
            one it is read only if it is given, for a judge's `reference_column: answer`.
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
    prompt_column: str = "prompt"
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
        """Read the first `rows` rows of each split that is used."""
        splits, train_names, test_names = self._splits(where)
        for name in train_names + test_names:
            for location, row in islice(splits[name], rows):
                self._problem(location, row, where)
                self._value(location, row, where)

    def _splits(self, where: str) -> tuple[dict[str, Iterable[Row]], list[str], list[str]]:
        """Find the rows of each split, and the names of the splits to train on and to hold out."""
        paths = [self.path] if isinstance(self.path, str) else self.path
        if not paths:
            raise ValueError(f"{where}: path is an empty list; name at least one file")
        found = {path: _local_files(path, where) for path in paths}
        if isinstance(self.path, list) and (missing := [path for path in paths if not found[path]]):
            raise MissingDataError(f"{where}: no data at {missing[0]!r}; a list is of local files and folders")
        files = [file for files in found.values() for file in files]
        splits = _file_splits(files) if files else self._hub_splits(where)
        if files and self.subset is not None:
            raise ValueError(f"{where}: subset {self.subset!r} is for hub datasets, but {self.path!r} is local")
        return splits, *self._choose(list(splits), where)

    def load(self, where: str) -> dict[str, Parts]:
        """Read the rows and part them; see the head of this file."""
        splits, train_names, test_names = self._splits(where)
        if unused := [name for name in splits if name not in (*train_names, *test_names)]:
            logger.warning(
                "%s: the splits %s are not used; name others by train_split and test_split", where, ", ".join(unused)
            )
        pool = self._unique((row for name in train_names for row in splits[name]), "training", where)
        if test_names:
            held_out = self._unique((row for name in test_names for row in splits[name]), "held-out", where)
        else:
            held_out = [(value, problem) for value, problem in pool if is_held_out(problem.key)]
            pool = [(value, problem) for value, problem in pool if not is_held_out(problem.key)]

        values = {value for value, _ in [*pool, *held_out]}
        if not values:
            raise ValueError(f"{where}: {self.path!r} has no items in split {', '.join(train_names + test_names)}")
        return {
            self.name if self.split_by is None else f"{self.name}-{value}": Parts(
                [problem for v, problem in pool if v == value],
                [problem for v, problem in held_out if v == value],
            )
            for value in sorted(values, key=_natural)
        }

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

    def _unique(self, rows: Iterable[Row], part: str, where: str) -> list[tuple[str, Problem]]:
        """Read each row as a problem, beside its `split_by` value; of equal keys the first stays."""
        unique: dict[str, tuple[str, Problem]] = {}
        count = 0
        for count, (location, row) in enumerate(rows, 1):  # noqa: B007
            problem = self._problem(location, row, where)
            if problem.key not in unique:
                unique[problem.key] = self._value(location, row, where), problem
        if count > len(unique):
            logger.warning(
                "%s: dropped %d of %d %s rows as duplicates of another", where, count - len(unique), count, part
            )
        return list(unique.values())

    def _value(self, location: str, row: dict[str, Any], where: str) -> str:
        if self.split_by is None:
            return ""
        value = _column(row, self.split_by, "split_by", location, where)
        if not isinstance(value, str | int):
            raise ValueError(
                f"{where}: {location}: split_by column {self.split_by!r} has {value!r}; text or int needed"
            )
        return str(value)

    def _problem(self, location: str, row: dict[str, Any], where: str) -> Problem:
        prompt = _column(row, self.prompt_column, "prompt_column", location, where)
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(
                f"{where}: {location}: prompt_column {self.prompt_column!r} must be text and not empty, got {prompt!r}"
            )
        info = {column: _column(row, column, "info_columns", location, where) for column in self.info_columns}
        try:
            json.dumps(info)
        except TypeError as error:
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
        answer = _column(row, column, "answer_column", location, where)
        if isinstance(answer, int) and not isinstance(answer, bool):
            answer = str(answer)
        if not isinstance(answer, str):
            raise ValueError(f"{where}: {location}: answer_column {column!r} must be text or an int, got {answer!r}")
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

    def _hub_splits(self, where: str) -> dict[str, Iterable[Row]]:
        try:
            splits = datasets.load_dataset(self.path, name=self.subset)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise MissingDataError(
                f"{where}: {self.path!r} is neither a local file or folder nor a dataset that the hub gave: {error}"
            ) from error
        return {name: _hub_rows(f"{self.path}, split {name}", name, split) for name, split in splits.items()}


def normalised(prompt: str) -> str:
    """Write a prompt's canonical key: one form of Unicode, no case, single spaces."""
    return " ".join(unicodedata.normalize("NFC", prompt).casefold().split())


def _natural(text: str) -> list[str | int]:
    """Sort key that puts `people10` after `people3`: text at even places, numbers at odd ones."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", text))]


def _column(row: dict[str, Any], column: str, option: str, location: str, where: str) -> Any:
    if column not in row:
        raise ValueError(f"{where}: {location}: there is no column {column!r} ({option}); {nearest(column, row)}")
    return row[column]


def _local_files(path: str, where: str) -> list[Path]:
    """List the files that a path names; none when it can only be a hub dataset's name."""
    place = Path(path).expanduser()
    if place.is_file():
        if place.suffix not in SUFFIXES:
            raise ValueError(f"{where}: cannot read {path!r}: its suffix must be one of {', '.join(SUFFIXES)}")
        return [place]
    candidates = place.iterdir() if place.is_dir() else map(Path, glob.glob(str(place)))  # noqa: PTH207 - takes absolute patterns
    files = sorted(file for file in candidates if file.suffix in SUFFIXES)
    looks_local = place.is_dir() or place.is_absolute() or path[:1] in (".", "~") or place.suffix in SUFFIXES
    if not files and (looks_local or glob.has_magic(path)):
        siblings = [file.name for file in place.parent.iterdir()] if place.parent.is_dir() else []
        hint = f"it holds no {' or '.join(SUFFIXES)} file" if place.is_dir() else nearest(place.name, siblings)
        raise MissingDataError(f"{where}: no data at {path!r}; {hint}")
    return files


def _file_splits(files: list[Path]) -> dict[str, Iterable[Row]]:
    """Group the files' rows by stem, without the number of a shard (`train-00000-of-00002`)."""
    splits: dict[str, list[Path]] = {}
    for file in dict.fromkeys(files):
        splits.setdefault(re.sub(r"-\d+-of-\d+$", "", file.stem), []).append(file)
    return {stem: _file_rows(stem, members) for stem, members in splits.items()}


def _file_rows(stem: str, files: list[Path]) -> Iterator[Row]:
    for file in files:
        read = _parquet_rows if file.suffix == ".parquet" else _jsonl_rows
        for location, row in read(file):
            yield location, {"file": stem, **row}


def _jsonl_rows(file: Path) -> Iterator[Row]:
    with file.open("rb") as lines:  # bytes, so that only a newline ends a row
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except ValueError as error:
                raise ValueError(f"{file}, line {number}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{file}, line {number}: a row must be a JSON object, got {type(row).__name__}")
            yield f"{file}, line {number}", row


def _parquet_rows(file: Path) -> Iterator[Row]:
    try:
        rows = (row for batch in pyarrow.parquet.ParquetFile(file).iter_batches() for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield f"{file}, row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file}: not Parquet: {error}") from error


def _hub_rows(origin: str, name: str, split: datasets.Dataset) -> Iterator[Row]:
    for number, row in enumerate(split, 1):
        yield f"{origin}, row {number}", {"file": name, **row}
