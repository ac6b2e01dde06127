"""The recipe in a run's folder, and its differences to the recipe that the run is resumed with."""

import dataclasses
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from .config import StrictParser

NAME = "recipe.yaml"
LAUNCH_OPTIONS = "METATUNE_LAUNCH_OPTIONS"  # the launcher's options of the command line, as JSON
SECRETS = re.compile("token|key|secret|password", re.IGNORECASE)  # matches names of environment variables
MODEL = ("model_name_or_path", "tokenizer")
# A checkpoint's weights, adapters and optimizer state fit only these values.
FIXED = re.compile(
    r"model_name_or_path|model_revision|init_config|tokenizer|optim|use_peft|use_dora|use_rslora|lora_.*"
)
LONGEST = 60  # characters of a value in a list of differences
MOST = 12  # differences listed


@dataclasses.dataclass
class KeepsRecipe:
    """Base of the first dataclass of a command that saves its recipe in the run's folder.

    Attributes:
        given (`dict[str, Any]`): the recipe's keys with the changes from the command line, without defaults, derived
            values and secrets. The parser sets it.
    """

    given: dict[str, Any] = dataclasses.field(default_factory=dict, init=False, repr=False)

    @property
    def recipe(self) -> str:
        """The text of `recipe.yaml`."""
        return yaml.safe_dump(self.given, sort_keys=False, allow_unicode=True)


def given_options(parser: "StrictParser", args: Sequence[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe's options with the changes from the command line.

    Args:
        parser ([`StrictParser`]): the parser, after it has read the recipe.
        args (`Sequence[str]`): the command line.
        values (`Mapping[str, Any]`): every option's value.
    """
    actions = [parser._option_string_actions.get(arg.split("=")[0]) for arg in args if arg.startswith("--")]
    changed = {action.dest: values[action.dest] for action in actions if action and action.dest in parser.hints}
    for name, value in changed.items():
        if isinstance(value, str) and value[:1] in ("{", "["):  # a mapping, which is JSON on the command line
            with suppress(ValueError):
                changed[name] = json.loads(value)
        elif name == "resume_from_checkpoint" and str(value).lower() == "true":
            changed[name] = True
        elif name.endswith("_steps") and isinstance(value, float) and value.is_integer():
            changed[name] = int(value)  # transformers parses save_steps as a float, because it may be a share
    given: dict[str, Any] = {}
    if parser.recipe is not None:
        variables = {name: value for name, value in parser.recipe.env.items() if not SECRETS.search(name)}
        checked = {**parser.values, **parser.launch_values, **({"env": variables} if variables else {})}
        given = {name: checked[name] for name in ["env", *parser.recipe.values] if name in checked}
    given |= json.loads(os.environ.get(LAUNCH_OPTIONS, "{}")) | changed
    given.pop("hub_token", None)  # the folder may be pushed to the hub
    return given


def differences(began: Mapping[str, Any], given: Mapping[str, Any], *configs: Any) -> dict[str, tuple[Any, Any]]:
    """Return the options that differ from the start of the run, each with its old and new value.

    Args:
        began (`Mapping[str, Any]`): the `recipe.yaml` of the run; an older one contains derived values too.
        given (`Mapping[str, Any]`): the current options from the recipe and the command line.
        *configs: the dataclasses they were parsed into, with every default and derived value.
    """
    fields = {field.name: (config, field) for config in configs for field in dataclasses.fields(config) if field.init}
    found = {}
    for name in dict.fromkeys([*began, *given]):
        old = new = None
        if name in fields:
            config, field = fields[name]
            value = getattr(config, name)
            old = field.default_factory() if callable(field.default_factory) else field.default
            new = getattr(value, "value", value)  # of an enumeration
        old, new = began.get(name, old), given.get(name, new)
        if old != new:
            found[name] = (old, new)
    return found


def describe(changes: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Return a line for each value that differs, `distributions.sums.config.terms: 3 -> 4`, of at most MOST."""
    from ..eval.run_comparison import flat_recipe

    old, new = (flat_recipe(yaml.safe_dump({name: pair[i] for name, pair in changes.items()})) for i in (0, 1))
    lines = []
    for name in dict.fromkeys([*old, *new]):
        pair = [each.get(name, "not set") for each in (old, new)]
        if pair[0] != pair[1]:
            lines.append(f"{name}: " + " -> ".join(_short(value) for value in pair))
    return lines if len(lines) <= MOST else [*lines[:MOST], f"and {len(lines) - MOST} more"]


def _short(value: str) -> str:
    return value if len(value) <= LONGEST else f"{value[:LONGEST]}…"


def fixed(changes: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Return the changed options that prevent a resume; a model in another folder does not."""
    names = []
    for name, pair in changes.items():
        moved = name in MODEL and all(pair) and len({Path(str(value)).name for value in pair}) == 1
        if FIXED.fullmatch(name) and not moved:
            names.append(name)
    return names


def read_kept(folder: Path) -> dict[str, Any] | None:
    """Return the recipe in a run's folder, `None` if there is no readable one."""
    try:
        values = yaml.safe_load((folder / NAME).read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return values if isinstance(values, dict) else None


def without(changes: Mapping[str, tuple[Any, Any]], names: Collection[str]) -> dict[str, tuple[Any, Any]]:
    """Return the changes of other options than `names`."""
    return {name: pair for name, pair in changes.items() if name not in names}
