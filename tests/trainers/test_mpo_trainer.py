"""MPOTrainer against a real HTTP server that judges and revises by rule: which rubric is in force when, and resume."""

import json
import threading

import numpy as np
import pytest

from metatune.rewards import JudgeError, Rubric, RubricHistory, RubricItem
from metatune.rewards.judge_watch import batch_quality
from metatune.rewards.judged_cases import JudgedCase
from metatune.trainers import MPOConfig

from ..rewards.fake_judge_server import FakeJudgeServer
from .mpo_setup import BETTER, FIRST, WORSE, is_meta, judge_or_revise, make_mpo, run


def log(trainer):
    return [row for row in trainer.state.log_history if "loss" in row]


def events(folder):
    return [
        (event["event"], event["version"], event["step"]) for event in RubricHistory.read(folder / "rubrics").events
    ]


def test_the_reward_is_the_judge_s_normalised_total(tmp_path):
    trainer, bodies = run(tmp_path, max_steps=2, meta_every=0)
    for row in log(trainer):
        assert row["rubric/version"] == 0 and row["judge/failures"] == 0
        assert row["reward"] == pytest.approx(row["rewards/judge/mean"]) == pytest.approx(row["judge/score"])
        assert 0.5 <= row["reward"] <= 1, "one of two items pays everything alike"
        assert 0 <= row["mpo/rank_accuracy"] <= 1
        assert any(key.startswith("pass_rate/") for key in row), "those of gold, which is only watched here"
    assert len(bodies) == 2 * 16 and not any(map(is_meta, bodies))
    assert events(tmp_path) == [("given", 0, 0)]


def test_a_rubric_that_ranks_as_well_is_in_force_from_the_next_batch_on(tmp_path):
    trainer, bodies = run(tmp_path, BETTER, max_steps=4)
    assert [row["rubric/version"] for row in log(trainer)] == [0, 0, 1, 1]
    assert trainer.judge.rubric == BETTER
    assert events(tmp_path)[:2] == [("given", 0, 0), ("accepted", 1, 1)]
    assert log(trainer)[1]["mpo/accepted"] == 1 and log(trainer)[1]["mpo/tokens"] == 20
    version = json.loads((tmp_path / "rubrics" / "version-001.json").read_text())
    assert version["verdict"]["measure"] == "rank_accuracy" and version["analyses"] == ["an analysis"]
    assert len(version["cases"]) == 6 and {"why", "prompt", "total", "gold", "rationales"} <= set(version["cases"][0])
    shown = {case["prompt"] for case in version["cases"]}
    after = [body for body in bodies[2 * 16 :] if not is_meta(body)]
    tried = after[:8]
    assert len(after) == 8 + 2 * 16, "the new rubric on eight held-out completions, whose old totals are known"
    assert log(trainer)[1]["mpo/gate_judgments"] == 8 and log(trainer)[1]["mpo/gate_measurements"] == 1
    assert not any(prompt in body["messages"][1]["content"] for body in tried for prompt in shown)


def test_a_rubric_that_ranks_worse_is_refused_and_kept_on_record(tmp_path):
    trainer, _ = run(tmp_path, WORSE, max_steps=3)
    assert [row["rubric/version"] for row in log(trainer)] == [0, 0, 0]
    assert events(tmp_path) == [("given", 0, 0), ("refused", 1, 1)]
    assert log(trainer)[1]["mpo/accepted"] == 0 and trainer.judge.rubric == FIRST


def test_without_a_gate_every_rubric_is_taken(tmp_path):
    trainer, _ = run(tmp_path, WORSE, max_steps=3, gate=False)
    assert events(tmp_path) == [("given", 0, 0), ("accepted", 1, 1)]
    assert trainer.judge.rubric == WORSE


def test_a_gate_without_a_prompt_to_hold_out_refuses_to_ask(tmp_path):
    """One prompt a batch: it is shown or held out, and nothing is left for the other."""
    _, bodies = run(tmp_path, BETTER, max_steps=1, meta_every=1, per_device_train_batch_size=4)
    assert events(tmp_path) == [("given", 0, 0), ("failed", None, 0)] and not any(map(is_meta, bodies))
    reason = RubricHistory.read(tmp_path / "rubrics").events[1]["reason"]
    assert "too few prompts" in reason and "meta_every" in reason


def test_without_gold_agreement_and_spread_decide(tmp_path):
    trainer, _ = run(tmp_path, BETTER, max_steps=3, gold=False)
    verdict = json.loads((tmp_path / "rubrics" / "version-001.json").read_text())["verdict"]
    assert verdict["measure"] in ("reliability", "spread") and verdict["new"]["rank_accuracy"] is None
    assert "mpo/spread" in log(trainer)[0]


