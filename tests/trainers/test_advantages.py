"""Advantages of outcomes: TRL's, and those of gold combined with other rewards."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metatune.trainers.advantages import group_advantages, outcome_divisor, relative_to_group

NAN = math.nan
EASY = [1.0] * 8  # a prompt that is always solved
WEIGHTS = (0.01, 0.1, 0.5)


def mixed(gold, other, weight, scale="group", gold_weight=1.0):
    """Advantages of gold and another reward."""
    gold, other = torch.tensor(gold), torch.tensor(other)
    total = gold_weight * gold.nan_to_num(0.0) + weight * other
    divisor = outcome_divisor(gold, 8, scale, weight=gold_weight, total=total)
    return relative_to_group(total, 8) / divisor


def test_group_advantages_are_trls():
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.5, NAN])
    by_group = group_advantages(rewards, 4, "group")
    assert by_group[0].item() == pytest.approx(0.75 / (0.5 + 1e-4))
    assert by_group[7] == 0
    by_hand = (0.5 - 2.5 / 3) / (math.sqrt(1 / 12) + 1e-4)  # deviation of 1, 1, 0.5 with n - 1
    assert by_group[6].item() == pytest.approx(by_hand, rel=1e-5)
    assert group_advantages(rewards, 4, "none")[0].item() == 0.75
    known = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.5])
    assert group_advantages(rewards, 4, "batch")[0].item() == pytest.approx(0.75 / (known.std().item() + 1e-4))


@pytest.mark.parametrize("gold", [EASY, [0.0] * 8], ids=["always solved", "never solved"])
@pytest.mark.parametrize("scale", ["group", "batch"])
def test_where_gold_is_constant_another_reward_counts_by_its_weight(gold, scale):
    """Divided by the standard deviation of the total, all three weights would give the same advantages, up to 1.1."""
    other = [0.0, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8, 1.0]  # mean 0.5
    for weight in WEIGHTS:
        expected = weight * 0.5 / (1 / math.sqrt(8) + 1e-4)
        assert mixed(gold, other, weight, scale)[7].item() == pytest.approx(expected, rel=1e-4)


@given(st.integers(1, 7), st.sampled_from(["group", "batch"]), st.floats(0.1, 10))
def test_where_gold_disagrees_its_advantages_are_trls(right, scale, gold_weight):
    gold = [1.0] * right + [0.0] * (8 - right)
    found = mixed(gold, [0.3] * 8, 0.5, scale, gold_weight)
    expected = group_advantages(gold_weight * torch.tensor(gold), 8, scale)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@given(st.integers(0, 1000), st.sampled_from(["group", "batch", "none"]))
def test_the_advantages_of_gold_and_of_the_others_add_up(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    gold, other = torch.rand(2, 16, generator=generator)
    divisor = outcome_divisor(gold, 8, scale)
    parts = [relative_to_group(part, 8) / divisor for part in (gold, other)]
    torch.testing.assert_close(sum(parts), relative_to_group(gold + other, 8) / divisor, atol=1e-4, rtol=1e-4)


def test_a_group_without_gold_is_divided_by_its_totals_deviation():
    """In a group with a judge only, the judge's reward is the outcome."""
    gold, judged = torch.tensor([1.0, 0.0, NAN, NAN]), torch.tensor([0.5, 0.5, 0.1, 0.3])
    total = gold.nan_to_num(0.0) + judged
    divisor = outcome_divisor(gold, 2, "group", total=total)
    assert divisor.tolist() == pytest.approx([math.sqrt(0.5) + 1e-4] * 2 + [math.sqrt(0.02) + 1e-4] * 2)


def test_unscaled_advantages_have_no_divisor():
    assert outcome_divisor(torch.tensor([1.0, 0.0]), 2, "none", weight=3.0).tolist() == [1.0, 1.0]
