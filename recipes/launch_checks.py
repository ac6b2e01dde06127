"""The checks before a command starts: `metatune` stops at the first finding, `doctor` lists all.

A command's module defines `check(*configs)` for its options and `check_data(*configs, rows)` for its data. Checks for
several commands are in [`checks_of`]. Add a new check in one of these places, so that both run it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

from ..curricula.hub_access import hub_answers
from .adapters import folder_of
from .config import ConfigError, MissingHereError
from .conform import choose, nearest
from .hub import check_push, find_model
from .trackers import check_trackers

HEAD = 1000  # rows of each split that the launcher reads; the launched processes read all


@dataclass(frozen=True)
class Found:
    """The configurations of a command by role; `None` for a role that the command does not have."""

    script: Any
    training: Any
    model: Any

    @classmethod
    def among(cls, configs: tuple[Any, ...]) -> "Found":
        """Assign configurations to roles by their options."""

        def having(option: str) -> Any:
            return next((config for config in configs if hasattr(config, option)), None)

        return cls(configs[0], having("report_to"), having("attn_implementation"))


def checks_of(module: ModuleType, configs: tuple[Any, ...], rows: int | None) -> Iterator[Callable[[], None]]:
    """Yield the checks of a command, each a call that raises [`ConfigError`]; cheap ones first.

    Args:
        module (`ModuleType`): the command's module.
        configs (`tuple`): what its parser returned.
        rows (`int`, *optional*): rows of each split to read; all by default.
    """
    found = Found.among(configs)
    if hasattr(module, "check"):
        yield partial(module.check, *configs)
    if found.training is not None:
        yield partial(check_trackers, found.training)
    if found.model is not None:
        yield partial(check_attention, found.model)
    if hasattr(module, "check_data"):
        yield partial(module.check_data, *configs, rows=rows)
    if found.model is not None:
        yield partial(find_models, found)
        yield partial(check_lora_modules, found.model)
    if hasattr(found.script, "reward_models"):
        yield partial(check_reward_models, found.script)
        if rows is None:  # a chat costs money: a launch checks its judges when the trainer is created
            yield partial(check_judges, found.script)
    if found.training is not None:
        yield partial(check_push, found.training)


def run_checks(module: ModuleType, configs: tuple[Any, ...], rows: int | None = HEAD) -> None:
    """Raise the first finding, a [`ConfigError`], of a command's checks."""
    for check in checks_of(module, configs, rows):
        check()


def find_models(found: Found) -> None:
    """Raise [`~metatune.recipes.config.MissingHereError`] for a missing model, tokenizer or reward model."""
    model = found.model
    name = getattr(model, "model_name_or_path", None) or getattr(model, "model", None)
    option = "model_name_or_path" if hasattr(model, "model_name_or_path") else "model"
    find_model(name, option, getattr(model, "model_revision", None))
    find_model(getattr(found.script, "tokenizer", None), "tokenizer", file="tokenizer_config.json")
    for name in getattr(found.script, "reward_model", None) or []:  # of an evaluation
        find_model(name, "reward_model")


def check_lora_modules(model_args: Any) -> None:
    """Raise [`ConfigError`] if the model has none of `lora_target_modules`, which PEFT would reject later."""
    modules = getattr(model_args, "lora_target_modules", None)
    if not getattr(model_args, "use_peft", False) or not isinstance(modules, list):
        return
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    name = folder_of(model_args.model_name_or_path)
    try:
        config = AutoConfig.from_pretrained(
            name, revision=model_args.model_revision, local_files_only=not hub_answers()
        )
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError):  # `find_models` reports a missing model; others cannot be checked
        return
    named = [module for module, _ in model.named_modules()]
    if any(name == module or name.endswith(f".{module}") for name in named for module in modules):
        return
    leaves = sorted({name.rpartition(".")[2] for name in named} - {""})
    raise ConfigError(f"lora_target_modules: the model has no module '{modules[0]}'{nearest(modules[0], leaves)}")


def check_reward_models(script_args: Any) -> None:
    """Raise [`~metatune.recipes.config.MissingHereError`] for a missing reward model or an unreachable server."""
    from .checks import reward_server_problem
    from .reward_models import read_entries
    from .run_folder import need_model

    for index, entry in enumerate(read_entries(script_args.reward_models or [])):
        where = f"reward_models[{index}]"
        for path in [entry.path] if entry.path is not None else entry.paths or []:
            need_model(path, f"{where}: path")
            find_model(path, f"{where}: path")
        problem = None if entry.url is None else reward_server_problem(entry.url, entry.model)
        if problem is not None:
            raise MissingHereError(f"{where}: {problem}")


def check_judges(script_args: Any) -> None:
    """Raise [`~metatune.recipes.config.MissingHereError`] for a judge that does not answer or rejects the key."""
    from .checks import judge_problems
    from .judges import given_judges

    for problem in judge_problems(given_judges(script_args)):
        raise MissingHereError(problem)


def check_attention(model_args: Any) -> None:
    """Raise [`ConfigError`] for an attention implementation that transformers does not know."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = model_args.attn_implementation
    if name is None or "/" in name:  # a kernel of the hub
        return
    try:
        choose(name, ["eager", *(each for each in ALL_ATTENTION_FUNCTIONS.valid_keys() if each != "eager")])
    except ValueError as error:
        raise ConfigError(f"attn_implementation: {error}") from error
