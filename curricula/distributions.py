"""Task distributions: named sources of prompts, with verifiable answers or not, from a recipe's `distributions:` list.

    distributions:
      - name: countdown-3              # a built-in family: arithmetic, countdown or logic
        source: countdown
        config: {numbers: 3, operators: "+-"}
      - name: chain-sum                # a reasoning-gym generator
        source: reasoning_gym
        config: {generator: chain_sum, min_terms: 2}
      - name: gsm8k                    # files, or a dataset on the hub
        source: dataset
        path: openai/gsm8k
        subset: main
        prompt_column: question
        answer_after: "####"
        verifier: math
      - name: essays                   # no verifier: judges and reward models alone say what is good
        source: dataset
        path: essays.jsonl

Training and held-out items never share a key, over all distributions of one load. A generated problem is held out if
and only if `is_held_out(key)`; data without a held-out split holds out `test_size` rows (`held_out_keys`); items of
any held-out part are dropped from every training part.
"""

import json
import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from ..rewards import VERIFIERS
from .dataset_source import DatasetSource
from .entry import Entry, Parts, nearest, parse_options
from .families import FAMILIES
from .problem import Problem
from .procedural_source import ProceduralSource
from .reasoning_gym_source import ReasoningGymSource

logger = logging.getLogger(__name__)

SOURCES: dict[str, type[Entry]] = {
    "dataset": DatasetSource,
    "reasoning_gym": ReasoningGymSource,
}
MESSAGES = [{"role": datasets.Value("string"), "content": datasets.Value("string")}]
COLUMNS = ("prompt", "answer", "distribution", "verifier", "info", "key")
FEATURES = datasets.Features({column: datasets.Value("string") for column in COLUMNS} | {"prompt": MESSAGES})


@dataclass(frozen=True)
class Distribution:
    """A named source of prompts.

    Args:
        name (`str`): unique name; an arm of the curriculum.
        train (`datasets.Dataset`): training items, with the columns `prompt` (conversation), `answer`, `distribution`,
            `verifier` (empty where there is none), `info` (JSON) and `key`; never empty.
        test (`datasets.Dataset`): held-out items with the same columns; may be empty.
        duplicates (`int`, *optional*, defaults to `0`): rows dropped because an earlier one has their key.
        overlap (`int`, *optional*, defaults to `0`): training rows dropped because they are held out somewhere.
        unused (`int`, *optional*, defaults to `0`): rows left out by `train_size` and `test_size`.
    """

    name: str
    train: datasets.Dataset
    test: datasets.Dataset
    duplicates: int = 0
    overlap: int = 0
    unused: int = 0

    def rows(self) -> str:
        """Return a line with the numbers of rows to train on, held out, dropped and not used."""
        left_out = [
            f"{count:,} {what}"
            for count, what in (
                (self.duplicates, "dropped as duplicates"),
                (self.overlap, "dropped from training because they are held out"),
                (self.unused, "not used (train_size, test_size)"),
            )
            if count
        ]
        return f"{self.name}: " + ", ".join(
            [f"{len(self.train):,} to train on", f"{len(self.test):,} held out", *left_out]
        )


def load_distributions(configs: Sequence[Mapping[str, Any]], *, where: str = "distributions") -> list[Distribution]:
    """
    Load the distributions that a recipe lists, in its order.

    Args:
        configs (`Sequence[Mapping[str, Any]]`): one mapping an entry; see `ProceduralSource`, `ReasoningGymSource` and
            `DatasetSource` for the options of each source.
        where (`str`, *optional*, defaults to `"distributions"`): how errors call the list.

    Raises:
        ValueError: an unknown, missing or mistyped option, two distributions of one name, one without training items,
            or data that cannot be read; the message names the entry and, for data, the file and the row.
    """
    loaded = []
    for place, entry in _entries(configs, where):
        loaded += [(place, entry, name, parts) for name, parts in entry.load(place).items()]
    _refuse_duplicates([(place, name) for place, _, name, _ in loaded])

    held_out = {problem.key for *_, parts in loaded for problem in parts.test}
    return [_distribution(place, entry, name, parts, held_out) for place, entry, name, parts in loaded]


def _distribution(place: str, entry: Entry, name: str, parts: Parts, held_out: set[str]) -> Distribution:
    """Drop items that are held out anywhere from the training part, and sample the sizes of the entry."""
    train = [problem for problem in parts.train if problem.key not in held_out]
    if not train:
        raise ValueError(
            f"{place}: distribution {name!r} has no training items (and {len(parts.test)} held-out ones); "
            "give it data that is not held out, or remove it"
        )
    if not parts.test:
        logger.warning("%s: distribution %s has no held-out items: it will not be evaluated", place, name)
    used = _sample(train, entry.train_size, entry.seed, f"{place}: training part of {name}")
    tested = _sample(parts.test, entry.test_size, entry.seed, f"{place}: held-out part of {name}")
    return Distribution(
        name,
        _dataset(entry, name, used),
        _dataset(entry, name, tested),
        duplicates=parts.duplicates,
        overlap=len(parts.train) - len(train),
        unused=len(train) - len(used) + len(parts.test) - len(tested),
    )


