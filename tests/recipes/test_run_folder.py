"""The recipe that a run keeps and is held to, and what a process of several must not free before it ends."""

import gc
import json
import os
import weakref
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
import yaml
from torch.nn.parallel import DistributedDataParallel
from trl import ModelConfig, SFTConfig

from metatune.recipes import run_folder
from metatune.recipes.config import ConfigError
from metatune.recipes.kept_recipe import KeepsRecipe
from metatune.recipes.run_folder import (
    check_here,
    effective_recipe,
    is_finished,
    last_whole_checkpoint,
    settle_folder,
)
from metatune.trainers.whole_checkpoints import MARK


class Trained:
    """A trainer, as far as it holds a model."""

    def __init__(self):
        self.model = DistributedDataParallel(torch.nn.Linear(2, 2))


def test_a_trainer_of_several_processes_outlives_its_group(monkeypatch):
    """Seen in one of about twenty runs with DDP: the trainer was freed, which waited for gloo for ever."""
    monkeypatch.setattr(run_folder, "_HELD", [])
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        trainer = Trained()
        seen = weakref.ref(trainer)
        run_folder.hold_until_exit(trainer)
    finally:
        dist.destroy_process_group()
    del trainer
    gc.collect()
    assert seen() is not None


def test_a_trainer_of_one_process_is_freed():
    trainer = torch.nn.Linear(2, 2)
    seen = weakref.ref(trainer)
    run_folder.hold_until_exit(trainer)
    del trainer
    assert seen() is None


def test_the_recipe_that_a_run_keeps_says_null_where_null_was_meant(tmp_path):
    kept = yaml.safe_load(effective_recipe(SFTConfig(output_dir=str(tmp_path), bf16=False, max_length=None)))
    assert kept["max_length"] is None  # without it a reader would take 1024
    assert "pad_to_multiple_of" not in kept  # of the machine, not of the recipe
    assert "max_length" not in yaml.safe_load(effective_recipe(SFTConfig(output_dir=str(tmp_path), bf16=False)))


def test_the_recipe_that_a_run_keeps_has_every_option_but_secrets(tmp_path):
    options = {"accelerator_config": {"split_batches": True}, "hub_token": "hf_secret", "learning_rate": 0.5}
    text = effective_recipe(SFTConfig(output_dir=str(tmp_path), bf16=False, **options))
    assert "hf_secret" not in text  # the folder may be pushed to the hub
    assert yaml.safe_load(text)["accelerator_config"]["split_batches"] is True
    text = effective_recipe(SFTConfig(output_dir=str(tmp_path), bf16=False, gradient_accumulation_steps=2))
    assert "accelerator_config" not in text and "gradient_accumulation_steps: 2" in text


@dataclass
class Loop(KeepsRecipe):
    """A loop's options."""

    rounds: int = 1
    max_length: int | None = 1024


def test_a_run_of_parts_goes_on_with_no_other_recipe(tmp_path, capsys):
    def settle(resume, **options):
        loop = Loop(**options)
        loop.given = options
        settle_folder(tmp_path, [loop], resume, parts="part-*", may_change={"rounds"})

    (tmp_path / "part-1").write_text("")
    settle(False, rounds=1)
    with pytest.raises(ConfigError, match="holds a run already: go on with it by resume_from_checkpoint: true"):
        settle(False, rounds=1)
    settle(True, rounds=2)
    assert capsys.readouterr().out.endswith("with another recipe:\n  rounds: 1 -> 2\n")
    with pytest.raises(ConfigError, match=r"max_length is not what the run in .* set back max_length: 1024 -> null"):
        settle(True, rounds=2, max_length=None)
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text()) == {"rounds": 2}


def checkpoint(folder, step, **state):
    (folder / f"checkpoint-{step}").mkdir(parents=True)
    (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps({"global_step": step, **state}))
    return str(folder / f"checkpoint-{step}")


def test_a_run_that_is_over_is_over_for_what_is_asked_now(tmp_path):
    def asked(**options):
        return SFTConfig(output_dir=str(tmp_path), bf16=False, **options)

    last = checkpoint(tmp_path, 30, max_steps=30, epoch=1.5)
    assert is_finished(last, asked(max_steps=30)) and is_finished(last, asked(max_steps=20))
    assert not is_finished(last, asked(max_steps=31))
    assert is_finished(last, asked(num_train_epochs=1.5)) and not is_finished(last, asked(num_train_epochs=2))


def test_another_run_s_checkpoints_are_not_mixed_with_this_one_s(tmp_path):
    def check(resume=None, use_peft=False):
        training_args = SFTConfig(output_dir=str(tmp_path / "run"), bf16=False, resume_from_checkpoint=resume)
        check_here(training_args, ModelConfig(model_name_or_path="starter", use_peft=use_peft))

    check()
    (tmp_path / "run" / "checkpoint-3").mkdir(parents=True)
    check()  # torn: its run was killed while it saved, and holds nothing to lose
    checkpoint(tmp_path / "run", 2, max_steps=9, epoch=1)
    with pytest.raises(ConfigError, match=r"run holds a run already \(checkpoint-2\): go on with it by resume_from"):
        check()
    check(resume=True)
    check(resume=str(tmp_path / "run" / "checkpoint-2"))
    with pytest.raises(ConfigError, match=r"checkpoint-2 holds a whole model: set use_peft as its run did"):
        check(resume=True, use_peft=True)
    (tmp_path / "run" / "checkpoint-2" / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"checkpoint-2 holds an adapter: set use_peft as its run did"):
        check(resume=True)
    check(resume=True, use_peft=True)


# ---- the last whole checkpoint ----


def write_checkpoint(output_dir, step: int):
    folder = output_dir / f"checkpoint-{step}"
    folder.mkdir()
    (folder / MARK).write_text(json.dumps({"global_step": step}))
    return folder


def test_the_highest_step_is_the_last_whatever_was_touched_last(tmp_path):
    for step in (9, 100, 20):
        write_checkpoint(tmp_path, step)
    os.utime(tmp_path / "checkpoint-9", (2**31, 2**31))
    os.utime(tmp_path / "checkpoint-100", (1, 1))
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-100"


@pytest.mark.parametrize("keep", [0, 1, -1])
def test_a_mark_cut_short_is_none(tmp_path, keep):
    whole, torn = write_checkpoint(tmp_path, 1), write_checkpoint(tmp_path, 2)
    (torn / MARK).write_text((torn / MARK).read_text()[:keep])
    assert last_whole_checkpoint(tmp_path) == whole


def test_other_names_are_no_checkpoints_of_the_run(tmp_path):
    whole = write_checkpoint(tmp_path, 3)
    for name in ("checkpoint-best-9", "checkpoint-", "checkpoint-9.old", "checkpoint-latest", "old-checkpoint-9"):
        write_checkpoint(tmp_path, 9).rename(tmp_path / name)
    (tmp_path / "checkpoint-8").write_text("a file")
    assert last_whole_checkpoint(tmp_path) == whole


def test_a_run_without_a_whole_checkpoint_has_no_last_one(tmp_path):
    assert last_whole_checkpoint(tmp_path) is None
    assert last_whole_checkpoint(tmp_path / "never made") is None
    (write_checkpoint(tmp_path, 1) / MARK).unlink()
    assert last_whole_checkpoint(tmp_path) is None
