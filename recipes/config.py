"""Strict recipes: TRL's `TrlParser` where a mistake in the YAML or on the command line is one clear line.

`TrlParser` takes YAML values as they come: a mistyped key is passed on, a wrong type travels until something breaks.
[`StrictParser`] checks each value against the annotation of its dataclass field and names the file, the line, the key
and the nearest valid name. Beyond that it reads recipes as TRL does: command-line options win over the YAML, `env:`
sets environment variables, and relative paths are relative to the working directory, not to the YAML file.

Everything at import time here is free of torch, so that a missing file is reported in a fraction of a second.
"""

import argparse
import dataclasses
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import yaml
from trl.scripts.utils import TrlParser

from .conform import choose, conform, describe, nearest
from .failures import close_progress_bars, known_cause, leave, lost_peer, record, tell
from .foreign import exit_code, foreign_error
from .kept_recipe import KeepsRecipe, given_options
from .limits import refused
from .recipe_lines import line_of, lines_of, repeated_key
from .stopping import STOPPER, Stopped, follow_launcher, reports

EXPECTED_PROCESSES = "METATUNE_EXPECTED_PROCESSES"
DATA = ("dataset_name", "meta_dataset_name", "prompts_name")  # errors about rows begin with the name of the dataset
PATHS = ("accelerator_config", "fsdp_config", "deepspeed")  # these may name a file in place of a mapping


class ConfigError(ValueError):
    """A mistake of the user's: reported as one line on stderr with exit code 2, never as a traceback."""


class MissingHereError(ConfigError):
    """What a recipe needs is not where it is read, and may be on another machine: a folder, the key of a server."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A recipe as read from its file, before any dataclass has seen it.

    Args:
        path (`str`): the file, as the user named it.
        values (`dict[str, Any]`): its keys and values, without `env`.
        lines (`dict[str, int]`): the line of each key at any depth, counted from 1; see `recipe_lines.lines_of`.
        env (`dict[str, str]`): the environment variables it asks for.
    """

    path: str
    values: dict[str, Any]
    lines: dict[str, int]
    env: dict[str, str]

    def error(self, key: str, message: str) -> ConfigError:
        """Build the error for `key`: `FILE:LINE: message`, without a line for a key merged in by `<<`.

        The line is that of the deepest key that the message mentions.
        """
        line = line_of(message, self.values, self.lines) or self.lines.get(str(key))
        return ConfigError(f"{self.path}:{line}: {message}" if line else f"{self.path}: {message}")


