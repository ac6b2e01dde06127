"""Stop training when the loss, the gradient norm or a weight is NaN or infinite, before that step is saved.

`Trainer` continues after such a step: its `logging_nan_inf_filter` hides the value from the logs, every weight becomes
NaN, and later checkpoints replace the good ones. [`FiniteTraining`] checks once per optimizer step the gradient norm
that `Trainer` computes anyway and the sum of the losses since the last log line. This costs one device synchronization
per step, and saves one per micro-batch, because the filter is off.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from .whole_checkpoints import last_whole_checkpoint

if TYPE_CHECKING:
    from transformers import Trainer as _Mixed  # what it is mixed into
else:
    _Mixed = object


class NonFiniteError(ArithmeticError):
    """A loss, a gradient norm or a weight is NaN or infinite."""


class FiniteTraining(_Mixed):
    """Mixin that raises [`NonFiniteError`]; list it before `Trainer` in the bases.

    Gradients are reduced over all processes, so all of them stop at the same step. With fp16 an infinite gradient norm
    is part of the search for the loss scale, and the optimizer skips such a step. It stops the run only when the scale
    cannot decrease further; with DeepSpeed, DeepSpeed raises its own error.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.args.logging_nan_inf_filter = False  # it would replace the loss that is checked here

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
        """Return whether the optimizer skips a step with infinite gradients, as with fp16 loss scaling."""
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            return self.model_wrapped.fp16_enabled()
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() >= 1

    def check_weights(self) -> None:
        """Raise [`NonFiniteError`] if a trained weight is NaN or infinite; each process checks its own shards."""
        trained = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        finite = [_local(weight).isfinite().all() for weight in trained.values()]
        if not all(torch.stack([flag.to(finite[0].device) for flag in finite]).tolist()):
            bad = [name for name, flag in zip(trained, finite, strict=True) if not flag]
            self._stop(f"step {self.state.global_step}: {len(bad)} weights are NaN or infinite, such as {bad[0]}")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, unless a trained weight is NaN or infinite."""
        self.check_weights()
        super().save_model(output_dir, _internal_call)

    def _stop(self, found: str) -> NoReturn:
        raise NonFiniteError(f"{found}. Training stopped, and this step is not saved. {self._what_is_kept()}")

    def _what_is_kept(self) -> str:
        """Return a sentence that names the last checkpoint and how to continue."""
        last = last_whole_checkpoint(Path(str(self.args.output_dir)))
        if last is None:
            return "There is no checkpoint yet: start again with a lower learning_rate"
        return (
            f"The last complete checkpoint is {last}. A resumed run would repeat this step: start a new run with "
            f"model_name_or_path: {last} and a lower learning_rate"
        )


def _local(weight: torch.Tensor) -> torch.Tensor:
    """Return this process's shard of a weight under FSDP or ZeRO-3, and the whole weight otherwise."""
    return weight.to_local() if isinstance(weight, DTensor) else getattr(weight, "ds_tensor", weight)


def _shown(value: float) -> str:
    return "finite" if math.isfinite(value) else f"{value}"
