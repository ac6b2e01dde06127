"""The trainer of all methods: each alone is its own trainer, none is stock TRL, and what they do to each other."""

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

from metatune.curricula import build_tokenizer
from metatune.rewards import Judge, JudgeClient
from metatune.trainers import DUMPConfig, DUMPTrainer, MetaConfig, MetaTrainer, MPOTrainer, MRTConfig, MRTTrainer

from ..rewards.fake_judge_server import FakeJudgeServer
from .dump_setup import config, digits, rows, tiny_model
from .mpo_setup import BETTER, FIRST, judge_or_revise, run

KEYS = ("loss", "grad_norm", "reward", "rubric/version")
PROGRESS = {"forcing_suffix": "\nanswer ", "num_forced_answers": 2, "forced_answer_tokens": 4}
EPISODES = {"episodes": {"by": "tokens", "tokens": 4}, **PROGRESS}


def curve(trainer) -> list[tuple]:
    return [tuple(row.get(key) for key in KEYS) for row in trainer.state.log_history if "loss" in row]


def train(trainer_class, folder, config_class, data=None, **options):
    trainer = trainer_class(
        tiny_model(),
        reward_funcs=digits,
        args=config(folder, config_class, **options),
        train_dataset=rows() if data is None else data,
        processing_class=build_tokenizer(),
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("alone", "options"),
    [
        ((GRPOTrainer, GRPOConfig), {}),
        ((DUMPTrainer, DUMPConfig), {"curriculum": "dump"}),
        ((MRTTrainer, MRTConfig), {"curriculum": "uniform", "progress": "episode", **EPISODES}),
        ((MRTTrainer, MRTConfig), {"curriculum": "dump", "progress": "anytime", "budgets": [4, 8, 12], **PROGRESS}),
    ],
    ids=["stock", "curriculum", "progress", "curriculum-progress"],
)
def test_what_is_on_alone_is_its_own_trainer_bit_for_bit(tmp_path, alone, options):
    data = rows() if options else rows(num_items=24, distributions=("alpha",))
    off = {} if options else {"curriculum": "uniform"}
    ours = train(MetaTrainer, tmp_path / "ours", MetaConfig, data, max_steps=4, **options, **off)
    theirs = train(alone[0], tmp_path / "theirs", alone[1], data, max_steps=4, **options)
    assert curve(ours) == curve(theirs) and len(curve(ours)) == 4
    for mine, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_a_judge_alone_is_mpo_bit_for_bit(tmp_path):
    ours, theirs = (
        run(tmp_path / each.__name__, BETTER, trainer_class=each, max_steps=3)[0] for each in (MetaTrainer, MPOTrainer)
    )
    assert curve(ours) == curve(theirs) and curve(ours)[-1][-1] == 1, "the rubric has changed on the way"


def test_a_judge_pays_rollouts_from_stale_prefixes(tmp_path):
    """The judge reads prefix and rollout as one answer, and its rubric changes as without progress."""
    options = {"progress": "prefix", "terminating_generations": 0}
    trainer, _ = run(tmp_path, BETTER, trainer_class=MetaTrainer, max_steps=4, **options)
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["rubric/version"] for row in rows] == [0, 0, 1, 1]
    assert rows[-1]["progress/prefix_tokens"] >= 0 and rows[-1]["judge/failures"] == 0


def test_a_meta_judge_without_a_judge_is_a_mistake(tmp_path):
    with FakeJudgeServer(judge_or_revise([])) as server, pytest.raises(ValueError, match="go with a JudgeReward"):
        MetaTrainer(
            tiny_model(),
            reward_funcs=digits,
            args=config(tmp_path, MetaConfig),
            train_dataset=rows(),
            processing_class=build_tokenizer(),
            held_out_judge=Judge(JudgeClient(server.url), FIRST),
        )