def read_recipe(path: str) -> Recipe:
    """Read a recipe from a YAML file.

    Raises [`ConfigError`] if the file is missing, unreadable, not YAML, not a mapping, or names a key twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except FileNotFoundError:
        folder = Path(path).parent
        siblings = [file.name for file in folder.iterdir() if file.is_file()] if folder.is_dir() else []
        name = Path(*Path(path).parts[-2:])  # as in dump/quickstart.yaml
        packaged = len(name.parts) == 2 and (Path(__file__).parent / name).is_file()
        advice = (
            "; `metatune recipes --copy_to recipes` brings it here" if packaged else nearest(Path(path).name, siblings)
        )
        raise ConfigError(f"{path}: no such file{advice}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ConfigError(f"{path}{where}: not valid YAML: {problem}") from None
    except ValueError as error:  # a date that is none, `!!int x`
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid YAML: nested too deep") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a recipe is a YAML mapping `key: value`, this is {describe(values)}")
    repeated = repeated_key(root)
    if repeated is not None:
        key, line, first = repeated
        raise ConfigError(f"{path}:{line}: duplicate key '{key}'; first on line {first}: remove one")
    lines = lines_of(root)
    env = values.pop("env", None) or {}
    if not isinstance(env, dict) or any(isinstance(value, (dict, list)) or value is None for value in env.values()):
        raise ConfigError(f"{path}:{lines.get('env', 1)}: `env` is a mapping from variable names to text")
    return Recipe(path, values, lines, {str(name): str(value) for name, value in env.items()})


@cache
def launch_options() -> dict[str, bool]:
    """Return the options that belong to the launcher, without dashes, and whether each takes a value."""
    from accelerate.commands.launch import launch_command_parser

    ours = {"help", "module", "no_python", "training_script", "training_script_args"}
    options = {"accelerate_config": True}
    for action in launch_command_parser()._actions:
        if action.dest not in ours:
            options |= {option.removeprefix("--"): action.nargs != 0 for option in action.option_strings}
    return options


class PlainParser(argparse.ArgumentParser):
    """The parser of a command without a recipe, with the same error format as for recipes."""

    def __init__(self, **kwargs):
        super().__init__(**{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        """Raise [`ConfigError`] where argparse would print its usage and exit."""
        raise ConfigError(f"{message}; see {self.prog} --help")


class StrictParser(TrlParser):
    """A [`~trl.TrlParser`] that accepts nothing it does not understand.

    Args:
        dataclass_types (`DataClassType` or `Iterable[DataClassType]`): as for [`~trl.TrlParser`].
        alone (`str`, *optional*): what to say where one of several `{processes}` parses, which is then refused.
        **kwargs: as for `argparse.ArgumentParser`; abbreviated options are off.

    After parsing, `launch_values` holds the keys of the recipe that are the launcher's (`num_processes`,
    `accelerate_config`, any option of `accelerate launch`): `metatune` acts on them. A script that was launched by
    other means ignores them but for `num_processes`, which [`check_world_size`] compares with the truth.
    """

    def __init__(self, dataclass_types, alone: str | None = None, **kwargs):
        super().__init__(dataclass_types, **{"allow_abbrev": False, **kwargs})
        self.add_argument("--config", metavar="FILE.yaml", help="The recipe; any option given here wins over it.")
        self.alone = alone
        self.recipe: Recipe | None = None
        self.values: dict[str, Any] = {}
        self.launch_values: dict[str, Any] = {}
        self._given: Mapping[str, Any] = {}  # every option's value, by whichever side won

    @property
    def hints(self) -> dict[str, Any]:
        """The annotation of every field that a recipe may set."""
        hints: dict[str, Any] = {}
        for dtype in self.dataclass_types:
            of_class = get_type_hints(dtype)
            hints |= {field.name: of_class[field.name] for field in dataclasses.fields(dtype) if field.init}
        if "resume_from_checkpoint" in hints:  # annotated `str | None`, but `Trainer` takes true as well
            hints["resume_from_checkpoint"] = str | bool | None
        return hints

    @property
    def options(self) -> dict[str, Any]:
        """What the recipe and the command line set."""
        changed = {name: value for name, value in self._given.items() if value != self.get_default(name)}
        return {**self.values, **{name: changed[name] for name in changed.keys() & self.hints.keys()}}

    def error(self, message: str) -> NoReturn:
        """Raise [`ConfigError`] where argparse would print its usage, some hundred lines here, and exit."""
        if "required:" in message and self.recipe is not None:
            message += f" (give them here or in {self.recipe.path})"
        raise ConfigError(" ".join(message.split()))

    def parse_args_and_config(self, args: Iterable[str] | None = None) -> tuple[Any, ...]:
        """Parse the command line and the recipe it names into the dataclasses, in their order.

        Raises [`ConfigError`] for an unknown or duplicate key, a value of the wrong type or outside the choices, a
        missing file or required key, an unknown option, and whatever a dataclass refuses in its `__post_init__`.
        """
        args = list(args) if args is not None else sys.argv[1:]
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        if self.alone is not None and processes > 1:
            raise ConfigError(self.alone.format(processes=processes))
        self.refuse_unknown_options(args)
        path = config_path(args)
        return self.parse_recipe(read_recipe(path) if path is not None else None, args)

    def parse_recipe(self, recipe: Recipe | None, args: Sequence[str] = ()) -> tuple[Any, ...]:
        """Parse a recipe that has been read, and a command line over it; raises as `parse_args_and_config`."""
        if recipe is not None:
            self.recipe = recipe
            os.environ.update(recipe.env)
            self.values = self.check_recipe(recipe)
            if "num_processes" in self.launch_values:  # `metatune` has set it already if it launched this process
                os.environ.setdefault(EXPECTED_PROCESSES, str(self.launch_values["num_processes"]))
        namespace, extra = self.parse_known_args(args)
        if extra:
            advice = f"; did you mean --config {extra[0]}?" if extra[0].endswith((".yaml", ".yml")) else ""
            raise ConfigError(f"unexpected argument '{extra[0]}'{advice}")
        self._given = vars(namespace)
        self.refuse_numbers()
        try:
            *configs, _namespace = self.parse_args_into_dataclasses(args, look_for_args_file=False)
        except ConfigError:
            raise
        except Exception as error:  # a dataclass of a library may raise anything
            message = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, json.JSONDecodeError):  # of a mapping on the command line
                names = [name for name, value in self._given.items() if value == error.doc]
                option = f"--{names[0]}" if names else "an option"
                raise ConfigError(f"{option}: {error.doc} is not JSON ({message})") from error
            if "doesn't support bf16/gpu" in message:
                message = "there is no GPU here: add `use_cpu: true` to train on the CPU"
            elif not isinstance(error, ValueError):
                message = f"{type(error).__name__}: {message}"
            if self.key_of(message) is None and recipe is not None:
                message = f"{recipe.path}: {message}"
            raise self.locate(ConfigError(message)) from error
        self.refuse_texts(configs)
        for config in configs:  # on the command line, true (the last checkpoint) can only be said as text
            if str(getattr(config, "resume_from_checkpoint", None)).lower() == "true":
                config.resume_from_checkpoint = True
            if isinstance(config, KeepsRecipe):
                config.given = given_options(self, args, self._given)
        return tuple(configs)

    def parse_known_args(self, args=None, namespace=None):
        """Parse over the recipe's values: they have their types, and argparse would read a text default once more."""
        for action in self._actions:
            action.required = action.required and action.dest not in self.values
        return super().parse_known_args(args, argparse.Namespace(**self.values) if namespace is None else namespace)

    def key_of(self, message: str) -> str | None:
        """Return the key of the recipe that a message begins with, unless the command line gave that option."""
        begins = re.match(r"(?:block )?`?(\w+)(?![\w./-])", message)  # not a path that begins like a key
        key = begins[1] if begins and self.recipe is not None else None
        if key in self.launch_values or (key in self.values and self._given.get(key, ...) is self.values[key]):
            return key
        return next((key for key in self.values if key in DATA and self._begins_with(message, key)), None)

    def _begins_with(self, message: str, key: str) -> bool:
        """Return whether a message begins with the value of a key that the command line did not override."""
        name = self.values[key]
        return self._given.get(key, ...) is name and message.startswith((f"{name}:", f"{name},", f"{name} "))

    def locate(self, error: ConfigError) -> ConfigError:
        """Put file and line before an error's text if that begins with a key of the recipe, and return the error."""
        key = self.key_of(str(error))
        if key is not None and self.recipe is not None:
            error.args = self.recipe.error(key, str(error)).args
        return error

    def refuse_numbers(self) -> None:
        """Raise [`ConfigError`] for the first number that its option cannot be."""
        mistake = refused({name: value for name, value in self._given.items() if name in self.hints})
        if mistake is not None:
            raise self.locate(ConfigError(mistake[1]))

    def refuse_texts(self, configs: Iterable[Any]) -> None:
        """Raise [`ConfigError`] where a mapping was given as a text that is not JSON: it is unpacked as one later."""
        for config in configs:
            for name in getattr(config, "_VALID_DICT_FIELDS", ()):
                if isinstance(getattr(config, name), str) and name not in PATHS:
                    raise self.locate(
                        ConfigError(f"`{name}`: expected a mapping, got {describe(getattr(config, name))}")
                    )

    def refuse_unknown_options(self, args: Sequence[str]) -> None:
        """Raise [`ConfigError`] for the first option in `args` that this parser does not have."""
        for arg in args:
            option = arg.split("=")[0]
            if option.startswith("--") and option not in self._option_string_actions:
                if option.removeprefix("--") in launch_options():
                    self.refuse_launch(option)
                raise ConfigError(f"unknown option {option}{nearest(option, self._option_string_actions)}")

    def refuse_launch(self, name: str) -> NoReturn:
        """Raise [`ConfigError`] for an option of the launcher where there is none to take it."""
        if self.prog.startswith("metatune "):
            raise ConfigError(f"{name} belongs to the launcher, and {self.prog} runs in one process")
        raise ConfigError(f"{name} is the launcher's: put it before the script's name, or use metatune")

    def check_recipe(self, recipe: Recipe) -> dict[str, Any]:
        """Return the values of `recipe` that belong to the dataclasses, each of its field's type."""
        hints = self.hints
        launcher_hints = {"num_processes": int}  # the rest is checked by the launcher's own parser
        checked: dict[str, Any] = {}
        for key, value in recipe.values.items():
            target = checked if key in hints else self.launch_values
            if key not in hints and key not in launch_options():
                raise recipe.error(key, f"unknown key '{key}'{nearest(key, [*hints, *launch_options()])}")
            action = self._option_string_actions.get(f"--{key}")
            try:
                target[key] = conform(value, hints.get(key) or launcher_hints.get(key, Any))
                if action is not None and action.choices and isinstance(target[key], str):
                    choose(target[key], list(action.choices))  # argparse looks at the command line alone
            except ValueError as error:
                raise recipe.error(key, f"`{key}`: {error}") from None
        return checked


