"""Checkpoints that are whole or say so: `trainer_state.json` is there only when every process has written its files.

`Trainer` writes that file last, but no process waits for another, so the main one may mark a checkpoint, and delete
the one before it by `save_total_limit`, while others still write. And it writes over a folder that is there already,
whose old mark then stands beside files of two saves.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

if TYPE_CHECKING:
    from transformers import Trainer as _Mixed  # what it is mixed into
else:
    _Mixed = object

MARK = "trainer_state.json"  # `Trainer`'s own, with the state of the run


def last_whole_checkpoint(output_dir: Path) -> Path | None:
    """Return a run's newest checkpoint that was saved to its end, or `None`; `Trainer` would take a torn one."""
    folders = {
        int(step): folder
        for folder in output_dir.glob("checkpoint-*")
        if (step := folder.name.removeprefix("checkpoint-")).isdecimal()
    }
    return next((folders[step] for step in sorted(folders, reverse=True) if has_mark(folders[step])), None)


def has_mark(folder: Path) -> bool:
    """Tell whether a checkpoint has the file that is written last, whole. Raises `OSError` if it cannot be read."""
    try:
        json.loads((folder / MARK).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    return True


class WholeCheckpoints(_Mixed):
    """Keeps that promise for the trainer that it is mixed into, before `Trainer` in the order of its bases."""

    _own_files: tuple[str, ...] = ()  # parameters that a trainer saves and loads beside the model's file

    def _save_checkpoint(self, model, trial):
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            (folder / MARK).unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()  # before any other process changes a file
        self._save_beside(folder)
        super()._save_checkpoint(model, trial)

    def _save_beside(self, folder: Path) -> None:
        """Write what a trainer keeps in a checkpoint folder beside `Trainer`'s own files. Called by every process."""

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)  # the last file of every process; the main one's mark follows
        self.accelerator.wait_for_everyone()

    def _issue_warnings_after_load(self, load_result):
        """Warn of keys that a checkpoint lacks, but for tied weights, which it holds once, and those of own files."""
        missing, tied = load_result.missing_keys, self.accelerator.unwrap_model(self.model).all_tied_weights_keys
        lost = [key for key in missing if tied.get(key, key) in missing and key not in self._own_files]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=lost))


class CountedTokens(WholeCheckpoints):
    """Lets `num_tokens` go on after a resume, for TRL's SFT and reward trainers, which begin again at 0.

    The number is kept where TRL's GRPO trainer keeps it, in a field of the trainer's state that `Trainer` leaves
    alone unless it is to count by itself.
    """

    def _save_beside(self, folder):
        super()._save_beside(folder)
        if self.args.include_num_input_tokens_seen == "no":
            self.state.num_input_tokens_seen = self._total_train_tokens

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.args.include_num_input_tokens_seen == "no":
            self._total_train_tokens = self.state.num_input_tokens_seen
