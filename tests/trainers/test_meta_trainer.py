"""The trainer of all methods: each alone is its own trainer, none is stock TRL, and what they do to each other."""

import numpy as np
import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

from metatune.curricula import build_tokenizer
from metatune.rewards import Judge, JudgeClient, JudgeReward, MetaJudge, RewardModelReward, Rubric, RubricItem
from metatune.trainers import DUMPConfig, DUMPTrainer, MetaConfig, MetaTrainer, MPOTrainer, MRTConfig, MRTTrainer
from metatune.trainers.advantages import outcome_divisor, relative_to_group

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


ALIKE = Rubric("Make a number.", (RubricItem("same", "Anything.", 2),))
FORMS = {
    "episode": {"progress": "episode", **EPISODES},
    "prefix": {"progress": "prefix", "episodes": {"by": "tokens", "tokens": 4}, "forced_answer_tokens": 4}
    | {"forcing_suffix": "\nanswer "},
    "anytime": {"progress": "anytime", "budgets": [4, 8, 12], **PROGRESS},
    "length_penalty": {"progress": "length_penalty", "progress_weight": 0.4},
}


def judged(folder, url, rubric, weights, extra=(), **options):
    """A MetaTrainer on gold and a judge (and more); rewards are not scaled, so that a constant one is nothing."""
    client = JudgeClient(url, retries=1)
    defaults = {"meta_every": 0, "scale_rewards": "none", "max_steps": 3, "curriculum": "dump"}
    return MetaTrainer(
        tiny_model(),
        reward_funcs=[digits, JudgeReward(Judge(client, rubric)), *extra],
        args=config(folder, MetaConfig, reward_weights=weights, **{**defaults, **options}),
        train_dataset=rows(),
        processing_class=build_tokenizer(),
        meta_judge=MetaJudge(client, num_refinements=1) if options.get("meta_every") else None,
    )


@pytest.mark.parametrize("form", FORMS)
def test_progress_is_made_towards_gold_and_a_judge_pays_once_beside_it(tmp_path, form):
    """Watched, a judge changes no bit; paid, one that says the same of everything changes nothing but rounding."""
    alone = train(
        MRTTrainer, tmp_path / "alone", MRTConfig, max_steps=3, curriculum="dump", scale_rewards="none", **FORMS[form]
    )
    with FakeJudgeServer(judge_or_revise([])) as server:
        watched = judged(tmp_path / "watched", server.url, FIRST, [1.0, 0.0], **FORMS[form])
        watched.train()
        asked = len(server.bodies)
        paid = judged(tmp_path / "paid", server.url, ALIKE, [1.0, 0.5], **FORMS[form])
        paid.train()
    judged_each_step = 8 if form == "prefix" else 16  # half of its rollouts are forced to answer
    assert asked == 3 * judged_each_step, "forced answers that measure progress are not judged"
    assert len(paid._cases) == judged_each_step, "nor shown to the meta judge"
    for one, other, third in zip(curve(alone), curve(watched), curve(paid), strict=True):
        assert one[:2] == other[:2]
        assert third[:2] == pytest.approx(one[:2], rel=1e-3, abs=1e-6)
    assert any(gradient for _, gradient, *_ in curve(alone))


def advantages_beside_a_judge(folder, rubric, weights, form=None, reward=digits, **options):
    """The advantages of one batch on gold and a judge, and the rewards by function."""
    with FakeJudgeServer(judge_or_revise([])) as server:
        trainer = judged(folder, server.url, rubric, weights, max_steps=1, scale_rewards="group", **options)
        trainer.reward_funcs[0] = reward
        kept = []
        observe = trainer._observe
        trainer._observe = lambda outputs: kept.append(outputs["advantages"]) or observe(outputs)
        if form is not None:
            advantages = trainer._advantages
            trainer._advantages = lambda outputs: kept.append(advantages(outputs)) or kept[-1]
        trainer.train()
    return kept[-1], trainer._rewards_per_func


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_where_gold_is_constant_a_judge_counts_by_its_weight(tmp_path, right):
    for weight in (0.01, 0.5):
        found, rewards = advantages_beside_a_judge(
            tmp_path, FIRST, [1.0, weight], reward=lambda completions, **kwargs: [right] * len(completions)
        )
        judge = rewards[:, 1].view(4, 4)
        expected = weight * (judge - judge.mean(1, keepdim=True)) / (0.5 + 1e-4)  # 0.5: 1 / sqrt(4)
        torch.testing.assert_close(found.view(4, 4), expected, atol=1e-5, rtol=1e-4)
        assert found.any()


@pytest.mark.parametrize("scale", ["outcome", "batch"])
def test_reward_weights_set_the_ratio_of_judge_to_gold_with_anytime(tmp_path, scale):
    options = {"form": "anytime", "progress_scale": scale, **FORMS["anytime"]}
    once, rewards = advantages_beside_a_judge(tmp_path, FIRST, [1.0, 0.3], **options)
    twice, _ = advantages_beside_a_judge(tmp_path, FIRST, [2.0, 0.6], **options)
    torch.testing.assert_close(twice, once, atol=1e-3, rtol=1e-3)
    # With a constant judge, only the gold reward remains; the divisor of both is gold's.
    gold_alone, _ = advantages_beside_a_judge(tmp_path, ALIKE, [1.0, 0.3], **options)
    pays = 0.3 * relative_to_group(rewards[:, 1], 4)
    divisor = (pays / (once - gold_alone)[:, 0])[pays != 0]
    gold_divisor = outcome_divisor(rewards[:, 0], 4, "group")[pays != 0]
    assert len(divisor) > 0
    torch.testing.assert_close(divisor, gold_divisor if scale == "outcome" else divisor[:1].expand_as(divisor))