def check_distributions(
    configs: Sequence[Mapping[str, Any]], rows: int | None = None, *, where: str = "distributions"
) -> None:
    """
    Check the distributions that a recipe lists without loading them.

    Args:
        configs (`Sequence[Mapping[str, Any]]`): as for [`load_distributions`].
        rows (`int`, *optional*): rows of each split to read; all by default.
        where (`str`, *optional*, defaults to `"distributions"`): how errors call the list.

    Raises:
        ValueError: as [`load_distributions`], for errors in these rows.
    """
    for place, entry in _entries(configs, where):
        entry.check(place, rows)


def demonstrations(
    configs: Sequence[Mapping[str, Any]], n: int, seed: int = 0, *, where: str = "distributions"
) -> datasets.Dataset:
    """
    Write traces for supervised fine-tuning, in equal shares over the entries, which take turns.

    Problems are training problems only; they may recur, since every trace is drawn anew.

    Args:
        configs (`Sequence[Mapping[str, Any]]`): entries as for [`load_distributions`], all of a built-in family.
        n (`int`): number of traces.
        seed (`int`, *optional*, defaults to `0`): seed of problems and traces.
        where (`str`, *optional*, defaults to `"distributions"`): how errors call the list.

    Returns:
        `datasets.Dataset`: columns `prompt` and `completion`, both conversations.

    Raises:
        ValueError: an entry that has no demonstrator, or a bad one (see [`load_distributions`]).
    """
    entries = _entries(configs, where)
    streams = []
    for place, entry in entries:
        if not isinstance(entry, ProceduralSource):
            raise ValueError(
                f"{place}: source {entry.source!r} has no demonstrator; only {', '.join(FAMILIES)} have one"
            )
        streams.append(entry.demonstrations(seed, place))
    rows = []
    for i in range(n):
        _, entry = entries[i % len(entries)]
        problem, trace = next(streams[i % len(entries)])
        rows.append(
            {"prompt": entry.messages(problem.prompt), "completion": [{"role": "assistant", "content": trace}]}
        )
    return datasets.Dataset.from_list(rows, features=datasets.Features(prompt=MESSAGES, completion=MESSAGES))


def check_verified(items: Iterable[Mapping[str, Any]]) -> None:
    """Raise `ValueError` that names the distribution of the first item without a verifier."""
    for item in items:
        if not item["verifier"]:
            raise ValueError(
                f"distribution {item['distribution']!r} has no verifier, and only one tells what is right: "
                "give it a verifier, or leave it out"
            )


def _entries(configs: Sequence[Mapping[str, Any]], where: str) -> list[tuple[str, Entry]]:
    """Parse the list; each entry stands beside the words by which errors call it."""
    if not isinstance(configs, Sequence) or isinstance(configs, str) or not configs:
        raise ValueError(f"{where} must be a list with at least one entry, got {configs!r}")
    entries = []
    for index, options in enumerate(configs):
        if not isinstance(options, Mapping):
            raise ValueError(f"{where}[{index}] must be a mapping with a name and a source, got {options!r}")
        place = f"{where}[{index}] ({options.get('name', 'no name')})"
        sources: dict[str, type[Entry]] = dict.fromkeys(FAMILIES, ProceduralSource)  # the user's own are there too
        sources |= SOURCES
        source = options.get("source")
        if source not in sources:
            raise ValueError(f"{place}: source {source!r}; {nearest(str(source), sources)}")
        entry = parse_options(sources[source], options, place)
        for option in ("train_size", "test_size"):
            if (size := getattr(entry, option)) is not None and size < 1:
                raise ValueError(f"{place}: {option} must be at least 1, got {size}")
        verifier = entry.verifier if isinstance(entry, DatasetSource) else None
        if verifier is not None and verifier not in VERIFIERS:
            raise ValueError(f"{place}: verifier {verifier!r} is unknown; {nearest(verifier, VERIFIERS)}")
        entries.append((place, entry))
    _refuse_duplicates([(place, entry.name) for place, entry in entries])
    return entries


def _refuse_duplicates(names: list[tuple[str, str]]) -> None:
    places: dict[str, str] = {}
    for place, name in names:
        if name in places:
            raise ValueError(f"{place}: the name {name!r} is taken by {places[name]}; rename one of them")
        places[name] = place


def _sample(problems: list[Problem], size: int | None, seed: int, what: str) -> list[Problem]:
    if size is not None and len(problems) > size:
        return random.Random(seed).sample(problems, size)
    if size is not None and len(problems) < size:
        logger.warning("%s: only %d distinct items, %d wanted", what, len(problems), size)
    return problems


def _dataset(entry: Entry, name: str, problems: list[Problem]) -> datasets.Dataset:
    columns = {
        "prompt": [entry.messages(problem.prompt) for problem in problems],
        "answer": [problem.answer for problem in problems],
        "distribution": [name] * len(problems),
        "verifier": [problem.verifier for problem in problems],
        "info": [json.dumps(problem.info) if problem.info else "{}" for problem in problems],
        "key": [problem.key for problem in problems],
    }
    # from_dict encodes each value separately, which takes half the time of a large load
    return datasets.Dataset(datasets.table.InMemoryTable.from_pydict(columns, schema=FEATURES.arrow_schema))
