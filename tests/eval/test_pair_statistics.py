"""Statistics of pairs: accuracy over pairs with prompts redrawn, and rank correlations, by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metatune.eval.pair_statistics import clustered_mean, correctness, correlation_within, rank_correlation, ranks

NUMBERS = st.lists(st.integers(-4, 4).map(float), min_size=2, max_size=12)


def test_a_tie_is_half_right():
    assert correctness([2.0, 0.0, -1e-9, np.inf]).tolist() == [1, 0.5, 0, 1]
    assert np.isnan(correctness([np.nan])).all(), "what was not scored is neither right nor wrong"


@given(NUMBERS, st.integers(-4, 4))
def test_a_shift_of_all_scores_changes_no_accuracy(chosen, shift):
    rejected = chosen[::-1]
    before = correctness(np.subtract(chosen, rejected))
    after = correctness(np.subtract(np.add(chosen, shift), np.add(rejected, shift)))
    assert (before == after).all()


def test_pairs_count_alike_and_prompts_are_redrawn_whole():
    values, prompts = [1, 1, 1, 0], ["a", "a", "a", "b"]
    found = clustered_mean(values, prompts)
    assert found.value == 0.75, "over pairs, not over prompts"
    assert (found.low, found.high) == (0, 1), "a quarter of the resamples draw b twice"
    assert clustered_mean(values, range(4)).low > 0, "as four prompts they would say more"


def test_the_interval_is_that_of_prompts_not_of_pairs():
    rng = np.random.default_rng(0)
    by_prompt = rng.integers(0, 2, 100).astype(float)
    once = clustered_mean(by_prompt, range(100))
    repeated = clustered_mean(by_prompt.repeat(9), np.arange(100).repeat(9).tolist())
    assert repeated == pytest.approx(once), "the same pair nine times is no more evidence"


def test_how_many_are_drawn_at_once_changes_nothing(monkeypatch):
    values = np.random.default_rng(0).random(30)
    whole = clustered_mean(values, range(30), num_resamples=50)
    monkeypatch.setattr("metatune.eval.pair_statistics.DRAWS", 100)
    assert clustered_mean(values, range(30), num_resamples=50) == whole


def test_weights_by_hand():
    assert clustered_mean([1, 0], ["a", "b"], [3, 1]).value == 0.75
    assert clustered_mean([1, 0, 1], ["a", "a", "b"], [1, 1, 2]).value == 0.75
    assert clustered_mean([0.3] * 5, "aabbb", [1, 2, 3, 4, 5]).value == pytest.approx(0.3)


@pytest.mark.parametrize("n", [1, 5, 40])
def test_prompts_that_agree_give_an_interval_all_the_same(n):
    unseen = 1 - 0.025 ** (1 / n)
    pairs, prompts = [1.0] * 3 * n, [prompt for prompt in range(n) for _ in range(3)]
    assert clustered_mean(pairs, prompts) == pytest.approx((1, 1 - unseen, 1))
    assert clustered_mean([0.0] * 3 * n, prompts, bounds=(-1, 1)) == pytest.approx((0, -unseen, unseen))


def test_prompts_of_unequal_weight_count_as_fewer():
    low = [clustered_mean([1.0] * 10, range(10), weights).low for weights in ([1.0] * 10, [9.0] + [1.0] * 9)]
    assert low[0] > low[1]


@pytest.mark.parametrize(
    ("values", "clusters", "weights", "message"),
    [
        ([], [], None, "nothing was scored"),
        ([1.0], [], None, "1 values, 0 clusters"),
        ([np.nan], ["a"], None, "must be finite"),
        ([1.0], ["a"], [0], "weights above 0"),
    ],
)
def test_what_has_no_mean(values, clusters, weights, message):
    with pytest.raises(ValueError, match=message):
        clustered_mean(values, clusters, weights)


def test_ranks_and_their_correlation_by_hand():
    assert ranks([30, 10, 20, 10]).tolist() == [4, 1.5, 3, 1.5]
    assert rank_correlation([1, 2, 3], [10, 100, 1000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    assert rank_correlation([1, 1], [1, 2]) is None and rank_correlation([], []) is None
    with pytest.raises(ValueError, match="2 and 1 values"):
        rank_correlation([1, 2], [1])


@given(NUMBERS, st.randoms())
def test_only_order_counts_in_a_rank_correlation(values, random):
    other = list(values)
    random.shuffle(other)
    found, bent = rank_correlation(values, other), rank_correlation([x**3 + x for x in values], other)
    assert (found is None and bent is None) or bent == pytest.approx(found)
    assert found is None or -1 - 1e-9 <= found <= 1 + 1e-9


def test_within_prompts_the_longer_answer_may_win_though_overall_it_loses():
    # the prompt with long answers has low scores; within both, the longer answer scores higher
    scores, lengths, prompts = [8, 9, 1, 2], [1, 2, 8, 9], ["a", "a", "b", "b"]
    assert rank_correlation(scores, lengths) < 0
    assert correlation_within(scores, lengths, prompts) == (pytest.approx(1), 2)
    assert correlation_within([1, 2, 2, 1], [1, 2, 1, 2], prompts) == (pytest.approx(0), 2)
    assert correlation_within([1, 2, 2], [1, 1, 3], ["a", "a", "b"]) == (None, 0), "nothing to correlate"
