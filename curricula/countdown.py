"""Countdown: reach a target from given numbers, by trying one expression after another.

An expression uses every number once and is evaluated from left to right, as on a pocket calculator, with every
intermediate value in 0..99. A trace is a search: one attempt a line, each marked right or wrong, then the answer.
"""

import random
from dataclasses import dataclass

from ..rewards.countdown import evaluate_left_to_right
from .problem import Problem

OPERATORS = "+-*"


@dataclass(frozen=True)
class Countdown:
    """Countdown problems of one difficulty.

    Args:
        numbers (`int`, *optional*, defaults to `3`): how many numbers a problem gives (2 to 6).
        operators (`str`, *optional*, defaults to `"+-"`): permitted operators, out of `+-*`.
        give_up (`float`, *optional*, defaults to `0.3`): chance that the demonstrator stops after a failed attempt.
        attempts (`int`, *optional*, defaults to `6`): after how many attempts the demonstrator stops at the latest.
    """

    numbers: int = 3
    operators: str = "+-"
    give_up: float = 0.3
    attempts: int = 6

    def __post_init__(self) -> None:
        if not 2 <= self.numbers <= 6:
            raise ValueError(f"countdown: numbers must be between 2 and 6, got {self.numbers}")
        known = set(self.operators) & set(OPERATORS)
        if not self.operators or len(known) < len(self.operators):
            raise ValueError(f"countdown: operators must be out of {OPERATORS!r}, each once, got {self.operators!r}")
        if not 0 <= self.give_up <= 1:
            raise ValueError(f"countdown: give_up must be a chance between 0 and 1, got {self.give_up}")
        if self.attempts < 1:
            raise ValueError(f"countdown: attempts must be at least 1, got {self.attempts}")

    def sample(self, rng: random.Random) -> Problem:
        """Draw a solvable problem: numbers first, then the value of a random expression over them."""
        while True:
            numbers = [rng.randint(1, 9) for _ in range(self.numbers)]
            expression = self._attempt(numbers, rng)
            target = evaluate_left_to_right(expression)
            if target is not None and target not in numbers:
                break
        listed = " ".join(map(str, numbers))
        return Problem(
            prompt=f"make {target} from {listed} using {' '.join(self.operators)}",
            answer=expression,
            verifier="countdown",
            key=f"countdown {' '.join(map(str, sorted(numbers)))} = {target}",
            info={"numbers": numbers, "target": target, "operators": self.operators},
        )

    def demonstrate(self, problem: Problem, rng: random.Random) -> str:
        """Attempt expressions at random until one is right or the demonstrator gives up."""
        lines = []
        for _ in range(self.attempts):
            expression, value = self._valid_attempt(problem.info["numbers"], rng)
            right = value == problem.info["target"]
            lines.append(f"{expression}={value} {'right' if right else 'wrong'}")
            if right or rng.random() < self.give_up:
                break
        return "\n".join([*lines, f"answer {expression}"])

    def _valid_attempt(self, numbers: list[int], rng: random.Random) -> tuple[str, int]:
        while True:
            expression = self._attempt(numbers, rng)
            value = evaluate_left_to_right(expression)
            if value is not None:
                return expression, value

    def _attempt(self, numbers: list[int], rng: random.Random) -> str:
        order = rng.sample(numbers, len(numbers))
        return str(order[0]) + "".join(rng.choice(self.operators) + str(n) for n in order[1:])
