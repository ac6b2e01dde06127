"""A task of your own: reverse a number. Registered, it is a `source:`."""

import random
from dataclasses import dataclass

from metatune.curricula import FAMILIES, Problem


@dataclass(frozen=True)
class Reversal:
    """Numbers of `digits` digits."""

    digits: int = 3

    def sample(self, rng: random.Random) -> Problem:
        """Draw a problem; its key decides whether it is held out."""
        number = str(rng.randrange(10 ** (self.digits - 1), 10**self.digits))
        text, key = f"compute {number}", f"reversal {number}"
        return Problem(text, answer=number[::-1], verifier="exact", key=key)

    def demonstrate(self, problem: Problem, rng: random.Random) -> str:
        """Write a trace to warm-start on."""
        return f"answer {problem.answer}"


FAMILIES["reversal"] = Reversal
