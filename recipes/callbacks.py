"""What a recipe shows and keeps while it trains."""

import json
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from .stopping import SIGNALS, STOPPER


class MetricsLog(TrainerCallback):
    """Writes every log line of a run into `output_dir/metrics.jsonl`, one JSON object per line.

    The file is rewritten from the trainer's log history when training begins, so a resumed run has each line up to its
    checkpoint once, and no line of the lost steps after it. Each line also has `time/run`: the seconds of
    training until then, evaluations and checkpoints included. They are part of the log history, so a resumed run
    continues to count from its checkpoint.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        earlier = max((row.get("time/run", 0.0) for row in state.log_history), default=0.0)
        self._started = time.perf_counter() - earlier
        if state.is_world_process_zero:
            self._path = Path(args.output_dir) / "metrics.jsonl"
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(row) + "\n" for row in state.log_history))
            temporary.replace(self._path)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not hasattr(self, "_started"):  # an evaluation without training
            return
        seconds = {"time/run": round(time.perf_counter() - self._started, 3)}
        state.log_history[-1].update(seconds)
        if state.is_world_process_zero:
            with self._path.open("a") as file:
                file.write(json.dumps({**(logs or {}), **seconds, "step": state.global_step}) + "\n")


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


class StopAfterStep(TrainerCallback):
    """Stops training after the step in which any process received a signal, and after its checkpoint.

    Without checkpoints (`save_strategy: no`) there is nothing to save, and a signal ends training immediately.

    Raises:
        Stopped: in every process, once the checkpoint is complete.
    """

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        loader = getattr(train_dataloader, "base_dataloader", train_dataloader)
        if args.dataloader_num_workers and args.save_strategy != "no":
            loader.worker_init_fn = partial(outlive_signals, loader.worker_init_fn)

    def on_step_begin(self, args, state, control, **kwargs):
        STOPPER.finish_first = args.save_strategy != "no"

    def on_step_end(self, args, state, control, **kwargs):
        if args.save_strategy != "no" and self._asked(args):
            control.should_save = True

    on_evaluate = on_step_end  # `Trainer` evaluates between the end of a step and its checkpoint

    def on_save(self, args, state, control, **kwargs):
        if self._asked(args):
            STOPPER.check()

    def _asked(self, args) -> bool:
        """Return whether any process received a signal, and record it in this one. Every process must call this."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            number = torch.tensor(STOPPER.signal or 0, device=args.device)
            dist.all_reduce(number, op=dist.ReduceOp.MAX)
            if STOPPER.signal is None and number.item():
                STOPPER.signal = signal.Signals(int(number.item()))
        return STOPPER.signal is not None


def outlive_signals(worker_init_fn, worker: int) -> None:
    """Keep a data loader's worker alive for the last step when a signal goes to the whole process group.

    The worker still ends when the trainer terminates it, and when the trainer dies, which PyTorch's worker detects.
    """
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=_obey_parent, daemon=True).start()
    if worker_init_fn is not None:
        worker_init_fn(worker)


def _obey_parent() -> None:
    while signal.sigwaitinfo(SIGNALS).si_pid != os.getppid():
        pass
    os._exit(0)
