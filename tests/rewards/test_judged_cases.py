"""Cases for the meta judge: what is chosen by hand-made examples, and what holds whatever the cases."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metatune.rewards.judged_cases import (
    JudgedCase,
    contradictions,
    inflated,
    select_cases,
    split_by_prompt,
    stratified,
)


def case(total, gold=None, prompt="p", completion=None, agreement=None):
    return JudgedCase(prompt, completion or f"{total} {gold}", total, {"item": 1}, {"item": "so"}, gold, agreement)


def test_a_contradiction_is_a_pair_of_one_prompt_in_the_wrong_order():
    cases = [case(0.9, 0.0), case(0.2, 1.0), case(0.5, 1.0), case(0.1, 0.0), case(1.0, 0.0, prompt="q")]
    assert contradictions(cases) == [(1, 0)], "0.7 apart; the pair (2, 0) would use completion 0 again"
    cases.append(case(0.6, 1.0, prompt="q"))
    assert contradictions(cases) == [(1, 0), (5, 4)]
    assert contradictions([case(0.5, 1.0), case(0.5, 0.0)]) == [], "a tie is no wrong order"
    assert contradictions([case(0.9), case(0.1)]) == [], "nobody knows"


def test_a_high_total_with_little_to_speak_for_it_is_inflated():
    cases = [case(0.9, 0.0), case(0.9, 1.0), case(0.1, 0.0), case(0.1, 1.0), case(0.2, 1.0), case(0.2, 1.0)]
    assert inflated(cases) == [0]
    cases = [case(0.9, agreement=0.9), case(0.9, agreement=0.2), case(0.1, agreement=0.0), case(0.1), case(0.2)]
    assert inflated(cases) == [1, 0]
    assert inflated([case(0.9), case(0.1)]) == [] == inflated([])


def test_the_three_parts():
    cases = [case(0.95, 0.0), case(0.1, 1.0)]  # one contradiction
    cases += [case(0.9 + i / 100, 0.0, prompt=f"high {i}") for i in range(4)]  # inflated, alone at their prompts
    cases += [case(i / 20, 1.0, prompt=f"other {i}") for i in range(12)]
    chosen = select_cases(cases, 9, seed=0)
    parts = [part for _, part in chosen]
    assert [parts.count(part) for part in ("contradiction", "inflated", "stratum")] == [2, 3, 4]
    assert {each.total for each, part in chosen if part == "contradiction"} == {0.95, 0.1}
    assert all(each.gold == 0.0 and each.total >= 0.9 for each, part in chosen if part == "inflated")


def test_strata_see_low_middle_and_high_totals():
    totals = [0.0] * 80 + [0.5] * 10 + [1.0] * 10  # thirds by rank, however crowded a score is
    drawn = [totals[index] for index in stratified(range(100), 9, np.random.default_rng(0))]
    assert len(drawn) == 9
    assert (
        sorted(index // 34 for index in stratified(range(100), 9, np.random.default_rng(1)))
        == [0] * 3 + [1] * 3 + [2] * 3
    )


lists = st.lists(
    st.builds(case, st.floats(0, 1), st.sampled_from([None, 0.0, 0.5, 1.0]), st.sampled_from("abc")), max_size=30
)


@given(lists, st.integers(0, 40), st.integers(0, 3))
def test_as_many_as_are_there_none_twice_and_always_the_same(cases, number, seed):
    cases = [JudgedCase(c.prompt, f"{c.completion} {i}", c.total, {}, {}, c.gold) for i, c in enumerate(cases)]
    chosen = select_cases(cases, number, seed)
    assert len(chosen) == min(number, len(cases)) == len({each.completion for each, _ in chosen})
    assert chosen == select_cases(cases, number, seed)


@given(lists, st.integers(0, 30), st.integers(0, 3))
def test_what_a_rubric_is_tried_on_shares_no_prompt_with_what_is_shown(cases, held_out, seed):
    shown, kept = split_by_prompt(cases, held_out, seed)
    assert not {each.prompt for each in shown} & {each.prompt for each in kept}
    assert sorted(map(repr, shown + kept)) == sorted(map(repr, cases))
    assert len({each.prompt for each in kept}) <= len({each.prompt for each in cases}) / 2


@pytest.mark.parametrize(("held_out", "expected"), [(0, 0), (1, 4), (8, 8), (9, 12), (100, 20)])
def test_whole_prompts_until_there_are_enough(held_out, expected):
    cases = [case(0.5, prompt=f"{i // 4}", completion=str(i)) for i in range(40)]
    assert len(split_by_prompt(cases, held_out, 0)[1]) == expected
