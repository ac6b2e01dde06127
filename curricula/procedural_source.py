"""Distributions drawn from a built-in procedural family: `source: countdown | arithmetic | logic`."""

import dataclasses
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .entry import Entry, Parts, parse_options
from .families import FAMILIES
from .problem import Family, Problem, is_held_out

PATIENCE = 1000  # draws in a row that bring nothing new before a space of problems counts as exhausted


@dataclass(frozen=True, kw_only=True)
class ProceduralSource(Entry):
    """A built-in family of one difficulty.

    Args:
        config (`dict`, *optional*): options of the family.
        train_size (`int`, *optional*, defaults to `2000`): number of distinct training problems.
        test_size (`int`, *optional*, defaults to `64`): number of distinct held-out problems.
    """

    train_size: int = 2000
    test_size: int = 64
    config: dict[str, Any] = field(default_factory=dict)

    def family(self, where: str) -> Family:
        """Build the family from `config`."""
        return parse_options(FAMILIES[self.source], self.config, f"{where}, config")

    def load(self, where: str) -> dict[str, Parts]:
        """Draw the problems: a function of family, config and seed alone."""
        family = self.family(where)
        rng = random.Random(f"{self.source} {_written(family)} {self.seed}")
        stream = iter(lambda: family.sample(rng), None)
        return {self.name: draw(stream, self.train_size, self.test_size)}

    def check(self, where: str, rows: int | None = None) -> None:
        """Check the options of the family by drawing one problem."""
        self.family(where).sample(random.Random(self.seed))

    def demonstrations(self, seed: int, where: str) -> Iterator[tuple[Problem, str]]:
        """Draw problems that are not held out, each with a trace, without end."""
        family = self.family(where)
        rng = random.Random(f"demonstrations {self.name} {self.source} {_written(family)} {seed}")
        while True:
            for _ in range(PATIENCE):
                problem = family.sample(rng)
                if not is_held_out(problem.key):
                    break
            else:
                raise ValueError(f"{where}: all of {PATIENCE} problems drawn are held out; widen its config")
            yield problem, family.demonstrate(problem, rng)


def draw(problems: Iterator[Problem], train_size: int, test_size: int) -> Parts:
    """
    Draw distinct problems; whether one is held out is decided by its key.

    Args:
        problems (`Iterator[Problem]`): endless stream, repetitions included.
        train_size (`int`): number of training problems wanted.
        test_size (`int`): number of held-out problems wanted.

    Returns:
        `Parts`: fewer problems than wanted where the stream brings no new ones.
    """
    parts, seen, misses = Parts([], []), set(), 0
    while (len(parts.train) < train_size or len(parts.test) < test_size) and misses < PATIENCE:
        problem = next(problems)
        part, size = (parts.test, test_size) if is_held_out(problem.key) else (parts.train, train_size)
        if problem.key in seen or len(part) >= size:
            misses += 1
        else:
            misses = 0
            seen.add(problem.key)
            part.append(problem)
    return parts


def _written(family: Family) -> str:
    return str(sorted(dataclasses.asdict(family).items()))
