"""bf16 under DeepSpeed without casting the weights; tests/recipes/test_resume_matrix.py trains with it."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from metatune.trainers.weight_precision import autocast_of, check_mixing, low_precision_type, with_float32_weights


class Plugin:
    """A stand-in for accelerate's DeepSpeedPlugin."""

    def __init__(self):
        self.deepspeed_config = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 3}}
        self.published: dict = {}

    def set_deepspeed_weakref(self):
        self.published = dict(self.deepspeed_config)


def arguments(**options):
    return SimpleNamespace(
        **{"deepspeed_plugin": None, "deepspeed": None, "bf16": True, "mixed_precision": "bf16"} | options
    )


def test_deepspeed_autocasts_in_place_of_casting_the_weights():
    plugin = Plugin()
    given = arguments(deepspeed_plugin=plugin)
    args = with_float32_weights(given)
    expected = {"bf16": {"enabled": False}, "torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
    assert plugin.deepspeed_config == {**expected, "zero_optimization": {"stage": 3}}
    assert plugin.published == plugin.deepspeed_config, "transformers reads it when it loads a model for ZeRO-3"
    assert (args.bf16, args.mixed_precision) == (False, "no")
    assert given.bf16 and args.deepspeed_plugin is plugin, "the given arguments do not change"


@pytest.mark.parametrize("options", [{}, {"deepspeed_plugin": Plugin(), "bf16": False, "mixed_precision": "no"}])
def test_without_deepspeed_or_bf16_nothing_changes(options):
    args = arguments(**options)
    assert with_float32_weights(args) is args


def test_a_deepspeed_configuration_in_the_arguments_is_refused():
    args = arguments(deepspeed_plugin=Plugin(), deepspeed={"bf16": {"enabled": True}})
    with pytest.raises(ValueError, match="remove the option deepspeed"):
        with_float32_weights(args)


def test_the_type_of_parameters():
    model = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1).half()])
    assert low_precision_type(model.parameters()) == torch.float16
    assert low_precision_type(model[0].double().parameters()) is None
    with autocast_of(model):  # not a DeepSpeed engine
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(("alpha", "furthest"), [(0.05, 10), (0.6, 1)])
def test_a_mixture_in_16_bits_follows_the_policy_if_its_share_is_large(alpha, furthest):
    """TRL's rule, repeated until nothing changes: from 1, a spacing below 2 is 1/128 in bfloat16."""
    reference, policy = nn.Linear(1, 1).bfloat16(), torch.tensor(1 + 20 / 128)
    reference.weight.data.fill_(1)
    for _ in range(50):
        reference.weight.data.mul_(1 - alpha).add_(policy.bfloat16(), alpha=alpha)
    distance = (policy - reference.weight.item()) * 128
    args = SimpleNamespace(ref_model_mixup_alpha=alpha)
    if furthest == 1:
        assert abs(distance) <= 1
        check_mixing(reference, args)
    else:
        assert distance >= furthest
        with pytest.raises(ValueError, match=r"ref_model_mixup_alpha: 0.05 makes.*at least 0.5, or use float32"):
            check_mixing(reference, args)
    check_mixing(reference.float(), args)
