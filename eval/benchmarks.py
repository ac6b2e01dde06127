"""Named benchmarks, from the hub or from a local path: `load_benchmark("gsm8k", data="data/gsm8k")`.

A benchmark is a `source: dataset` with its options filled in, so reading, keys and errors are those of a recipe's
`distributions:`. What is evaluated is never what a recipe on the same data trains on:

- From the hub: the split that the benchmark names, or all of a dataset that is a test set as a whole.
- A local folder: its file `test.jsonl` or `test.parquet`. Knights & Knaves has none; there it is the part that
  `is_held_out` by its key.
- A local file: all of its rows, because it was asked for.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..curricula import check_verified, load_distributions
from ..curricula.dataset_source import DatasetSource
from ..curricula.entry import nearest
from ..curricula.problem import Problem

Item = dict[str, Any]  # prompt, answer, distribution, verifier, info, key

BOXED = "Reason step by step, and put the final answer in \\boxed{}."
CONCLUSION = (
    "Reason step by step. End with a line CONCLUSION: and, below it, one line for each person, "
    "such as: (1) Zoey is a knight"
)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Where a benchmark's rows are, and how to read them.

    Args:
        options (`dict`): options of [`~metatune.curricula.dataset_source.DatasetSource`]; `path` is the hub's name.
        instruction (`str`): appended to every question by default.
        hub_split (`str`, *optional*): the hub dataset's split to evaluate; all of its rows by default.
        has_test_file (`bool`, *optional*, defaults to `True`): whether a local folder has a file `test`.
    """

    options: dict[str, Any]
    instruction: str = BOXED
    hub_split: str | None = None
    has_test_file: bool = True


BENCHMARKS = {
    "gsm8k": Benchmark(
        options={
            "path": "openai/gsm8k",
            "subset": "main",
            "prompt_column": "question",
            "answer_after": "####",
            "verifier": "math",
        },
        hub_split="test",
    ),
    "math500": Benchmark(
        options={"path": "HuggingFaceH4/MATH-500", "prompt_column": "problem", "verifier": "math"},
        hub_split="test",
    ),
    "aime24": Benchmark(
        options={"path": "HuggingFaceH4/aime_2024", "prompt_column": "problem", "verifier": "math"},
        hub_split="train",  # the dataset's only split: all thirty problems of 2024
    ),
    "knights_knaves": Benchmark(
        options={
            "path": "K-and-K/knights-and-knaves",
            "subset": "test",
            "prompt_column": "quiz",
            "answer_column": "solution_text_format",
            "info_columns": ["names", "solution"],
            "split_by": "file",
            "verifier": "knights_and_knaves",
        },
        instruction=CONCLUSION,
        has_test_file=False,
    ),
}


def load_benchmark(
    name: str, data: str | None = None, *, instruction: str | None = None, system: str | None = None
) -> list[Item]:
    """Load the items of a benchmark.

    Args:
        name (`str`): one of `BENCHMARKS`.
        data (`str`, *optional*): a local file or folder with the benchmark's columns; the hub by default.
        instruction (`str`, *optional*): text appended to every question, after an empty line, in place of the
            benchmark's own; an empty one appends nothing.
        system (`str`, *optional*): system message put before every question.

    Returns:
        `list[dict]`: rows with the columns `prompt` (conversation), `answer`, `distribution`, `verifier`, `info`
        (JSON) and `key`.

    Raises:
        ValueError: for an unknown name, a missing path or column, or a row that cannot be read; the message names the
            file, the row and the column.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {name!r}; {nearest(name, BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    options = dict(benchmark.options)
    split = benchmark.hub_split
    if data is not None:
        place = Path(data).expanduser()
        if not place.exists():
            raise ValueError(f"benchmark {name}: no such file or folder: {data}")
        options |= {"path": str(place), "subset": None}
        split = "test" if benchmark.has_test_file else None
        if place.is_file():
            split = re.sub(r"-\d+-of-\d+$", "", place.stem)  # a shard belongs to the split before its number
    source = DatasetSource(
        name=name,
        source="dataset",
        instruction=(benchmark.instruction if instruction is None else instruction) or None,
        system=system or None,
        test_split=split,
        **options,
    )
    items = []
    for distribution, parts in source.load(f"benchmark {name}").items():
        whole = data is None and split is None
        problems = [*parts.train, *parts.test] if whole else parts.test
        items += [_item(source, distribution, problem) for problem in problems]
    return items


def load_held_out(configs: Sequence[Mapping[str, Any]]) -> list[Item]:
    """Load the held-out items of the distributions that a recipe lists; see [`load_distributions`].

    Raises:
        ValueError: as [`load_distributions`], and if no distribution has held-out items, or one has no verifier.
    """
    items = [dict(item) for distribution in load_distributions(configs) for item in distribution.test]
    if not items:
        raise ValueError("distributions: none has held-out items; give at least one a test_size or a test split")
    check_verified(items)
    return items


def limited(items: Sequence[Item], limit: int | None) -> list[Item]:
    """Keep the first `limit` items of every distribution; all of them without a limit.

    Raises:
        ValueError: if the limit is not positive.
    """
    if limit is None:
        return list(items)
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    kept: dict[str, list[Item]] = {}
    for item in items:
        kept.setdefault(item["distribution"], []).append(item)
    return [item for members in kept.values() for item in members[:limit]]


def _item(source: DatasetSource, distribution: str, problem: Problem) -> Item:
    return {
        "prompt": source.messages(problem.prompt),
        "answer": problem.answer,
        "distribution": distribution,
        "verifier": problem.verifier,
        "info": json.dumps(problem.info),
        "key": problem.key,
    }
