"""TRL's own options for a metatune trainer, so that a TRL script runs when only the class name changes."""

from dataclasses import fields
from typing import TypeVar

import torch
from transformers import TrainingArguments

Config = TypeVar("Config", bound=TrainingArguments)


def config_for(
    config_class: type[Config], args: TrainingArguments | None, model: str | torch.nn.Module, trainer: str
) -> Config:
    """Return the options of a trainer as its own class.

    Args:
        config_class (`type`): class of the trainer's options, a subclass of TRL's.
        args (`TrainingArguments`, *optional*): what the user passed; TRL's class gets the defaults of the options
            that it does not have.
        model (`str` or `torch.nn.Module`): names the output folder where there are no options, as in TRL.
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
    if "generation_batch_size" in values:  # the same as steps_per_generation by now, and TRL refuses both
        values["generation_batch_size"] = None
    return config_class(**values)
