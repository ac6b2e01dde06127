"""Rows of data files and hub datasets, each with its location."""

import glob
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet

from .entry import MissingDataError, nearest
from .hub_access import need_hub

SUFFIXES = (".jsonl", ".parquet")
Row = tuple[str, dict[str, Any]]  # the row's location for error messages, and its columns


def local_files(path: str, where: str) -> list[Path]:
    """List the files at a path; none if it can only be the name of a hub dataset."""
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
        hint = (
            f"the folder contains no {' or '.join(SUFFIXES)} file" if place.is_dir() else nearest(place.name, siblings)
        )
        raise MissingDataError(f"{where}: no data at {path!r}; {hint}")
    return files


def file_splits(files: list[Path]) -> dict[str, Iterable[Row]]:
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
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: contains text that is not UTF-8: {error}") from error
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file}: not Parquet: {error}") from error


def _hub_rows(origin: str, name: str, split: datasets.Dataset) -> Iterator[Row]:
    for number, row in enumerate(split, 1):
        yield f"{origin}, row {number}", {"file": name, **row}


def hub_splits(path: str, subset: str | None, where: str) -> dict[str, Iterable[Row]]:
    """Load the splits of a hub dataset, by name; raises `MissingDataError` if it cannot be loaded."""
    try:
        need_hub(path)
        splits = datasets.load_dataset(path, name=subset)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise MissingDataError(
            f"{where}: {path!r} is neither a local file or folder nor a dataset that the hub can load: {error}"
        ) from error
    return {name: _hub_rows(f"{path}, split {name}", name, split) for name, split in splits.items()}
