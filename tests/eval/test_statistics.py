import itertools
from collections import Counter
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metatune.eval.statistics import bootstrap_mean, majority_at_k, paired_bootstrap_difference, pass_at_k


def n_c_k():
    return st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))


def votes():
    one = st.tuples(st.sampled_from(["a", "b", "c", None]), st.booleans())
    return st.lists(one, min_size=1, max_size=7).flatmap(
        lambda rows: st.tuples(st.just(rows), st.integers(1, len(rows)))
    )


def test_pass_at_k_by_hand():
    # 4 completions, 1 right, 2 tries: C(3, 2) = 3 of C(4, 2) = 6 pairs miss it.
    assert pass_at_k(4, 1, 2) == 0.5
    # 5, 2, 3: C(3, 3) = 1 of C(5, 3) = 10 triples misses both.
    assert pass_at_k(5, 2, 3) == pytest.approx(0.9)
    assert pass_at_k(10, 0, 10) == 0.0
    assert pass_at_k(10, 1, 10) == 1.0


@given(n_c_k())
def test_pass_at_k_equals_the_share_of_subsets_with_a_right_one(case):
    n, c, k = case
    subsets = list(itertools.combinations([1] * c + [0] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(s) for s in subsets) / len(subsets))


@given(n_c_k())
def test_pass_at_1_is_the_accuracy_and_more_tries_never_hurt(case):
    n, c, _ = case
    assert pass_at_k(n, c, 1) == pytest.approx(c / n)
    assert all(pass_at_k(n, c, j) <= pass_at_k(n, c, j + 1) for j in range(1, n))


@pytest.mark.parametrize("n, c, k", [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0), (0, 0, 1)])
def test_pass_at_k_refuses_impossible_counts(n, c, k):
    with pytest.raises(ValueError, match="must be between"):
        pass_at_k(n, c, k)


def test_majority_by_hand():
    # All four vote: "7" has two votes and is right.
    assert majority_at_k(["7", "7", "8", "9"], [True, True, False, False], 4) == 1.0
    # A tie of a right and a wrong answer shares the credit.
    assert majority_at_k(["7", "8"], [True, False], 2) == 0.5
    # Pairs of (7, 7, 8): {7,7} wins with 1, the two {7,8} tie with 1/2 each: (1 + 1/2 + 1/2) / 3.
    assert majority_at_k(["7", "7", "8"], [True, True, False], 2) == pytest.approx(2 / 3)
    # The wrong answer is more frequent, so a larger jury does worse.
    assert majority_at_k(["7", "8", "8"], [True, False, False], 3) == 0.0
    # A completion without an answer abstains: the single vote wins against two of them.
    assert majority_at_k(["7", None, None], [True, False, False], 3) == 1.0
    assert majority_at_k([None, None], [False, False], 2) == 0.0


def brute_force_majority(rows, k):
    right = {a: np.mean([c for b, c in rows if b == a]) for a, _ in rows}
    credits = []
    for drawn in itertools.combinations(rows, k):
        counts = Counter(a for a, _ in drawn if a is not None)
        top = [a for a, n in counts.items() if n == max(counts.values())]
        credits.append(np.mean([right[a] for a in top]) if top else right[None])
    return np.mean(credits)


@given(votes())
def test_majority_equals_enumerating_every_jury(case):
    rows, k = case
    answers, correct = zip(*rows, strict=True)
    assert majority_at_k(answers, correct, k) == pytest.approx(brute_force_majority(rows, k))


@given(votes())
def test_majority_of_one_is_the_accuracy(case):
    rows, _ = case
    answers, correct = zip(*rows, strict=True)
    assert majority_at_k(answers, correct, 1) == pytest.approx(np.mean(correct))


