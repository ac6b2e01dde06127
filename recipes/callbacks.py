"""What a recipe shows and keeps while it trains."""

import json
from pathlib import Path

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback


class MetricsLog(TrainerCallback):
    """Writes every log line of a run into `output_dir/metrics.jsonl`, one JSON object a line.

    The file is written anew from the trainer's log history when training begins, so a resumed run holds the lines up
    to its checkpoint once, and no line of what was lost after it.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self._path = Path(args.output_dir) / "metrics.jsonl"
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(row) + "\n" for row in state.log_history))
            temporary.replace(self._path)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and hasattr(self, "_path"):
            with self._path.open("a") as file:
                file.write(json.dumps({**(logs or {}), "step": state.global_step}) + "\n")


class ProgressLine(ProgressCallback):
    """One progress bar with the time left, the reward and the held-out accuracy, in place of a printed dictionary."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None:
            shown = {"reward": "reward", "eval_accuracy": "held_out"}
            self._shown = getattr(self, "_shown", {})
            self._shown |= {label: f"{logs[key]:.3f}" for key, label in shown.items() if logs.get(key) is not None}
            self.training_bar.set_postfix(self._shown)

    @classmethod
    def replace_default(cls, trainer: Trainer) -> None:
        """Swap the trainer's own progress bar or printer for this one; `disable_tqdm` means silence."""
        trainer.remove_callback(PrinterCallback)
        if not trainer.args.disable_tqdm:
            trainer.remove_callback(ProgressCallback)
            trainer.add_callback(cls())
