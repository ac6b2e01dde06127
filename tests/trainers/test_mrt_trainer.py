import json
import math

import pandas as pd
import pytest
import torch
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from metatune.curricula import build_tokenizer, load_distributions
from metatune.recipes.adapters import STARTER
from metatune.rewards import correctness_reward
from metatune.trainers import DUMPTrainer, MRTConfig, MRTTrainer
from metatune.trainers.advantages import group_advantages
from metatune.trainers.answer_likelihood import AcceptedAnswers, Tree, success_probabilities
from metatune.trainers.progress import length_penalised

from .dump_setup import config, digits, rows, tiny_model, tokenizer_with_tools
from .mrt_setup import LIKELIHOOD, VARIANTS, Recording, last, make

KEYS = ("loss", "grad_norm", "reward")


def curve(trainer, keys=KEYS) -> list[tuple]:
    return [tuple(row.get(key) for key in keys) for row in trainer.state.log_history if "loss" in row]


@pytest.fixture(scope="module")
def starter():
    """The packaged checkpoint, which really solves problems."""
    return str(STARTER), AutoTokenizer.from_pretrained(STARTER)


# ---- everything off ----


def test_without_progress_it_is_stock_grpo_bit_for_bit(tmp_path):
    data = rows(num_items=24, distributions=("alpha",))
    ours = make(tmp_path, "none", train_dataset=data, curriculum="uniform")
    ours.train()
    stock = GRPOTrainer(
        tiny_model(),
        reward_funcs=digits,
        args=config(tmp_path, GRPOConfig),
        train_dataset=data,
        processing_class=build_tokenizer(),
    )
    stock.train()
    assert len(curve(stock)) == 6
    assert curve(ours) == curve(stock)


@pytest.mark.parametrize("progress", ["episode", "length_penalty"])
def test_the_table_of_completions_has_the_advantages_that_are_trained_on(tmp_path, progress):
    def parity(completions, **kwargs):
        return [float(len(completion[0]["content"]) % 2) for completion in completions]

    trainer = Recording(
        tiny_model(),
        reward_funcs=parity,
        args=config(
            tmp_path,
            MRTConfig,
            progress=progress,
            max_steps=1,
            max_completion_length=40,
            log_completions=True,
            num_completions_to_print=0,
            **VARIANTS[progress],
        ),
        train_dataset=rows(),
        processing_class=build_tokenizer(),
    )
    trainer.train()
    trained_on = trainer.result
    if progress == "episode":
        mask = trainer.seen["completion_mask"]
        trained_on = (trained_on * mask).sum(1) / mask.sum(1)
        assert mask.sum(1).min() < mask.sum(1).max()
    assert not torch.allclose(trained_on, trainer.outcome)
    table = pd.read_parquet(tmp_path / "completions" / "completions_00001.parquet")
    assert table["advantage"].tolist() == pytest.approx(trained_on.tolist())


def test_a_bonus_of_weight_zero_trains_as_no_bonus(tmp_path):
    """Forced answers come from the same random numbers as rollouts, so only the first step can be compared."""
    ours = make(tmp_path, "episode", progress_weight=0.0, max_steps=1)
    ours.train()
    stock = DUMPTrainer(
        tiny_model(),
        reward_funcs=digits,
        args=config(tmp_path, max_steps=1),
        train_dataset=rows(),
        processing_class=build_tokenizer(),
    )
    stock.train()
    assert curve(ours)[0] == pytest.approx(curve(stock)[0], abs=1e-6)  # a sum over (B, T) rounds otherwise


# ---- episode ----


def test_each_episode_is_paid_its_own_progress(tmp_path):
    trainer = make(tmp_path, "episode", max_steps=1)
    trainer.__class__ = Recording
    trainer.train()
    advantages, outcome = trainer.result, trainer.outcome
    assert advantages.shape == trainer.seen["completion_ids"].shape
    bonus = advantages - outcome[:, None]
    for row, ids in enumerate(trainer._completion_ids):
        for start in range(0, len(ids), 4):
            episode = bonus[row, start : min(start + 4, len(ids))]
            assert (episode == episode[0]).all()
        assert not bonus[row, len(ids) :].any()
    assert bonus.any()


