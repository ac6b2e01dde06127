"""Train at weights that were moved along another objective's gradient, and put the step on the weights before it.

    shift = WeightShift()
    value, gradients = objective_gradients(model, accelerator, objective)
    shift.along(gradients, step_size=1e-3)
    loss.backward()                      # the gradient of the loss at the moved weights
    shift.undo()                         # the very bits from before; then the optimizer steps

First order by design: nothing is differentiated through the move. The gradient is averaged over the processes, so all
move alike. What is moved depends on who holds the weights:

- one process, DDP, ZeRO-1 and ZeRO-2: every process holds all weights and moves all;
- ZeRO-3: the objective runs on gathered weights, as generation does, and each process moves its own shards. For that
  long every process holds the weights and one gradient of them.

Rounding removes a move that is smaller than the spacing of representable numbers, so the move is measured on the
weights themselves.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from trl.models import unwrap_model_for_generation

Gradients = list[tuple[nn.Parameter, torch.Tensor]]


def objective_gradients(
    model: nn.Module,
    accelerator: Accelerator,
    objective: Callable[[nn.Module], torch.Tensor],
    gradient_checkpointing_kwargs: dict[str, Any] | None = None,
) -> tuple[float, Gradients]:
    """Return the objective's value and its gradient, both the mean over the processes.

    Args:
        model (`nn.Module`): the model as accelerate wrapped it.
        accelerator ([`~accelerate.Accelerator`]): what wrapped it.
        objective (`Callable`): takes the unwrapped model, returns a scalar; it runs without gradient checkpointing.
        gradient_checkpointing_kwargs (`dict`, *optional*): with which the model, if it checkpoints, goes on with it.

    Returns:
        `tuple`: the value, and each trainable parameter with its gradient, in the parameter's shape.
    """
    with unwrap_model_for_generation(
        model, accelerator, gradient_checkpointing_kwargs=gradient_checkpointing_kwargs
    ) as unwrapped:
        parameters = [parameter for parameter in unwrapped.parameters() if parameter.requires_grad]
        value = objective(unwrapped)
        found = torch.autograd.grad(value, parameters, allow_unused=True)
        gradients = [
            torch.zeros_like(parameter) if gradient is None else gradient
            for parameter, gradient in zip(parameters, found, strict=True)
        ]
    value = accelerator.reduce(value.detach(), reduction="mean").item()
    gradients = [accelerator.reduce(gradient, reduction="mean") for gradient in gradients]
    return value, list(zip(parameters, gradients, strict=True))


def norm_of(gradients: Gradients) -> float:
    """Return the Euclidean norm of a whole gradient."""
    return sum(gradient.double().square().sum().item() for _, gradient in gradients) ** 0.5


@dataclass(frozen=True)
class Move:
    """An actual move of the weights, after rounding.

    Args:
        length (`float`): Euclidean norm of the difference between the weights after and before.
        cosine (`float`): cosine between that difference and the intended one: 1 if nothing was rounded away or no move
            was intended, 0 if no weight changed.
    """

    length: float
    cosine: float


class WeightShift:
    """Weights that are moved for a while."""

    def __init__(self):
        self._saved: list[tuple[torch.Tensor, torch.Tensor]] = []

    @property
    def moved(self) -> bool:
        """Whether they are moved now."""
        return bool(self._saved)

    @torch.no_grad()
    def along(self, gradients: Gradients, step_size: float) -> Move:
        """Move the weights by `step_size` times the gradient, and return the actual move.

        Raises:
            RuntimeError: if they are moved already.
        """
        if self._saved:
            raise RuntimeError("the weights are moved already: undo that first")
        products, group = [], None
        for parameter, gradient in gradients:
            for number, (held, part) in enumerate(_held(parameter, gradient)):
                before = held.clone()
                self._saved.append((held, before))
                held.add_(part.to(held.device, held.dtype), alpha=step_size)
                if number == 0:
                    products.append(_products(held, before, part, step_size).to(gradient.device))
            group = getattr(parameter, "ds_process_group", group)
        total = torch.stack(products).sum(0)
        if group is not None:  # ZeRO-3: each process has measured its shards
            torch.distributed.all_reduce(total, group=group)
        moved, both, intended = total.tolist()
        cosine = both / (moved * intended) ** 0.5 if moved * intended > 0 else float(intended == 0)
        return Move(moved**0.5, cosine)

    @torch.no_grad()
    def undo(self) -> None:
        """Put every bit back; nothing where nothing is moved."""
        for held, before in self._saved:
            held.copy_(before)
        self._saved = []

    @contextmanager
    def undone_before_step(self, engine: Any = None) -> Iterator[None]:
        """Inside the block, DeepSpeed, which accelerate lets step in the backward pass, undoes the move first."""
        if engine is None:
            yield
            return
        step = engine.step

        def undo_and_step(*args, **kwargs):
            self.undo()
            return step(*args, **kwargs)

        engine.step = undo_and_step
        try:
            yield
        finally:
            del engine.step  # the class's own again


def _products(held: torch.Tensor, before: torch.Tensor, part: torch.Tensor, step_size: float) -> torch.Tensor:
    """Return three inner products: actual with actual, actual with intended, and intended with intended move."""
    dtype = torch.promote_types(held.dtype, torch.float32)
    moved = held.to(dtype) - before.to(dtype)
    intended = part.to(held.device, dtype) * step_size
    pairs = ((moved, moved), (moved, intended), (intended, intended))
    return torch.stack([(one * other).sum(dtype=torch.float64) for one, other in pairs])


def _held(parameter: nn.Parameter, gradient: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield this process's tensors of a parameter with the matching parts of the gradient; its own shard first."""
    if not hasattr(parameter, "ds_tensor"):
        yield parameter.data, gradient
        return
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    shard = parameter.ds_tensor.data.view(-1)
    start = torch.distributed.get_rank(parameter.ds_process_group) * shard.numel()
    part = gradient.reshape(-1)[start : start + shard.numel()]
    yield shard[: part.numel()], part  # the last shard may be padded
    if parameter.ds_status == ZeroParamStatus.AVAILABLE:  # a small one, that every process keeps whole
        yield parameter.data, gradient
