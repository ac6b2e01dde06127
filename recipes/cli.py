"""The command `metatune`: `metatune COMMAND --config FILE.yaml [--any_field value]`.

Works as `trl` does. A training recipe is read and checked here first, so that a mistake costs seconds and one line,
and is then launched through `accelerate launch`; options of the launcher may stand anywhere on the command line or in
the recipe. The other commands run in this process; `star` and `metarm` launch their trainings from there.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Any, NoReturn

from .config import ConfigError, can_resume, config_path, nearest, output_dir_of, read_recipe
from .failures import close_progress_bars, known_cause, leave, tell
from .foreign import exit_code, foreign_error
from .stopping import STOPPER, Stopped, adopt_orphans


@dataclass(frozen=True)
class Command:
    """A subcommand: the module in this package that does the work, one line of help, and how it is started."""

    module: str
    summary: str
    launched: bool = False
    foreign_options: bool = False  # it has no recipe, or most options are another program's: not parsed here


COMMANDS = {
    "quickstart": Command(
        "quickstart", "train the starter checkpoint on a CPU in minutes, with a report", foreign_options=True
    ),
    "recipes": Command("packaged", "list the recipes that come with metatune, or copy them here"),
    "sft": Command("sft", "warm-start a model on demonstrations, or make one from nothing", launched=True),
    "grpo": Command("grpo", "train with GRPO over a curriculum of task distributions", launched=True),
    "reward": Command("reward", "train a reward model on preference pairs", launched=True),
    "strength": Command("strength", "let an ensemble vote on preference pairs that its members have not seen"),
    "star": Command("star", "sample traces, keep those of most progress, fine-tune on them, repeat"),
    "metarm": Command("metarm", "train reward model and policy in rounds, the reward model corrected for the policy"),
    "rubric": Command(
        "rubric", "log, diff, show or roll back the rubrics of a run with a judge", foreign_options=True
    ),
    "vllm-serve": Command("vllm_serve", "serve a model with vLLM for `vllm_mode: server`", foreign_options=True),
    "eval": Command(
        "evaluate", "measure accuracy, pass@k and maj@k with intervals, at token budgets too, or reward models"
    ),
    "report": Command("report", "turn a run's folder into a page with pictures"),
    "merge": Command("merge", "merge a LoRA adapter into its base model"),
    "doctor": Command("doctor", "say what this machine can run, and whether a recipe can be launched"),
}


def usage() -> str:
    """Return the text of `metatune --help`."""
    rows = "\n".join(f"  {name:12}{command.summary}" for name, command in COMMANDS.items())
    return f"""usage: metatune COMMAND --config FILE.yaml [--any_field value] [--accelerate_config NAME|FILE]

commands:
{rows}

options:
  --help     this text; `metatune COMMAND --help` lists every field of a command
  --version  the version of metatune

A field of the recipe can be given on the command line too, and wins there. sft, grpo, reward and star also take the
options of `accelerate launch` (--num_processes 2, …) and --accelerate_config with a file or one of the names ddp,
zero1, zero2, zero3, zero3_offload, zero3_two_nodes, cpu2."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv (`Sequence[str]`, *optional*): the arguments, `sys.argv[1:]` by default.

    Returns:
        `int`: the exit code; 2 for a mistake in the command line or the recipe, told in one line on stderr.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    STOPPER.command = argv
    try:
        return dispatch(argv)
    except ConfigError as error:
        tell(str(error))
        return 2
    except Stopped as stopped:
        tell(STOPPER.describe(), kind="")
        return stopped.code
    except KeyboardInterrupt:  # if a user's program calls main, with its own signal handler
        return 130


def dispatch(argv: list[str]) -> int:
    """Run the subcommand that `argv` names; raises [`ConfigError`]."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(f"metatune {version('metatune')}")
        return 0
    name, *args = argv
    if name not in COMMANDS:
        raise ConfigError(f"unknown command '{name}'{nearest(name, COMMANDS)} See metatune --help")
    command = COMMANDS[name]
    parser = None
    configs: tuple[Any, ...] = ()
    try:
        if command.foreign_options:
            return import_module(f".{command.module}", __package__).main(args) or 0
        path = config_path(args)
        if path is not None:
            read_recipe(path)  # a missing or broken file is told before anything heavy is imported
        module = import_module(f".{command.module}", __package__)
        parser = module.make_parser(prog=f"metatune {name}")
        parser.description = f"{command.summary[0].upper()}{command.summary[1:]}."
        if command.launched:
            from .launch import launch

            return launch(module, parser, args)
        configs = parser.parse_args_and_config(args)
        for key in parser.launch_values:
            parser.refuse_launch(f"`{key}`")
        STOPPER.output_dir, STOPPER.resumes = output_dir_of(configs), can_resume(configs)
        if hasattr(module, "check"):
            from .launch_checks import run_checks

            run_checks(module, configs)
        module.main(*configs)
        return 0
    except ConfigError as error:
        if parser:
            parser.locate(error)
        raise
    except Exception as error:
        options = parser.options if parser else {}
        output_dir = output_dir_of(configs) or options.get("output_dir")
        known = known_cause(error, output_dir, can_resume(configs))
        message = known or foreign_error(error, options, output_dir)
        if message is None:
            close_progress_bars()
            raise
        tell(message)
        return 1 if known else exit_code(error)


def run() -> NoReturn:
    """Run the command line as a program that ends every process it started."""
    STOPPER.listen()
    adopt_orphans()
    os.environ["METATUNE_ENDS_TOGETHER"] = "1"  # read in vLLM's processes by `trainers.gloo_weight_transfer`
    leave(main())


if __name__ == "__main__":
    run()
