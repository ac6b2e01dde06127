"""Verifiers and reward functions that raise: those completions have no reward, and too many end the run."""

import asyncio
import logging

import pytest

from metatune.rewards import VERIFIERS, JudgeError, correctness_reward
from metatune.rewards.correctness import RowError
from metatune.rewards.guarded_reward import AsyncGuardedReward, GuardedReward, VerifierError


class Fragile:
    """A user's verifier that reads a number with `int`, and raises on what is none."""

    needs_answer = True

    def score(self, completion, answer, info):
        return int(completion) == int(answer)

    def accepted_answers(self, answer, info):
        return [answer]


@pytest.fixture
def fragile(monkeypatch):
    monkeypatch.setitem(VERIFIERS, "fragile", Fragile())


def guarded(function=correctness_reward, max_failures=0.1):
    return GuardedReward(function, function.__name__, max_failures)


def batch(completions, verifier="fragile", **more):
    number = len(completions)
    columns = {"answer": ["7"] * number, "verifier": [verifier] * number, "info": [""] * number}
    return {
        "prompts": ["p"] * number,
        "completions": completions,
        "distribution": ["sums"] * number,
        **columns,
        **more,
    }


def test_the_completion_that_a_verifier_raises_on_has_no_reward_and_is_named(fragile, caplog):
    logged = {}
    function = guarded()
    assert function(**batch(["7", "8", "seven " * 100], log_metric=logged.__setitem__)) == [1.0, 0.0, None]
    assert logged == {"correctness/unscorable": 0.0, "correctness/raised": pytest.approx(1 / 3)}
    (line,) = caplog.messages
    assert line.startswith("verifier 'fragile' raised ValueError: invalid literal for int() with base 10: 'seven")
    assert "on 1 of 3 completions of this batch (distribution 'sums', completion 'seven seven" in line
    assert len(line) < 700 and "no reward" in line


def test_nothing_is_logged_until_something_is_raised(fragile):
    logged = {}
    guarded()(**batch(["7", "8"], log_metric=logged.__setitem__))
    assert logged == {"correctness/unscorable": 0.0}


def test_a_verifier_that_raises_from_its_first_call_on_ends_the_run_with_its_traceback(fragile):
    with pytest.raises(
        VerifierError, match=r"'fragile' raised ValueError: .* on each of its first 2 completions"
    ) as end:
        guarded()(**batch(["a", "b"]))
    assert isinstance(end.value.__cause__, ValueError)
    assert end.value.__cause__.__traceback__.tb_next.tb_next is not None, "through the verifier's own frame"


def test_a_broken_verifier_is_noticed_beside_others_that_work(fragile):
    inputs = batch(["7"] * 98 + ["a", "b"], verifier="exact")
    inputs["verifier"][98:] = ["fragile"] * 2
    with pytest.raises(VerifierError, match=r"'fragile' .* each of its first 2"):
        guarded()(**inputs)


def test_too_many_failures_end_the_run_and_a_few_do_not(fragile):
    function = guarded(max_failures=0.1)
    for _ in range(7):
        function(**batch(["7"] * 9 + ["x"]))
    with pytest.raises(VerifierError, match=r"on 9 of its last 80 completions \(max_verifier_failures 0.1\)"):
        function(**batch(["7"] * 8 + ["x"] * 2))
    assert guarded(max_failures=1.0)(**batch(["x"] * 20)) == [None] * 20, "asked to go on"
    strict = guarded(max_failures=0.0)
    with pytest.raises(VerifierError, match="on 1 of its last 10 completions"):
        strict(**batch(["7"] * 9 + ["x"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": ["seven", "7"]}, "row 0 of the batch: invalid literal"),
        ({"verifier": ["fragile", "fragle"]}, "row 1 of the batch: unknown verifier 'fragle'"),
        ({"info": ["", "{"]}, "row 1 of the batch: Expecting"),
    ],
)
def test_a_row_that_no_completion_can_be_scored_by_is_an_error_at_once(fragile, change, message):
    with pytest.raises(RowError, match=message):
        guarded(max_failures=1.0)(**(batch(["x", "7"]) | change))


def test_a_reward_function_of_the_user_s_is_called_for_each_completion_alone():
    def inverse(completions, log_extra, log_metric, weight, **kwargs):
        values = [weight[row] / len(text) for row, text in enumerate(completions)]
        log_extra("length", [len(text) for text in completions])
        log_metric("largest", max(values))
        return values

    cells, metrics = {}, {}
    function = guarded(inverse, max_failures=1.0)
    inputs = {"completions": ["ab", "", "abcd"], "prompts": ["p"] * 3, "weight": [1.0, 1.0, 2.0]}
    logs = {"log_extra": cells.__setitem__, "log_metric": metrics.__setitem__}
    assert function(**inputs, trainer_state=None, **logs) == [0.5, None, 0.5]
    assert cells == {"length": [2, None, 4]}, "one cell a completion, as the completions table needs"
    assert metrics == {"largest": 0.5, "inverse/raised": pytest.approx(1 / 3)}
    assert "reward function 'inverse' raised ZeroDivisionError" in function.trouble

    asynchronous = AsyncGuardedReward(as_coroutine(inverse), "inverse", 1.0)
    assert asyncio.run(asynchronous(**inputs, trainer_state=None, **logs)) == [0.5, None, 0.5]


def as_coroutine(function):
    async def call(**inputs):
        return function(**inputs)

    return call


def test_an_error_of_the_whole_batch_is_not_hidden():
    def needs_two(completions, **kwargs):
        if len(completions) > 1:
            raise OSError("no space for the batch")
        return [1.0]

    with pytest.raises(OSError, match="no space for the batch"):
        guarded(needs_two)(prompts=["p"] * 2, completions=["a", "b"])


def fails_once(function):
    """Make of a function one whose first call raises, as a request to a sandbox may."""
    calls = []

    def flaky(*args, **kwargs):
        calls.append(args)
        if len(calls) == 1:
            raise TimeoutError("sandbox")
        return function(*args, **kwargs)

    return flaky


def test_a_verifier_that_raises_once_costs_no_completion(fragile, monkeypatch, caplog):
    monkeypatch.setattr(VERIFIERS["fragile"], "score", fails_once(VERIFIERS["fragile"].score), raising=False)
    assert guarded()(**batch(["7", "8"])) == [1.0, 0.0]
    assert "raised TimeoutError: sandbox once, and not when it was called again" in caplog.text


def test_a_reward_function_that_raises_once_is_called_again_for_the_whole_batch():
    def rank(completions, **kwargs):
        if len(completions) == 3 and not failed:
            failed.append(True)
            raise TimeoutError("sandbox")
        return [float(sorted(completions).index(completion)) for completion in completions]

    failed = []
    assert guarded(rank)(**batch(["b", "c", "a"])) == [1.0, 2.0, 0.0]


def test_a_server_s_error_is_passed_on(caplog):
    def judged(completions, **kwargs):
        raise JudgeError("the server is gone")

    caplog.set_level(logging.WARNING)
    with pytest.raises(JudgeError, match="the server is gone"):
        guarded(judged)(prompts=["p"], completions=["a"])
    assert not caplog.messages
