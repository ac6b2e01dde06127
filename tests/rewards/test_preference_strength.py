"""Preference strength: votes, treatments and folds by hand, and what holds for all numbers."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from metatune.rewards.preference_strength import (
    _inverse_trigamma,
    _student_cdf,
    cross_fitting_folds,
    detection_auc,
    pair_targets,
    posterior,
    preference_strength,
    stack_votes,
)

NAN, INF = float("nan"), float("inf")
NUMBER = st.floats(-5, 5, width=32)
STRENGTHS = arrays(float, st.integers(1, 30), elements=NUMBER)


def loss(difference, target, margin):
    """Binary cross-entropy of the logit against the target, in the stable form."""
    logit = difference - margin
    return np.logaddexp(0, logit) - target * logit


# Votes


def test_mean_and_population_deviation_by_hand():
    mean, std = preference_strength([[1.0, 3.0], [-2.0, NAN], [0.0, 0.0]])
    assert mean.tolist() == [2.0, -2.0, 0.0]
    assert std.tolist() == [1.0, 0.0, 0.0], "population deviation, and none of a single vote"


@pytest.mark.parametrize(
    ("votes", "message"),
    [
        ([[1.0, 2.0], [NAN, NAN]], r"pair 2 has no vote \(1 in all\)"),
        ([[1.0, 2.0], [1.0, INF]], "the vote of model 2 on pair 2 is infinite"),
        ([1.0, 2.0], r"got shape \(2,\)"),
    ],
)
def test_votes_that_say_nothing(votes, message):
    with pytest.raises(ValueError, match=message):
        preference_strength(votes)


@given(arrays(float, (6, 4), elements=st.one_of(NUMBER, st.just(NAN))))
def test_a_missing_vote_is_as_if_the_model_were_not_there(votes):
    assume(not np.isnan(votes).all(axis=1).any())
    mean, std = preference_strength(votes)
    for row, m, s in zip(votes, mean, std, strict=True):
        there = row[~np.isnan(row)]
        assert m == pytest.approx(there.mean()) and s == pytest.approx(there.std(), abs=1e-12)


# Treatments


def test_treatments_by_hand():
    strength = np.array([2.0, -1.0, 0.5, -3.0, 0.0])
    treated = pair_targets(strength, flip=0.4)
    assert treated.target.tolist() == [1, 0, 1, 0, 1] and treated.margin.tolist() == [0] * 5
    treated = pair_targets(strength, label_smoothing=0.25)
    assert treated.target.tolist() == [0.75] * 5
    treated = pair_targets(strength, soft_labels=0.25)
    assert treated.target.tolist() == [1, 0.75, 1, 0.75, 1], "a strength of 0 is not negative"
    treated = pair_targets(strength, flip=0.2, soft_labels=0.25, adaptive_margin=0.5)
    assert treated.target.tolist() == [1, 0.75, 1, 0.25, 1]
    assert treated.margin.tolist() == [1, -0.5, 0.25, -1.5, 0]
    assert pair_targets(strength).target.tolist() == [1] * 5


@given(STRENGTHS, st.floats(0, 0.99))
def test_a_flip_turns_exactly_the_weakest(strength, flip):
    turned = pair_targets(strength, flip=flip).target == 0
    assert turned.sum() == round(flip * len(strength))
    if 0 < turned.sum() < len(turned):
        assert strength[turned].max() <= strength[~turned].min()


@given(STRENGTHS, st.floats(-5, 5), st.floats(0, 0.49), st.floats(0, 2))
def test_a_flip_is_the_swapped_pair_with_the_margin_s_sign_changed(strength, difference, smoothing, multiple):
    options = {"label_smoothing": smoothing, "adaptive_margin": multiple}
    kept, turned = pair_targets(strength, **options), pair_targets(strength, flip=0.999, **options)
    is_turned = turned.target < 0.5
    ours = loss(difference, turned.target, turned.margin)
    swapped = loss(-difference, kept.target, -kept.margin)
    assert ours[is_turned] == pytest.approx(swapped[is_turned])
    assert ours[~is_turned] == pytest.approx(loss(difference, kept.target, kept.margin)[~is_turned])


@pytest.mark.parametrize(
    ("strength", "votes", "options", "message"),
    [
        ([1.0], None, {"flip": 1.0}, "flip must be at least 0 and below 1, got 1.0"),
        ([1.0], None, {"flip": -0.1}, "flip must be"),
        ([1.0], None, {"label_smoothing": 0.5}, "label_smoothing must be at least 0 and below 0.5"),
        ([1.0], None, {"soft_labels": 0.7}, "soft_labels must be at least 0 and below 0.5"),
        ([1.0], None, {"adaptive_margin": -1}, "adaptive_margin must not be negative"),
        ([1.0], [[1.0, 2.0]], {"posterior_labels": True, "flip": 0.1}, "posterior_labels replaces flip"),
        ([1.0], [[1.0, 2.0]], {"posterior_labels": True, "soft_labels": 0.1}, "posterior_labels replaces"),
        ([1.0], None, {"posterior_labels": True}, "needs the votes of each of the 1 pairs"),
        ([1.0, 2.0], [[1.0, 2.0]], {"posterior_labels": True}, "needs the votes of each of the 2 pairs"),
        ([1.0, 1.0], [[1.0], [2.0]], {"posterior_labels": True}, r"pair 1 has one vote \(2 such pairs\).*num_models"),
        ([1.0, 1.0], [[1.0, 2.0], [2.0, NAN]], {"posterior_labels": True}, "pair 2 has one vote"),
        ([1.0, 1.0], [[1.0, 1.0], [2.0, 2.0]], {"posterior_labels": True}, "copies of one model"),
        ([1.0, NAN], None, {"flip": 0.5}, r"strength of pair 2 is nan \(1 such pairs\)"),
    ],
)
def test_treatments_that_cannot_be(strength, votes, options, message):
    with pytest.raises(ValueError, match=message):
        pair_targets(strength, votes, **options)


# Posterior labels


def test_a_posterior_by_hand():
    """All votes are one from their mean, so s^2 = 2 for all, s^2 / M = 1, tau^2 = 4 - 1 and w = 3/4."""
    strength = np.array([2.0, -2.0, 2.0, -2.0])
    treated = pair_targets(strength, strength[:, None] + [-1, 1], posterior_labels=True, adaptive_margin=2)
    assert treated.target == pytest.approx([0.958368, 0.041632] * 2, abs=1e-5), "Phi(sqrt(3/4) 2)"
    assert treated.margin.tolist() == [4, -4, 4, -4]
    assert posterior([[1, -1], [2, -2]]).tolist() == [0.5, 0.5], "strengths not larger than their errors"


@pytest.mark.parametrize("models", [2, 3, 5, 8])
def test_votes_of_pure_noise_leave_nearly_all_targets_near_one_half(models):
    rng = np.random.default_rng(models)
    targets = np.concatenate([posterior(rng.normal(size=(1000, models))) for _ in range(10)])
    assert np.mean(np.abs(targets - 0.5) > 0.4) < 0.005, "with Phi(strength / deviation): 42 % at two models"
    assert np.mean(np.abs(targets - 0.5)) < 0.1


@pytest.mark.parametrize("models", [2, 3, 5, 8])
@pytest.mark.parametrize("alike", [True, False])
def test_targets_are_calibrated_where_there_is_a_signal(models, alike):
    """For example, of targets from 0.8 to 0.9, about 85 % of the true margins are positive."""
    rng = np.random.default_rng(models)
    margin = rng.normal(0.3, 0.5, 20_000)
    deviation = np.ones(20_000) if alike else np.sqrt(rng.gamma(2, 0.5, 20_000))
    targets = posterior(margin[:, None] + deviation[:, None] * rng.normal(size=(20_000, models)))
    confidence, right = np.maximum(targets, 1 - targets), (targets > 0.5) == (margin > 0)
    for low in (0.5, 0.6, 0.7, 0.8, 0.9):
        inside = (confidence >= low) & (confidence < low + 0.1)
        assert right[inside].mean() == pytest.approx(confidence[inside].mean(), abs=0.06)
    loss = -np.log(np.where(margin > 0, targets, 1 - targets)).mean()
    assert loss < {2: 0.56, 3: 0.51, 5: 0.45, 8: 0.39}[models], (
        "with Phi(strength / deviation): 1.13 at two, 0.61 at three"
    )


@given(arrays(float, (8, 3), elements=st.floats(-5, 5)))
def test_swapping_all_pairs_flips_the_posterior(votes):
    assume(np.ptp(votes, axis=1).max() > 1e-3)
    target = posterior(votes)
    assert ((target >= 0) & (target <= 1)).all()
    assert posterior(-votes) == pytest.approx(1 - target, abs=1e-9)


def test_a_pair_whose_votes_agree_by_chance_is_not_certain():
    votes = np.random.default_rng(0).normal(0.5, 1, (200, 3))
    votes[0] = 0.5
    assert posterior(votes)[0] < 0.9, "its variance of 0 is averaged with that of the others"


def test_inverse_trigamma_and_student_cdf():
    assert _inverse_trigamma(np.pi**2 / 6).item() == pytest.approx(1.0)
    quantiles = {1: 6.314, 2: 2.920, 5: 2.015, 30: 1.697}  # from a table, at 0.95
    found = _student_cdf(np.array([*quantiles.values()]), np.array([*quantiles], dtype=float))
    assert found == pytest.approx([0.95] * 4, abs=0.01)


def test_votes_are_read_from_lists():
    assert np.array_equal(stack_votes([[1, 2.5], [None, 3.0], [4.0]]), [[1, 2.5], [NAN, 3], [4, NAN]], equal_nan=True)
    for row in (0.5, ["1.0"], None, [True]):
        with pytest.raises(ValueError, match="the votes of pair 2 must be a list of numbers, one per model"):
            stack_votes([[1.0], row])


# Folds


@given(arrays(int, st.integers(1, 60), elements=st.integers(0, 9)), st.integers(1, 6), st.integers(0, 3))
def test_folds_keep_groups_together_and_are_even(groups, num_folds, seed):
    assume(len(set(groups)) >= num_folds)
    folds = cross_fitting_folds(groups, num_folds, seed)
    assert all(len(set(folds[groups == group])) == 1 for group in set(groups))
    pairs = np.bincount(folds, minlength=num_folds)
    assert len(pairs) == num_folds and pairs.min() >= 1
    assert pairs.max() - pairs.min() <= np.bincount(groups).max()


def test_folds_follow_the_seed():
    groups = np.arange(40)
    assert np.array_equal(cross_fitting_folds(groups, 4, 1), cross_fitting_folds(groups, 4, 1))
    assert not np.array_equal(cross_fitting_folds(groups, 4, 1), cross_fitting_folds(groups, 4, 2))
    with pytest.raises(ValueError, match="num_folds is 3; it must be from 1 to 2, the number of groups"):
        cross_fitting_folds(np.array([7, 7, 9]), 3, 0)


# Detection


def test_detection_by_hand():
    assert detection_auc([-1.0, 2.0, 3.0], [True, False, False]) == 1
    assert detection_auc([5.0, 2.0, 3.0], [True, False, False]) == 0
    assert detection_auc([2.0, 2.0, 3.0, 1.0], [True, False, False, False]) == 0.5, "(1/2 + 1 + 0) / 3"
    assert detection_auc([0.0, 0.0], [True, False]) == 0.5


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=20))
def test_detection_counts_pairs_of_pairs(rows):
    strength, flipped = (np.array(column) for column in zip(*rows, strict=True))
    assume(flipped.any() and not flipped.all())
    wins = [(f < c) + (f == c) / 2 for f in strength[flipped] for c in strength[~flipped]]
    assert detection_auc(strength, flipped) == pytest.approx(np.mean(wins))
    assert detection_auc(-strength, flipped) == pytest.approx(1 - np.mean(wins))


@pytest.mark.parametrize("flipped", [[True, True], [False, False], [True]])
def test_detection_needs_both_kinds(flipped):
    with pytest.raises(ValueError, match="needs flipped and clean pairs"):
        detection_auc([1.0, 2.0], flipped)
