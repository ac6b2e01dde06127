"""The acceptance gate: its measures by hand, and which rubrics it lets through."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metatune.rewards.judged_cases import JudgedCase, split_for_trial
from metatune.rewards.rubric_gate import (
    RubricQuality,
    Trial,
    compare,
    decide,
    intraclass_correlation,
    judge_difference,
    pair_accuracies,
    resampled_means,
    rubric_quality,
)

NAN = float("nan")


def test_pairs_by_hand():
    found = pair_accuracies(np.array([0.9, 0.5, 0.5, NAN]), np.array([1.0, 0.0, 1.0, 1.0]))
    assert found.tolist() == [1.0, 0.5], "(0, 1) right, (1, 2) a tie, equal golds and what is unknown left out"


def test_rank_accuracy_weighs_prompts_alike():
    totals = np.array([[0.9], [0.1], [0.9], [0.1], [0.2], [0.3]])
    golds = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    quality = rubric_quality(totals, ["a", "a", "b", "b", "b", "b"], golds)
    assert quality.num_pairs == 4 and quality.rank_accuracy == pytest.approx((1.0 + 0.0) / 2)
    assert quality.reliability is None, "nothing was judged twice"


def test_drift_by_hand():
    """Two early answers, two of now that are worse and get more: within their prompt they are ordered rightly."""
    totals, golds = np.array([[0.4], [0.5], [0.9], [0.8]]), [0.5, 0.7, 0.3, 0.2]
    quality = rubric_quality(totals, ["a", "a", "b", "b"], golds, num_early=2)
    assert quality.rank_accuracy == 1.0 and quality.num_pairs == 1 and quality.drift_accuracy == 0.0
    half = rubric_quality(np.array([[0.4], [0.9], [0.9], [0.5]]), ["a", "a", "b", "b"], golds, num_early=2)
    assert half.drift_accuracy == pytest.approx((0 + 0 + 0.5 + 1) / 4)
    assert rubric_quality(totals, ["a"] * 4, [None, None, 0.3, 0.2], num_early=2).drift_accuracy is None
    assert rubric_quality(totals, ["a"] * 4, golds).drift_accuracy is None, "nothing is early"


def test_the_intraclass_correlation_of_shrout_and_fleiss():
    """Their table 2: six targets, four judges; ICC(1, 1) is 0.17."""
    ratings = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float)
    reliability, spread = intraclass_correlation([ratings])
    assert reliability == pytest.approx(0.166, abs=0.001)
    assert spread == pytest.approx(np.sqrt((11.24 - 6.26) / 4), abs=0.01)


def test_repeated_judgements_that_agree_are_reliable_and_a_constant_is_not():
    same = np.array([[0.2, 0.2], [0.8, 0.8]])
    assert intraclass_correlation([same]) == (1.0, pytest.approx(np.sqrt(0.18)))
    assert intraclass_correlation([np.full((3, 2), 0.5)]) == (0.0, 0.0)
    assert intraclass_correlation([np.array([[0.2, 0.9]])]) == (None, None), "one completion has nothing beside it"
    assert intraclass_correlation([same + 1, same - 1])[0] == 1.0, "prompts of other difficulty are no spread"
    assert intraclass_correlation([np.array([[0.2, NAN], [0.8, NAN]])])[0] is None


@given(st.integers(0, 1000), st.floats(0.1, 5), st.floats(-3, 3))
def test_reliability_knows_no_scale_and_stays_in_bounds(seed, scale, shift):
    rng = np.random.default_rng(seed)
    groups = [rng.random((4, 3)) for _ in range(3)]
    reliability, spread = intraclass_correlation(groups)
    assert 0 <= reliability <= 1
    scaled = intraclass_correlation([scale * group + shift for group in groups])
    assert scaled == (pytest.approx(reliability, abs=1e-9), pytest.approx(scale * spread, abs=1e-9))


def test_a_judge_that_failed_is_counted_and_left_out():
    totals = np.array([[0.9, NAN], [0.1, 0.1], [NAN, NAN]])
    quality = rubric_quality(totals, ["a"] * 3, [1.0, 0.0, 0.5])
    assert quality.judged == 0.5 and quality.num_pairs == 1 and quality.rank_accuracy == 1.0


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="do not go with 1 prompts"):
        rubric_quality(np.zeros((2, 1)), ["a"], [None])
    with pytest.raises(ValueError, match="do not go with 0 prompts"):
        rubric_quality(np.zeros((0, 2)), [], [])


def quality(rank_accuracy=None, reliability=0.8, spread=0.2, judged=1.0, drift=None):
    return RubricQuality(rank_accuracy, reliability, spread, 10, judged, drift)


@pytest.mark.parametrize(
    ("old", "new", "accepted", "measure"),
    [
        (quality(0.7), quality(0.71), True, "rank_accuracy"),
        (quality(0.7), quality(0.7), False, "rank_accuracy"),
        (quality(0.7), quality(0.9, reliability=0.1, spread=0.0), True, "rank_accuracy"),  # gold is above all
        (quality(0.7), quality(0.9, judged=0.5), False, "judged"),
        (quality(0.7, judged=0.5), quality(0.9), False, "judged"),  # a comparison with what is left of the old one
        (quality(0.8, drift=0.3), quality(0.7, drift=0.5), True, "rank_accuracy"),  # their mean decides
        (quality(0.8, drift=0.3), quality(0.8, drift=0.2), False, "rank_accuracy"),
        (quality(drift=0.3), quality(drift=0.2), False, "rank_accuracy"),  # gold is alike within all prompts
        (quality(0.7, drift=0.3), quality(0.8), True, "rank_accuracy"),  # what is known of both
        (quality(), quality(reliability=0.81), True, "reliability"),
        (quality(), quality(reliability=0.79), False, "reliability"),
        (quality(), quality(reliability=1.0, spread=0.09), False, "spread"),  # it agrees since it says little
        (quality(spread=0.0, reliability=0.0), quality(spread=0.0, reliability=0.0), False, "spread"),
        (quality(spread=0.0, reliability=0.0), quality(), True, "reliability"),  # the old one had saturated
        (quality(reliability=None), quality(reliability=None), False, "none"),
        (quality(spread=None), quality(), False, "none"),
    ],
)
def test_the_running_check_prefers_the_rubric_that_ranks_better(old, new, accepted, measure):
    verdict = compare(old, new)
    assert (verdict.accepted, verdict.measure) == (accepted, measure)
    assert verdict.to_dict()["new"]["judged"] == new.judged and verdict.reason


# ---- the decision ----


def trial(old, new, golds=(0.0, 1.0)):
    """One prompt per row: each rubric's totals of two completions, of which the second is better by gold."""
    prompts = [f"prompt {row}" for row in range(len(old)) for _ in range(2)]
    totals = [np.array(rows, dtype=float).reshape(len(prompts), -1) for rows in (old, new)]
    return Trial(*totals, prompts, [*golds] * len(old))


