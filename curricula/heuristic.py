"""Curricula without a bandit, for honest comparison: uniform, easy to hard, and pools by pass rate.

- `uniform`: equal shares for ever.
- `easy_to_hard`: baby steps (Bengio et al. 2009; the name from Spitkovsky et al. 2010, Cirik et al. arXiv 1611.06204):
  arms are given in order of difficulty, one more opens at each stage, and the open ones share equally. Stage k of N
  (from 0) begins once k / N of the planned prompts are drawn. Earlier arms stay open, which guards against forgetting.
- `pools`: arms are sorted into three pools by their recent pass rate; the pool that is neither solved nor unsolved
  gets most of the prompts. The usual practice of curating a dataset by difficulty, kept up to date during training.

All three report `learnability`, the mean |advantage| of an arm's last 64 prompts, so that plots can be compared with
those of the bandits; the shares do not depend on it. A prompt that cannot be scored adds 0 to it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .curriculum import Curriculum, checked_count
from .recent_prompts import RecentPrompts
from .shares import require

REPORT_WINDOW = 64


class _HeuristicCurriculum(Curriculum):
    """Keeps the mean |advantage| that the heuristics report but do not use."""

    def __init__(self, arms: Sequence[str], *, seed: int, **options: Any):
        super().__init__(arms, seed=seed, **options)
        self._magnitudes = RecentPrompts(len(self.arms), REPORT_WINDOW)

    def learnability(self) -> np.ndarray:
        """Return the mean |advantage| over each arm's last prompts."""
        return self._magnitudes.means()

    def _observe(
        self, index: int, advantages: np.ndarray, rewards: np.ndarray | None, tokens: np.ndarray | None
    ) -> None:
        self._magnitudes.add(index, np.abs(advantages).mean(), self._draws)

    def _discount_past(self, factor: float) -> None:
        self._magnitudes.discount(factor)

    def _statistics(self) -> dict[str, Any]:
        return {"magnitudes": self._magnitudes.state()}

    def _load_statistics(self, statistics: Mapping[str, Any]) -> None:
        self._magnitudes = self._magnitudes.restored("magnitudes", statistics["magnitudes"])


class UniformCurriculum(_HeuristicCurriculum, name="uniform"):
    """Equal shares.

    Args:
        arms (`Sequence[str]`): names of the task distributions.
        seed (`int`, *optional*, defaults to `0`): seed of the order of a draw and of its ties.
    """

    adaptive = False

    def __init__(self, arms: Sequence[str], seed: int = 0):
        super().__init__(arms, seed=seed)

    def probabilities(self) -> np.ndarray:
        return np.full(len(self.arms), 1 / len(self.arms))