def test_majority_stays_exact_and_quick_for_a_large_jury():
    answers = [str(i // 2) for i in range(64)]
    correct = [i // 2 == 0 for i in range(64)]
    # 32 answers alike in number: by symmetry each wins equally often.
    assert majority_at_k(answers, correct, 32) == pytest.approx(1 / 32)


@pytest.mark.filterwarnings("error")
def test_majority_of_a_thousand_and_more():
    # all differ and half are right: whoever wins is right as often
    assert majority_at_k([*range(1024)], [i % 2 == 0 for i in range(1024)], 512) == pytest.approx(0.5)
    # 700 for the right answer, 400 for the wrong one, 101 vote: more than half of those drawn are of the 700
    votes = ["right"] * 700 + ["wrong"] * 400
    won = Fraction(sum(comb(700, i) * comb(400, 101 - i) for i in range(51, 102)), comb(1100, 101))
    assert majority_at_k(votes, [vote == "right" for vote in votes], 101) == pytest.approx(float(won), rel=1e-9)
    assert majority_at_k([None] * 2000, [i < 500 for i in range(2000)], 1000) == pytest.approx(0.25)
    few = majority_at_k(["right", *range(1999)], [True] + [False] * 1999, 2)
    assert few == pytest.approx(1 / 2000), "chosen in 2 of 2000 juries, and then one of two"


def test_bootstrap_keeps_the_samples_of_a_problem_together():
    # Two problems, always right and never right, 50 samples each. Over completions the interval would be about
    # 0.5 ± 0.1; over problems a resample is 0, 1/2 or 1 with chances 1/4, 1/2, 1/4.
    interval = bootstrap_mean([1.0] * 50 + [0.0] * 50, ["p"] * 50 + ["q"] * 50)
    assert interval == (0.5, 0.0, 1.0)


def test_bootstrap_weighs_problems_equally_and_holds_the_mixture():
    # Problem p has three samples and q one: the distribution's mean is (1 + 0) / 2, not 3 / 4.
    assert bootstrap_mean([1, 1, 1, 0], ["p", "p", "p", "q"]).value == 0.5
    # One distribution always right, one never: each may be wrong on one side alone, by its own number of problems.
    values, problems, names = [1.0] * 30 + [0.0] * 10, list(range(40)), ["easy"] * 30 + ["hard"] * 10
    expected = (0.5, 0.5 - (1 - 0.025 ** (1 / 30)) / 2, 0.5 + (1 - 0.025 ** (1 / 10)) / 2)
    assert bootstrap_mean(values, problems, names) == pytest.approx(expected)


@pytest.mark.parametrize("n", [1, 2, 10, 24, 200])
def test_none_right_has_the_exact_interval_of_clopper_and_pearson(n):
    highest = 1 - 0.025 ** (1 / n)  # at which none of n is right with probability 2.5 %
    assert bootstrap_mean([0.0] * n, range(n)) == pytest.approx((0, 0, highest))
    assert bootstrap_mean([1.0] * n, range(n)) == pytest.approx((1, 1 - highest, 1))
    no_change = paired_bootstrap_difference(dict.fromkeys(range(n), 0.5), dict.fromkeys(range(n), 0.5))
    assert no_change == pytest.approx((0, -highest, highest))
    # Two distributions of equal size say together what one of twice the size says.
    assert bootstrap_mean([0.0] * 2 * n, range(2 * n), [0] * n + [1] * n).high == pytest.approx(1 - 0.025 ** (0.5 / n))


def test_one_right_says_less_than_none():
    ends = [bootstrap_mean([1.0] * right + [0.0] * (24 - right), range(24)).high for right in range(13)]
    assert ends == sorted(ends)


def test_a_distribution_that_agrees_says_no_more_beside_others_than_alone():
    agreeing = [0.0] * 24
    alone = bootstrap_mean(agreeing, range(24)).high
    beside = bootstrap_mean([0.2, 0.21, 0.22] * 99 + agreeing, range(321), ["varied"] * 297 + ["agreeing"] * 24)
    assert beside.high == pytest.approx(beside.value + alone / 2)
    # Beside one that varies more, the interval is the bootstrap's.
    mixed = bootstrap_mean([0.0, 1.0] * 20, range(40))
    both = bootstrap_mean([0.0, 1.0] * 20 + agreeing, range(64), ["mixed"] * 40 + ["agreeing"] * 24)
    assert (both.low, both.high) == (mixed.low / 2, mixed.high / 2)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.25, 1.0]), st.sampled_from("ab")), min_size=1, max_size=40))