RIGHT, TIED, WRONG = (0.2, 0.8), (0.5, 0.5), (0.8, 0.2)


@pytest.mark.parametrize(
    ("old", "new", "accepted", "measure"),
    [
        ([TIED] * 8, [RIGHT] * 8, True, "rank_accuracy"),
        ([RIGHT] * 8, [(0.0, 0.1)] * 8, True, "rank_accuracy"),  # it orders every pair as before
        ([RIGHT] * 8, [TIED] * 8, False, "rank_accuracy"),
        ([TIED] * 8, [RIGHT] * 5 + [WRONG] * 3, False, "rank_accuracy"),  # better by 0.125, which may be chance
        ([TIED] * 32, [RIGHT] * 20 + [WRONG] * 12, True, "rank_accuracy"),  # the same on four times the prompts
        ([RIGHT], [RIGHT], False, "none"),  # a single prompt
        ([TIED] * 8, [(NAN, 0.8)] * 8, False, "judged"),
    ],
)
def test_which_rubrics_are_accepted(old, new, accepted, measure):
    verdict = decide(trial(old, new))
    assert (verdict.accepted, verdict.measure, verdict.decided) == (accepted, measure, True)
    assert verdict.reason and verdict.to_dict()["new"]["judged"] == verdict.new.judged


def test_a_difference_that_may_be_chance_is_measured_again_but_a_clear_loss_is_not():
    unclear = trial([TIED] * 8, [RIGHT] * 5 + [WRONG] * 3)
    first = decide(unclear, is_last=False)
    assert not first.accepted and not first.decided
    assert decide(Trial.joined([unclear, trial([TIED] * 8, [RIGHT] * 8)]), is_last=False).accepted
    refused = decide(trial([TIED] * 8, [RIGHT] * 2 + [WRONG] * 6), is_last=False)
    assert not refused.accepted and refused.decided and refused.interval[1] < 0


def test_tolerance():
    worse = trial([TIED] * 20, [RIGHT] * 9 + [WRONG] * 11)
    assert not decide(worse, tolerance=0.05).accepted, "worse by 0.05, but perhaps by more"
    assert decide(worse, tolerance=0.25).accepted


def test_without_gold_a_less_reliable_rubric_is_rejected():
    rng = np.random.default_rng(0)
    completion, noise = rng.random((64, 1)), rng.normal(size=(64, 2))
    prompts, golds = [f"prompt {row // 4}" for row in range(64)], [None] * 64
    sure, unsure, flat = completion + 0.05 * noise, completion + 0.5 * noise, 0.1 * completion
    for old, new, accepted, measure in (
        (unsure, sure, True, "reliability"),
        (sure, unsure, False, "reliability"),
        (sure, np.repeat(flat, 2, axis=1), False, "spread"),
        (sure, sure, True, "reliability"),
    ):
        verdict = decide(Trial(old, new, prompts, golds))
        assert (verdict.accepted, verdict.measure) == (accepted, measure)


# ---- acceptance rates ----