class EasyToHardCurriculum(_HeuristicCurriculum, name="easy_to_hard"):
    """Baby steps: one more arm opens at each stage, and the open ones share equally.

    Args:
        arms (`Sequence[str]`): names of the task distributions, the easiest first.
        total_prompts (`int`): prompts that the run will draw; the last arm opens after (N - 1) / N of them.
        seed (`int`, *optional*, defaults to `0`): seed of the order of a draw and of its ties.
    """

    adaptive = False

    def __init__(self, arms: Sequence[str], total_prompts: int, seed: int = 0):
        super().__init__(arms, seed=seed, total_prompts=total_prompts)
        require(total_prompts >= 1, f"total_prompts must be at least 1, got {total_prompts}")
        self.total_prompts = total_prompts
        self._drawn = 0

    def probabilities(self) -> np.ndarray:
        num_open = min(len(self.arms), len(self.arms) * self._drawn // self.total_prompts + 1)
        return np.where(np.arange(len(self.arms)) < num_open, 1 / num_open, 0.0)

    def _tick(self, num_prompts: int) -> None:
        self._drawn += num_prompts

    def _statistics(self) -> dict[str, Any]:
        return {**super()._statistics(), "drawn": self._drawn}

    def _load_statistics(self, statistics: Mapping[str, Any]) -> None:
        drawn = checked_count("drawn", statistics["drawn"])
        super()._load_statistics(statistics)
        self._drawn = drawn


class PoolsCurriculum(_HeuristicCurriculum, name="pools"):
    """Three pools by recent pass rate: learnable (`low` to `high`), solved (above) and unsolved (below).

    The learnable pool gets `share`, the other two half of the rest each; an empty pool's part goes to the others in
    proportion, and the arms of a pool share equally. An arm never observed counts as learnable, so that it is drawn.
    `observe` needs rewards: the pass rate is their mean. If most of an arm's latest prompts could not be scored, the
    arm is in no pool and gets a tenth of the smallest share of any other arm.

    Args:
        arms (`Sequence[str]`): names of the task distributions.
        low (`float`, *optional*, defaults to `0.2`): least pass rate of the learnable pool.
        high (`float`, *optional*, defaults to `0.8`): greatest pass rate of the learnable pool.
        share (`float`, *optional*, defaults to `0.8`): share of the learnable pool, in (0, 1).
        window (`int`, *optional*, defaults to `64`): number of an arm's latest scored prompts for its pass rate.
        seed (`int`, *optional*, defaults to `0`): seed of the order of a draw and of its ties.
    """

    unit_rewards = True

    def __init__(
        self,
        arms: Sequence[str],
        low: float = 0.2,
        high: float = 0.8,
        share: float = 0.8,
        window: int = 64,
        seed: int = 0,
    ):
        super().__init__(arms, seed=seed, low=low, high=high, share=share, window=window)
        require(0 <= low < high <= 1, f"pools need 0 <= low < high <= 1, got low {low} and high {high}")
        # At 0 or 1 a pool that is alone would have nothing to redistribute.
        require(0 < share < 1, f"share must be strictly between 0 and 1, got {share}")
        self.low, self.high, self.share = low, high, share
        self._passes = RecentPrompts(len(self.arms), window)
        self._scored = RecentPrompts(len(self.arms), window)  # 1 for a prompt that could be scored, else 0

    def probabilities(self) -> np.ndarray:
        rate = self.pass_rates()
        observed = self._observed > 0
        unscorable = observed & (self._scored.means() < 0.5)
        if unscorable.all():
            return np.full(len(self.arms), 1 / len(self.arms))
        solved = (rate > self.high) & ~unscorable
        unsolved = (rate < self.low) & observed & ~unscorable
        rest = (1 - self.share) / 2
        weights = np.zeros(len(self.arms))
        for pool, pool_share in ((~solved & ~unsolved & ~unscorable, self.share), (solved, rest), (unsolved, rest)):
            weights[pool] = pool_share / max(pool.sum(), 1)
        weights[unscorable] = weights[~unscorable].min() / 10
        return weights / weights.sum()

    def pass_rates(self) -> np.ndarray:
        """Return the mean reward over each arm's window, shape (N,); 0.0 for an arm never scored."""
        return self._passes.means()

    def _observe(
        self, index: int, advantages: np.ndarray, rewards: np.ndarray | None, tokens: np.ndarray | None
    ) -> None:
        rewards = self._required_rewards(index, rewards)
        super()._observe(index, advantages, rewards, tokens)
        self._passes.add(index, rewards.mean(), self._draws)
        self._scored.add(index, 1.0, self._draws)

    def _observe_unscorable(self, index: int, num_completions: int, tokens: np.ndarray | None) -> None:
        super()._observe(index, np.zeros(num_completions), None, tokens)
        self._scored.add(index, 0.0, self._draws)

    def _discount_past(self, factor: float) -> None:
        for windows in (self._magnitudes, self._passes, self._scored):
            windows.discount(factor)

    def _statistics(self) -> dict[str, Any]:
        return {**super()._statistics(), "passes": self._passes.state(), "scored": self._scored.state()}

    def _load_statistics(self, statistics: Mapping[str, Any]) -> None:
        passes, scored = (
            windows.restored(key, statistics[key])
            for key, windows in (("passes", self._passes), ("scored", self._scored))
        )
        super()._load_statistics(statistics)
        self._passes, self._scored = passes, scored

    def _own_metrics(self) -> dict[str, np.ndarray]:
        return {"pass_rate": self.pass_rates()}
