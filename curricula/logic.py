"""Logic: who on the island is a knight (K, tells the truth) and who a knave (N, lies)?

Each inhabitant makes one statement about two of them, joined by `and`, `or` or `same` (are of the same kind). A trace
tries one assignment after another and checks the statements in turn until one fails.
"""

import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .problem import Problem

NAMES = "abcdefgh"
CONNECTIVES = ("and", "or", "same")
Statement = tuple[str, int, str, int, str]  # connective, person, kind, person, kind


def holds(statement: Statement, kinds: str) -> bool:
    """Tell whether a statement is true when inhabitant i is of kind `kinds[i]`."""
    connective, i, kind_i, j, kind_j = statement
    first, second = kinds[i] == kind_i, kinds[j] == kind_j
    if connective == "same":
        return kinds[i] == kinds[j]
    return (first and second) if connective == "and" else (first or second)


def consistent(speaker: int, statement: Statement, kinds: str) -> bool:
    """A knight's statement is true and a knave's is false."""
    return holds(statement, kinds) == (kinds[speaker] == "K")


@dataclass(frozen=True)
class Logic:
    """Knights and knaves on an island of a given size, each puzzle with one solution.

    Args:
        people (`int`, *optional*, defaults to `3`): number of inhabitants (2 to 8).
        give_up (`float`, *optional*, defaults to `0.2`): chance that the demonstrator stops after a failed attempt.
        attempts (`int`, *optional*, defaults to `6`): after how many attempts the demonstrator stops at the latest.
    """

    people: int = 3
    give_up: float = 0.2
    attempts: int = 6

    def __post_init__(self) -> None:
        if not 2 <= self.people <= len(NAMES):
            raise ValueError(f"logic: people must be between 2 and {len(NAMES)}, got {self.people}")
        if not 0 <= self.give_up <= 1:
            raise ValueError(f"logic: give_up must be a chance between 0 and 1, got {self.give_up}")
        if self.attempts < 1:
            raise ValueError(f"logic: attempts must be at least 1, got {self.attempts}")

    def sample(self, rng: random.Random) -> Problem:
        """Draw statements until exactly one assignment is consistent with all of them."""
        while True:
            statements = [self._statement(rng) for _ in range(self.people)]
            answers = [kinds for kinds in self._assignments() if self._first_failure(statements, kinds) is None]
            if len(answers) == 1:
                break
        return Problem(
            prompt=self._said(statements),
            answer=answers[0],
            verifier="exact",
            key=f"logic {self._said(map(_in_order, statements))}",
            info={"statements": [list(s) for s in statements]},
        )

    def demonstrate(self, problem: Problem, rng: random.Random) -> str:
        """Try assignments in random order, without repeating one, until one is right or the demonstrator gives up."""
        statements = [tuple(s) for s in problem.info["statements"]]
        lines = []
        for kinds in rng.sample(list(self._assignments()), min(self.attempts, 2**self.people)):
            failure = self._first_failure(statements, kinds)
            checks = " ".join(["ok"] * (self.people if failure is None else failure) + ["bad"] * (failure is not None))
            lines.append(f"{kinds} {checks}")
            if failure is None or rng.random() < self.give_up:
                break
        return "\n".join([*lines, f"answer {kinds}"])

    def _assignments(self) -> Iterator[str]:
        return map("".join, itertools.product("KN", repeat=self.people))

    def _first_failure(self, statements: list[Statement], kinds: str) -> int | None:
        return next((i for i, s in enumerate(statements) if not consistent(i, s, kinds)), None)

    def _statement(self, rng: random.Random) -> Statement:
        i, j = rng.sample(range(self.people), 2)
        return rng.choice(CONNECTIVES), i, rng.choice("KN"), j, rng.choice("KN")

    def _said(self, statements: Iterable[Statement]) -> str:
        return " ; ".join(f"{NAMES[i]} says {_written(s)}" for i, s in enumerate(statements))


def _written(statement: Statement) -> str:
    connective, i, kind_i, j, kind_j = statement
    if connective == "same":
        return f"{NAMES[i]} same {NAMES[j]}"
    return f"{NAMES[i]} {kind_i} {connective} {NAMES[j]} {kind_j}"


def _in_order(statement: Statement) -> Statement:
    """Name the first of the two people first: every connective says the same either way round."""
    connective, i, kind_i, j, kind_j = statement
    return statement if i < j else (connective, j, kind_j, i, kind_i)