def differences(rng, old, new, *, runs=400, prompts=48, binary=True, prompts_differ=0.1):
    """Return per-prompt differences of two rubrics with these rank accuracies, shape (runs, prompts).

    Gold and totals are bivariate normal, whose share of concordant pairs is 1/2 + asin(correlation) / pi, on eight
    completions of a prompt, of which four are judged as `split_for_trial` chooses them. The rubrics' errors are
    independent, their accuracies vary from prompt to prompt, and `binary` gold is right or wrong.
    """
    shape = (runs, prompts, 8)
    gold = rng.normal(size=shape)
    totals = []
    for accuracy in (old, new):
        each = np.clip(accuracy + prompts_differ * rng.normal(size=(runs, prompts, 1)), 0.02, 0.98)
        correlation = np.sin(np.pi * (each - 0.5))
        totals.append(correlation * gold + np.sqrt(1 - correlation**2) * rng.normal(size=shape))
    if binary:
        gold = (gold > 0.5 * rng.normal(size=(runs, prompts, 1))).astype(float)
    order = np.argsort(gold + 1e-9 * rng.random(shape), axis=-1)[..., [0, 2, 5, 7]]
    gold, before, after = (np.take_along_axis(values, order, -1) for values in (gold, *totals))
    first, second = np.triu_indices(4, 1)
    sign = np.sign(gold[..., first] - gold[..., second])
    gain = sum(
        side * sign * np.sign(values[..., first] - values[..., second]) / 2
        for side, values in ((-1, before), (1, after))
    )
    known = np.abs(sign).sum(-1)
    return np.where(known > 0, gain.sum(-1) / np.maximum(known, 1), np.nan)


def acceptance(found, measurements=3, prompts=16):
    """Return the share of runs whose rubric is accepted, and the mean number of judgments."""
    accepted, judged = [], []
    for values in found:
        values = values[np.isfinite(values)]
        for number in range(1, measurements + 1):
            decision, _ = judge_difference(resampled_means(values[: number * prompts]), 0.0, number == measurements)
            if decision is not None:
                break
        accepted.append(bool(decision))
        judged.append(4 * prompts * number)
    return np.mean(accepted), np.mean(judged)


@pytest.mark.parametrize(
    ("old", "new", "binary", "low", "high"),
    [
        (0.73, 0.73, False, 0.1, 0.22),
        (0.73, 0.73, True, 0.1, 0.22),
        (0.73, 0.65, False, 0.0, 0.02),
        (0.73, 0.65, True, 0.0, 0.03),
        (0.77, 0.83, False, 0.66, 0.8),
        (0.77, 0.83, True, 0.5, 0.7),
        (0.65, 0.73, False, 0.75, 0.9),
        (0.65, 0.73, True, 0.6, 0.8),
        (0.65, 0.80, True, 0.9, 1.0),
    ],
)
def test_worse_and_equal_rubrics_are_rarely_accepted_and_better_ones_usually(old, new, binary, low, high):
    """The table in docs/methods/mpo.md comes from this simulation, with 3000 runs."""
    found = differences(np.random.default_rng(0), old, new, binary=binary)
    share, judged = acceptance(found)
    assert low <= share <= high and 64 <= judged <= 140


# ---- the held-out completions ----


def cases(prompts, completions=8, gold=lambda number: number / 10):
    return [
        JudgedCase(f"p{prompt}", f"c{number}", 0.5, {}, {}, gold(number))
        for prompt in range(prompts)
        for number in range(completions)
    ]


def test_each_measurement_has_other_prompts_and_four_completions_from_worst_to_best():
    shown, rounds = split_for_trial(cases(20), number=16, measurements=3, seed=0)
    assert [len(each) for each in rounds] == [16, 16, 16]
    held_out = [case.prompt for each in rounds for case in each]
    assert len(set(held_out)) == 12, "each measurement has its own prompts"
    assert not set(held_out) & {case.prompt for case in shown} and len(shown) == 8 * 8
    assert {case.completion for case in rounds[0]} >= {"c0", "c7"}


def test_at_most_three_quarters_of_the_prompts_are_held_out():
    shown, rounds = split_for_trial(cases(8), number=16, measurements=3, seed=0)
    assert [len(each) for each in rounds] == [16, 8] and len({case.prompt for case in shown}) == 2
    shown, rounds = split_for_trial(cases(1), number=16, measurements=3, seed=0)
    assert rounds == [] and len(shown) == 8


def test_prompts_with_equal_gold_are_not_measured():
    alike = cases(10, gold=lambda number: 1.0)
    assert split_for_trial(alike, 16, 3, seed=0)[1] == []
    mixed = [*alike, *(replace(case, prompt=f"m{case.prompt}") for case in cases(3))]
    (tried,) = split_for_trial(mixed, 16, 3, seed=0)[1]
    assert {case.prompt for case in tried} <= {"mp0", "mp1", "mp2"}
    assert split_for_trial(cases(10, gold=lambda number: None), 16, 1, seed=0)[1], (
        "without any gold, all prompts are used"
    )
