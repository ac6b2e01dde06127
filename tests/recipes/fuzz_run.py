"""Run `metatune COMMAND` in this process as its launch would, and judge what a user would see of it."""

import contextlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from unittest import mock

from accelerate.state import AcceleratorState, GradientState

from metatune.recipes import cli, config, launch

LIMIT = 60  # seconds until a case counts as hung


class TimeUp(BaseException):
    """No `except Exception` on the way may swallow it."""


@dataclass
class Outcome:
    """The exit code (`None`: hung), and what was written on stderr."""

    code: int | None
    errors: str


def time_up(*_) -> None:
    raise TimeUp


def in_process(name: str, train: bool, args) -> int:
    """Stand in for `accelerate launch`: the recipe's own program, in this process."""
    if not train:
        return 0
    module = import_module(f"metatune.recipes.{name}")
    with mock.patch.object(sys, "argv", [name, *args.training_script_args]):
        config.run(module.make_parser, module.main)


def leave(code: int) -> None:
    raise SystemExit(code)


def run(name: str, folder: Path, train: bool = True, limit: float = LIMIT) -> Outcome:
    """Run `metatune NAME --config recipe.yaml` in `folder`.

    Args:
        name (`str`): the command.
        folder (`Path`): holds the recipe and its data, and becomes the working directory.
        train (`bool`, *optional*, defaults to `True`): whether to train; else a recipe is read and checked only.
        limit (`float`, *optional*): seconds.
    """
    errors = io.StringIO()
    kept = signal.signal(signal.SIGALRM, time_up)
    signal.setitimer(signal.ITIMER_REAL, limit)
    module = import_module(f"metatune.recipes.{cli.COMMANDS[name].module}")
    checked_only = not train and not cli.COMMANDS[name].launched
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ))
        stack.enter_context(mock.patch.object(sys, "path", list(sys.path)))
        stack.enter_context(mock.patch.object(launch, "start", lambda args: in_process(name, train, args)))
        stack.enter_context(mock.patch.object(config, "leave", leave))
        if checked_only:
            check = getattr(module, "check", lambda: None)
            stack.enter_context(
                mock.patch.object(module, "main", lambda *configs: check(*configs[: check.__code__.co_argcount]))
            )
        stack.enter_context(contextlib.chdir(folder))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(errors))
        try:
            code = cli.main([name, "--config", "recipe.yaml"])
        except SystemExit as end:
            code = end.code
        except TimeUp:
            code = None
            traceback.print_exc()
        except Exception:  # as the interpreter would end it
            code = 1
            traceback.print_exc()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, kept)
            AcceleratorState._reset_state(True)
            GradientState._reset_state()
    return Outcome(code, errors.getvalue())


def complaint(outcome: Outcome, folder: Path, words: Iterable[str], trained: bool) -> str | None:
    """Return what is wrong with how a command ended, `None` if it ended well or in a clear error.

    Args:
        outcome (`Outcome`): of [`run`].
        folder (`Path`): where it ran.
        words (`Iterable[str]`): of which an error must name one: files and options.
        trained (`bool`): whether it should have left a model in `folder / "run"`.
    """
    if outcome.code is None:
        return f"no end after {LIMIT} s"
    if outcome.code == 0:
        saved = any((folder / "run" / f"{kind}.safetensors").exists() for kind in ("model", "adapter_model"))
        return "exit code 0 and no model" if trained and not saved else None
    if outcome.code not in (1, 2):
        return f"exit code {outcome.code}"
    if "Traceback" in outcome.errors:
        return "a traceback"
    lines = [line for line in outcome.errors.split("\n") if line.startswith("metatune: error: ")]
    if len(lines) != 1 or lines[0] != outcome.errors.rstrip("\n").split("\n")[-1]:
        return f"{len(lines)} error lines, or something after them"
    if len(lines[0]) > 1200:
        return f"an error of {len(lines[0])} characters"
    kept = (folder / "run" / "error.txt").is_file() and "error.txt" in lines[0]
    if not kept and not any(word in lines[0] for word in words):
        return "an error that names no file and no option"
    return None
