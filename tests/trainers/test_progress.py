"""Advantages from progress: worked examples, the telescoping identity and the cancellation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metatune.trainers.advantages import group_advantages, outcome_divisor
from metatune.trainers.progress import (
    anytime_advantages,
    binomial_variance,
    bridged,
    episode_advantages,
    length_penalised,
    precision_weights,
    progress_divisor,
    progress_noise,
    progress_of,
    progress_to_go,
    spread,
)

NAN = math.nan
chance = st.floats(0, 1, width=32)


@st.composite
def groups_of_values(draw, binary_outcome: bool = True):
    """Draw J of 1 to 3 groups of 2 to 4 traces with 1 to 4 episodes each, J_0 the same in a group."""
    size, number = draw(st.integers(2, 4)), draw(st.integers(1, 3))
    rows = []
    for _ in range(number):
        start = draw(chance)
        for _ in range(size):
            inner = draw(st.lists(chance, max_size=3))
            rows.append([start, *inner, float(draw(st.booleans()))])
    width = max(map(len, rows))
    return torch.tensor([row + [NAN] * (width - len(row)) for row in rows], dtype=torch.float64), size


def outcomes(values: torch.Tensor) -> torch.Tensor:
    last = (~values.isnan()).sum(1) - 1
    return values.gather(1, last[:, None])[:, 0]


# ---- episode: worked by hand ----


def test_episode_advantages_by_hand():
    # One group of two. Trace 1: J 0.2, 0.6, 1: progress 0.4, 0.4. Trace 2: J 0.2, 0.2, 0.0: progress 0.0, -0.2.
    # Means by episode: 0.2 and 0.1; so 0.2, 0.3 and -0.2, -0.3.
    values = torch.tensor([[0.2, 0.6, 1.0], [0.2, 0.2, 0.0]])
    expected = torch.tensor([[0.2, 0.3], [-0.2, -0.3]])
    torch.testing.assert_close(episode_advantages(values, 2), expected)


def test_progress_to_go_by_hand():
    # J 0.2, 0.6, 0.5, 1: progress 0.4, -0.1, 0.5. Half of what follows: 0.4 + 0.5 (-0.1 + 0.25) = 0.475; 0.15; 0.5.
    # All of it: 1 - 0.2, 1 - 0.6, 1 - 0.5. The shorter trace: 0.3, 0.2 and no third.
    progress = progress_of(torch.tensor([[0.2, 0.6, 0.5, 1.0], [0.5, 0.8, 1.0, NAN]]))
    expected = torch.tensor([[0.475, 0.15, 0.5], [0.4, 0.2, NAN]])
    torch.testing.assert_close(progress_to_go(progress, 0.5), expected, equal_nan=True)
    expected = torch.tensor([[0.8, 0.4, 0.5], [0.5, 0.2, NAN]])
    torch.testing.assert_close(progress_to_go(progress, 1.0), expected, equal_nan=True)
    torch.testing.assert_close(progress_to_go(progress, 0.0), progress, equal_nan=True)


@given(groups_of_values())
def test_all_progress_to_go_is_the_outcome_against_the_chance_before(case):
    values, _ = case
    paid = progress_to_go(progress_of(values), 1.0)
    expected = outcomes(values)[:, None] - values[:, :-1]
    exists = ~paid.isnan()
    torch.testing.assert_close(paid[exists], expected[exists], atol=1e-6, rtol=0)


def test_a_trace_that_has_ended_makes_no_more_progress():
    # Trace 1 ends after one episode (0.5 -> 1); trace 2 goes on (0.5 -> 0.5 -> 0). Baselines: 0.25 and (0 - 0.5) / 2.
    values = torch.tensor([[0.5, 1.0, NAN], [0.5, 0.5, 0.0]])
    expected = torch.tensor([[0.25, NAN], [-0.25, -0.25]])
    torch.testing.assert_close(episode_advantages(values, 2), expected, equal_nan=True)


def test_progress_that_is_not_known_is_no_progress_of_0():
    # Two traces rise by 0.5, the third's outcome could not be scored: the mean of the two is the baseline, 0.5.
    values = torch.tensor([[0.5, 1.0], [0.5, 1.0], [0.5, NAN]])
    exists = torch.ones(3, 1, dtype=torch.bool)
    assert episode_advantages(values, 3, exists=exists).tolist()[:2] == [[0.0], [0.0]]
    # A trace that had ended would have made none: 1/3.
    advantages = episode_advantages(values, 3)
    torch.testing.assert_close(advantages, torch.tensor([[1 / 6], [1 / 6], [NAN]]), equal_nan=True)
    weights = precision_weights(progress_of(values), torch.full((3, 1), 0.1), 3, exists)
    assert not weights[:2].any(), "all known values are equal"


@given(groups_of_values())
def test_progress_telescopes(case):
    values, _ = case
    total = progress_of(values).nansum(1)
    torch.testing.assert_close(total, outcomes(values) - values[:, 0], atol=1e-6, rtol=0)


def test_an_unknown_value_inside_a_trace_is_interpolated():
    """A trace rises by 0.8, from 0.2 to 1, whatever is unknown between; the two episodes around it share 0.5."""
    values = torch.tensor([[0.2, NAN, 0.7, 1.0]])
    progress = progress_of(bridged(values))
    torch.testing.assert_close(progress, torch.tensor([[0.25, 0.25, 0.3]]))
    assert progress.sum().item() == pytest.approx(0.8)
    # values before the first and after the last known one, and after a trace's end, stay unknown
    ends = torch.tensor([[NAN, 0.4, NAN, NAN, 1.0], [0.2, 0.4, NAN, NAN, NAN]])
    expected = torch.tensor([[NAN, 0.4, 0.6, 0.8, 1.0], [0.2, 0.4, NAN, NAN, NAN]])
    torch.testing.assert_close(bridged(ends), expected, equal_nan=True)


@given(groups_of_values(), st.integers(0, 2**30))
def test_progress_telescopes_over_unknown_values(case, seed):
    values, _ = case
    inside = ~values.isnan()
    inside[:, 0] = False
    inside[torch.arange(len(values)), (~values.isnan()).sum(1) - 1] = False  # the outcome
    unknown = inside & (torch.rand(values.shape, generator=torch.Generator().manual_seed(seed)) < 0.5)
    filled = bridged(values.masked_fill(unknown, NAN))
    torch.testing.assert_close(progress_of(filled).nansum(1), outcomes(values) - values[:, 0], atol=1e-6, rtol=0)
    assert torch.equal(filled.isnan(), values.isnan())


@given(groups_of_values(), st.floats(0.1, 5))
@settings(deadline=None)
def test_the_whole_sum_paid_at_the_end_is_grpo_again(case, alpha):
    """The wrong form: outcome + alpha * sum of progress, in the same group, has GRPO's advantages."""
    values, size = case
    outcome = outcomes(values)
    wrong = outcome + alpha * progress_of(values).nansum(1)
    grpo = group_advantages(outcome, size, "group")
    torch.testing.assert_close(group_advantages(wrong, size, "group"), grpo, atol=2e-3, rtol=2e-3)
    unscaled = group_advantages(outcome, size, "none")
    torch.testing.assert_close(group_advantages(wrong, size, "none"), (1 + alpha) * unscaled, atol=1e-5, rtol=1e-5)


