"""Rollouts from stale prefixes, MRT's RL form."""

import pytest
import torch

from metatune.curricula import build_tokenizer
from metatune.trainers import MRTConfig, MRTTrainer
from metatune.trainers.advantages import group_advantages

from .dump_setup import config, digits, rows, tiny_model
from .mrt_setup import FAST, Recording, last, make


def test_prefixes_without_terminating_rollouts_have_grpos_own_advantages(tmp_path):
    trainer = make(tmp_path, "prefix", terminating_generations=0, max_steps=2)
    trainer.__class__ = Recording
    trainer.train()
    torch.testing.assert_close(trainer.result, trainer.outcome, atol=1e-6, rtol=0)


def test_rollouts_continue_from_prefixes_of_stale_traces(tmp_path):
    trainer = make(tmp_path, "prefix", max_steps=8, train_dataset=rows(num_items=2), terminating_generations=1)
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
            assert stops == (row % 4 == 3)
            if stops:
                ends = [prefix[: -len(suffix)] for suffix in suffixes if tuple(prefix[-len(suffix) :]) == suffix]
                assert prefixes[row - 1] in ends
            elif trace:
                assert prefix == trace[: len(prefix)]
                assert len(prefix) % 4 == 0
                assert len(prefix) < len(trace)
                continued += len(prefix) > 0
    assert continued
    assert last(trainer, "progress/prefix_tokens") > 0


def test_prefixes_are_refused_where_rollouts_are_made_by_someone_else(tmp_path):
    with pytest.raises(
        ValueError, match="progress: prefix appends to prompts: remove the tools, the environment or the"
    ):
        MRTTrainer(
            tiny_model(),
            digits,
            config(tmp_path, MRTConfig, progress="prefix", **FAST),
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


def test_a_continuing_rollout_that_beats_stopping_gets_the_bonus(tmp_path):
    trainer = make(tmp_path, "prefix", max_steps=2, reward=lambda completions, **kw: [1.0, 1.0, 0.0, 0.0] * 4)
    trainer.__class__ = Recording
    trainer.train()
    expected = group_advantages(torch.tensor([2.0, 2.0, 0.0, 0.0] * 4), 4, "group")
    torch.testing.assert_close(trainer.result, expected)


def test_a_checkpoint_without_a_pool_cannot_resume_prefixes(tmp_path):
    make(tmp_path, "none", max_steps=1, save_strategy="steps", save_steps=1).train()
    trainer = make(tmp_path, "prefix", max_steps=2)
    with pytest.raises(FileNotFoundError, match="was not written with progress: prefix"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