@pytest.mark.parametrize("form", ["prefix", "length_penalty"])
def test_a_distribution_without_gold_is_paid_by_the_judge(tmp_path, form):
    def silent_on_beta(completions, distribution, **kwargs):
        values = digits(completions, distribution)
        return [None if name == "beta" else value for name, value in zip(distribution, values, strict=True)]

    data = rows().filter(lambda row: row["distribution"] == "beta")
    with FakeJudgeServer(judge_or_revise([])) as server:
        client = JudgeClient(server.url, retries=1)
        trainer = MetaTrainer(
            tiny_model(),
            reward_funcs=[silent_on_beta, JudgeReward(Judge(client, FIRST))],
            args=config(tmp_path, MetaConfig, meta_every=0, max_steps=3, curriculum="uniform", **FORMS[form]),
            train_dataset=data,
            processing_class=build_tokenizer(),
        )
        trainer.train()
    assert any(abs(gradient) > 0 for _, gradient, *_ in curve(trainer))


@pytest.mark.parametrize(
    ("weights", "sees", "discounts"),
    [([1.0, 1.0], "total", True), ([1.0, 0.0], "total", False), ([1.0, 1.0], "gold", False)],
)
def test_a_curriculum_discounts_only_observations_under_another_rubric(tmp_path, weights, sees, discounts):
    with FakeJudgeServer(judge_or_revise([BETTER])) as server:
        options = {"meta_every": 2, "meta_cases": 6, "gate": False, "rollback_window": 0, "curriculum_reward": sees}
        trainer = judged(tmp_path, server.url, FIRST, weights, **options)
        discounted = []
        discount = trainer.curriculum.discount_past
        trainer.curriculum.discount_past = lambda: discounted.append(trainer.state.global_step) or discount()
        trainer.train()
    assert [row["rubric/version"] for row in trainer.state.log_history if "loss" in row] == [0, 0, 1]
    assert bool(discounted) == discounts


def test_a_rubric_is_tried_against_gold_also_where_another_reward_has_failed(tmp_path):
    def failing(completions, **kwargs):
        return [None if row % 4 == 1 else 1.0 for row in range(len(completions))]

    with FakeJudgeServer(judge_or_revise([])) as server:
        trainer = judged(tmp_path, server.url, FIRST, [1.0, 1.0, 1.0], [failing], max_steps=1)
        trainer.train()
    assert len(trainer._cases) == 16 and all(case.gold is not None for case in trainer._cases)


def test_everything_at_once(tmp_path):
    """Verifier, judge whose rubric changes, reward model, bandit and episodes: one run, and each has its say."""

    class FakeModel:
        def score(self, prompts, completions):
            return np.array([float(len(completion[0]["content"])) for completion in completions])

    with FakeJudgeServer(judge_or_revise([BETTER])) as server:
        options = {"meta_every": 2, "meta_cases": 6, "gate_cases": 8, **FORMS["episode"], "scale_rewards": "group"}
        trainer = judged(
            tmp_path, server.url, FIRST, [1.0, 0.5, 0.1], [RewardModelReward(FakeModel())], max_steps=4, **options
        )
        trainer.train()
    last = [row for row in trainer.state.log_history if "loss" in row][-1]
    told = (
        "rewards/digits/mean",
        "rewards/judge/mean",
        "rewards/reward_model/mean",
        "progress/mean",
        "mpo/rank_accuracy",
    )
    assert all(name in last for name in told) and last["rubric/version"] == 1
    parts = [last[f"rewards/{name}/mean"] for name in ("digits", "judge", "reward_model")]
    assert last["reward"] == pytest.approx(parts[0] + 0.5 * parts[1] + 0.1 * parts[2], rel=1e-5)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.0, 1.0], "progress: episode needs a gold reward, and the weight of 'digits' is 0: raise it in"),
        (None, "progress: episode needs a gold reward, not only a judge or a reward model"),
    ],
)
def test_progress_needs_a_gold_reward_that_pays(tmp_path, weights, message):
    client = JudgeClient("http://127.0.0.1:9/v1", retries=1)
    judge = JudgeReward(Judge(client, FIRST))
    with pytest.raises(ValueError, match=message):
        MetaTrainer(
            tiny_model(),
            reward_funcs=[digits, judge] if weights else [judge],
            args=config(tmp_path, MetaConfig, meta_every=0, reward_weights=weights, **FORMS["episode"]),
            train_dataset=rows(),
            processing_class=build_tokenizer(),
        )


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


def test_asking_for_a_judge_that_is_not_there_says_so(tmp_path):
    trainer = MetaTrainer(
        tiny_model(), digits, config(tmp_path, MetaConfig), rows(), processing_class=build_tokenizer()
    )
    with pytest.raises(ValueError, match="this MetaTrainer has no judge: no JudgeReward is among its reward_funcs"):
        _ = trainer.judge
