"""The trainer forces answers in the form that each row's verifier reads, and detects misfits."""

import math

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from metatune.rewards import correctness_reward
from metatune.trainers import MRTTrainer, forced_watch, success
from metatune.trainers.forced_watch import MIN_BATCHES, Batch, ForcedWatch, never_right

from .dump_setup import rows
from .mrt_setup import LIKELIHOOD, make

COUNTDOWN = '{"numbers": [1, 2], "target": 3, "operators": "+"}'


def verified(verifier, answer, info="", number=4):
    return [
        {
            "prompt": [{"role": "user", "content": f"make {item} {verifier}"}],
            "distribution": verifier or "judged",
            "verifier": verifier,
            "answer": answer,
            "info": info,
        }
        for item in range(number)
    ]


MIXED = verified("countdown", "", COUNTDOWN) + verified("verdict", "yes") + verified("", "")


class Asked(MRTTrainer):
    """Records the prefixes at which answers are forced."""

    def _by_rollouts(self, prompts, places):
        self.asked = {self._drawn[row]["verifier"] for row, _ in places}
        return super()._by_rollouts(prompts, places)

    def _by_likelihood(self, prompts, places):
        self.asked = {self._drawn[row]["verifier"] for row, _ in places}
        return super()._by_likelihood(prompts, places)

    def _score(self, inputs, contents, ids):
        self.forced = list(zip(inputs, contents, strict=True))
        return super()._score(inputs, contents, ids)

    def _watch_forced(self, outcomes, forced):
        self.values = forced
        super()._watch_forced(outcomes, forced)


@pytest.mark.parametrize("estimator", ["rollouts", "likelihood"])
def test_each_row_is_forced_as_its_verifier_reads_answers_and_rows_without_one_are_not(tmp_path, estimator):
    options = {"forcing_suffix": None, "num_generations": 4, "max_steps": 1}
    options |= LIKELIHOOD if estimator == "likelihood" else {}
    data = Dataset.from_list(MIXED)
    trainer = make(tmp_path, "episode", correctness_reward, data, curriculum="uniform", **options)
    trainer.__class__ = Asked
    trainer.train()
    drawn = [row["verifier"] for row in trainer._drawn]
    assert set(drawn) == {"countdown", "verdict", ""}
    assert trainer.asked == {"countdown", "verdict"}
    if estimator == "rollouts":
        openings = {"countdown": "answer ", "verdict": "My final answer: <verdict>"}
        assert all(openings[row["verifier"]] in text for row, text in trainer.forced)
    known = ~trainer.values.isnan()
    unverified = torch.tensor([name == "" for name in drawn])
    assert not known[unverified].any() and known[~unverified, 0].all()


def test_a_process_without_verified_rows_generates_as_many_answers_as_the_others(tmp_path, monkeypatch):
    """Processes generate and score together; the extra answers of this process are discarded."""
    data = Dataset.from_list(verified("", ""))
    trainer = make(tmp_path, "episode", correctness_reward, data, forcing_suffix=None)
    trainer._drawn, trainer._completion_ids = [dict(data[0])] * 2, [[40, 41, 42]] * 2
    others = 5
    monkeypatch.setattr(success, "gather_object", lambda own: own if isinstance(own[0], list) else [*own, others])
    asked = []
    trainer._generate_single_turn = lambda prompts, *_: (asked.extend(prompts) or [[7]] * len(prompts), None)
    values = trainer._estimate([[1, 2]] * 2, [[0, 2]] * 2)
    assert all(math.isnan(value) for row in values for value in row)
    assert len(asked) == others * trainer.args.num_forced_answers


def test_a_suffix_that_a_verifier_rejects_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="the verifier 'verdict' rejects a correct forced answer"):
        make(tmp_path, "episode", correctness_reward, Dataset.from_list(MIXED), forcing_suffix="\nanswer ")
    stream = Dataset.from_list(MIXED).to_iterable_dataset()
    options = {"forcing_suffix": "<verdict>", "max_steps": 1, "curriculum": "uniform"}
    trainer = make(tmp_path, "episode", correctness_reward, stream, **options)
    with pytest.raises(ValueError, match=r"rejects a correct forced answer.*end it with 'answer '"):
        trainer.train()


def strict(completions, **kwargs):
    """A user's reward: the last line is exactly the answer."""
    return [float(completion[-1]["content"].rpartition("\n")[2] == "7") for completion in completions]


def test_a_custom_reward_function_is_tested_with_the_reference(tmp_path, caplog):
    data = Dataset.from_list([{**row, "answer": "7"} for row in rows()])
    make(tmp_path, "episode", strict, data)
    assert "'strict' gives the reward 0.0 to a forced answer made from the column `answer`: 'answer 7'" in caplog.text
    caplog.clear()
    make(tmp_path, "episode", strict, data, forcing_suffix=" so:\n")
    make(tmp_path, "episode", strict, rows())
    assert not caplog.text


# ---- what a run shows ----


@pytest.mark.parametrize(
    ("batches", "verdict"),
    [
        ([Batch((0.0, 1.0), (0.0, 0.0))], True),
        ([Batch((0.0, 1.0), (0.0, 0.04))], False),  # a mean of 0.02
        ([Batch((0.0, 0.1), (0.0, 0.0))], False),  # traces rarely succeed yet
        ([Batch((0.0,), (0.0, 0.0, 0.0)), Batch((0.2,), (0.04,))], True),  # means over all: 0.1 and 0.01
    ],
)
def test_forced_answers_are_never_correct_although_traces_often_are(batches, verdict):
    assert never_right(batches) is verdict


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_no_warning_if_forced_answers_are_as_good_as_the_traces(outcomes):
    assert not never_right([Batch(tuple(outcomes), tuple(outcomes))])


def test_a_verifier_is_reported_once_when_there_are_enough_batches_and_prefixes():
    never, always, unknown = (Batch((1.0,), forced) for forced in ((0.0,) * 20, (1.0,) * 20, ()))
    watch = ForcedWatch()
    assert not any(watch.observe("math", unknown) for _ in range(50))
    assert not any(watch.observe("exact", always) for _ in range(50))
    assert [watch.observe("math", never) for _ in range(17)] == [0] * 14 + [15, 0, 0], "15 batches have 300 prefixes"
    assert not any(watch.observe("exact", never) for _ in range(14)), "the last batches count"
    assert watch.observe("exact", never) == 15
    large = Batch((1.0,), (0.0,) * 1000)
    assert [watch.observe(None, large) for _ in range(11)] == [0] * 9 + [10, 0], "and at least ten batches"


def rollouts_alone(completions, **kwargs):
    """A reward that is 0 for forced answers, because it searches for the suffix."""
    return [float("answer" not in completion[-1]["content"]) for completion in completions]


@pytest.mark.parametrize(
    ("progress", "options"),
    [("episode", {}), ("prefix", {"num_generations": 16, "terminating_generations": 8, "forced_answer_tokens": 1})],
)
def test_a_run_warns_if_forced_answers_are_never_correct(tmp_path, caplog, monkeypatch, progress, options):
    monkeypatch.setattr(forced_watch, "MIN_FORCED", 60)
    make(tmp_path, progress, rollouts_alone, max_steps=MIN_BATCHES, learning_rate=0.0, **options).train()
    text = "forced answers are almost never correct but complete traces often are (forcing suffix '\\nanswer ')"
    assert caplog.text.count(text) == 1
