import json

import pytest

from metatune.rewards import VERIFIERS, correctness_reward

COUNTDOWN = json.dumps({"numbers": [3, 7, 8], "target": 18, "operators": "+-"})


class Failing:
    """A verifier whose grader fails."""

    needs_answer = True

    def score(self, completion, answer, info):
        return None

    def accepted_answers(self, answer, info):
        return None


def test_each_row_is_judged_by_its_own_verifier():
    rewards = correctness_reward(
        completions=[
            [{"role": "assistant", "content": "3+7+8=18 right\nanswer 3+7+8"}],
            [{"role": "assistant", "content": "answer 7"}],
            "answer 7",
        ],
        answer=["3+7+8", "7", "8"],
        verifier=["countdown", "exact", "exact"],
        info=[COUNTDOWN, "", "{}"],
        prompts=["a", "b", "c"],
        distribution=["x", "y", "z"],
    )
    assert rewards == [1.0, 1.0, 0.0]


def test_a_failed_grader_is_none_and_logged_as_a_fraction(monkeypatch):
    monkeypatch.setitem(VERIFIERS, "failing", Failing())
    logged = {}
    rewards = correctness_reward(
        completions=["answer 7"] * 4,
        answer=["7"] * 4,
        verifier=["exact", "failing", "exact", "exact"],
        info=[""] * 4,
        log_metric=logged.__setitem__,
    )
    assert rewards == [1.0, None, 1.0, 1.0]
    assert logged == {"correctness/unscorable": 0.25}


@pytest.mark.parametrize("missing", [None, "", "  "])
def test_a_row_without_answer_is_named(missing):
    with pytest.raises(ValueError, match="row 1 of the batch: column 'answer' is empty"):
        correctness_reward(["answer 7"] * 2, ["7", missing], ["exact"] * 2, [""] * 2)


def test_an_unknown_verifier_and_bad_info_are_named():
    with pytest.raises(ValueError, match="row 0 of the batch: unknown verifier 'exakt'; did you mean 'exact'"):
        correctness_reward(["answer 7"], ["7"], ["exakt"], [""])
    with pytest.raises(ValueError, match="row 0 of the batch: Expecting"):
        correctness_reward(["answer 7"], ["7"], ["exact"], ["{'single': 1}"])
    with pytest.raises(ValueError, match="column 'info' has 1 rows for 2 completions"):
        correctness_reward(["answer 7"] * 2, ["7"] * 2, ["exact"] * 2, [""])


def test_nothing_is_said_of_rows_without_a_verifier():
    logged = {}
    columns = {"answer": ["7", "", None], "verifier": ["exact", "", None], "info": ["", "", ""]}
    assert correctness_reward(["answer 7"] * 3, **columns, log_metric=logged.__setitem__) == [1.0, None, None]
    assert logged == {"correctness/unscorable": 0.0}, "of the one row that can be scored"
    columns = {"answer": ["", ""], "verifier": ["", ""], "info": ["", ""]}
    assert correctness_reward(["a", "b"], **columns, log_metric=lambda *logged: pytest.fail(f"{logged}")) == [None] * 2


def test_a_completion_that_starts_in_the_thinking_has_no_answer_before_it_ends():
    completions = ["answer 3", "answer 3</think>", "hm</think>\nanswer 3"]
    columns = {"answer": ["3"] * 3, "verifier": ["exact"] * 3, "info": [""] * 3}
    assert correctness_reward(completions, **columns) == [1.0, 0.0, 1.0]
    assert correctness_reward(completions, **columns, starts_in_thinking=[True] * 3) == [0.0, 0.0, 1.0]
