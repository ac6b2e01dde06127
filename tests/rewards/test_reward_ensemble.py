"""The reward function over reward models: combinations by hand and by property, what is logged, what is unscorable."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from metatune.rewards.reward_ensemble import RewardModelReward, combine_rewards, reward_statistics

REWARDS = arrays(float, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(-100, 100))


class Fixed:
    """A model whose rewards are given."""

    def __init__(self, *rewards: float):
        self.rewards = rewards

    def score(self, prompts, completions):
        assert len(prompts) == len(completions) == len(self.rewards)
        return np.array(self.rewards, dtype=float)


def logged(reward: RewardModelReward, completions: list, **columns) -> tuple[list, dict[str, float]]:
    metrics = {}
    rewards = reward(["?"] * len(completions), completions, log_metric=metrics.__setitem__, **columns)
    return rewards, metrics


def test_combinations_by_hand():
    rewards = np.array([[1.0, 3.0], [2.0, 2.0]])  # standard deviations 1 and 0
    assert combine_rewards(rewards, "mean").tolist() == [2, 2]
    assert combine_rewards(rewards, "min").tolist() == [1, 2]
    assert combine_rewards(rewards, "mean_minus_std", 0.5).tolist() == [1.5, 2]


@given(REWARDS, st.floats(0.01, 10))
def test_disagreement_never_pays(rewards, std_weight):
    mean = combine_rewards(rewards, "mean")
    penalized = combine_rewards(rewards, "mean_minus_std", std_weight)
    assert (penalized <= mean + 1e-9).all() and (combine_rewards(rewards, "min") <= mean + 1e-9).all()
    agreed = np.repeat(rewards[:, :1], 3, axis=1)
    for combine, weight in (("mean", None), ("min", None), ("mean_minus_std", std_weight)):
        assert combine_rewards(agreed, combine, weight) == pytest.approx(rewards[:, 0], abs=1e-6)
        shuffled = combine_rewards(rewards[:, ::-1], combine, weight)
        assert shuffled == pytest.approx(combine_rewards(rewards, combine, weight), abs=1e-9)


def test_what_a_model_cannot_score_is_none_and_never_a_number():
    reward = RewardModelReward([Fixed(1, np.nan, 3, 0), Fixed(2, 1, np.inf, 0)])
    rewards, metrics = logged(reward, ["a", "bb", "ccc", "dddd"])
    assert rewards == [1.5, None, None, 0.0]
    assert metrics["reward_model/unscorable"] == 0.5 and metrics["reward_model/disagreement"] == 0.25
    rewards, metrics = logged(RewardModelReward(Fixed(np.nan, np.nan)), ["a", "b"])
    assert rewards == [None, None] and metrics == {"reward_model/unscorable": 1.0, "reward_model/length": 1.0}


def test_one_model_needs_no_list_and_disagrees_with_nobody():
    reward = RewardModelReward(Fixed(1, 2), name="helpful")
    rewards, metrics = logged(reward, ["a", "ccc"], completion_ids=[[1] * 10, [1] * 20], answer=["", ""])
    assert rewards == [1.0, 2.0] and reward.__name__ == "helpful"
    assert metrics == {
        "helpful/unscorable": 0.0,
        "helpful/length": 15.0,
        "helpful/length_correlation": pytest.approx(1),
    }
    assert reward(["?", "?"], ["a", "b"]) == [1.0, 2.0] and RewardModelReward(Fixed())([], []) == []


def test_forced_answers_are_not_scored():
    ids, forced = [[1] * 10, [1], [1] * 20], [False, True, False]
    rewards, metrics = logged(
        RewardModelReward(Fixed(1, 2)), ["a", "b", "c"], completion_ids=ids, forced_answer=forced
    )
    assert rewards == [1.0, None, 2.0]
    assert metrics["reward_model/length"] == 15 and metrics["reward_model/unscorable"] == 0
    assert logged(RewardModelReward(Fixed()), ["a"], forced_answer=[True]) == ([None], {})


def test_length_is_of_the_text_where_there_are_no_tokens():
    conversations = [[{"role": "assistant", "content": text}] for text in ("aaaa", "bb", "c")]
    _, metrics = logged(RewardModelReward(Fixed(1, 2, 3)), conversations)
    assert metrics["reward_model/length"] == pytest.approx(7 / 3)
    assert metrics["reward_model/length_correlation"] == pytest.approx(np.corrcoef([4, 2, 1], [1, 2, 3])[0, 1])


def test_a_correlation_that_is_not_defined_is_left_out():
    for rewards, lengths in (([1, 1], [1, 2]), ([1, 2], [3, 3]), ([1], [1])):
        rewards = np.array(rewards, dtype=float)
        statistics = reward_statistics(rewards[:, None], rewards, np.array(lengths, dtype=float))
        assert "length_correlation" not in statistics


def test_refusals():
    with pytest.raises(ValueError, match="at least one reward model"):
        RewardModelReward([])
    with pytest.raises(ValueError, match="combine must be one of mean, min, mean_minus_std, not 'max'"):
        RewardModelReward(Fixed(), combine="max")
    with pytest.raises(ValueError, match="mean_minus_std needs a std_weight above 0, not None"):
        RewardModelReward(Fixed(), combine="mean_minus_std")
    with pytest.raises(ValueError, match="combine: min does not use it"):
        RewardModelReward(Fixed(), combine="min", std_weight=1.0)
