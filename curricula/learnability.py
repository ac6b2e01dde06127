"""Learnability: a curriculum that mends the weaknesses of DUMP's estimator; our own, not a published method.

1. The value of an arm is the variance of the rewards within its prompts: how far a group disagrees, p (1 - p).
2. It is a running mean that forgets at every draw, since the policy moves.
3. Each arm starts as if prompts of the greatest possible value had been seen; as real evidence is forgotten this
   belief comes back, so an arm that is hardly drawn any more is tried again.
4. On request the value is divided by the tokens that a completion of the arm costs.
5. A softmax over the values, relative to the best arm's, gives the shares, floored.

Equations, for prompt i of arm d with G rewards in [0, 1] and mean length t(i), seen a(i) draws ago, m = optimism:

    v(i) = sum (r - mean r)^2 / (G - 1)            unbiased for p (1 - p) if rewards are 0 or 1
    n(d) = sum discount^a(i)
    V(d) = (m / 4 + sum discount^a(i) v(i)) / (m + n(d))
    T(d) = (m T + sum discount^a(i) t(i)) / (m + n(d)) if per_token, else 1;   T = discounted mean length over all arms
    P = floor + (1 - N floor) softmax(X / temperature),   X(d) = (V(d) / T(d)) / max over arms of V / T

What differs from DUMP (`ucb.py`), and why:

- Variance instead of |A| after division by the standard deviation: the latter saturates, so that an arm solved once in
  16 attempts still scores about half of the maximum. It scores a quarter of it here (1/16 * 15/16 against 1/4).
- It is computed from the raw rewards, so that neither the trainer's normalization nor a reward for format counts.
- Optimism has the scale of the values, 1/4 at most, and falls as 1 / n instead of sqrt(ln n / n): for an arm that
  never varies, mastered or hopeless, the bound closes fast. It never dies out, because n(d) is discounted.
- A prompt that cannot be scored has the value 0, so its arm is drawn as rarely as one whose rewards never vary.
- The temperature is relative to the best arm: late in training, when all variances are small, the curriculum still
  distinguishes them.
- `per_token` is off by default. It saves tokens on long hopeless traces, but it also keeps cheap arms going when they
  are nearly mastered, and a mixture is only learnt when its expensive arms are learnt too. In simulated learners that
  cost more than it saved.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .curriculum import Curriculum
from .shares import require, require_softmax_options, softmax

MAX_VARIANCE = 0.25  # of rewards in [0, 1]


class LearnabilityCurriculum(Curriculum, name="dump_plus"):
    """Reward variance, discounted, with an optimistic prior.

    `observe` needs rewards in [0, 1] of at least two completions and, if `per_token`, their lengths in tokens.

    Args:
        arms (`Sequence[str]`): names of the task distributions.
        temperature (`float`, *optional*, defaults to `0.1`): of the softmax over values relative to the best arm's,
            which is 1; 0 is greedy, ties shared equally.
        discount (`float`, *optional*, defaults to `0.9`): in (0, 1]; what is known weighs this much less per draw.
        optimism (`float`, *optional*, defaults to `1.0`): weight of the optimistic belief, in prompts; above 0.
        floor (`float`, *optional*, defaults to `0.0`): least probability of every arm.
        per_token (`bool`, *optional*, defaults to `False`): whether value is per token instead of per completion.
        seed (`int`, *optional*, defaults to `0`): seed of the order of a draw and of its ties.
    """

    unit_rewards = True

    def __init__(
        self,
        arms: Sequence[str],
        temperature: float = 0.1,
        discount: float = 0.9,
        optimism: float = 1.0,
        floor: float = 0.0,
        per_token: bool = False,
        seed: int = 0,
    ):
        super().__init__(
            arms,
            seed=seed,
            temperature=temperature,
            discount=discount,
            optimism=optimism,
            floor=floor,
            per_token=per_token,
        )
        require_softmax_options(len(self.arms), temperature, floor)
        require(0 < discount <= 1, f"discount must be in (0, 1], got {discount}")
        require(optimism > 0, f"optimism must be above 0, got {optimism}")
        self.temperature, self.discount, self.floor = temperature, discount, floor
        self.optimism, self.per_token = optimism, per_token
        self._weights = np.zeros(len(self.arms))
        self._variances = np.zeros(len(self.arms))
        self._lengths = np.zeros(len(self.arms))

    def probabilities(self) -> np.ndarray:
        scores = self.optimistic_values() / self.lengths()
        return softmax(scores / scores.max(), self.temperature, self.floor)

    def learnability(self) -> np.ndarray:
        """Return the discounted mean of the reward variance within a prompt, without optimism."""
        seen = self._weights > 0
        return np.divide(self._variances, self._weights, out=np.zeros(len(self.arms)), where=seen)

    def optimistic_values(self) -> np.ndarray:
        """Return V: the mean variance with `optimism` prompts of the greatest variance added, shape (N,)."""
        return (self.optimism * MAX_VARIANCE + self._variances) / (self.optimism + self._weights)

    def lengths(self) -> np.ndarray:
        """Return T: tokens per completion, shape (N,), or ones; an arm without evidence has the mean of all arms'."""
        total = self._weights.sum()
        if not self.per_token or total == 0:
            return np.ones(len(self.arms))
        return (self.optimism * self._lengths.sum() / total + self._lengths) / (self.optimism + self._weights)

    def _observe(
        self, index: int, advantages: np.ndarray, rewards: np.ndarray | None, tokens: np.ndarray | None
    ) -> None:
        rewards = self._required_rewards(index, rewards)
        arm = self.arms[index]
        require(len(rewards) > 1, f"arm {arm!r}: a reward variance needs at least 2 completions per prompt, got 1")
        if self.per_token:
            if tokens is None or not (tokens > 0).all():
                raise ValueError(
                    f"arm {arm!r}: curriculum {self.name!r} needs the length of every completion, at least 1: pass "
                    "`tokens` to `observe`, or leave per_token off"
                )
            self._lengths[index] += tokens.mean()
        self._weights[index] += 1
        self._variances[index] += rewards.var(ddof=1)

    def _tick(self, num_prompts: int) -> None:
        self._discount_past(self.discount)

    def _discount_past(self, factor: float) -> None:
        for sums in (self._weights, self._variances, self._lengths):
            sums *= factor

    def _statistics(self) -> dict[str, Any]:
        return {
            "weights": self._weights.tolist(),
            "variances": self._variances.tolist(),
            "lengths": self._lengths.tolist(),
        }

    def _load_statistics(self, statistics: Mapping[str, Any]) -> None:
        sums = [self._per_arm(key, statistics[key]) for key in ("weights", "variances", "lengths")]
        self._weights, self._variances, self._lengths = sums

    def _own_metrics(self) -> dict[str, np.ndarray]:
        return {"optimistic_value": self.optimistic_values(), **({"length": self.lengths()} if self.per_token else {})}