def refusal(error: ValueError) -> ConfigError | None:
    """Return as one line what a check of metatune raised, `None` for other errors: `foreign_error` tells those."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if frame.f_globals.get("__name__", "").partition(".")[0] != "metatune":
        return None
    return ConfigError(" ".join(str(error).split()))


def config_path(args: Sequence[str]) -> str | None:
    """Return the file that `--config FILE` or `--config=FILE` names in `args`, `None` without either."""
    paths = []
    for index, arg in enumerate(args):
        if arg == "--config":
            if index + 1 == len(args) or args[index + 1].startswith("--"):
                raise ConfigError("--config needs a file: --config FILE.yaml")
            paths.append(args[index + 1])
        elif arg.startswith("--config="):
            paths.append(arg.removeprefix("--config="))
    if len(paths) > 1:
        raise ConfigError(f"--config is given {len(paths)} times; put everything in one recipe")
    return paths[0] if paths else None


def check_world_size() -> None:
    """Raise [`ConfigError`] unless as many processes work together as were asked for.

    Call it once the training arguments exist. It catches two launches that go wrong without a word: `accelerate launch
    --cpu --num_processes 2` starts one process, and `--multi_gpu` on a machine without a GPU starts two that each
    train alone unless `use_cpu: true` or `ACCELERATE_USE_CPU=true` is set. That variable in turn makes DDP of
    DeepSpeed, which is refused as well.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED") and parse_flag_from_env("ACCELERATE_USE_CPU"):
        raise ConfigError("ACCELERATE_USE_CPU=true makes DDP of DeepSpeed: unset it, and set use_cpu: true instead")

    found = PartialState().num_processes
    _check_number(EXPECTED_PROCESSES, found)
    _check_number("WORLD_SIZE", found)


