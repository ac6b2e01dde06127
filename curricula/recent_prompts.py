"""A window of each arm's latest prompts, and a function that reads the numbers of a state."""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from .shares import require


class RecentPrompts:
    """The last `size` values of every arm, one value per prompt.

    Each value has the number of its draw and the logarithm of its weight, which is 0 until `discount` lowers it.
    """

    def __init__(self, num_arms: int, size: int):
        require(size >= 1, f"window must be at least 1 prompt, got {size}")
        self.size = int(size)
        self.values: list[deque[tuple[float, int, float]]] = [deque(maxlen=self.size) for _ in range(num_arms)]

    def add(self, index: int, value: float, draw: int, log_weight: float = 0.0) -> None:
        self.values[index].append((float(value), draw, log_weight))

    def discount(self, factor: float) -> None:
        """Multiply the weights of all values by `factor`."""
        for window in self.values:
            for i, (value, draw, log_weight) in enumerate(window):
                window[i] = (value, draw, log_weight + math.log(factor))

    def means(self, discount: float = 1.0) -> np.ndarray:
        """Return each arm's weighted mean; a value `a` draws older than the arm's newest weighs `discount ** a`."""
        return np.array([self._mean(window, discount) for window in self.values])

    @staticmethod
    def _mean(window: deque, discount: float) -> float:
        if not window:
            return 0.0
        # Relative to the newest: an arm that has not been drawn for very long must not end up as 0 / 0.
        _, newest, most = window[-1]
        weights = [discount ** (newest - draw) * math.exp(log_weight - most) for _, draw, log_weight in window]
        return math.fsum(w * value for w, (value, _, _) in zip(weights, window, strict=True)) / math.fsum(weights)

    def state(self) -> list:
        return [[list(entry) for entry in window] for window in self.values]

    def restored(self, key: str, state: Sequence) -> "RecentPrompts":
        """Return a new `RecentPrompts` with the values of `state`."""
        windows = [finite_or_none(window) for window in state] if isinstance(state, list) else []
        fits = len(windows) == len(self.values) and all(
            window is not None and window.shape in [(0,), *((n, 3) for n in range(1, self.size + 1))]
            for window in windows
        )
        require(
            fits,
            f"curriculum state refused: {key} must hold, for each of {len(self.values)} arms, at most {self.size} "
            "triples of a finite value, its draw and the logarithm of its weight",
        )
        restored = RecentPrompts(len(self.values), self.size)
        for index, window in enumerate(state):
            for value, draw, log_weight in window:
                restored.add(index, value, int(draw), log_weight)
        return restored


def finite_or_none(values: Any) -> np.ndarray | None:
    """Read an array of finite numbers from a state; return `None` if it has any other content."""
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return array if np.isfinite(array).all() else None