def test_ours_is_not_grpo_again():
    """Same outcomes, same J_0: GRPO cannot tell these traces apart, and the episodes' advantages differ."""
    values = torch.tensor([[0.2, 1.0, 1.0], [0.2, 0.1, 1.0]])  # the first had it after one episode
    assert not group_advantages(outcomes(values), 2, "group").any()
    advantages = episode_advantages(values, 2)
    torch.testing.assert_close(advantages, torch.tensor([[0.45, -0.45], [-0.45, 0.45]]))


@given(groups_of_values(), st.floats(-1, 1))
@settings(deadline=None)
def test_a_constant_in_the_groups_values_changes_nothing(case, shift):
    values, size = case
    torch.testing.assert_close(
        episode_advantages(values + shift, size),
        episode_advantages(values, size),
        atol=1e-5,
        rtol=0,
        equal_nan=True,
    )


# ---- the divisor of progress ----


def test_progress_has_the_divisor_of_the_outcome_or_its_own_root_mean_square():
    # Entries 0.2, 0.3, -0.2, -0.3: root mean square sqrt((0.04 + 0.09 + 0.04 + 0.09) / 4).
    advantages = torch.tensor([[0.2, 0.3, NAN], [-0.2, -0.3, NAN]])
    outcome = torch.tensor([0.5, 0.5])
    assert progress_divisor(advantages, "outcome", outcome).tolist() == [0.5, 0.5]
    assert progress_divisor(advantages, "none", outcome).tolist() == [1.0, 1.0]
    # a batch of 4 entries is not divided by less than 1 / sqrt(4) of gold's weight
    assert progress_divisor(advantages, "batch", outcome)[0].item() == pytest.approx(0.5 + 1e-4)
    by_size = progress_divisor(advantages, "batch", outcome, weight=0.1)
    assert by_size.tolist() == pytest.approx([math.sqrt(0.065) + 1e-4] * 2)


