import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metatune.eval.budget_curves import mean_success
from metatune.trainers.star import RightTrace, choose, regret

# Right traces of one problem, of which a quarter is answered right at once.
EARLY = RightTrace(ends=[10, 20], values=[0.25, 0.75, 1.0])
LATE = RightTrace(ends=[10, 20], values=[0.25, 0.25, 1.0])
DAWDLING = RightTrace(ends=[10, 20, 100], values=[0.25, 0.75, 1.0, 1.0])
SHORT = RightTrace(ends=[18], values=[0.25, 1.0])


@st.composite
def right_traces(draw):
    """A right trace: whole lengths of episodes, and J of any kind that ends with 1."""
    lengths = draw(st.lists(st.integers(1, 50), min_size=1, max_size=8))
    inner = draw(st.lists(st.floats(0, 1), min_size=len(lengths), max_size=len(lengths)))
    return RightTrace(ends=[sum(lengths[: i + 1]) for i in range(len(lengths))], values=[*inner, 1.0])


def test_the_plain_sum_of_progress_cannot_tell_right_traces_apart():
    sums = {
        sum(after - before for before, after in pairwise(trace.values)) for trace in (EARLY, LATE, DAWDLING, SHORT)
    }
    assert sums == {0.75}, "it telescopes to the outcome less J_0, which all traces of the problem share"
    regrets = [regret(trace.ends, trace.values) for trace in (EARLY, LATE, SHORT)]
    assert len(set(regrets)) == 3


def test_regret_by_hand():
    assert regret(EARLY.ends, EARLY.values) == 10 * (1 - 0.5) + 10 * (1 - 0.875) == 6.25
    assert regret(LATE.ends, LATE.values) == 10 * (1 - 0.25) + 10 * (1 - 0.625) == 11.25
    assert regret(SHORT.ends, SHORT.values) == 18 * (1 - 0.625) == 6.75
    assert regret([7], [1.0, 1.0]) == 0


@given(right_traces())
def test_regret_is_progress_weighted_by_where_it_was_made(trace):
    starts = [0, *trace.ends[:-1]]
    progress = [after - before for before, after in zip(trace.values, trace.values[1:], strict=False)]
    middles = [(start + end) / 2 for start, end in zip(starts, trace.ends, strict=True)]
    expected = sum(p * middle for p, middle in zip(progress, middles, strict=True))
    assert regret(trace.ends, trace.values) == pytest.approx(expected, abs=1e-9)


@given(right_traces(), st.integers(0, 100))
def test_regret_is_what_evaluation_reports_at_any_cutoff_beyond_the_trace(trace, beyond):
    cutoff = trace.ends[-1] + beyond
    reported = (1 - mean_success([0, *trace.ends], trace.values, cutoff)) * cutoff
    assert regret(trace.ends, trace.values) == pytest.approx(reported, abs=1e-9)


def test_the_earliest_progress_is_chosen():
    rng = random.Random(0)
    assert choose([LATE, SHORT, EARLY], "progress", rng) == 2
    assert choose([LATE, EARLY, SHORT], "shortest", rng) == 2


def test_tokens_after_the_last_progress_do_not_pay():
    """The mean of J over a trace's own length would take the trace that goes on when it is right already."""

    def own_mean(trace):
        return mean_success([0, *trace.ends], trace.values, trace.ends[-1])

    assert own_mean(DAWDLING) > own_mean(EARLY)
    assert regret(DAWDLING.ends, DAWDLING.values) == regret(EARLY.ends, EARLY.values)
    assert choose([DAWDLING, EARLY], "progress", random.Random(0)) == 1


def test_correct_draws_any_right_trace_and_the_others_draw_nothing():
    traces = [EARLY, LATE, SHORT]
    rng = random.Random(3)
    assert {choose(traces, "correct", rng) for _ in range(50)} == {0, 1, 2}
    before = rng.getstate()
    choose(traces, "progress", rng)
    choose(traces, "shortest", rng)
    assert rng.getstate() == before


def test_equal_traces_are_the_first():
    assert choose([EARLY, EARLY], "progress", random.Random(0)) == 0
    assert choose([RightTrace(ends=[5]), RightTrace(ends=[5])], "shortest", random.Random(0)) == 0


@pytest.mark.parametrize(
    ("traces", "select", "message"),
    [
        ([EARLY], "best", "select is one of progress, shortest, correct"),
        ([], "correct", "no right trace"),
        ([EARLY, RightTrace(ends=[5])], "progress", "needs the values of every trace"),
        ([RightTrace(ends=[5], values=[1.0])], "progress", "1 episodes need 2 values"),
    ],
)
def test_mistakes_are_named(traces, select, message):
    with pytest.raises(ValueError, match=message):
        choose(traces, select, random.Random(0))
