"""Evaluation at budgets: a scripted engine whose every number can be checked by hand, and the real starter."""

import json

import pytest
from transformers import AutoTokenizer

from metatune.eval.benchmarks import load_held_out
from metatune.eval.budget_evaluation import BudgetEvaluation
from metatune.eval.engines import CompactEngine, load_engine
from metatune.eval.test_time import evaluate_at_budgets
from metatune.recipes.adapters import STARTER
from metatune.rewards import VERIFIERS
from metatune.rewards.episodes import EpisodeRule
from metatune.rewards.extraction import ANSWER_LINE
from metatune.rewards.forcing import Forcing

from .test_scoring import Verifier, item


class Scripted:
    """Traces are scripted; a forced answer is `7` (right) if the cut trace holds a `7`, else `8`, and ends there."""

    def __init__(self, tokenizer, traces):
        self.tokenizer, self.traces, self.calls = tokenizer, traces, []
        self.eos_token_ids = frozenset({tokenizer.eos_token_id})

    def generate(self, prompt_ids, sampling):
        texts = [self.tokenizer.decode(ids) for ids in prompt_ids]
        self.calls.append(texts)
        said = []
        for row, text in enumerate(texts):
            trace = text.partition("<assistant>")[2]
            if len(self.calls) == 1:
                answer = self.traces[row]
            elif "answer " in trace:
                answer = "7~" if "7" in trace else "8~"
            else:
                answer = "z" * 99
            said.append(self._ids(answer)[: sampling.max_new_tokens])
        return said

    def _ids(self, text):
        body = self.tokenizer(text.rstrip("~"))["input_ids"]
        return [*body, self.tokenizer.eos_token_id] if text.endswith("~") else body


@pytest.fixture(autouse=True)
def verifier(monkeypatch):
    monkeypatch.setitem(VERIFIERS, "contains", Verifier())


