"""Convert TRL's configuration for a metatune trainer, so that a TRL script needs only another class name."""

from dataclasses import fields
from typing import TypeVar

import torch
from transformers import TrainingArguments

Config = TypeVar("Config", bound=TrainingArguments)


def config_for(
    config_class: type[Config], args: TrainingArguments | None, model: str | torch.nn.Module, trainer: str
) -> Config:
    """Return a trainer's options as its own configuration class.

    Args:
        config_class (`type`): class of the trainer's options, a subclass of TRL's.
        args (`TrainingArguments`, *optional*): the user's options; options that TRL's class does not have get their
            defaults.
        model (`str` or `torch.nn.Module`): the model, which names the output folder without `args`, as in TRL.
        trainer (`str`): name of the trainer.

    Raises:
        TypeError: if `args` has an option that `config_class` does not have.
    """
    if isinstance(args, config_class):
        return args
    if args is None:
        name = model if isinstance(model, str) else getattr(model.config, "_name_or_path", "")
        return config_class(output_dir=f"{name.split('/')[-1]}-{trainer.removesuffix('Trainer')}")
    values = {field.name: getattr(args, field.name) for field in fields(args) if field.init}
    unknown = [name for name in values if name not in config_class.__dataclass_fields__]
    if unknown:
        given, wanted = type(args).__name__, config_class.__name__
        raise TypeError(
            f"{trainer}: args is a {given} with the option {unknown[0]!r}, which {wanted} does not have: pass "
            f"{wanted} or a class derived from it"
        )
    if "generation_batch_size" in values:  # steps_per_generation has been derived from it, and TRL rejects both
        values["generation_batch_size"] = None
    return config_class(**values)
