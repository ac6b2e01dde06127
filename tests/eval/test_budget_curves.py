import pytest
from hypothesis import given
from hypothesis import strategies as st

from metatune.eval.budget_curves import mean_success, token_ratio, tokens_at


def test_the_area_of_a_curve_by_hand():
    # 0..10 rises from .2 to .4 (area 3), 10..30 from .4 to 1 (area 14), 30..40 stays at 1 (area 10)
    assert mean_success([0, 10, 30], [0.2, 0.4, 1.0], 40) == pytest.approx(27 / 40)
    # cut inside the second line, at 20, where it stands at .7: 3 + 10 * (.4 + .7) / 2
    assert mean_success([0, 10, 30], [0.2, 0.4, 1.0], 20) == pytest.approx(8.5 / 20)


def test_a_point_at_the_cutoff_ends_the_area():
    assert mean_success([0, 10], [0.0, 1.0], 10) == pytest.approx(0.5)
    assert mean_success([0], [0.3], 7) == pytest.approx(0.3), "nothing but the empty prefix: held"


def test_the_oracle_succeeds_from_the_first_token_on_and_the_hopeless_never():
    assert mean_success([0], [1.0], 20) == mean_success([0, 5], [1.0, 1.0], 20) == 1
    assert mean_success([0, 9], [0.0, 0.0], 20) == 0
    # right at once has no regret; the same answer after 10 of 20 tokens costs a quarter, by the line from 0 to 1
    assert mean_success([0, 10], [0.0, 1.0], 20) == pytest.approx(0.75)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(1, 100))
def test_the_mean_lies_between_the_worst_and_the_best_of_the_curve(values, cutoff):
    positions = [7.0 * i for i in range(len(values))]
    assert min(values) - 1e-9 <= mean_success(positions, values, cutoff) <= max(values) + 1e-9


def test_tokens_at_a_level_by_hand():
    curve = [10, 20, 30, 40], [0.3, 0.5, 0.4, 0.6]
    assert tokens_at(*curve, 0.4) == pytest.approx(15)
    assert tokens_at(*curve, 0.5) == 20
    assert tokens_at(*curve, 0.55) == pytest.approx(37.5), "on the line from (30, .4)"
    assert tokens_at(*curve, 0.1) == 10, "there at the first point"
    assert tokens_at(*curve, 0.61) is None


def test_a_larger_budget_may_cost_less():
    # the traces that ended by themselves at 40 paid for suffix and answer when they were cut at 38
    assert tokens_at([20, 50, 40], [0.2, 0.4, 0.5], 0.4) == 40
    assert tokens_at([20, 50, 40], [0.2, 0.4, 0.5], 0.3) == pytest.approx(35)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1)), min_size=1, max_size=6), st.floats(0, 1))
def test_more_accuracy_never_takes_fewer_tokens(points, level):
    tokens, accuracies = zip(*points, strict=True)
    easy, hard = (tokens_at(tokens, accuracies, share * level) for share in (0.5, 1.0))
    assert (hard is None) == (level > max(accuracies))
    if hard is not None:
        assert min(tokens) - 1e-9 <= easy <= hard + 1e-9


def test_twice_the_tokens_for_the_same_accuracy_is_a_ratio_of_two():
    reference = {p: ([20, 40, 80], [0.0, 0.5, 0.9]) for p in "abc"}
    other = {p: ([10, 20, 40], [0.0, 0.5, 0.9]) for p in "abc"}
    found = token_ratio(reference, other)
    assert found.level == pytest.approx(0.9)
    assert (found.reference, found.other) == (80, 40)
    assert found.ratio.value == pytest.approx(2)
    assert found.ratio.low < 2 < found.ratio.high, "all problems agree, and yet the interval is no point"
    assert found.unreached == 0


def test_models_are_compared_at_the_highest_accuracy_that_both_reach():
    reference = {"a": ([10, 20], [0.0, 0.4])}
    other = {"a": ([10, 30], [0.0, 0.8])}
    found = token_ratio(reference, other)
    assert (found.level, found.reference, found.other) == (0.4, 20, 20)
    assert found.ratio.value == 1


def test_a_level_that_one_side_never_reaches_has_no_ratio():
    found = token_ratio({"a": ([10], [0.4])}, {"a": ([10], [0.8])}, level=0.6)
    assert (found.reference, found.other, found.ratio) == (None, 10, None)


def test_distributions_weigh_alike_and_the_interval_covers_the_ratio():
    reference = {("x", i): ([10, 100], [0.0, float(i % 2)]) for i in range(40)}
    reference |= {("y", i): ([10, 100], [0.0, 1.0]) for i in range(4)}
    other = {problem: ([10, 55], [0.0, values[1]]) for problem, (_, values) in reference.items()}
    found = token_ratio(reference, other, {problem: problem[0] for problem in reference})
    assert found.level == pytest.approx(0.75), "x .5 and y 1, though y has a tenth of the problems"
    assert found.ratio.value == pytest.approx(100 / 55)
    assert found.ratio.low - 1e-9 <= found.ratio.value <= found.ratio.high + 1e-9


def test_the_pairing_removes_what_both_share():
    """Problems differ widely in length, and the other model needs half of each: every resample has the ratio 2."""
    reference = {i: ([10 * i, 100 * i], [0.0, i % 3 / 2]) for i in range(1, 30)}
    other = {i: ([5 * i, 50 * i], accuracies) for i, (_, accuracies) in reference.items()}
    value, low, high = token_ratio(reference, other).ratio
    assert value == pytest.approx(2) and 1.5 < low < 2 < high < 3
    more = {(copy, i): curve for copy in range(4) for i, curve in reference.items()}
    four_times = token_ratio(more, {(copy, i): other[i] for copy, i in more}).ratio
    assert low < four_times.low < 2 < four_times.high < high


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: mean_success([0, 1], [0.5], 3), "2 positions but 1 values"),
        (lambda: mean_success([1, 2], [0.5, 0.5], 3), "start at 0"),
        (lambda: mean_success([0, 2, 2], [0.5, 0.5, 0.5], 3), "increase strictly"),
        (lambda: mean_success([0], [1.5], 3), "between 0 and 1"),
        (lambda: mean_success([0], [float("nan")], 3), "between 0 and 1"),
        (lambda: mean_success([0], [0.5], 0), "cutoff"),
        (lambda: tokens_at([], [], 0.5), "at least one"),
        (lambda: token_ratio({"a": ([1], [1])}, {"b": ([1], [1])}), "same problems"),
        (lambda: token_ratio({}, {}), "same problems"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
