"""Preference strength: votes, treatments and folds by hand, and what holds for all numbers."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from metatune.rewards.preference_strength import (
    cross_fitting_folds,
    detection_auc,
    pair_targets,
    preference_strength,
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


def test_posterior_labels_by_hand():
    treated = pair_targets([1.0, 0.0, -1.0, 2.0], [1.0, 1.0, 1.0, 4.0], posterior_labels=True, adaptive_margin=2)
    assert treated.target == pytest.approx([0.841344746, 0.5, 0.158655254, 0.691462461])
    assert treated.margin.tolist() == [2, 0, -2, 4]
    limit = pair_targets([1.0, 0.0, -1.0, 1e-300], [0.0, 0.0, 0.0, 0.0], posterior_labels=True)
    assert limit.target.tolist() == [1, 0.5, 0, 1], "models that agree: the limit of a vanishing deviation"


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


@given(STRENGTHS, st.floats(0, 3), st.floats(0, 2), st.floats(-5, 5))
def test_posterior_labels_know_no_side(strength, std, multiple, difference):
    options = {"posterior_labels": True, "adaptive_margin": multiple}
    stds = np.full(len(strength), std)
    ours, swapped = pair_targets(strength, stds, **options), pair_targets(-strength, stds, **options)
    assert loss(difference, ours.target, ours.margin) == pytest.approx(
        loss(-difference, swapped.target, swapped.margin), abs=1e-9
    )


@given(st.lists(st.tuples(NUMBER, st.floats(0, 3)), min_size=2, max_size=20))
def test_a_posterior_is_a_chance_that_rises_with_the_ratio(pairs):
    strength, std = (np.array(column) for column in zip(*pairs, strict=True))
    target = pair_targets(strength, std, posterior_labels=True).target
    assert ((target >= 0) & (target <= 1)).all()
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.where(strength == 0, 0, strength / std)
    assert (np.diff(target[np.argsort(ratio)]) >= 0).all()


@pytest.mark.parametrize(
    ("strength", "std", "options", "message"),
    [
        ([1.0], None, {"flip": 1.0}, "flip must be at least 0 and below 1, got 1.0"),
        ([1.0], None, {"flip": -0.1}, "flip must be"),
        ([1.0], None, {"label_smoothing": 0.5}, "label_smoothing must be at least 0 and below 0.5"),
        ([1.0], None, {"soft_labels": 0.7}, "soft_labels must be at least 0 and below 0.5"),
        ([1.0], None, {"adaptive_margin": -1}, "adaptive_margin must not be negative"),
        ([1.0], [1.0], {"posterior_labels": True, "flip": 0.1}, "posterior_labels replaces flip"),
        ([1.0], [1.0], {"posterior_labels": True, "soft_labels": 0.1}, "posterior_labels replaces"),
        ([1.0], None, {"posterior_labels": True}, "needs the deviation"),
        ([1.0], [-1.0], {"posterior_labels": True}, "std must be at least 0 for each of the 1 pairs"),
        ([1.0, 2.0], [1.0], {"posterior_labels": True}, "std must be at least 0 for each of the 2 pairs"),
        ([1.0], [NAN], {"posterior_labels": True}, "std of pair 1 is nan"),
        ([1.0, NAN], None, {"flip": 0.5}, r"strength of pair 2 is nan \(1 such pairs\)"),
    ],
)
def test_treatments_that_cannot_be(strength, std, options, message):
    with pytest.raises(ValueError, match=message):
        pair_targets(strength, std, **options)


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
