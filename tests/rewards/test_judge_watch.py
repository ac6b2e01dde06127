"""The running checks of a judge: when they speak up, and that a resumed run goes on with what they know."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metatune.rewards.judge_watch import JudgeAlarm, RubricWatch


def watched(*phases, **options):
    """A watch that has seen phases of qualities, with a change of the rubric between them."""
    watch = RubricWatch(**options)
    for number, phase in enumerate(phases):
        if number:
            watch.rubric_changed()
        for quality in phase:
            watch.observe(quality)
    return watch


def test_a_rubric_that_fell_behind_what_was_before_it():
    before = [0.8] * 4
    assert watched(before, [0.6] * 4, window=4).suspicion
    assert watched(before, [0.6] * 4, window=4).fallen == pytest.approx(0.2)
    assert not watched(before, [0.6] * 3, window=4).suspicion, "too early to tell"
    assert not watched(before, [0.75] * 4, window=4).suspicion, "within the drop"
    assert not watched(before, [0.9] * 4, window=4).suspicion
    assert not watched([0.6] * 4, window=4).suspicion, "nothing has changed"
    assert not watched([], [0.1] * 4, window=4).suspicion, "nothing to compare with"
    assert not watched(before, [0.1] * 4, [0.1] * 4, window=4).suspicion, "the change before it did that"


def test_scores_that_rise_above_gold_while_the_order_holds():
    """All answers become what the rubric overpays: within a batch the judge still orders them as gold does."""

    def seen(*means):
        watch = RubricWatch(window=2)
        for mean in means:
            watch.observe(0.8, *mean)
        return watch.suspicion

    start = [(0.6, 0.5)] * 2
    assert seen(*start, (0.7, 0.4), (0.7, 0.4)) == "its scores had risen above gold by 0.200"
    assert seen(*start, (0.7, 0.6), (0.7, 0.6)) is None, "both rise"
    assert seen(*start, (0.7, 0.4)) is None, "in the midst of a window"
    assert seen((0.9, 0.1), (0.9, 0.1), (0.9, 0.1), (0.9, 0.1)) is None, "points for nothing are no rise"
    watch = RubricWatch(window=1)
    for total in (0.5, 0.9):
        watch.observe(0.8, total, 0.5)
    watch.rubric_changed()
    watch.observe(0.8, 0.9, 0.5)
    assert watch.suspicion is None, "another rubric is on another scale"


def test_scores_above_gold_count_where_all_answers_are_wrong():
    """A verifier that says wrong of everything orders nothing: that is the exploit at its end."""
    watch = RubricWatch(window=2)
    for total in (0.5, 0.5):
        watch.observe(0.8, total, 0.5)
    said = []
    for _ in range(4):
        watch.observe(None, 0.9, 0.0)
        said.append(watch.suspicion)
    assert said == [None, "its scores had risen above gold by 0.900"] * 2
    resumed = RubricWatch(window=2)
    resumed.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    resumed.observe(None, 0.9, 0.0)
    assert resumed.suspicion is None
    resumed.observe(None, 0.9, 0.0)
    assert resumed.suspicion


def test_it_asks_once_a_window():
    asked = []
    watch = watched([0.8] * 3, [], window=3)
    for _ in range(9):
        watch.observe(0.2)
        asked.append(watch.suspicion is not None)
    assert asked == [False, False, True] * 3


def test_batches_that_say_nothing_do_not_count():
    watch = watched([0.8] * 2, [0.1, None, float("nan")], window=2)
    assert watch.fallen is None
    watch.observe(0.1)
    assert watch.suspicion


def alarm(pairs, **options):
    raised = JudgeAlarm(**options)
    for pair in pairs:
        raised.observe(*pair)
    return raised


def test_two_judges_that_part():
    start = [(0.5, 0.4)] * 2
    assert alarm(start + [(0.9, 0.4)] * 2, window=2).parted == pytest.approx(0.4)
    assert alarm(start + [(0.9, 0.4)] * 2, window=2).is_raised
    assert not alarm(start + [(0.9, 0.8)] * 2, window=2).is_raised, "both rise"
    assert not alarm(start + [(0.5, 0.9)] * 2, window=2).is_raised, "the held-out judge likes it more"
    assert not alarm([(0.9, 0.1)] * 5, window=2).is_raised, "they began as far apart"
    assert alarm([(0.9, 0.1)], window=2).parted is None
    assert alarm([*start, (float("nan"), 0.1)], window=2).parted == pytest.approx(0)


numbers = st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=30)


@given(numbers, numbers, st.integers(0, 30))
def test_a_resumed_watch_goes_on_as_if_never_stopped(first, second, cut):
    def go_on(watch, qualities):
        said = []
        for quality in qualities:
            watch.observe(quality, quality, 0.5)
            said.append((watch.suspicion, watch.fallen))
            if quality is not None and quality > 0.9:
                watch.rubric_changed()
        return said

    whole = watched(first, [], window=3)
    stopped = watched(first, [], window=3)
    expected = go_on(whole, second)
    begun = go_on(stopped, second[:cut])
    resumed = RubricWatch(window=3)
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert begun + go_on(resumed, second[cut:]) == expected


def test_a_resumed_alarm():
    pairs = [(0.1 * i, 0.3) for i in range(9)]
    stopped = alarm(pairs[:3], window=4)
    resumed = JudgeAlarm(window=4)
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    for pair in pairs[3:]:
        resumed.observe(*pair)
    assert resumed.parted == alarm(pairs, window=4).parted


@pytest.mark.parametrize("options", [{"window": 0}, {"drop": 0.0}, {"drop": float("nan")}])
def test_bad_options(options):
    with pytest.raises(ValueError, match="window must be at least 1 and drop above 0"):
        RubricWatch(**options)