def one_step(tmp_path, monkeypatch, success, **options) -> Recording:
    """Train one step with `success(cut)` as J at each prefix, and outcomes of 1 and 0 in turn."""
    trainer = make(
        tmp_path,
        "episode",
        max_steps=1,
        scale_rewards="none",
        reward=lambda completions, **kwargs: [1.0, 0.0] * (len(completions) // 2),
        **LIKELIHOOD,  # no shrinkage
        **options,
    )
    trainer.__class__ = Recording
    monkeypatch.setattr(trainer, "_by_likelihood", lambda prompts, places: [success(cut) for _, cut in places])
    trainer.train()
    return trainer


def test_the_bonus_is_made_of_the_estimated_values(tmp_path, monkeypatch):
    """Worked by hand: J is 0 at the start and 0.5 at every other prefix, and outcomes are 1 and 0 in turn."""
    trainer = one_step(tmp_path, monkeypatch, lambda cut: 0.5 * (cut > 0), reward_weights=[3.0])
    bonus = trainer.result - trainer.outcome[:, None]
    ends = trainer._ends()
    group = range(4)
    for episode in range(max(len(ends[row]) for row in group)):
        progress = []
        for row in group:
            outcome = [1.0, 0.0][row % 2]
            values = [0.0, *[0.5] * (len(ends[row]) - 1), outcome]
            progress.append(values[episode + 1] - values[episode] if episode < len(ends[row]) else 0.0)
        for row in group:
            if episode < len(ends[row]):
                expected = 3.0 * (progress[row] - sum(progress) / 4)  # gold's weight
                assert bonus[row, ends[row][episode] - 1].item() == pytest.approx(expected, abs=1e-6)


def test_episodes_around_an_unknown_value_share_the_increase(tmp_path, monkeypatch):
    """J is 0 at the start and unknown after each episode except the last, whose outcome is 1 or 0 in turn."""
    trainer = one_step(tmp_path, monkeypatch, lambda cut: math.nan if cut else 0.0)
    bonus = trainer.result - trainer.outcome[:, None]
    first, second = bonus[0], bonus[1]  # three episodes of four tokens each
    torch.testing.assert_close(first[:12], torch.full((12,), 1 / 3 - 1 / 6))
    torch.testing.assert_close(second[:12], torch.full((12,), -1 / 6))


def test_the_bonus_has_the_divisor_of_the_outcome_on_easy_and_hard_prompts(tmp_path, monkeypatch):
    """With decay 1 and a J that changes only at the end, progress is the outcome minus J_0: alpha times more of it."""
    trainer = make(
        tmp_path,
        "episode",
        max_steps=1,
        episodes={"by": "tokens", "tokens": 12},  # one episode
        progress_weight=0.5,
        reward=lambda completions, **kwargs: [float(row % 4 <= row // 4) for row in range(len(completions))],
        **LIKELIHOOD,
    )
    trainer.__class__ = Recording
    monkeypatch.setattr(trainer, "_by_likelihood", lambda prompts, places: [0.3] * len(places))
    trainer.train()
    assert trainer._gold.view(4, 4).sum(1).tolist() == [1, 2, 3, 4]  # correct answers, from a hard to an easy prompt
    torch.testing.assert_close(trainer.result[:, 0], 1.5 * trainer.outcome, atol=1e-5, rtol=1e-5)
    assert trainer.outcome[:12].all() and not trainer.outcome[12:].any()


@pytest.mark.parametrize("weight", [0.01, 0.5])
def test_a_length_penalty_counts_by_its_weight_where_all_are_right(tmp_path, weight):
    trainer = make(
        tmp_path,
        "length_penalty",
        max_steps=1,
        max_completion_length=64,  # so that some end before it
        progress_weight=weight,
        reward=lambda completions, **kwargs: [1.0] * len(completions),
    )
    trainer.__class__ = Recording
    trainer.train()
    penalised = length_penalised(trainer._gold, trainer._lengths, 4, weight)
    expected = group_advantages(penalised, 4, "none") / (0.5 + 1e-4)  # 1 / sqrt(4)
    torch.testing.assert_close(trainer.result, expected, atol=1e-5, rtol=1e-4)
    assert 0 < trainer.result.abs().max() < 2 * weight


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_sampled_and_likelihood_values_agree_on_the_starter(tmp_path, starter, temperature):
    model, tokenizer = starter
    entry = {"name": "a", "source": "arithmetic", "config": {"terms": 3}, "train_size": 40, "test_size": 4}
    values = {}
    for estimator, forced in (
        ("likelihood", {}),
        ("rollouts", {"num_forced_answers": 200, "forced_answer_tokens": 8}),
    ):
        trainer = MRTTrainer(
            model,
            reward_funcs=correctness_reward,
            args=config(
                tmp_path,
                MRTConfig,
                progress="episode",
                episodes={"by": "delimiter"},
                success_estimator=estimator,
                **forced,
                temperature=temperature,
                compact_generation=True,
                max_steps=1,
                max_completion_length=48,
                learning_rate=0.0,
            ),
            train_dataset=load_distributions([entry])[0].train,
            processing_class=tokenizer,
        )
        kept = {}

        def keep(values, outcome_at, kept=kept):
            kept.update(values=values, outcome_at=outcome_at)

        trainer._log_values = keep
        trainer.train()
        values[estimator] = kept
    assert torch.equal(values["rollouts"]["outcome_at"], values["likelihood"]["outcome_at"])  # the same rollouts
    sampled, exact = values["rollouts"]["values"], values["likelihood"]["values"]
    known = ~exact.isnan() & ~values["rollouts"]["outcome_at"]
    assert (sampled - exact)[known].abs().max() < 4 * 0.5 / 200**0.5
    assert exact[known].max() > 0.2


# ---- anytime, length penalty ----


@pytest.mark.parametrize("progress", ["anytime", "length_penalty"])
def test_it_trains(tmp_path, progress):
    trainer = make(tmp_path, progress, max_steps=2)
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    trainer.train()
    assert all(torch.isfinite(torch.tensor(loss)) for loss, *_ in curve(trainer))
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


@pytest.mark.parametrize("estimator", [{}, LIKELIHOOD], ids=["rollouts", "likelihood"])
def test_nothing_is_asked_where_no_trace_reaches_the_first_budget(tmp_path, estimator):
    """Then success at every budget is the outcome, and a segment's advantage is that of the outcome."""
    trainer = make(tmp_path, "anytime", max_steps=1, budgets=[12], **estimator)
    trainer.__class__ = Recording
    trainer.train()
    expected = group_advantages(trainer._gold, 4, "group")
    torch.testing.assert_close(trainer.result[:, 0], expected)
    assert last(trainer, "rollout_tokens") == sum(map(len, trainer._completion_ids))


# ---- what else must hold ----


@pytest.mark.parametrize("progress", ["episode", "anytime"])
@pytest.mark.parametrize("reward", [2.0, -1.0])
def test_gold_rewards_outside_0_to_1_are_rejected(tmp_path, progress, reward):
    trainer = make(tmp_path, progress, reward=lambda completions, **kwargs: [reward] * len(completions), max_steps=1)
    with pytest.raises(
        ValueError, match=f"between 0 and 1, but .* '<lambda>' returned {reward:g}. Return 0 to 1, or set"
    ):
        trainer.train()


class Room:
    """An environment without tools."""

    def reset(self, **kwargs) -> None:
        pass


@pytest.mark.parametrize("progress", ["episode", "anytime", "prefix"])
def test_environments_are_rejected_where_answers_are_forced(tmp_path, progress):
    with pytest.raises(ValueError, match=f"progress: {progress} .*remove"):
        make(tmp_path, progress, parts={"environment_factory": Room, "processing_class": tokenizer_with_tools()})


def with_tool_results(prompts, trainer):
    """Return rollouts of six tokens, two of them from a tool, and of nine tokens, five of them from a tool."""
    masks = [[1, 1, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0, 0, 1, 1]] * (len(prompts) // 2)
    ids = [[5] * (len(mask) - 1) + [trainer.eos_token_ids[0]] for mask in masks]
    return {"prompt_ids": [[5, 6]] * len(ids), "completion_ids": ids, "logprobs": None, "env_mask": masks}


def test_a_length_penalty_counts_only_what_the_policy_wrote(tmp_path):
    """Both kinds of rollouts have four tokens from the policy, so none is long."""
    reward = {"reward": lambda completions, **kwargs: [1.0] * len(completions)}
    trainer = make(tmp_path, "length_penalty", max_steps=1, parts={"rollout_func": with_tool_results}, **reward)
    trainer.__class__ = Recording
    trainer.train()
    assert trainer._lengths.tolist() == [4] * 16
    assert not trainer.result.any()
    assert last(trainer, "rollout_tokens") == 4 * 16


@pytest.mark.parametrize("progress", ["episode", "anytime"])
def test_tokens_of_a_tool_are_refused_where_completions_are_cut(tmp_path, progress):
    trainer = make(tmp_path, progress, max_steps=1, parts={"rollout_func": with_tool_results})
    with pytest.raises(
        ValueError, match=f"progress: {progress} needs completions of which the policy writes every token"
    ):
        trainer.train()


def test_images_that_a_forced_answer_would_not_see_are_refused(tmp_path):
    trainer = make(tmp_path, "episode")
    with pytest.raises(ValueError, match="progress: episode is for text only"):
        trainer._values({"num_images": [1]}, [], torch.zeros(0))


@pytest.mark.parametrize("progress", VARIANTS)
def test_the_curriculum_never_sees_the_bonus(tmp_path, progress):
    """It sees the advantages of the outcome; with `prefix`, those of continuing rollouts relative to each other."""
    trainer = make(tmp_path, progress, max_steps=2)
    trainer.__class__ = Recording
    seen = []
    observe = trainer.curriculum.observe
    trainer.curriculum.observe = lambda arm, advantages, *rest: (
        seen.append(advantages) or observe(arm, advantages, *rest)
    )
    trainer.train()
    expected = trainer.outcome.view(4, 4)
    if progress == "prefix":
        expected = group_advantages(trainer._gold.view(4, 4)[:, :2].reshape(-1), 2, "group").view(4, 2)
    assert [value for group in seen[-4:] for value in group] == pytest.approx(expected.flatten().tolist())


@pytest.mark.parametrize("progress", VARIANTS)
@pytest.mark.parametrize("compact", [False, True])
def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path, progress, compact):
    options = {"save_strategy": "steps", "save_steps": 3, "compact_generation": compact, "steps_per_generation": 2}
    options |= {"per_device_train_batch_size": 8, "train_dataset": rows(num_items=3), "length_grouping": compact}
    whole = make(tmp_path / "whole", progress, **options)
    whole.train()
    resumed = make(tmp_path / "resumed", progress, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    keys = (*KEYS, "rollout_tokens", "progress/value_at_start", "progress/prefix_tokens")
    assert curve(resumed, keys) == curve(whole, keys)
    for mine, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_forced_answers_are_counted_as_rollout_tokens(tmp_path):
    trainer = make(tmp_path, "episode", max_steps=1)
    trainer.train()
    assert last(trainer, "rollout_tokens") > sum(map(len, trainer._completion_ids))


def test_an_unscorable_outcome_pays_nothing_it_does_not_know(tmp_path):
    def some_unscorable(completions, **kwargs):
        return [None if row % 4 == 1 else float(row % 2) for row in range(len(completions))]

    trainer = make(tmp_path, "episode", reward=some_unscorable, max_steps=2)
    trainer.__class__ = Recording
    trainer.train()
    assert trainer.result.isfinite().all()


def test_traces_are_kept_for_the_page(tmp_path):
    make(tmp_path, "episode", max_steps=1, log_completions=True, num_completions_to_print=0).train()
    traces = [json.loads(line) for line in (tmp_path / "traces.jsonl").read_text().splitlines()]
    assert len(traces) == 16
    for trace in traces:
        assert len(trace["values"]) == len(trace["episodes"]) + 1
        assert trace["distribution"] in ("alpha", "beta", "gamma")
        assert trace["correct"] == (trace["values"][-1] >= 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"progress": "episodes"}, "progress is one of none, episode"),
        ({"progress_scale": "std"}, "progress_scale is one of"),
        ({"progress": "episode", "progress_decay": 1.5}, "between 0 and 1, got 1.5"),
        ({"success_estimator": "mc"}, "success_estimator is one of"),
        ({"progress": "episode", "num_forced_answers": 0}, "num_forced_answers must be at least 1"),
        ({"progress": "anytime", "budgets": [4, 8]}, "end with max_completion_length, 12"),
        ({"progress": "anytime", "budgets": [8, 4, 12]}, "must increase"),
        ({"progress": "prefix", "prefix_baseline": "kind"}, "prefix_baseline is one of separate, joint"),
        ({"progress": "prefix", "terminating_generations": 1}, "at least 2 of each kind of rollout"),
        ({"progress": "prefix", "terminating_generations": 3}, "at least 2 of each kind of rollout"),
        ({"progress": "prefix", "num_generations": 2}, "num_generations to at least 4, or set prefix_baseline: joint"),
        (
            {"progress": "prefix", "prefix_baseline": "joint", "terminating_generations": 4},
            "at least 1 of each kind of rollout",
        ),
        ({"progress": "length_penalty", "progress_weight": 2.0}, "0 to 1"),
        (
            {"progress": "episode", "success_estimator": "likelihood", "ds3_gather_for_generation": False},
            "likelihood needs ds3_gather_for_generation: true",
        ),
        ({"progress": "episode", "num_forced_answers": 1}, "at least 2 for progress: episode"),
        (
            {"progress": "episode", "off_policy_mask_threshold": 0.5},
            "off_policy_mask_threshold depends on the sign",
        ),
        ({"progress": "anytime", "loss_type": "vespo"}, "loss_type: vespo depends on the sign"),
        (
            {"progress": "episode", "multi_objective_aggregation": "normalize_then_sum"},
            "set multi_objective_aggregation to sum_then_normalize",
        ),
    ],
)
def test_a_wrong_option_is_named_with_its_mend(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, MRTConfig, **options)


def test_progress_trains_an_adapter(tmp_path, starter):
    """The likelihood is that of the adapted model, so it moves with the adapter."""
    model, tokenizer = starter
    entry = {"name": "a", "source": "countdown", "config": {"numbers": 3}, "train_size": 20, "test_size": 4}
    trainer = MRTTrainer(
        model,
        reward_funcs=correctness_reward,
        args=config(
            tmp_path,
            MRTConfig,
            progress="episode",
            episodes={"by": "delimiter"},
            success_estimator="likelihood",
            compact_generation=True,
            max_completion_length=48,
            max_steps=2,
            learning_rate=0.05,
        ),
        train_dataset=load_distributions([entry])[0].train,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )
    trainer.train()
    prompt = tokenizer("make 7 from 3 4 using +")["input_ids"]
    answers = AcceptedAnswers(tokenizer, trainer._forcing, ["3+4"])
    trees = [Tree(prompt, [answers.branch("", len(prompt))])]
    adapted = success_probabilities(trainer.model, trees, trainer.eos_token_ids)[0][0]
    with trainer.model.disable_adapter():
        base = success_probabilities(trainer.model, trees, trainer.eos_token_ids)[0][0]
    assert adapted != base
    assert last(trainer, "progress/mean") != 0


def test_forced_answers_that_do_not_end_are_told(tmp_path, caplog):
    make(tmp_path, "episode", max_steps=1, forced_answer_tokens=1).train()
    assert "forced answers ended within the limit of forced_answer_tokens, 1: raise it" in caplog.text
