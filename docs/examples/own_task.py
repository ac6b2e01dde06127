"""A task of your own: reverse a number. Registered, it is a `source:` with a `config:`, as the built-in ones are."""

import random
from dataclasses import dataclass

from metatune.curricula import FAMILIES, Problem


@dataclass(frozen=True)
class Reversal:
    """Numbers of `digits` digits."""

    digits: int = 3

    def sample(self, rng: random.Random) -> Problem:
        """Draw a problem; equal keys are the same problem, and the key decides whether it is held out."""
        number = str(rng.randrange(10 ** (self.digits - 1), 10**self.digits))
        return Problem(f"compute {number}", answer=number[::-1], verifier="exact", key=f"reversal {number}")

    def demonstrate(self, problem: Problem, rng: random.Random) -> str:
        """Write a trace to warm-start on."""
        return f"answer {problem.answer}"


FAMILIES["reversal"] = Reversal