@given(st.integers(1, 7), st.floats(0.1, 3), st.sampled_from(["group", "batch"]))
def test_a_bonus_weighs_the_same_beside_easy_and_hard_outcomes(right, alpha, scale):
    """Progress that telescopes to the outcome adds alpha times the outcome's advantage, however many are right."""
    outcome = torch.tensor([1.0] * right + [0.0] * (8 - right))
    values = torch.stack([torch.full((8,), right / 8), torch.full((8,), right / 8), outcome], dim=1)
    paid = episode_advantages(values, 8, decay=1.0)
    divisor = progress_divisor(paid, "outcome", outcome_divisor(outcome, 8, scale))
    bonus = alpha * paid / divisor[:, None]
    expected = alpha * group_advantages(outcome, 8, scale)
    torch.testing.assert_close(bonus, expected[:, None].expand(8, 2), atol=1e-5, rtol=1e-5)


# ---- anytime: worked by hand ----


def test_anytime_advantages_by_hand():
    # S = 2, J at the budgets: (0.5, 1) and (0, 0). R_1 = (0.5 + 1) / 2 = 0.75 and 0; R_2 = 0.5 and 0.
    # Segment 1: baseline is the group's mean, 0.375. Segment 2: one earlier budget, J = 0.5, paid for the mass 1/2
    # that remains: 0.25; mixed half and half with the group's mean 0.25: 0.25. Second trace: (0 + 0.25) / 2 = 0.125.
    values = torch.tensor([[0.5, 1.0], [0.0, 0.0]])
    expected = torch.tensor([[0.375, 0.25], [-0.375, -0.125]])
    torch.testing.assert_close(anytime_advantages(values, 2), expected)


def test_earlier_budgets_weigh_by_powers_of_two():
    # S = 3, third segment of (1, 0, 1): earlier (1 * 1 + 2 * 0) / 3 = 1/3, for the mass 1/3: 1/9. R_3 = 1/3, as the
    # whole group's mean. Baseline (2 * 1/9 + 1 * 1/3) / 3 = 5/27.
    values = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 1.0]])
    assert anytime_advantages(values, 2)[0, 2].item() == pytest.approx(1 / 3 - 5 / 27)


def test_anytime_prefers_the_earlier_success():
    early, late = [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]
    advantages = anytime_advantages(torch.tensor([early, late]), 2)
    assert advantages[0, 0] > 0 > advantages[1, 0]


def test_an_unscorable_outcome_leaves_its_trace_out():
    values = torch.tensor([[0.5, NAN], [0.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    advantages = anytime_advantages(values, 2)
    assert advantages[0].isnan().all()
    assert advantages[1:].isfinite().all()


# ---- length penalty ----


def test_length_penalty_by_hand():
    # right answers of 10 and 30 tokens: mean 20, deviation 10: z = -1 and 1
    rewards, lengths = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([10, 30, 99])
    penalised = length_penalised(rewards, lengths, 3, 0.4)
    sigmoid = 1 / (1 + math.exp(-1))
    expected = torch.tensor([1 - 0.4 * (1 - sigmoid), 1 - 0.4 * sigmoid, 0.0])
    torch.testing.assert_close(penalised, expected, atol=1e-4, rtol=0)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 100)), min_size=4, max_size=4), chance)
