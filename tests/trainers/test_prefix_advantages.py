"""Advantages of rollouts from stale prefixes: worked by hand, exact expectations, and what cancels."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metatune.trainers.advantages import group_advantages, outcome_divisor, relative_to_group
from metatune.trainers.prefix_advantages import prefix_advantages, prefix_rewards

NAN = math.nan
SCALES = ("group", "batch", "none")
rewards_of_6 = st.lists(st.booleans(), min_size=12, max_size=12).map(lambda right: torch.tensor(right).double())


def kinds(continuing: int, terminating: int, groups: int = 1) -> torch.Tensor:
    return torch.tensor(([False] * continuing + [True] * terminating) * groups)


# ---- separate baselines: worked by hand ----


def test_each_kind_is_compared_with_its_own_mean():
    # Continuing 1, 1, 0, 0 with mean 1/2, terminating 1, 0 with mean 1/2. Squares around these: 6/4, with 6 - 2
    # degrees of freedom, so D = sqrt(0.375). alpha = 1: twice the deviation for continuing rollouts.
    rewards, terminating = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 0.0]), kinds(4, 2)
    expected = torch.tensor([1.0, 1.0, -1.0, -1.0, 0.5, -0.5])
    torch.testing.assert_close(prefix_advantages(rewards, None, terminating, 6, alpha=1, scale="none"), expected)
    by_group = prefix_advantages(rewards, None, terminating, 6, alpha=1)
    torch.testing.assert_close(by_group, expected / (math.sqrt(0.375) + 1e-4))


def test_the_scale_batch_has_one_deviation_for_all_groups():
    # Continuing 1, 0, 1, 1: mean 3/4, squares 3/4. Terminating 0, 0, 1, 0: mean 1/4, squares 3/4. 8 - 2 degrees.
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    found = prefix_advantages(rewards, None, kinds(2, 2, groups=2), 4, alpha=0, scale="batch")
    expected = torch.tensor([0.5, -0.5, 0.0, 0.0, 0.0, 0.0, 0.5, -0.5]) / (math.sqrt(1.5 / 6) + 1e-4)
    torch.testing.assert_close(found, expected)


def test_other_rewards_pay_continuing_rollouts_once():
    # Gold 1, 0 | 1, 0 of weight 2 and alpha 0.5: 3 * (+-1/2) and 2 * (+-1/2). A judge's 0.8, 0.4 adds +-0.2, and what
    # it says of terminating rollouts is not used.
    gold, judge = torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([0.8, 0.4, 9.0, NAN])
    found = prefix_advantages(gold, judge, kinds(2, 2), 4, alpha=0.5, weight=2.0, scale="none")
    torch.testing.assert_close(found, torch.tensor([1.7, -1.7, 1.0, -1.0]))


def test_where_all_are_right_another_reward_counts_by_its_weight():
    """Gold's deviation divides, with the floor 1 / sqrt(4)."""
    for weight in (0.01, 0.1):
        judge = weight * torch.tensor([1.0, 0.0, 0.0, 0.0])
        found = prefix_advantages(torch.ones(4), judge, kinds(2, 2), 4, alpha=1)
        torch.testing.assert_close(found, torch.tensor([weight, -weight, 0.0, 0.0]), atol=0, rtol=1e-3)


@pytest.mark.parametrize("scale", SCALES)
def test_without_terminating_rollouts_other_rewards_are_paid_as_without_progress(scale):
    gold, judge = torch.tensor([1.0, 0.0, 1.0, 1.0, NAN, NAN]), torch.tensor([0.2, 0.4, 0.6, NAN, 0.1, 0.3])
    gold[3] = NAN
    divisor = outcome_divisor(gold, 2, scale, total=gold.nan_to_num(0.0) + judge)
    expected = (relative_to_group(gold.nan_to_num(0.0) + judge, 2) / divisor).nan_to_num(0.0)
    torch.testing.assert_close(prefix_advantages(gold, judge, kinds(6, 0), 2, alpha=1, scale=scale), expected)


def test_a_group_without_an_outcome_is_paid_by_the_others():
    judge = torch.tensor([0.8, 0.4, NAN, NAN])
    for baseline in ("separate", "joint"):
        found = prefix_advantages(
            torch.full((4,), NAN), judge, kinds(2, 2), 4, alpha=1, baseline=baseline, scale="none"
        )
        torch.testing.assert_close(found, torch.tensor([0.2, -0.2, 0.0, 0.0]))


def test_unscorable_rollouts_have_no_advantage_and_are_not_in_the_baseline():
    rewards = torch.tensor([1.0, NAN, 0.0, NAN, 1.0, 0.0])
    found = prefix_advantages(rewards, None, kinds(4, 2), 6, alpha=1, scale="none")
    assert found.tolist() == [1.0, 0.0, -1.0, 0.0, 0.5, -0.5]
    found = prefix_advantages(rewards, torch.zeros(6).masked_fill(rewards.isnan(), NAN), kinds(4, 2), 6, alpha=1)
    assert found.isfinite().all() and found[1] == found[3] == 0


# ---- what cancels, and what alpha does ----


