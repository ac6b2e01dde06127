"""Rollouts from stale prefixes, MRT's RL form."""

import pytest
import torch
from datasets import Dataset

from metatune.curricula import build_tokenizer
from metatune.rewards import Judge, JudgeClient, JudgeReward, Rubric, RubricItem, correctness_reward
from metatune.trainers import MRTConfig, MRTTrainer

from .dump_setup import config, digits, rows, tiny_model
from .mrt_setup import FORCED, NO_BONUS, Recording, last, make


def test_prefixes_without_terminating_rollouts_have_grpos_own_advantages(tmp_path):
    trainer = make(tmp_path, "prefix", **NO_BONUS, max_steps=2)
    trainer.__class__ = Recording
    trainer.train()
    torch.testing.assert_close(trainer.result, trainer.outcome, atol=1e-6, rtol=0)


def test_rollouts_continue_from_prefixes_of_stale_traces(tmp_path):
    trainer = make(tmp_path, "prefix", max_steps=8, train_dataset=rows(num_items=2))
    seen = []

    choose = trainer._choose_prefixes

    def recording():
        stale = {row: trainer._pool.get(row) for row in trainer._drawn_rows}
        choose()
        seen.append((list(trainer._drawn_rows), stale, list(trainer._prefixes), list(trainer._terminating)))

    trainer._choose_prefixes = recording
    trainer.train()
    suffixes = {tuple(trainer._forcing.ids_after(text)) for text in ("", "x")}
    continued = 0
    for drawn, stale, prefixes, terminating in seen:
        for row, (prefix, stops) in enumerate(zip(prefixes, terminating, strict=True)):
            trace = stale[drawn[row // 4]]
            assert stops == (row % 4 >= 2)
            if stops:
                ends = [prefix[: -len(suffix)] for suffix in suffixes if tuple(prefix[-len(suffix) :]) == suffix]
                assert prefixes[row - 2] in ends
            elif trace:
                assert prefix == trace[: len(prefix)]
                assert len(prefix) % 4 == 0
                assert len(prefix) < len(trace)
                continued += len(prefix) > 0
    assert continued
    assert last(trainer, "progress/prefix_tokens") > 0


def test_prefixes_are_refused_where_rollouts_are_made_by_someone_else(tmp_path):
    with pytest.raises(
        ValueError, match="progress: prefix appends to prompts, which does not work with tools, an environment or a"
    ):
        MRTTrainer(
            tiny_model(),
            digits,
            config(tmp_path, MRTConfig, progress="prefix", **FORCED),
            rows(),
            processing_class=build_tokenizer(),
            rollout_func=lambda prompts, trainer: {},
        )


def test_the_reward_sees_the_whole_trace_and_the_loss_only_what_was_sampled(tmp_path):
    texts = []

    def remember(completions, **kwargs):
        texts.append([completion[0]["content"] for completion in completions])
        return [float(len(text) % 2) for text in texts[-1]]

    trainer = make(tmp_path, "prefix", reward=remember, max_steps=3, train_dataset=rows(num_items=2))
    trainer.__class__ = Recording
    prefixes, batches = [], []
    choose = trainer._choose_prefixes
    trainer._choose_prefixes = lambda: choose() or prefixes.append(list(trainer._prefixes))
    advantages = trainer._advantages
    trainer._advantages = lambda outputs: batches.append(outputs) or advantages(outputs)
    trainer.train()
    decode = trainer._tokenizer.decode
    for batch, step_prefixes, step_texts in zip(batches, prefixes, texts, strict=True):
        for row, prefix in enumerate(step_prefixes):
            assert step_texts[row].startswith(decode(prefix, skip_special_tokens=True))
            prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()].tolist()
            assert prompt[len(prompt) - len(prefix) :] == prefix
            length = int(batch["completion_mask"][row].sum())
            assert len(prefix) + length <= 12 or trainer._terminating[row]


@pytest.mark.parametrize(
    ("options", "rewards", "advantages"),
    [
        # Continuing 1, 0 and terminating 1, 0: deviations of 1/2, weighted 1 + progress_weight for continuing ones.
        ({"progress_weight": 0.5}, [1.0, 0.0, 1.0, 0.0], [0.75, -0.75, 0.5, -0.5]),
        # The difference between the kinds is no advantage, but with the paper's joint baseline it is: 2, 2, 0, 0.
        ({}, [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]),
        ({"prefix_baseline": "joint"}, [1.0, 1.0, 0.0, 0.0], [1.0, 1.0, -1.0, -1.0]),
    ],
)
def test_each_kind_of_rollout_has_its_own_baseline(tmp_path, options, rewards, advantages):
    options = {"scale_rewards": "none", "max_steps": 2, **options}
    trainer = make(tmp_path, "prefix", reward=lambda completions, **kwargs: rewards * 4, **options)
    trainer.__class__ = Recording
    trainer.train()
    torch.testing.assert_close(trainer.result, torch.tensor(advantages * 4))


def test_the_curriculum_and_the_pass_rates_see_continuing_rollouts_alone(tmp_path):
    """If all continuing rollouts are correct, there is nothing to learn, whatever the forced answers earn."""
    trainer = make(tmp_path, "prefix", reward=lambda completions, **kwargs: [1.0, 1.0, 0.0, 0.0] * 4, max_steps=2)
    trainer.train()
    for name in {trainer.curriculum.arms[arm] for arm in trainer._drawn_arms}:
        assert last(trainer, f"curriculum/learnability/{name}") == 0
        assert last(trainer, f"pass_rate/{name}") == last(trainer, f"reward/{name}") == 1


def test_all_rollouts_continue_where_no_forced_answer_can_be_graded(tmp_path):
    def opinion(completions, **kwargs):
        return [float(len(completion[0]["content"])) for completion in completions]

    graded = {"math": "exact", "essay": None}
    train_dataset = Dataset.from_list(
        [
            {**row, "verifier": graded[row["distribution"]], "answer": "7", "info": "{}"}
            for row in rows(distributions=tuple(graded))
        ]
    )
    trainer = make(tmp_path, "prefix", reward=[correctness_reward, opinion], train_dataset=train_dataset, max_steps=1)
    trainer.__class__ = Recording
    trainer.train()
    extra = trainer._logs["extra"]
    forced = {name: [] for name in graded}
    for name, stops in zip(extra["distribution"], extra["forced_answer"], strict=True):
        forced[name].append(stops)
    assert forced["math"] == [False, False, True, True] * 2
    assert forced["essay"] == [False] * 8
    essays = torch.tensor([name == "essay" for name in extra["distribution"]])
    assert trainer.result[essays].view(-1, 4)[:, 2:].all(), "the last of a group are trained on, too"


def test_the_table_of_completions_marks_forced_answers(tmp_path):
    trainer = make(tmp_path, "prefix", max_steps=1)
    trainer.train()
    assert list(trainer._logs["extra"]["forced_answer"]) == [False, False, True, True] * 4


def test_forced_answers_that_hit_their_limit_are_reported(tmp_path, caplog):
    make(tmp_path, "prefix", max_steps=1, forced_answer_tokens=1).train()
    assert "forced answers ended within the limit of forced_answer_tokens, 1: raise it" in caplog.text


def test_resuming_with_a_lower_limit_cuts_stale_traces_earlier(tmp_path, caplog):
    data = rows(num_items=2)
    make(tmp_path, "prefix", train_dataset=data, max_steps=2, save_strategy="steps", save_steps=2).train()
    trainer = make(tmp_path, "prefix", train_dataset=data, max_steps=6, max_completion_length=6)
    prefixes = []
    choose = trainer._choose_prefixes
    trainer._choose_prefixes = lambda: (
        choose()
        or prefixes.extend(
            prefix for prefix, stops in zip(trainer._prefixes, trainer._terminating, strict=True) if not stops
        )
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "has stale traces of up to 12 tokens, but max_completion_length is 6" in caplog.text
    assert {len(prefix) for prefix in prefixes} == {0, 4}, "8 tokens leave no room for a completion"
    assert trainer._pool.longest() <= 6


def test_a_bonus_needs_a_gold_reward(tmp_path):
    """Judges do not score forced answers."""
    judge = JudgeReward(Judge(JudgeClient("http://127.0.0.1:9"), Rubric("Sum.", (RubricItem("same", "Any.", 2),))))
    with pytest.raises(ValueError, match="progress: prefix needs a gold reward, not only a judge or a reward model"):
        make(tmp_path, "prefix", reward=judge)


def test_a_checkpoint_without_a_pool_cannot_resume_prefixes(tmp_path):
    make(tmp_path, "none", max_steps=1, save_strategy="steps", save_steps=1).train()
    trainer = make(tmp_path, "prefix", max_steps=2)
    with pytest.raises(FileNotFoundError, match="was not written with progress: prefix"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
