"""Arithmetic: a sum of one-digit terms, worked one step a line.

The demonstrator slips now and then and carries on from the slip, as people do, so a model warm-started on its traces
knows how to work a sum but does so unreliably: reliability is what reinforcement learning can add.
"""

import random
from dataclasses import dataclass

from .problem import Problem


@dataclass(frozen=True)
class Arithmetic:
    """Sums of one length; every running total lies in 0..99.

    Args:
        terms (`int`, *optional*, defaults to `4`): number of terms (2 to 20).
        slip (`float`, *optional*, defaults to `0.1`): chance that the demonstrator gets a step wrong.
    """

    terms: int = 4
    slip: float = 0.1

    def __post_init__(self) -> None:
        if not 2 <= self.terms <= 20:
            raise ValueError(f"arithmetic: terms must be between 2 and 20, got {self.terms}")
        if not 0 <= self.slip <= 1:
            raise ValueError(f"arithmetic: slip must be a chance between 0 and 1, got {self.slip}")

    def sample(self, rng: random.Random) -> Problem:
        """Draw a sum whose running totals stay in 0..99."""
        first = rng.randint(1, 9)
        total, steps = first, []
        for _ in range(self.terms - 1):
            term = rng.randint(1, 9)
            signs = [sign for sign in (1, -1) if 0 <= total + sign * term <= 99]
            signed = rng.choice(signs) * term
            steps.append(signed)
            total += signed
        expression = str(first) + "".join(f"{signed:+d}" for signed in steps)
        return Problem(
            prompt=f"compute {expression}",
            answer=str(total),
            verifier="exact",
            key=f"arithmetic {expression}",
            info={"first": first, "steps": steps},
        )

    def demonstrate(self, problem: Problem, rng: random.Random) -> str:
        """Work the sum step by step; each step slips with probability `slip`."""
        total, lines = problem.info["first"], []
        for signed in problem.info["steps"]:
            result = total + signed
            if rng.random() < self.slip:
                result += rng.choice((-10, -2, -1, 1, 2, 10))
            lines.append(f"{total}{signed:+d}={result}")
            total = result
        return "\n".join([*lines, f"answer {total}"])