@given(rewards_of_6, st.sampled_from(SCALES), st.floats(0, 3))
@settings(deadline=None)
def test_the_success_of_stopping_does_not_reach_a_continuing_rollout(rewards, scale, alpha):
    """The paper's b is a constant for the continuing rollouts of a group, and each kind has its own baseline."""
    terminating = kinds(4, 2, groups=2)
    options = {"alpha": alpha, "scale": scale}
    found = prefix_advantages(rewards, None, terminating, 6, **options)
    more = rewards + terminating * 0.5  # stopping pays more in every group
    torch.testing.assert_close(prefix_advantages(more, None, terminating, 6, **options), found, atol=1e-9, rtol=1e-9)
    for kind in (terminating, ~terminating):
        sums = found.masked_fill(~kind, 0.0).view(-1, 6).sum(1)
        torch.testing.assert_close(sums, torch.zeros_like(sums), atol=1e-9, rtol=0)


@given(rewards_of_6, st.sampled_from(SCALES), st.floats(0, 3))
@settings(deadline=None)
def test_alpha_weighs_continuing_rollouts_with_every_scale(rewards, scale, alpha):
    terminating = kinds(4, 2, groups=2)
    without = prefix_advantages(rewards, None, terminating, 6, alpha=0.0, scale=scale)
    found = prefix_advantages(rewards, None, terminating, 6, alpha=alpha, scale=scale)
    torch.testing.assert_close(found[~terminating], (1 + alpha) * without[~terminating])
    assert torch.equal(found[terminating], without[terminating])


@given(rewards_of_6, st.sampled_from(SCALES), st.floats(0, 3), st.sampled_from(["separate", "joint"]))
@settings(deadline=None)
def test_without_terminating_rollouts_it_is_grpo(rewards, scale, alpha, baseline):
    found = prefix_advantages(rewards, None, kinds(6, 0, groups=2), 6, alpha=alpha, scale=scale, baseline=baseline)
    torch.testing.assert_close(found, group_advantages(rewards, 6, scale))


def moments(baseline: str, scale: str, chances: tuple[float, float]) -> tuple[float, float, float]:
    """Return, exactly, of a continuing rollout: E[A], E[A^2], and the signal E[A (r - p)].

    Six rollouts continue and two terminate; all 2^8 outcomes are enumerated with their probabilities.
    """
    outcomes = torch.tensor(list(itertools.product([0.0, 1.0], repeat=8)), dtype=torch.float64)
    success = torch.tensor([chances[0]] * 6 + [chances[1]] * 2, dtype=torch.float64)
    probability = torch.where(outcomes == 1, success, 1 - success).prod(1)
    advantages = torch.stack(
        [prefix_advantages(row, None, kinds(6, 2), 8, alpha=1, baseline=baseline, scale=scale) for row in outcomes]
    )[:, 0]
    values = (advantages, advantages.square(), advantages * (outcomes[:, 0] - chances[0]))
    return tuple((probability * value).sum().item() for value in values)


@pytest.mark.parametrize("scale", ["group", "none"])
def test_a_joint_baseline_adds_noise_where_continuing_is_better_than_stopping(scale):
    """With 0.8 after continuing and 0.2 after stopping, the joint form credits each continuing rollout for this."""
    mean, square, signal = moments("separate", scale, (0.8, 0.2))
    joint_mean, joint_square, joint_signal = moments("joint", scale, (0.8, 0.2))
    assert mean == pytest.approx(0, abs=1e-9)
    assert joint_mean > 0.25
    # What a token's gradient varies by, where it has nothing to do with the outcome, for the same signal.
    assert square / signal**2 < 0.94 * joint_square / joint_signal**2


# ---- the paper's form ----


def test_joint_rewards_by_hand():
    # 3 continuing (1, 1, 0), 1 terminating (0): b = 0, so with alpha 0.5: 1.5, 1.5, 0, 0.
    rewards = torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert prefix_rewards(rewards, kinds(3, 1), 4, 0.5).tolist() == [1.5, 1.5, 0.0, 0.0]
    found = prefix_advantages(rewards, None, kinds(3, 1), 4, alpha=0.5, baseline="joint", scale="none")
    assert found.tolist() == [0.75, 0.75, -0.75, -0.75]
    # where terminating succeeds, failing to continue costs: b = 1
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0])
    assert prefix_rewards(rewards, kinds(3, 1), 4, 0.5).tolist() == [1.0, -0.5, -0.5, 1.0]


@given(st.lists(st.booleans(), min_size=4, max_size=4), st.floats(0.1, 3), st.floats(0, 1))
@settings(deadline=None)
def test_a_bonus_over_continuing_rollouts_alone_is_grpo(right, alpha, baseline):
    """The recipe of the released code, r + alpha (r - b) without terminating rollouts in the group, cancels."""
    rewards = torch.tensor([float(r) for r in right], dtype=torch.float64)
    wrong = rewards + alpha * (rewards - baseline)
    grpo = group_advantages(rewards, 4, "group")
    torch.testing.assert_close(group_advantages(wrong, 4, "group"), grpo, atol=2e-3, rtol=2e-3)


def test_the_joint_group_does_not_cancel():
    joint = {"alpha": 1.0, "baseline": "joint"}
    ours = prefix_advantages(torch.tensor([1.0, 1.0, 0.0, 0.0]), None, kinds(3, 1), 4, **joint)
    # the same continuing rollouts where stopping would have succeeded too
    lucky = prefix_advantages(torch.tensor([1.0, 1.0, 0.0, 1.0]), None, kinds(3, 1), 4, **joint)
    assert ours[0] > lucky[0]
    assert lucky[2] < ours[2]