def measure(tokenizer, traces, items=None, **options):
    engine = Scripted(tokenizer, traces)
    items = items or [item()]
    options = {"budgets": [4, 8], "num_answers": 2, "num_samples": len(traces) // len(items), **options}
    return engine, evaluate_at_budgets(engine, tokenizer, items, forcing=Forcing(tokenizer, "\nanswer "), **options)


def test_a_long_trace_is_cut_and_forced_and_a_short_one_counts_as_it_is(tokenizer):
    # "p" has 3+4 and the reference 7; 12 characters are cut to 8, so the 7 at the sixth place counts from 8 on
    engine, measured = measure(tokenizer, ["aaaaa7aaaa", "7~"], num_samples=2)
    long, short = measured.budgets.traces
    assert (long.tokens, long.ended, short.tokens, short.ended) == (8, False, 2, True)
    assert long.budgets.success == [0.0, 0.0, 1.0]
    # suffix "\nanswer " has 8 tokens, 7 of them at the empty prefix, and the answer "7<end>" two
    assert long.budgets.spent == [9.0, 14.0, 18.0]
    assert long.budgets.answer == [9.0, 10.0, 10.0]
    assert short.budgets.success == [0.0, 1.0, 1.0], "its own outcome as soon as it has ended"
    assert short.budgets.spent == [9.0, 2.0, 2.0]
    assert short.budgets.answer == [9.0, 0.0, 0.0]
    assert len(engine.calls) == 2, "the traces, and all forced answers at once"
    assert len(engine.calls[1]) == 6, "the empty prefix is shared by the problem's traces: three cuts of two answers"

    rows = measured.budgets.summary()["budgets"]
    assert [row["budget"] for row in rows] == [0, 4, 8]
    assert [row["accuracy"] for row in rows] == [0.0, 0.5, 1.0]
    assert [row["spent"] for row in rows] == [9.0, 8.0, 10.0]
    assert [row["ended"] for row in rows] == [0.0, 0.5, 0.5]
    assert [row["maj@2"] for row in rows] == [0.0, 0.5, 1.0]
    assert measured.budgets.forced_tokens == 12


def test_regret_by_hand(tokenizer):
    _, measured = measure(tokenizer, ["aaaaa7aaaa", "7~"], num_samples=2)
    long, short = measured.budgets.traces
    assert measured.budgets.regret(long, 8) == pytest.approx(1 - (4 * 0.5) / 8), "0 to 4, then a line to 1 at 8"
    assert measured.budgets.regret(short, 8) == pytest.approx(1 - (2 * 0.5 + 6) / 8), "a line to 1 at 2, then held"
    assert measured.budgets.regret(long, 4) == 1
    regrets = {row["cutoff"]: row["regret"] for row in measured.budgets.summary()["regret"]}
    assert regrets[8] == pytest.approx((0.75 + 1 / 8) / 2)


def test_extrapolation_goes_past_the_largest_budget(tokenizer):
    engine, measured = measure(tokenizer, ["aaaaa7aa", "8\nanswer 8~"], extrapolate=[2], budgets=[4, 12])
    first, second = measured.budgets.traces
    assert measured.budgets.extended_budgets == [24]
    assert engine.calls[1] == ["<user>3+4 p<assistant>aaaaa7aa", "<user>3+4 p<assistant>8\n"]
    assert first.extended.success == [1.0] and second.extended.success == [0.0]
    assert first.extended.spent == [24 + 8 + 2]
    row = measured.budgets.summary()["extended"][0]
    assert (row["factor"], row["budget"], row["accuracy"], row["reached"]) == (2, 24, 0.5, 1.0)


def test_episodes_have_their_own_curve_and_end_with_the_outcome(tokenizer, tmp_path):
    rule = EpisodeRule(by="delimiter")
    _, measured = measure(tokenizer, ["a\n7\nanswer 7~", "b~"], budgets=[20], episodes=rule)
    first, second = measured.budgets.traces
    assert first.episode_ends == [2, 4, 13]
    assert first.episodes.success == [0.0, 0.0, 1.0, 1.0]
    assert second.episodes.success == [0.0, 0.0]
    rows = measured.budgets.summary()["episodes"]
    assert [row["accuracy"] for row in rows] == [0.0, 0.0, 0.5, 0.5], "the one that has ended keeps its outcome"
    assert [row["going_on"] for row in rows] == [1.0, 0.5, 0.5, 0.0]

    measured.save(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "traces.jsonl").read_text().splitlines()]
    assert lines[0] == {
        "step": None,
        "distribution": "sums",
        "prompt": "3+4 p",
        "episodes": ["a\n", "7\n", "answer 7<end>"],
        "values": [0.0, 0.0, 1.0, 1.0],
        "correct": True,
    }


def test_an_empty_completion_has_no_episode_and_still_what_it_answers_at_once(tokenizer, tmp_path):
    rule = EpisodeRule(by="delimiter")
    _, measured = measure(tokenizer, ["a\n7\nanswer 7~", ""], budgets=[20], episodes=rule)
    empty = measured.budgets.traces[1]
    assert empty.episode_ends == [] and len(empty.episodes.success) == 1
    assert len(measured.budgets.summary()["episodes"]) == 4
    measured.save(tmp_path)


def test_what_cannot_be_scored_is_left_out_and_counted(tokenizer):
    items = [item("p"), item("q", answer="?")]
    _, measured = measure(tokenizer, ["7~", "7~"], items)
    summary = measured.budgets.summary()
    assert measured.budgets.traces[1].budgets.success == [None, None, None]
    assert summary["budgets"][1]["accuracy"] == 1.0
    assert summary["num_unscorable"] == 1
    assert list(measured.budgets.curves()) == [("sums", "p")]
    assert measured.budgets.regret(measured.budgets.traces[1], 8) is None


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    _, measured = measure(
        tokenizer,
        ["aaaaa7aaaa", "7~"],
        num_samples=2,
        extrapolate=[2, 1.5],
        episodes=EpisodeRule(by="tokens", tokens=3),
    )
    measured.save(tmp_path)
    loaded = BudgetEvaluation.load(tmp_path)
    assert (loaded.traces, loaded.settings) == (measured.budgets.traces, measured.budgets.settings)
    assert loaded.factors == [1.5, 2]
    assert loaded.summary() == json.loads((tmp_path / "test_time.json").read_text())["summary"]
    assert (tmp_path / "completions.parquet").exists()