def test_without_gold_high_scores_are_judged_again_and_their_agreement_shown(tmp_path):
    """The judge changes its mind about every other answer that it is asked about anew."""
    second = []

    def fickle(number, body):
        if not is_meta(body) and body["temperature"] == 0.7 and len(second) < 4:
            second.append(number)
            if len(second) % 2:
                return ("text", json.dumps({name: {"rationale": "no", "score": 0} for name in ("digits", "same")}))

    _, bodies = run(tmp_path, BETTER, max_steps=2, gold=False, gate=False, meta_cases=4, fault=fickle)
    cases = json.loads((tmp_path / "rubrics" / "version-001.json").read_text())["cases"]
    agreements = {case["agreement"] for case in cases if case["why"] == "inflated"}
    assert agreements and max(agreements) < 1, "what the judge does not stand by is shown as inflated"
    (analysis,) = [body for body in bodies if is_meta(body) and len(body["messages"]) == 2]
    assert "agreement of repeated judgements" in analysis["messages"][1]["content"]


def test_a_meta_judge_that_denies_access_ends_the_run(tmp_path):
    """No later meta step could succeed, and a run whose rubric stays is not what was asked for."""
    denied = ("error", (401, "no such key"))
    with pytest.raises(
        JudgeError, match=r"all 1 analyses failed, after 1 try each; mostly refused: 401 .*no such key"
    ):
        run(tmp_path, max_steps=3, fault=lambda number, body: denied if is_meta(body) else None)


def test_a_meta_step_that_fails_changes_nothing(tmp_path):
    trainer, _ = run(tmp_path, max_steps=3, fault=lambda number, body: ("status", 400) if is_meta(body) else None)
    assert events(tmp_path) == [("given", 0, 0), ("failed", None, 1)]
    assert log(trainer)[1]["mpo/failed"] == 1 and trainer.judge.rubric == FIRST
    assert "told to answer 400" in RubricHistory.read(tmp_path / "rubrics").events[1]["reason"]
    trainer, _ = run(tmp_path / "same", FIRST, max_steps=2)
    assert events(tmp_path / "same")[1][0] == "failed", "a rubric that changes nothing is none"


def test_a_rubric_that_turns_out_worse_is_rolled_back(tmp_path):
    """Without a gate the worse rubric is taken; two batches later it ranks against gold, and its parent does not."""
    options = {"meta_every": 3, "rollback_window": 2, "rollback_drop": 0.05, "gate": False}
    trainer, _ = run(tmp_path, WORSE, FIRST, max_steps=5, **options)
    assert events(tmp_path)[:3] == [("given", 0, 0), ("accepted", 1, 2), ("rolled_back", 0, 4)]
    assert trainer.judge.rubric == FIRST and log(trainer)[4]["mpo/rolled_back"] == 1
    reason = RubricHistory.read(tmp_path / "rubrics").events[2]["reason"]
    assert "the judge had become worse by" in reason and "of pairs of the run's beginning and now" in reason


def test_a_batch_that_says_nothing_asks_for_no_second_trial(tmp_path):
    """The watch suspects the rubric at the end of its window; batches whose gold is all alike add nothing to that."""
    trainer, _ = run(tmp_path, max_steps=1, meta_every=9, rollback_window=1)
    evolution, trials = trainer._evolution, []
    evolution._look_back = trials.append
    evolution._watch.rubric_changed()
    evolution.after_batch([case("a", 0.2, 1.0), case("a", 0.9, 0.0)], step=1)
    evolution.after_batch([case("a", 0.2, 1.0), case("a", 0.9, 1.0)], step=2)
    assert len(trials) == 1


def test_a_held_out_judge_raises_the_alarm_when_the_two_part(tmp_path):
    """The rubric that trains is exchanged for one that pays everything; the held-out judge does not follow."""
    generous = Rubric("Make a number.", FIRST.items[1:])
    options = {"held_out_every": 1, "held_out_cases": 16, "alarm_window": 2, "alarm_gap": 0.1, "gate": False}
    trainer, _ = run(tmp_path, generous, held_out=WORSE, max_steps=4, **options)
    rows = log(trainer)
    assert [row.get("held_out_judge/alarm") for row in rows[:2]] == [None, 0.0]
    assert rows[-1]["held_out_judge/alarm"] == 1 and rows[-1]["held_out_judge/parted"] > 0.1
    assert all(0 <= row["held_out_judge/score"] <= 1 for row in rows)


def test_a_batch_without_a_judgement_does_not_count_as_zero(tmp_path):
    def sometimes(number, body):
        return ("cut", "{") if "end of answer" in body["messages"][1]["content"] and number % 4 == 0 else None

    trainer, _ = run(tmp_path, max_steps=2, meta_every=0, fault=sometimes)
    row = log(trainer)[0]
    assert row["unscorable"] == row["judge/failures"] > 0
    assert row["reward"] >= 0.5, "the least that a judged completion earns here"


