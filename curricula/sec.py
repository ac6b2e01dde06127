"""SEC's curriculum: a TD(0) value per arm and a Boltzmann policy (arXiv 2505.14970).

1. The reward of an arm in a batch is the mean |A| over its prompts: a proxy of how much the policy just learnt there.
2. A running value Q follows these rewards, the recent ones weighing most, since the policy keeps moving.
3. An arm that had no prompt in the batch keeps its value.
4. A softmax over Q gives the shares of the next batch; there is no exploration bonus.
5. All values start at 0, so the first shares are equal.

Equation, once per batch and for every arm c in it:

    Q(c) <- Q(c) + learning_rate * (r(c) - Q(c)),    P = softmax(Q / temperature)

The commands in the released code's README set the learning rate to 0.5 throughout, and the temperature to 1.0
(countdown), 0.4 (maths) and 0.2 (several tasks at several difficulties at once). The defaults here are the last, which
comes closest to a mixture of distributions and is the most selective of the three.

What deviates, and why: prompts are observed one at a time, so a batch is whatever was observed between two draws.
`probabilities` already counts the batch that is being observed, as the next draw will. Shares become prompts by
largest remainder with the error carried over. A prompt that cannot be scored adds 0 to its arm's reward. When the
meaning of the rewards changes, `discount_past` moves every Q toward its initial value, 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .curriculum import Curriculum
from .shares import require, require_softmax_options, softmax


class SECCurriculum(Curriculum, name="sec"):
    """Self-evolving curriculum.

    Args:
        arms (`Sequence[str]`): names of the task distributions.
        temperature (`float`, *optional*, defaults to `0.2`): of the softmax; 0 is greedy, ties shared equally.
        learning_rate (`float`, *optional*, defaults to `0.5`): step of the TD(0) update, in (0, 1].
        floor (`float`, *optional*, defaults to `0.0`): least probability of every arm.
        seed (`int`, *optional*, defaults to `0`): seed of the order of a draw and of its ties.
    """

    def __init__(
        self,
        arms: Sequence[str],
        temperature: float = 0.2,
        learning_rate: float = 0.5,
        floor: float = 0.0,
        seed: int = 0,
    ):
        super().__init__(arms, seed=seed, temperature=temperature, learning_rate=learning_rate, floor=floor)
        require_softmax_options(len(self.arms), temperature, floor)
        require(0 < learning_rate <= 1, f"learning_rate must be in (0, 1], got {learning_rate}")
        self.temperature, self.learning_rate, self.floor = temperature, learning_rate, floor
        self._values = np.zeros(len(self.arms))
        self._batch_sums = np.zeros(len(self.arms))
        self._batch_counts = np.zeros(len(self.arms))

    def probabilities(self) -> np.ndarray:
        return softmax(self.learnability(), self.temperature, self.floor)

    def learnability(self) -> np.ndarray:
        """Return Q as the next draw will use it: with the update by the batch that is being observed."""
        seen = self._batch_counts > 0
        rewards = np.divide(self._batch_sums, self._batch_counts, out=self._values.copy(), where=seen)
        return self._values + self.learning_rate * (rewards - self._values)

    def _observe(
        self, index: int, advantages: np.ndarray, rewards: np.ndarray | None, tokens: np.ndarray | None
    ) -> None:
        self._batch_sums[index] += np.abs(advantages).mean()
        self._batch_counts[index] += 1

    def _tick(self, num_prompts: int) -> None:
        self._values = self.learnability()
        self._batch_sums[:] = 0
        self._batch_counts[:] = 0

    def _discount_past(self, factor: float) -> None:
        self._tick(0)  # the batch that was just observed is also past
        self._values *= factor

    def _statistics(self) -> dict[str, Any]:
        return {
            "values": self._values.tolist(),
            "batch_sums": self._batch_sums.tolist(),
            "batch_counts": self._batch_counts.tolist(),
        }

    def _load_statistics(self, statistics: Mapping[str, Any]) -> None:
        values, sums, counts = (
            self._per_arm(key, statistics[key]) for key in ("values", "batch_sums", "batch_counts")
        )
        self._values, self._batch_sums, self._batch_counts = values, sums, counts