def test_a_file_that_is_none_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"test_time\.json: no such file"):
        BudgetEvaluation.load(tmp_path)
    (tmp_path / "test_time.json").write_text("{}")
    with pytest.raises(ValueError, match="not a saved evaluation at budgets"):
        BudgetEvaluation.load(tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"budgets": []}, "budgets must be"),
        ({"budgets": [0, 4]}, "budgets must be"),
        ({"extrapolate": [0.5]}, "by at least 1, got 0.5"),
        ({"max_new_tokens": 7}, "max_new_tokens 7 is below the largest budget, 8"),
        ({"num_answers": 0}, "num_answers must be at least 1"),
    ],
)
def test_bad_options_are_refused(tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        measure(tokenizer, ["7~"], **options)


def test_each_item_is_forced_as_its_verifier_reads_answers(tokenizer):
    items = [item("p"), {**item("q", answer="RIGHT"), "verifier": "verdict"}, item("r")]
    engine = Scripted(tokenizer, ["aaaaa", "bbbbb", "7~"])
    options = {"budgets": [4], "num_answers": 1}
    measured = evaluate_at_budgets(engine, tokenizer, items, forcing=Forcing(tokenizer, "so:\n"), **options)
    assert measured.budgets.settings["forcing_suffix"] == "so:\n", "it opens no form, so it fits all verifiers"

    VERIFIERS["contains"].answer_forms = (ANSWER_LINE,)
    engine = Scripted(tokenizer, ["aaaaa", "bbbbb", "7~"])
    measured = evaluate_at_budgets(engine, tokenizer, items, forcing=Forcing(tokenizer), **options)
    suffixes = {"contains": "\nanswer ", "verdict": "\n\nMy final answer: <verdict>"}
    assert measured.budgets.settings["forcing_suffix"] == suffixes
    cut = {text.partition("<assistant>")[2] for text in engine.calls[1]}
    assert cut == {"answer ", "My final answer: <verdict>", "aaaa\nanswer ", "bbbb\n\nMy final answer: <verdict>"}


def test_a_suffix_that_a_verifier_rejects_is_reported_before_generation(tokenizer):
    items = [{**item("q", answer="RIGHT"), "verifier": "verdict"}]
    with pytest.raises(ValueError, match=r"'verdict' rejects a correct forced answer.*'answer RIGHT' as wrong"):
        measure(tokenizer, [], items)


def test_too_long_is_told_before_anything_is_generated(model, tokenizer, monkeypatch):
    engine = CompactEngine(model, tokenizer)
    monkeypatch.setattr(engine, "generate", None)
    with pytest.raises(ValueError, match="512 positions; lower budgets, extrapolate or answer_tokens"):
        evaluate_at_budgets(
            engine, tokenizer, [item()], forcing=Forcing(tokenizer, "\nanswer "), budgets=[128], extrapolate=[4]
        )


def test_the_starter_gains_by_going_on_and_two_runs_agree():
    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    engine = load_engine("compact", str(STARTER), tokenizer, device="cpu")
    config = {"name": "c", "source": "countdown", "config": {"numbers": 3}, "train_size": 4, "test_size": 16}
    options = {"forcing": Forcing(tokenizer), "budgets": [16, 64], "num_answers": 2, "num_samples": 2}
    runs = [evaluate_at_budgets(engine, tokenizer, load_held_out([config]), **options) for _ in range(2)]
    assert runs[0].budgets.traces == runs[1].budgets.traces
    rows = runs[0].budgets.summary()["budgets"]
    assert rows[2]["accuracy"] > rows[0]["accuracy"] + 0.1
    assert rows[2]["accuracy"] == runs[0].evaluation.summary()["accuracy"], "all traces ended within 64 tokens"
