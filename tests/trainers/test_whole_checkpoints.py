"""When a checkpoint counts as whole: what the main process waits for, and saves over a folder that is there."""

import logging
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file

from metatune.recipes.run_folder import last_whole_checkpoint, remove_torn_checkpoints
from metatune.trainers import DUMPTrainer
from metatune.trainers.whole_checkpoints import MARK, WholeCheckpoints

from .dump_setup import config, digits, rows, tiny_model


def test_the_mark_goes_first_and_comes_when_every_process_has_written(tmp_path):
    events = []

    class Base:  # in the order of `Trainer._save_checkpoint`, which the contract tests look at
        def _save_checkpoint(self, model, trial):
            events.append(("model", (tmp_path / "checkpoint-3" / MARK).exists()))
            self._save_rng_state(str(tmp_path / "checkpoint-3"))
            events.append("mark")

        def _save_rng_state(self, output_dir):
            events.append("random state")

    class Ours(WholeCheckpoints, Base):
        args = SimpleNamespace(should_save=True)
        state = SimpleNamespace(global_step=3)
        accelerator = SimpleNamespace(wait_for_everyone=lambda: events.append("wait"))

        def _get_output_dir(self, trial):
            return str(tmp_path)

        def _save_beside(self, folder):
            events.append(("beside", (folder / MARK).exists()))

    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / MARK).write_text("{}")
    Ours()._save_checkpoint(None, None)
    assert events == ["wait", ("beside", False), ("model", False), "random state", "wait", "mark"]


def test_a_save_over_a_whole_checkpoint_that_is_cut_short_leaves_none(tmp_path, tokenizer):
    """The run goes on from step 1 in a folder where step 2 is: its files would be those of two saves."""
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}

    def make():
        args = config(tmp_path, **options)
        return DUMPTrainer(tiny_model(), digits, args, train_dataset=rows(), processing_class=tokenizer)

    make().train()
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    again = make()

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    again._save_optimizer_and_scheduler = killed
    with pytest.raises(KeyboardInterrupt):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-1"


@pytest.mark.parametrize("lost", [[], ["model.norm.weight"]], ids=["complete", "without a norm"])
def test_a_resumed_run_warns_of_weights_that_are_missing_and_not_of_tied_ones(tmp_path, tokenizer, caplog, lost):
    """A checkpoint of a model with tied embeddings has no `lm_head.weight`: it is `model.embed_tokens.weight`."""

    def make(steps):
        args = config(tmp_path, max_steps=steps, save_strategy="steps", save_steps=1)
        return DUMPTrainer(tiny_model(), digits, args, train_dataset=rows(), processing_class=tokenizer)

    make(1).train()
    file = tmp_path / "checkpoint-1" / "model.safetensors"
    weights = load_file(file)
    assert "lm_head.weight" not in weights
    save_file({name: weight for name, weight in weights.items() if name not in lost}, file, {"format": "pt"})
    again = make(2)
    with caplog.at_level("WARNING", logger="transformers.trainer"), propagating("transformers"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    warnings = {record.getMessage() for record in caplog.records if "missing keys" in record.getMessage()}
    assert warnings == ({f"There were missing keys in the checkpoint model loaded: {lost}."} if lost else set())
    assert again.model.lm_head.weight is again.model.model.embed_tokens.weight


@contextmanager
def propagating(name):
    """Let a library's log records reach the root logger, where pytest listens."""
    logger = logging.getLogger(name)
    before, logger.propagate = logger.propagate, True
    yield
    logger.propagate = before


def test_torn_checkpoints_after_the_one_resumed_from_are_deleted_and_nothing_else(tmp_path, capsys):
    for name, text in {"1": None, "2": "{}", "3": "{", "4": None, "5": "{}", "best-9": None}.items():
        (tmp_path / f"checkpoint-{name}").mkdir()
        if text is not None:
            (tmp_path / f"checkpoint-{name}" / MARK).write_text(text)
    (tmp_path / "checkpoint-6").write_text("a file")
    remove_torn_checkpoints(tmp_path / "checkpoint-best-9")  # says no step
    remove_torn_checkpoints(tmp_path / "checkpoint-2")
    kept = ["checkpoint-1", "checkpoint-2", "checkpoint-5", "checkpoint-6", "checkpoint-best-9"]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
    assert capsys.readouterr().out.count("was not saved to its end and is deleted") == 2


def test_a_checkpoint_whose_mark_cannot_be_read_is_not_deleted(tmp_path):
    for step in (1, 2):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-2" / MARK).mkdir()  # stands for any error of the disk: it is there, and no file
    with pytest.raises(OSError, match=MARK):
        remove_torn_checkpoints(tmp_path / "checkpoint-1")
    assert (tmp_path / "checkpoint-2").is_dir()
