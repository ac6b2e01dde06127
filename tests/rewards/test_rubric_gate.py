"""The acceptance gate: its measures by hand, and which rubrics it lets through."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metatune.rewards.rubric_gate import (
    RubricQuality,
    decide,
    intraclass_correlation,
    pair_accuracies,
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
        (quality(0.7), quality(0.7), True, "rank_accuracy"),
        (quality(0.7), quality(0.69), False, "rank_accuracy"),
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
def test_what_is_let_through(old, new, accepted, measure):
    verdict = decide(old, new)
    assert (verdict.accepted, verdict.measure) == (accepted, measure)
    assert verdict.to_dict()["new"]["judged"] == new.judged and verdict.reason


def test_tolerance():
    assert decide(quality(0.7), quality(0.66), tolerance=0.05).accepted
    assert not decide(quality(0.7), quality(0.64), tolerance=0.05).accepted