def _check_number(name: str, found: int) -> None:
    """Raise [`ConfigError`] unless the environment variable `name`, if set, asks for `found` processes."""
    expected = int(os.environ.get(name, found))
    if expected != found:
        raise ConfigError(
            f"{expected} processes were asked for ({name}) but {found} would train together; launch with "
            f"`metatune … --num_processes {expected}`, or set use_cpu: true and use "
            f"`accelerate launch --multi_gpu --num_processes {expected}` if there is no GPU"
        )


def run(make_parser: Callable[[], StrictParser], main: Callable[..., None]) -> None:
    """Run a recipe that was launched as a script.

    A [`ConfigError`], or what a library refuses to make a trainer of, becomes one line and exit code 2; a write that
    failed (a full disk), a lost server, or what a library raises later, one line and exit code 1; a mistake in
    metatune or in a user's own code keeps its traceback. Under `metatune` the launcher prints the line, once for all
    processes. `stopping` handles signals and the launcher's death.
    """
    configs, parser = (), None
    try:
        STOPPER.listen()
        follow_launcher()
        if "WORLD_SIZE" in os.environ:  # before the processes meet: who ends early would leave the others waiting
            _check_number(EXPECTED_PROCESSES, int(os.environ["WORLD_SIZE"]))
        parser = make_parser()
        configs = parser.parse_args_and_config()
        STOPPER.output_dir, STOPPER.resumes = output_dir_of(configs), can_resume(configs)
        main(*configs)
    except Stopped as stopped:
        end_stopped(stopped)
    except ConfigError as error:
        end(str(parser.locate(error) if parser else error), 2)
    except Exception as error:
        if STOPPER.signal is not None and lost_peer(error):  # another process has stopped before this one
            end_stopped(Stopped(STOPPER.signal))
        output_dir = output_dir_of(configs)
        known = known_cause(error, output_dir)
        message = known or foreign_error(error, parser.options if parser else {}, output_dir)
        if message is None:
            record(f"{type(error).__name__}: {error}")
            close_progress_bars()
            sys.excepthook(*sys.exc_info())
            leave(1)
        end(message, 1 if known else exit_code(error))
    leave(0)


def output_dir_of(configs: Iterable[Any]) -> str | None:
    """Return where a command writes."""
    return next((config.output_dir for config in configs if hasattr(config, "output_dir")), None)


def can_resume(configs: Iterable[Any]) -> bool:
    """Return whether a command with these options can be resumed."""
    return any(hasattr(config, "resume_from_checkpoint") for config in configs)


def end(message: str, code: int) -> NoReturn:
    """Print an error, unless the launcher prints it, and exit."""
    close_progress_bars()
    if not record(message):
        tell(message)
    leave(code)


def end_stopped(stopped: Stopped) -> NoReturn:
    """Print what stopped this process and how to resume, unless the launcher does, and exit."""
    line = STOPPER.describe()
    close_progress_bars()
    if not record(line) and reports():
        tell(line, kind="")
    leave(stopped.code)
