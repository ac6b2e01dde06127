"""Stops a training whose loss, gradient norm or weights are NaN or infinite, before anything of it is saved.

`Trainer` goes on after such a step: its `logging_nan_inf_filter` keeps the value out of the logs, every weight becomes
NaN, and the checkpoints that follow replace the good ones. [`FiniteTraining`] looks once per optimizer step, at the
gradient norm that `Trainer` computes anyway and at the sum of the losses since the last log line. That costs one
device synchronization per step, and saves the one per micro-batch of the filter, which is switched off.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from accelerate.utils import DistributedType

from .whole_checkpoints import last_whole_checkpoint

if TYPE_CHECKING:
    from transformers import Trainer as _Mixed  # what it is mixed into
else:
    _Mixed = object


class NonFiniteError(ArithmeticError):
    """A loss, a gradient norm or a weight is NaN or infinite."""


class FiniteTraining(_Mixed):
    """Raises [`NonFiniteError`] in the trainer that it is mixed into, before `Trainer` in the order of its bases.

    Gradients are reduced over all processes, so all of them stop at the same step. With fp16 an infinite gradient norm
    is part of the search for the loss scale, and the optimizer skips such a step: it stops the run only when the scale
    cannot become smaller. DeepSpeed raises its own error then.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.args.logging_nan_inf_filter = False  # it would replace the loss that is looked at here

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # called once per optimizer step, before the update
        loss = self._tr_loss
        values = torch.stack([loss, torch.as_tensor(0.0 if norm is None else norm).to(loss)]).detach()
        if not bool(torch.isfinite(values).all()):
            loss_value, norm_value = values.tolist()
            if not (math.isfinite(loss_value) and self._skips_overflow()):
                self._stop(
                    f"step {self.state.global_step + 1}: the loss is {_shown(loss_value)} and the gradient norm is "
                    f"{_shown(norm_value)}"
                )
        return norm

    def _skips_overflow(self) -> bool:
        """Return whether the optimizer skips a step whose gradients are infinite, because the loss scale is fp16's."""
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            return self.model_wrapped.fp16_enabled()
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() >= 1

    def check_weights(self) -> None:
        """Raise [`NonFiniteError`] if a trained weight is NaN or infinite; under ZeRO-3 of this process's shards."""
        trained = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        finite = [getattr(weight, "ds_tensor", weight).isfinite().all() for weight in trained.values()]
        if not all(torch.stack([flag.to(finite[0].device) for flag in finite]).tolist()):
            bad = [name for name, flag in zip(trained, finite, strict=True) if not flag]
            self._stop(f"step {self.state.global_step}: {len(bad)} weights are NaN or infinite, such as {bad[0]}")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, unless a trained weight is NaN or infinite."""
        self.check_weights()
        super().save_model(output_dir, _internal_call)

    def _stop(self, found: str) -> NoReturn:
        raise NonFiniteError(f"{found}. Training stopped, and nothing of this step is saved. {self._what_is_kept()}")

    def _what_is_kept(self) -> str:
        """Name what the run can be resumed from, as a sentence."""
        last = last_whole_checkpoint(Path(str(self.args.output_dir)))
        if last is None:
            return "There is no checkpoint yet: start again with a lower learning_rate"
        return (
            f"The last complete checkpoint is {last}. A resumed run would repeat this step: start a new run with "
            f"model_name_or_path: {last} and a lower learning_rate"
        )


def _shown(value: float) -> str:
    return "finite" if math.isfinite(value) else f"{value}"
