"""LoRA adapters: a run's folder that holds one, and the base model it belongs to.

A run with `use_peft: true` saves `adapter_model.safetensors` and `adapter_config.json`, not the base model. The base
is recorded there as the recipe named it: `starter` stays `starter`, so that the folder can move and the package can
be installed anywhere. metatune's commands find it again here; for other tools there is `metatune merge`.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from .config import ConfigError, refusal
from .data import is_path
from .foreign import REFUSED

STARTER = Path(__file__).parent / "starter"  # this package's own checkpoint
CONFIG_NAME = "adapter_config.json"


class Base(NamedTuple):
    """The base model of an adapter: its folder or hub name, and its revision there (`None`: the default one)."""

    name: str
    revision: str | None


def folder_of(model: str) -> str:
    """Return the folder or hub name of a model as a recipe names it; `starter` is this package's own checkpoint."""
    return str(STARTER) if model == "starter" else model


def is_adapter(model: str | Path) -> bool:
    """Tell whether a folder holds an adapter in place of a whole model."""
    return (Path(model) / CONFIG_NAME).is_file() and not (Path(model) / "config.json").is_file()


def base_of(adapter: str | Path) -> Base:
    """Find the base model of the adapter in a folder.

    Raises [`ConfigError`] if the folder holds no adapter, names no base, or names a folder that is not there.
    """
    path = Path(adapter) / CONFIG_NAME
    if not is_adapter(adapter):
        held = "a whole model" if (Path(adapter) / "config.json").is_file() else "no adapter"
        raise ConfigError(f"{adapter}: not an adapter's folder, it holds {held} (no {CONFIG_NAME} of a LoRA run)")
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        name, revision = recorded.get("base_model_name_or_path"), recorded.get("revision")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    if not name:
        raise ConfigError(f"{path}: base_model_name_or_path is empty; write the base model's folder or hub name there")
    if name == "starter":
        return Base(str(STARTER), None)
    if is_path(name) and not Path(name).is_dir():
        raise ConfigError(
            f"{adapter}: its base model is missing, no such folder: {name}; put it back, or write where it is as "
            f"base_model_name_or_path in {path}"
        )
    return Base(name, revision)


def base_and_adapter(model: str) -> tuple[Base, str | None]:
    """Return the whole model to load, and the adapter's folder if `model` is one."""
    return (base_of(model), model) if is_adapter(model) else (Base(model, None), None)


def check_adapter_options(model_args: Any) -> None:
    """Raise [`ConfigError`] for unused LoRA options, and for an adapter in place of a base or without one.

    Also puts a single name of `lora_target_modules` back into its list: TRL takes it out, and PEFT would then read it
    as a pattern for whole names, which no module has.

    Args:
        model_args ([`~trl.ModelConfig`]): the model's options.
    """
    if not model_args.use_peft:
        for option in fields(model_args):
            is_lora = option.name.startswith("lora_") or option.name in ("use_rslora", "use_dora")
            if is_lora and getattr(model_args, option.name) != option.default:
                raise ConfigError(f"`{option.name}` is given, but nothing uses it without `use_peft: true`")
    modules = model_args.lora_target_modules
    if isinstance(modules, str) and modules.isidentifier():
        model_args.lora_target_modules = [modules]
    name = model_args.model_name_or_path
    if model_args.use_peft and name is None:
        raise ConfigError("`use_peft: true` needs `model_name_or_path`: an adapter without its base is of no use")
    if name is not None and is_adapter(name):
        raise ConfigError(
            f"model_name_or_path: {name} holds an adapter; make a whole model of it first: "
            f"metatune merge --model {name} --output_dir FOLDER"
        )


def record_base(model: Any, model_args: Any) -> None:
    """Write into the configuration of a model's adapters, if it has any, which base they belong to.

    Args:
        model ([`~peft.PeftModel`] or [`~transformers.PreTrainedModel`]): the trainer's model.
        model_args ([`~trl.ModelConfig`]): the options that the base was loaded with.
    """
    name = model_args.model_name_or_path
    starter = name == "starter" or (name is not None and Path(name).resolve() == STARTER.resolve())
    for adapter in getattr(model, "peft_config", {}).values():
        adapter.revision = None if model_args.model_revision == "main" else model_args.model_revision
        adapter.base_model_name_or_path = str(STARTER) if starter else name
        if starter:  # in the file alone: PEFT itself looks its base up at every save, and on the hub if it is no path
            written = adapter.to_dict
            adapter.to_dict = lambda written=written: {**written(), "base_model_name_or_path": "starter"}


def adapter_error(error: ValueError) -> ConfigError | None:
    """Return the one-line form of what PEFT raises for modules that a model does not have, `None` for other errors."""
    text = " ".join(str(error).split())
    if text.startswith(("Target modules ", "No modules were targeted")) or "specify `target_modules`" in text:
        return ConfigError(f"lora_target_modules: {text.split('. ')[0]}")
    return None


@contextmanager
def refusals_in_one_line() -> Iterator[None]:
    """Around a trainer's constructor: what PEFT or metatune refuses there is a [`ConfigError`].

    What another library refuses is noted as a refusal, so that its exit code is the same.
    """
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, TypeError, OSError, ImportError) as error:
        mistake = adapter_error(error) or refusal(error) if isinstance(error, ValueError) else None
        if mistake is None:
            error.add_note(REFUSED)
            raise
        raise mistake from error
