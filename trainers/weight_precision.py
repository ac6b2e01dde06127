"""Keep or require float32 weights where small steps are added to them.

bfloat16 has 8 bits of precision: rounding removes a step below 1/512 of a weight. DeepSpeed applies AdamW's steps to
float32 copies, so they are not lost. Steps that other code adds to the weights themselves, such as MetaRM's move, are.
"""

import copy
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import nn
from transformers import TrainingArguments
from trl import GRPOConfig

MIN_MIXUP = 0.5  # of 16-bit weights: from here on, a mixture ends one unit in the last place away from the policy
LOW_PRECISION = (torch.bfloat16, torch.float16)
Arguments = TypeVar("Arguments", bound=TrainingArguments)


def with_float32_weights(args: Arguments) -> Arguments:
    """Return arguments with which DeepSpeed keeps float32 weights under `bf16: true`, as DDP does.

    accelerate turns `bf16: true` into DeepSpeed's `bf16` section, which casts the weights to bfloat16. DeepSpeed's
    `torch_autocast` section keeps the weights and casts inside of the forward pass. Without DeepSpeed or without
    `bf16`, the arguments do not change. Call this function before the model is loaded, because ZeRO-3 casts the
    weights then.

    Raises:
        ValueError: if the `deepspeed` option is set, because that configuration may cast the weights.
    """
    plugin = args.deepspeed_plugin
    if plugin is None or not args.bf16:
        return args
    if args.deepspeed:
        raise ValueError(
            "deepspeed with bf16: true keeps bfloat16 weights, in which small steps are lost: remove the option "
            "deepspeed and select DeepSpeed in the accelerate configuration (such as accelerate_config: zero2)"
        )
    plugin.deepspeed_config["bf16"] = {"enabled": False}
    plugin.deepspeed_config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    plugin.set_deepspeed_weakref()  # transformers reads it when it loads a model
    args = copy.copy(args)
    args.bf16, args.mixed_precision = False, "no"  # or accelerate would add the bf16 section again
    return args


def autocast_of(model: nn.Module) -> AbstractContextManager:
    """Return the autocast context of a DeepSpeed engine's forward pass; a null context for other models."""
    if not hasattr(model, "torch_autocast_enabled"):
        return nullcontext()
    from deepspeed.runtime.torch_autocast import autocast_if_enabled

    return autocast_if_enabled(model)


def low_precision_type(parameters: Iterable[nn.Parameter]) -> torch.dtype | None:
    """Return the first 16-bit data type among the parameters, or `None`."""
    return next((parameter.dtype for parameter in parameters if parameter.dtype in LOW_PRECISION), None)


def check_mixing(reference: nn.Module, args: GRPOConfig) -> None:
    """Raise `ValueError` if the reference model's precision is too low for `sync_ref_model`.

    TRL mixes the weights in the reference model's own data type. With a share of 0.05, rounding stops the reference
    about ten units in the last place away from the policy; with 0.5 or more (TRL's default is 0.6), at most one unit.
    """
    dtype = low_precision_type(reference.parameters())
    if dtype is not None and args.ref_model_mixup_alpha < MIN_MIXUP:
        raise ValueError(
            f"sync_ref_model with ref_model_mixup_alpha: {args.ref_model_mixup_alpha} makes changes that rounding to "
            f"the reference model's {dtype} removes: set ref_model_mixup_alpha to at least {MIN_MIXUP}, or use "
            "float32 weights (dtype: float32, under DeepSpeed also bf16: false)"
        )
