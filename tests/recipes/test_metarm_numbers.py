"""What a round's numbers and its pairs are made of: pure parts, by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metatune.recipes.metarm_pairs import draw_pairs, prompts_and_answers, turn_labels
from metatune.recipes.metarm_summary import margin_accuracy, policy_numbers, score_numbers


def response(problem, gold, tokens=1, **values):
    return {"problem": problem, "gold": gold, "tokens": tokens, "key": str(problem), "distribution": "d", **values}


def test_what_scores_say_by_hand():
    responses = [response(0, 1.0, 3), response(0, 0.0, 1), response(0, 0.0, 2)]
    responses += [response(1, 1.0, 1), response(1, 1.0, 1), response(2, None, 1), response(2, 0.0, 1)]
    numbers = score_numbers(responses, np.array([2.0, 2.0, 1.0, 5.0, 5.0, 3.0, np.nan]))
    assert numbers["score"] == 3.0 and numbers["unscored"] == 1
    assert (numbers["accuracy"], numbers["compared"]) == (0.75, 2), "one tie, one right; other problems have no pair"
    assert numbers["length_correlation"] == pytest.approx(
        np.corrcoef([2.0, 2.0, 1.0, 5.0, 5.0, 3.0], [3, 1, 2, 1, 1, 1])[0, 1]
    )
    alike = score_numbers(responses[:2], np.array([1.0, 1.0]))
    assert alike["length_correlation"] is None, "a constant correlates with nothing"
    nothing = score_numbers(responses[:1], np.array([np.nan]))
    assert nothing == {
        "score": None,
        "unscored": 1,
        "length_correlation": None,
        "accuracy": None,
        "compared": 0,
    }


def test_gold_is_a_mean_over_distributions_of_problems():
    responses = [
        response(0, 1.0, truncated=False),
        response(0, 0.0, truncated=True),
        response(1, 1.0, truncated=False),
    ]
    responses += [response(2, 0.0, truncated=False, distribution="e"), response(3, None, truncated=False)]
    numbers = policy_numbers(responses)
    assert numbers["gold"] == pytest.approx((0.75 + 0.0) / 2)
    assert numbers["ungraded"] == 1 and numbers["cut_off"] == pytest.approx(0.2)


@given(st.lists(st.floats(-5, 5), min_size=1))
def test_a_turned_margin_is_the_opposite_accuracy(margins):
    margins = np.array(margins)
    assert margin_accuracy(margins) + margin_accuracy(-margins) == pytest.approx(1.0)


@given(st.integers(1, 40), st.floats(0, 0.99), st.integers(0, 5))
def test_exactly_a_share_of_the_labels_is_turned(number, share, seed):
    pairs = [{"chosen": f"c{i}", "rejected": f"r{i}", "turned": False} for i in range(number)]
    turned = turn_labels(pairs, share, seed)
    assert sum(pair["turned"] for pair in turned) == round(share * number)
    for i, pair in enumerate(turned):
        expected = (f"r{i}", f"c{i}") if pair["turned"] else (f"c{i}", f"r{i}")
        assert (pair["chosen"], pair["rejected"]) == expected
    assert turned == turn_labels(pairs, share, seed)


def test_a_prompt_within_both_answers_is_taken_out():
    from datasets import Dataset

    turns = [[{"role": "user", "content": "1+1"}, {"role": "assistant", "content": text}] for text in ("2", "3")]
    found = prompts_and_answers(Dataset.from_list([{"chosen": turns[0], "rejected": turns[1]}]))
    assert found == ([turns[0][:1]], [turns[0][1:]], [turns[1][1:]])


def test_drawing_stops_at_the_limit():
    class Scripted:
        calls = 0

        def respond(self, problems, count, seed):
            self.calls += 1
            return [
                response(i, float(j), prompt=p["prompt"], text=str(j)) for i, p in enumerate(problems) for j in (0, 1)
            ]

    policy = Scripted()
    problems = [{"prompt": str(i)} for i in range(1000)]
    pairs = draw_pairs(policy, problems, 2, seed=0, limit=300)
    assert len(pairs) == 300 and policy.calls == 2
    assert all((pair["chosen"], pair["rejected"]) == ("1", "0") for pair in pairs), "texts to a prompt that is one"
