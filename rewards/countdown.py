"""Countdown expressions: each number once, evaluated from left to right, every value within 0..99."""

import re
from collections.abc import Sequence
from functools import lru_cache

LARGEST = 99
_EXPRESSION = re.compile(r"\d{1,2}(?:[-+*]\d{1,2})*", re.ASCII)


def _apply(left: int, operator: str, right: int) -> int | None:
    value = {"+": left + right, "-": left - right, "*": left * right}[operator]
    return value if 0 <= value <= LARGEST else None


def evaluate_left_to_right(expression: str) -> int | None:
    """Evaluate `3+7*8` as a pocket calculator does, (3 + 7) * 8.

    Returns:
        `int` or `None`: the value, or `None` if the text is no such expression or a value leaves 0..99.
    """
    if not _EXPRESSION.fullmatch(expression):
        return None
    first, *rest = re.findall(r"\d+|[-+*]", expression)
    value = int(first)
    for operator, number in zip(rest[::2], rest[1::2], strict=True):
        result = _apply(value, operator, int(number))
        if result is None:
            return None
        value = result
    return value


def solutions(numbers: Sequence[int], target: int, operators: str) -> list[str]:
    """
    List every expression that uses each number exactly once and reaches `target`, sorted, without duplicates.

    Args:
        numbers (`Sequence[int]`): the given numbers, each within 0..99.
        target (`int`): the value to reach.
        operators (`str`): the permitted operators, out of `+-*`.

    Raises:
        ValueError: there are no numbers, or a number or an operator is none that an expression can have.
    """
    if not numbers or not all(0 <= number <= LARGEST for number in numbers):
        raise ValueError(f"countdown: numbers must be within 0..{LARGEST} and at least one, got {list(numbers)}")
    if set(operators) - set("+-*"):
        raise ValueError(f"countdown: operators must be out of '+-*', got {operators!r}")
    return list(_solutions(tuple(sorted(numbers)), target, "".join(sorted(set(operators)))))


@lru_cache(maxsize=4096)
def _solutions(numbers: tuple[int, ...], target: int, operators: str) -> tuple[str, ...]:
    found = set()

    def extend(expression: str, value: int, left: tuple[int, ...]) -> None:
        if not left:
            if value == target:
                found.add(expression)
            return
        for index, number in enumerate(left):
            if number in left[:index]:
                continue
            for operator in operators:
                result = _apply(value, operator, number)
                if result is not None:
                    extend(f"{expression}{operator}{number}", result, left[:index] + left[index + 1 :])

    for index, number in enumerate(numbers):
        if number not in numbers[:index]:
            extend(str(number), number, numbers[:index] + numbers[index + 1 :])
    return tuple(sorted(found))