@settings(deadline=None)
def test_a_right_answer_is_never_worth_less_than_a_wrong_one(traces, weight):
    rewards = torch.tensor([float(right) for right, _ in traces])
    penalised = length_penalised(rewards, torch.tensor([length for _, length in traces]), 4, weight)
    assert penalised.isfinite().all()
    assert ((penalised >= 0) & (penalised <= rewards)).all()


# ---- noise ----


def test_binomial_variance_is_unbiased():
    generator = torch.Generator().manual_seed(0)
    chances, answers = 0.3, 4
    draws = (torch.rand(200_000, answers, generator=generator) < chances).float().mean(1)
    assert binomial_variance(draws, answers).mean().item() == pytest.approx(chances * 0.7 / answers, rel=0.01)
    assert binomial_variance(torch.tensor([0.0, 1.0]), 1).tolist() == [0.25, 0.25]


def test_the_first_and_the_last_episode_have_half_the_noise():
    values = torch.tensor([[0.5, 0.5, 0.5, 1.0], [0.5, 0.0, NAN, NAN]])
    sampled = torch.tensor([[True, True, True, False], [True, False, False, False]])
    noise = progress_noise(values, sampled, 0.0625)
    # J_0 is one draw for the group and the outcomes are exact, so a trace of one episode has no noise
    torch.testing.assert_close(noise, torch.tensor([[0.0625, 0.125, 0.0625], [0.0, NAN, NAN]]), equal_nan=True)


def test_what_does_not_exist_after_a_trace_adds_no_noise_to_its_last_episode():
    values = torch.tensor([[0.5, 0.5, 0.5, 1.0], [0.5, 0.0, NAN, NAN]])
    sampled = torch.tensor([[True, True, True, False], [True, False, True, True]])  # all but the outcomes
    noise = progress_noise(values, sampled, 0.0625, decay=0.5)
    # of -J_0 + J_1 / 2 + J_2 / 4 + outcome / 4 and so on
    first, second, third = (1 / 4 + 1 / 16) * 0.0625, (1 + 1 / 4) * 0.0625, 0.0625
    torch.testing.assert_close(noise, torch.tensor([[first, second, third], [0.0, NAN, NAN]]), equal_nan=True)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_the_noise_of_progress_to_go_is_that_of_a_simulation(decay):
    generator = torch.Generator().manual_seed(0)
    truth, answers, draws = torch.tensor([0.5, 0.3, 0.7, 0.3, 0.8]), 6, 40_000
    values = (torch.rand(draws, 5, answers, generator=generator) < truth[:, None]).float().mean(-1)
    values[:, 0], values[:, 4] = 0.5, 1.0  # J_0 is shared, and the outcome is exact
    sampled = torch.tensor([True, True, True, True, False]).expand(draws, 5)
    found = progress_noise(values, sampled, 0.3 * 0.7 / answers, decay).mean(0)
    paid = progress_to_go(progress_of(values), decay)
    torch.testing.assert_close(found, paid.var(0), rtol=0.05, atol=1e-4)


def test_pure_noise_is_shrunk_to_nothing_and_signal_is_kept():
    generator = torch.Generator().manual_seed(0)
    answers = 4

    def weight(truth: torch.Tensor) -> float:
        drawn = (torch.rand(*truth.shape, answers, generator=generator) < truth[..., None]).float().mean(-1)
        drawn[:, 0] = truth[:, 0]
        variance = binomial_variance(drawn[:, 1], answers).mean()
        noise = progress_noise(drawn, torch.ones_like(drawn, dtype=torch.bool), variance)
        return precision_weights(progress_of(drawn), noise, 4).mean().item()

    assert weight(torch.full((4096, 2), 0.5)) < 0.05
    # true progress is 0 or 1, so nothing of it is noise
    sure = torch.stack([torch.zeros(4096), (torch.arange(4096) % 2).float()], dim=1)
    assert weight(sure) == pytest.approx(1.0)
    # J_1 is 0.25 or 0.75 at random, J_0 is 0.5: signal 1/16, noise 0.25 * 0.75 / 4 = 3/64
    mixed = torch.stack([torch.full((4096,), 0.5), 0.25 + 0.5 * (torch.rand(4096, generator=generator) < 0.5)], dim=1)
    assert weight(mixed) == pytest.approx((1 / 16) / (1 / 16 + 3 / 64), abs=0.05)


