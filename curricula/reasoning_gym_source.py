"""Distributions drawn from a reasoning-gym generator: `source: reasoning_gym` (needs the extra `reasoning-gym`).

Scoring is the generator's own (`score_answer`), by the verifier `reasoning_gym`: `info` carries the generator, its
config and the entry. A few generators have no reference answer, only a scorer; their `answer` is empty.
"""

import dataclasses
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .dataset_source import normalised
from .entry import Entry, Parts, nearest
from .problem import Problem
from .procedural_source import draw

CHUNK = 256  # entries drawn from one seed: some generators prepare all of a dataset's entries up front
# Their entries follow the order of a set of strings, which differs between processes unless hashing is fixed.
HASH_DEPENDENT = ("isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder")


@dataclass(frozen=True, kw_only=True)
class ReasoningGymSource(Entry):
    """A reasoning-gym generator of one configuration.

    Args:
        config (`dict`): `generator`, its name, and beside it the options of its config.
        train_size (`int`, *optional*, defaults to `2000`): number of distinct training problems.
        test_size (`int`, *optional*, defaults to `64`): number of distinct held-out problems.
    """

    train_size: int = 2000
    test_size: int = 64
    config: dict[str, Any] = field(default_factory=dict)

    def load(self, where: str) -> dict[str, Parts]:
        """Draw the problems: a function of generator, config and seed alone."""
        config = dict(self.config)
        generator = config.pop("generator", None)
        self._check(generator, config, where)
        return {self.name: draw(self._problems(generator, config, where), self.train_size, self.test_size)}

    def check(self, where: str, rows: int | None = None) -> None:
        """Check the generator and its config by drawing one problem."""
        config = dict(self.config)
        generator = config.pop("generator", None)
        self._check(generator, config, where)
        next(self._problems(generator, config, where))

    def _check(self, generator: Any, config: dict[str, Any], where: str) -> None:
        try:
            from reasoning_gym.factory import DATASETS
        except ImportError as error:
            raise ImportError(
                f"{where}: source reasoning_gym needs an extra ({error}); pip install 'metatune[reasoning-gym]'"
            ) from error
        if generator not in DATASETS:
            raise ValueError(f"{where}: config.generator {generator!r} is unknown; {nearest(generator, DATASETS)}")
        options = {option.name for option in dataclasses.fields(DATASETS[generator][1])} - {"seed", "size"}
        for key in config:
            if key in ("seed", "size"):
                raise ValueError(f"{where}: config.{key} is not for here; set seed, train_size and test_size instead")
            if key not in options:
                raise ValueError(f"{where}: unknown key config.{key}; {nearest(key, options)}")
        if generator in HASH_DEPENDENT and sys.flags.hash_randomization:
            raise ValueError(
                f"{where}: {generator} draws other problems in each process; set PYTHONHASHSEED=0 to fix them"
            )

    def _problems(self, generator: str, config: dict[str, Any], where: str) -> Iterator[Problem]:
        import reasoning_gym

        rng = random.Random(f"{generator} {json.dumps(config, sort_keys=True)} {self.seed}")
        checked = False
        while True:
            try:
                chunk = reasoning_gym.create_dataset(generator, seed=rng.randrange(2**31), size=CHUNK, **config)
            except (AssertionError, TypeError, ValueError) as error:
                raise ValueError(f"{where}: {generator} refuses config {config}: {error}") from error
            for index in range(CHUNK):
                entry = chunk[index]
                if not checked:
                    _check_survives_json(chunk, entry, generator, where)
                    checked = True
                yield Problem(
                    prompt=entry["question"],
                    answer=entry["answer"] or "",
                    verifier="reasoning_gym",
                    key=normalised(entry["question"]),
                    info={"generator": generator, "config": config, "entry": entry},
                )


def _check_survives_json(chunk: Any, entry: dict[str, Any], generator: str, where: str) -> None:
    """Refuse a generator whose scorer does not recognise its own answer once the entry was written as JSON."""
    try:
        restored = json.loads(json.dumps(entry))
        survives = chunk.score_answer(entry["answer"], restored) == chunk.score_answer(entry["answer"], entry)
    except Exception as error:
        raise ValueError(f"{where}: {generator} cannot be used, its entries are not JSON: {error}") from error
    if not survives:
        raise ValueError(f"{where}: {generator} cannot be used, it scores its own answer lower after JSON")
