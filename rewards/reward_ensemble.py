"""The reward function that one or several reward models make, for TRL trainers.

With several models a response earns the mean of their rewards, the least of them (worst-case optimisation), or

    mean - std_weight * std

with the population standard deviation over the models: what they disagree on pays less, so that the policy gains
nothing by what fools some of them (Coste et al., arXiv:2310.02743, subtract the variance; Eisenstein et al.,
arXiv:2312.09244, the standard deviation). The models must reward on one scale, as models of one recipe with several
seeds do: only then is the least of their rewards, or their disagreement, that of their judgements.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

COMBINATIONS = ("mean", "min", "mean_minus_std")


class Scorer(Protocol):
    """What scores responses: a [`RewardModel`], a [`RewardServer`], or anything else with this method."""

    def score(self, prompts: Sequence[Any], completions: Sequence[Any]) -> np.ndarray:
        """Return N rewards, of shape (N,), NaN where there is none."""
        ...


class RewardModelReward:
    """A TRL reward function over reward models.

    A response that a model cannot score (too long, or a reward that is no finite number) gets `None`, which TRL leaves
    out of the baseline. Beside other reward functions TRL would take it for 0; [`DUMPTrainer`] leaves it out.

    Where TRL passes `log_metric`, logs under its name: `unscorable` (share), `length` (mean, in tokens, or in
    characters without `completion_ids`), `length_correlation` (of reward and length within the batch; left out where
    one of them is constant) and, of several models, `disagreement` (their mean standard deviation).

    Args:
        models (`Sequence[Scorer]`): M reward models on one scale, or a single one.
        combine (`str`, *optional*, defaults to `"mean"`): `mean`, `min` or `mean_minus_std`.
        std_weight (`float`, *optional*): for `mean_minus_std`, which needs it; above 0.
        name (`str`, *optional*, defaults to `"reward_model"`): of the function, in TRL's logs too.

    Raises:
        ValueError: no model, an unknown combination, or one that does not go with `std_weight`.
    """

    def __init__(
        self,
        models: Scorer | Sequence[Scorer],
        combine: str = "mean",
        std_weight: float | None = None,
        name: str = "reward_model",
    ):
        self.models = list(models) if isinstance(models, Sequence) else [models]
        if not self.models:
            raise ValueError("give at least one reward model")
        check_combination(combine, std_weight)
        self.combine, self.std_weight, self.__name__ = combine, std_weight, name

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        forced_answer: Sequence[bool] | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        """Reward B completions, texts or conversations; other arguments from TRL are ignored.

        Completions marked in `forced_answer` are not scored and get `None`, because their text contains the forcing
        suffix, which the policy did not write.
        """
        if forced_answer is not None and any(forced_answer):
            rows = [row for row, forced in enumerate(forced_answer) if not forced]
            own_prompts, own_completions = ([texts[row] for row in rows] for texts in (prompts, completions))
            own_ids = None if completion_ids is None else [completion_ids[row] for row in rows]
            rewards = self(own_prompts, own_completions, own_ids, log_metric) if rows else []
            scored = dict(zip(rows, rewards, strict=True))
            return [scored.get(row) for row in range(len(prompts))]
        rewards_BM = np.stack([model.score(prompts, completions) for model in self.models], axis=1)
        rewards_BM = np.where(np.isfinite(rewards_BM), rewards_BM, np.nan)
        rewards_B = combine_rewards(rewards_BM, self.combine, self.std_weight)
        if log_metric is not None and len(rewards_B):
            lengths = map(len, completion_ids if completion_ids is not None else map(_text, completions))
            for metric, value in reward_statistics(rewards_BM, rewards_B, np.fromiter(lengths, dtype=float)).items():
                log_metric(f"{self.__name__}/{metric}", value)
        return [None if np.isnan(reward) else float(reward) for reward in rewards_B]


def check_combination(combine: str, std_weight: float | None) -> None:
    """Raise `ValueError` for an unknown combination, or one that does not go with `std_weight`."""
    if combine not in COMBINATIONS:
        raise ValueError(f"combine must be one of {', '.join(COMBINATIONS)}, not {combine!r}")
    if combine != "mean_minus_std" and std_weight is not None:
        raise ValueError(f"std_weight is given, but combine: {combine} does not use it")
    if combine == "mean_minus_std" and (std_weight is None or not 0 < std_weight < np.inf):
        raise ValueError(f"combine: mean_minus_std needs a std_weight above 0, not {std_weight}")


def combine_rewards(rewards: np.ndarray, combine: str = "mean", std_weight: float | None = None) -> np.ndarray:
    """Make one reward of M, of shape (N, M), for N responses; NaN where a model has none. Returns shape (N,)."""
    check_combination(combine, std_weight)
    if combine == "min":
        return rewards.min(axis=1)
    mean_N = rewards.mean(axis=1)
    return mean_N if combine == "mean" else mean_N - std_weight * rewards.std(axis=1)


def reward_statistics(rewards: np.ndarray, combined: np.ndarray, lengths: np.ndarray) -> dict[str, float]:
    """Return what [`RewardModelReward`] logs of the rewards (N, M), combined (N,), and the lengths (N,), N > 0."""
    scored_N = np.isfinite(combined)
    statistics = {"unscorable": float(1 - scored_N.mean()), "length": float(lengths.mean())}
    combined_S, lengths_S = combined[scored_N], lengths[scored_N]
    if len(combined_S) and np.ptp(combined_S) > 0 and np.ptp(lengths_S) > 0:
        statistics["length_correlation"] = float(np.corrcoef(combined_S, lengths_S)[0, 1])
    if len(combined_S) and rewards.shape[1] > 1:
        statistics["disagreement"] = float(rewards[scored_N].std(axis=1).mean())
    return statistics


def _text(completion: str | list[dict[str, Any]]) -> str:
    return completion if isinstance(completion, str) else "".join(str(turn["content"]) for turn in completion)