def test_an_interval_holds_its_estimate_and_is_never_a_point(rows):
    values, names = zip(*rows, strict=True)
    interval = bootstrap_mean(values, range(len(rows)), names, num_resamples=300)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    assert interval.high > interval.low
    after = {problem: 1 - value for problem, value in enumerate(values)}
    difference = paired_bootstrap_difference(dict(enumerate(values)), after, dict(enumerate(names)), num_resamples=300)
    assert -1 <= difference.low <= difference.value <= difference.high <= 1
    assert difference.high > difference.low


@given(st.floats(0, 1), st.integers(1, 300))
def test_the_more_problems_agree_the_narrower_the_interval(value, n):
    few, more = (bootstrap_mean([value] * size, range(size), num_resamples=1) for size in (n, n + 1))
    assert more.high - more.low < few.high - few.low
    assert few.value == pytest.approx(value)


def test_bootstrap_agrees_with_the_normal_interval_for_many_problems():
    values = np.random.default_rng(0).random(400) < 0.3
    interval = bootstrap_mean(values.astype(float), range(400))
    half = 1.96 * values.std() / np.sqrt(400)
    assert interval.low == pytest.approx(values.mean() - half, abs=0.005)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.005)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 5), st.sampled_from("ab")), min_size=1), st.integers(0, 9))
def test_bootstrap_properties(rows, seed):
    values, problems, names = zip(*rows, strict=True)
    interval = bootstrap_mean(values, problems, names, num_resamples=600, seed=seed)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    assert interval == bootstrap_mean(values, problems, names, num_resamples=600, seed=seed)
    narrow = bootstrap_mean(values, problems, names, num_resamples=600, seed=seed, confidence=0.5)
    assert interval.low <= narrow.low <= narrow.high <= interval.high


@pytest.mark.parametrize(("n", "truth"), [(60, 0.4), (24, 0.02), (24, 0.9), (100, 0.01)])
def test_bootstrap_covers_the_truth_about_as_often_as_it_says(n, truth):
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        interval = bootstrap_mean((rng.random(n) < truth).astype(float), range(n), num_resamples=400, seed=trial)
        covered += interval.low <= truth <= interval.high
    assert covered / 200 >= 0.90


def test_pairing_removes_what_problems_have_in_common():
    # Problems differ widely, the gain is the same for all: only problems that are not here could have another.
    before = {i: i / 20 for i in range(10)}
    after = {i: i / 20 + 0.25 for i in range(10)}
    unseen = 1 - 0.025 ** (1 / 10)
    expected = (0.25, 0.25 - unseen * 1.25, 0.25 + unseen * 0.75)
    assert paired_bootstrap_difference(before, after) == pytest.approx(expected)


def test_the_difference_weighs_distributions_equally():
    before = dict.fromkeys(range(4), 0.0)
    after = {0: 1.0, 1: 0.0, 2: 0.0, 3: 0.0}
    names = {0: "a", 1: "b", 2: "b", 3: "b"}
    assert paired_bootstrap_difference(before, after, names).value == 0.5


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: bootstrap_mean([], []), "nothing was scored"),
        (lambda: bootstrap_mean([float("nan")], ["p"]), "NaN"),
        (lambda: bootstrap_mean([1.0], ["p", "q"]), "lengths differ"),
        (lambda: bootstrap_mean([1.0], ["p"], confidence=95), "confidence"),
        (lambda: paired_bootstrap_difference({"p": 1.0}, {"q": 1.0}), "one side only"),
        (lambda: majority_at_k(["7"], [True, False], 1), "1 answers but 2"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
