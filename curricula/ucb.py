"""DUMP's curriculum: an upper confidence bound on the size of the advantages (arXiv 2504.09710).

1. An arm is worth training on while its advantages are large: |A| scales the policy gradient.
2. L(d) is the mean |A| over the last prompts of arm d.
3. An arm seen rarely gets a bonus on top, so that it is tried again.
4. A softmax over the sums turns them into shares of the next batch.
5. The policy improves, advantages of mastered arms vanish, and the shares move on.

Equation (section 3 and algorithm 1 of the paper), n = sum of all n(d):

    UCB(d) = L(d) + sqrt(2 ln(n + 1) / (n(d) + 1)),    P = softmax(UCB / temperature)

What deviates from the paper or from its released code, and why:

- The unit of n(d) is an explicit option. The text counts prompts, the code completions; with 16 completions per prompt
  the bonus is about a third, and exploration is over after some ten steps. The default is the text's.
- The window counts prompts, and a prompt's value is the mean |A| of its completions. The code keeps the last 300
  completions, after a reordering by length: about 19 prompts of one batch, and not a fair sample of them.
- Only training prompts enter the statistics. In the released code, test rewards enter them at every validation.
- A prompt without a comparable group (`observe_unscorable`) counts in n(d), because the text counts drawn prompts, and
  adds 0 to the window. In the paper, every completion has a reward.
- Shares become prompts by largest remainder with the error carried over, not by a lottery; within an arm the trainer
  cycles through shuffled items without replacement.
- `discount` (off by default) forgets: a moving policy makes old counts and old advantages misleading. It is discounted
  UCB (Garivier and Moulines, arXiv 0805.3415) with one draw as the unit of time.
- `discount_past` lowers all n(d) and the weights in L when the meaning of the rewards changes (a judge's new rubric).
- `floor` (off by default) guarantees every arm a share.
- All state is saved and restored; the released sampler forgets everything on resume.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from .curriculum import Curriculum
from .recent_prompts import RecentPrompts
from .shares import require, require_softmax_options, softmax


class UCBCurriculum(Curriculum, name="dump"):
    """DUMP's UCB over task distributions.

    Args:
        arms (`Sequence[str]`): names of the task distributions.
        temperature (`float`, *optional*, defaults to `0.1`): of the softmax; 0 is greedy, ties shared equally.
        window (`int`, *optional*, defaults to `64`): number of an arm's latest prompts that L averages over.
        count (`str`, *optional*, defaults to `"prompts"`): unit of n(d), `"prompts"` or `"completions"`.
        floor (`float`, *optional*, defaults to `0.0`): least probability of every arm.
        discount (`float`, *optional*, defaults to `1.0`): in (0, 1]. After every draw all n(d) are multiplied by it,
            and in L a prompt that is `a` draws older than its arm's newest weighs `discount ** a`. 1 is the paper's.
        seed (`int`, *optional*, defaults to `0`): seed of the order of a draw and of its ties.
    """

    def __init__(
        self,
        arms: Sequence[str],
        temperature: float = 0.1,
        window: int = 64,
        count: Literal["prompts", "completions"] = "prompts",
        floor: float = 0.0,
        discount: float = 1.0,
        seed: int = 0,
    ):
        super().__init__(
            arms, seed=seed, temperature=temperature, window=window, count=count, floor=floor, discount=discount
        )
        require_softmax_options(len(self.arms), temperature, floor)
        require(count in ("prompts", "completions"), f"count must be 'prompts' or 'completions', got {count!r}")
        require(0 < discount <= 1, f"discount must be in (0, 1], got {discount}")
        self.temperature, self.count, self.floor, self.discount = temperature, count, floor, discount
        self._magnitudes = RecentPrompts(len(self.arms), window)
        self._counts = np.zeros(len(self.arms))

    def probabilities(self) -> np.ndarray:
        return softmax(self.learnability() + self.bonus(), self.temperature, self.floor)

    def learnability(self) -> np.ndarray:
        """Return L: the mean |advantage| over each arm's window."""
        return self._magnitudes.means(self.discount)

    def bonus(self) -> np.ndarray:
        """Return the exploration bonus of each arm, shape (N,)."""
        return np.sqrt(2 * math.log(self._counts.sum() + 1) / (self._counts + 1))

    def _observe(
        self, index: int, advantages: np.ndarray, rewards: np.ndarray | None, tokens: np.ndarray | None
    ) -> None:
        self._magnitudes.add(index, np.abs(advantages).mean(), self._draws)
        self._counts[index] += len(advantages) if self.count == "completions" else 1

    def _tick(self, num_prompts: int) -> None:
        self._counts *= self.discount

    def _discount_past(self, factor: float) -> None:
        self._magnitudes.discount(factor)
        self._counts *= factor

    def _statistics(self) -> dict[str, Any]:
        return {"counts": self._counts.tolist(), "magnitudes": self._magnitudes.state()}

    def _load_statistics(self, statistics: Mapping[str, Any]) -> None:
        counts = self._per_arm("counts", statistics["counts"])
        self._magnitudes = self._magnitudes.restored("magnitudes", statistics["magnitudes"])
        self._counts = counts

    def _own_metrics(self) -> dict[str, np.ndarray]:
        return {"bonus": self.bonus()}
