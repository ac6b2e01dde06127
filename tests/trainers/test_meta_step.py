"""The move along another objective's gradient: MetaRM's step by hand on two parameters, and every bit put back."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.functional import softplus

from metatune.trainers.meta_step import WeightShift, norm_of, objective_gradients
from metatune.trainers.reward_losses import difference_objective


class TwoParameters(nn.Module):
    """r(x) = w . x"""

    is_gradient_checkpointing = False  # as a transformers model says

    def __init__(self, *w: float):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, *x: float) -> torch.Tensor:
        return self.w @ torch.tensor(x, dtype=torch.float64)


def spread(model: TwoParameters) -> torch.Tensor:
    """Two responses with features (1, 0) and (0, 0): J = sigmoid(|w_1|) / 2."""
    return difference_objective(torch.stack([model(1.0, 0.0), model(0.0, 0.0)])[None]).mean()


def loss(model: TwoParameters) -> torch.Tensor:
    """One pair, (1, 1) over (0, 0)."""
    return softplus(model(0.0, 0.0) - model(1.0, 1.0))


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def test_the_step_by_hand_is_first_order(accelerator):
    # At w = (1, 0), dJ/dw = (sigmoid'(1) / 2, 0) = (0.0983060, 0). eta = 2: w' = (1.1966119, 0).
    # dL/dw = -sigmoid(-w'_1) (1, 1) = -0.2320785; alpha = 1, from w: (1.2320785, 0.2320785).
    model = TwoParameters(1.0, 0.0)
    value, gradients = objective_gradients(model, accelerator, spread)
    assert value == pytest.approx(0.7310586 / 2)
    assert norm_of(gradients) == pytest.approx(0.0983060, abs=1e-6)
    shift = WeightShift()
    shift.along(gradients, 2.0)
    assert shift.moved and model.w.tolist() == pytest.approx([1.1966119, 0.0], abs=1e-6)
    (gradient,) = torch.autograd.grad(loss(model), [model.w])
    shift.undo()
    stepped = (model.w - gradient).tolist()
    assert stepped == pytest.approx([1.2320785, 0.2320785], abs=1e-6)

    # Differentiated through the move it would be another step: the factor 1 + eta J'' = 1 - 0.0908 on w_1.
    w = model.w.detach().clone().requires_grad_()
    inner = torch.sigmoid(w[0].abs()) / 2
    (direction,) = torch.autograd.grad(inner, [w], create_graph=True)
    moved = w + 2.0 * direction
    (second_order,) = torch.autograd.grad(softplus(-moved.sum()), [w])
    assert second_order[1].item() == pytest.approx(gradient[1].item())
    assert second_order[0].item() == pytest.approx((1 - 0.090860) * gradient[0].item(), abs=1e-5)


def test_ascent_raises_the_objective(accelerator):
    model = TwoParameters(0.3, -0.2)
    before, gradients = objective_gradients(model, accelerator, spread)
    shift = WeightShift()
    shift.along(gradients, 1.0)
    assert spread(model).item() > before
    shift.undo()
    assert spread(model).item() == before


def test_undo_puts_back_every_bit_in_half_precision(accelerator):
    torch.manual_seed(0)
    model = nn.Linear(64, 64).bfloat16()
    model.is_gradient_checkpointing = False
    before = [parameter.clone() for parameter in model.parameters()]
    _, gradients = objective_gradients(model, accelerator, lambda m: m(torch.ones(1, 64).bfloat16()).square().sum())
    shift = WeightShift()
    shift.along(gradients, 0.01)
    assert any((p != b).any() for p, b in zip(model.parameters(), before, strict=True))
    with pytest.raises(RuntimeError, match="moved already"):
        shift.along(gradients, 0.01)
    shift.undo()
    shift.undo()  # again is nothing
    assert all((p == b).all() for p, b in zip(model.parameters(), before, strict=True))


def test_the_move_made_is_measured_on_the_weights():
    """Near 1, bfloat16 rounds a move of 1/4 of its spacing to 0 and one of 3/4 to all of it; float32 keeps both."""
    spacing = 1 / 128
    steps = torch.tensor([spacing / 4, 3 * spacing / 4])
    for dtype, length, cosine in (
        (torch.float32, spacing * 0.625**0.5, 1.0),
        (torch.bfloat16, spacing, 0.75 / 0.625**0.5),
    ):
        weight = nn.Parameter(torch.ones(2, dtype=dtype))
        move = WeightShift().along([(weight, steps / 2)], 2.0)
        assert (move.length, move.cosine) == pytest.approx((length, cosine))
    lost = WeightShift().along([(nn.Parameter(torch.ones(2).bfloat16()), steps[:1].expand(2))], 1.0)
    assert (lost.length, lost.cosine) == (0.0, 0.0)
    none = WeightShift().along([(nn.Parameter(torch.ones(2)), torch.zeros(2))], 1.0)
    assert (none.length, none.cosine) == (0.0, 1.0)


def test_parameters_without_part_in_it_and_frozen_ones_stay(accelerator):
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "unused": nn.Linear(2, 1), "frozen": nn.Linear(2, 1)})
    model["frozen"].requires_grad_(False)
    model.is_gradient_checkpointing = False
    _, gradients = objective_gradients(
        model, accelerator, lambda m: (m["used"](torch.ones(2)) * m["frozen"](torch.ones(2))).sum()
    )
    assert len(gradients) == 4
    unused = {id(parameter) for parameter in model["unused"].parameters()}
    assert all(not gradient.any() for parameter, gradient in gradients if id(parameter) in unused)
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_deepspeed_finds_the_weights_put_back_when_it_steps():
    class EngineThatOnlySteps:
        """Stands for DeepSpeed's engine, whose `step` accelerate calls inside of the backward pass."""

        def step(self):
            seen.append(weight.item())

    seen, weight = [], nn.Parameter(torch.tensor(1.0))
    engine, shift = EngineThatOnlySteps(), WeightShift()
    shift.along([(weight, torch.tensor(1.0))], 0.5)
    with shift.undone_before_step(engine):
        seen.append(weight.item())
        engine.step()
    engine.step()
    assert seen == [1.5, 1.0, 1.0]
    assert "step" not in vars(engine)