@given(st.integers(0, 1000), st.floats(0, 0.2), st.floats(0.001, 0.2))
def test_the_noisier_an_episode_the_less_it_is_paid(seed, least, step):
    progress = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))
    noise = (least + step * torch.arange(3.0)).expand(8, 3)
    weights = precision_weights(progress, noise, 4)
    assert ((weights >= 0) & (weights <= 1)).all()
    assert (weights.diff(dim=1) <= 0).all()
    assert (precision_weights(progress, torch.zeros(8, 3), 4) == 1).all()


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_weights_by_episode_come_closer_to_true_progress_than_one_for_all(decay):
    """4 answers at each of four prefixes of 256 traces, whose J is a random walk that determines their outcomes."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(256, 3, generator=generator)
    start = torch.randn(64, 1, generator=generator).repeat_interleave(4, 0)  # easy and hard prompts
    chance = torch.sigmoid(torch.cat([start, start + steps.cumsum(1)], dim=1))
    outcome = (torch.rand(256, 1, generator=generator) < chance[:, -1:]).float()
    drawn = (torch.rand(256, 4, 4, generator=generator) < chance[..., None]).float().mean(-1)
    drawn[:, 0] = drawn[::4, 0].repeat_interleave(4)  # J_0 is one estimate for a group
    truth, values = torch.cat([chance, outcome], dim=1), torch.cat([drawn, outcome], dim=1)

    sampled = torch.tensor([True] * 4 + [False]).expand(256, 5)
    noise = progress_noise(values, sampled, binomial_variance(drawn[:, 1:], 4).mean(), decay)
    weights = precision_weights(progress_to_go(progress_of(values), decay), noise, 4)
    one_for_all = precision_weights(
        progress_to_go(progress_of(values), decay), noise.mean().expand_as(noise).contiguous(), 4
    )
    true = episode_advantages(truth, 4, decay=decay)

    def error(factor: torch.Tensor | float) -> float:
        return (episode_advantages(values, 4, decay=decay, factor=factor) - true).square().mean().item()

    assert error(weights) < 0.98 * error(one_for_all)
    assert error(one_for_all) < 0.95 * error(1.0)


def test_no_progress_at_all_is_no_error():
    values = torch.full((4, 3), 0.5)
    assert not episode_advantages(values, 4).any()
    divisor = progress_divisor(torch.zeros(4, 2), "batch", torch.ones(4))
    assert divisor[0] > 0.3, "rounding errors are not amplified without progress"
    assert (precision_weights(progress_of(values), torch.zeros(4, 2), 4) == 1).all()
    assert (precision_weights(torch.full((4, 2), NAN), torch.zeros(4, 2), 4) == 1).all()


# ---- tokens ----


@given(st.lists(st.lists(st.integers(0, 4), max_size=4), min_size=1, max_size=4))
def test_every_token_gets_its_episodes_number(lengths):
    ends = [torch.tensor(row).cumsum(0).tolist() if row else [] for row in lengths]
    width = max([end for row in ends for end in row], default=0) + 2
    numbers = torch.arange(1, 21, dtype=torch.float32).view(4, 5)
    tokens = spread(numbers[: len(ends)], ends, width)
    for row, row_lengths in enumerate(lengths):
        expected = [numbers[row, episode].item() for episode, n in enumerate(row_lengths) for _ in range(n)]
        assert tokens[row].tolist() == expected + [0.0] * (width - len(expected))