# ---- resume ----


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 3, 5])
def test_resuming_restores_rubric_history_and_counters(tmp_path, step):
    """The run changes its rubric after steps 2 and 4 and stops in between; resumed it goes on bit for bit."""
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 6, "held_out": FIRST, "held_out_every": 1}
    keys = (
        "loss",
        "reward",
        "grad_norm",
        "rubric/version",
        "mpo/rank_accuracy",
        "held_out_judge/score",
        "mpo/accepted",
    )
    second, third = (Rubric(BETTER.task, (RubricItem("digits", "Any digit.", points),)) for points in (4, 5))
    whole, _ = run(tmp_path, BETTER, second, third, **options)
    expected = [tuple(row.get(key) for key in keys) for row in log(whole)]
    story = events(tmp_path)
    assert [version for _, version, _ in story] == [0, 1, 2, 3]

    done = step // 2  # meta steps that the checkpoint has behind it
    with FakeJudgeServer(judge_or_revise([BETTER, second, third][done:])) as server:
        resumed = make_mpo(tmp_path, server.url, **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert [tuple(row.get(key) for key in keys) for row in log(resumed)] == expected
    assert events(tmp_path) == story
    assert resumed.rubric_version == whole.rubric_version and resumed.judge.rubric == whole.judge.rubric
    assert list((tmp_path / "rubrics").glob("abandoned-0/*")), "what the first run did after the checkpoint is kept"


def test_a_user_s_rollback_is_taken_up_by_the_next_resume(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    run(tmp_path, BETTER, **options)
    RubricHistory.read(tmp_path / "rubrics").request_rollback(0, "it forgets half")
    with FakeJudgeServer(judge_or_revise([FIRST])) as server:
        resumed = make_mpo(tmp_path, server.url, **{**options, "max_steps": 5})
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert ("rolled_back", 0, 4) in events(tmp_path) and log(resumed)[-1]["rubric/version"] == 0
    assert resumed.judge.rubric == FIRST


# ---- pure parts, and what is refused ----


def case(prompt, total, gold=None):
    return JudgedCase(prompt, f"{total}", total, {}, {}, gold)


def test_the_quality_of_a_batch_by_hand():
    assert batch_quality([], False) is None and batch_quality([case("a", 1.0)], False) is None
    spread = batch_quality([case("a", 0.2), case("a", 0.6), case("b", 0.5)], False)
    assert spread == pytest.approx(np.std([0.2, 0.6], ddof=1))
    assert batch_quality([case("a", 0.2), case("a", 0.6)], True) is None, "gold that is missing once is no spread"
    golds = [case("a", 0.2, 0.0), case("a", 0.6, 1.0), case("b", 0.5, 1.0), case("b", 0.5, 0.0), case("c", 0.1, 1.0)]
    assert batch_quality(golds, True) == 0.75


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"meta_every": -1}, "meta_every must be at least 0"),
        ({"meta_cases": 0}, "meta_cases must be at least 1"),
        ({"meta_pool": 40}, "meta_pool is 40, and a meta step takes 20 meta_cases and 64 gate_cases"),
        ({"gate_repeats": 1}, "gate_repeats must be at least 2, got 1"),
        ({"gate_temperature": -0.1}, "gate_temperature must be at least 0"),
        ({"alarm_gap": 0.0}, "alarm_gap must be above 0"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        MPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **options)


def test_what_a_trainer_cannot_do_without(tmp_path):
    with FakeJudgeServer(judge_or_revise([])) as server:
        with pytest.raises(ValueError, match="gold_reward: no reward function 'digit'"):
            make_mpo(tmp_path, server.url, gold_reward="digit")
        trainer = make_mpo(tmp_path, server.url)
        arguments = {
            "args": trainer.args,
            "train_dataset": trainer.train_dataset,
            "processing_class": trainer.processing_class,
        }
        with pytest.raises(ValueError, match="pass a meta_judge, or set meta_every: 0 to keep the rubric unchanged"):
            type(trainer)(trainer.model, trainer.reward_funcs, **arguments)
        trainer.args.alarm_gap = 0.3
        with pytest.raises(ValueError, match="alarm_gap has no effect with no held_out_judge"):
            type(trainer)(trainer.model, trainer.reward_funcs, meta_judge=trainer._evolution._meta_judge, **arguments)
        trainer.args.reward_weights = None
        with pytest.raises(ValueError, match="needs one JudgeReward among reward_funcs, not 0"):
            type(trainer)(trainer.model, trainer.reward_funcs[1:], **arguments)
    assert threading.active_count() < 50
