"""Launch a training recipe through `accelerate launch`, with as many processes as were asked for.

`accelerate launch` alone falls back to one process without a word when there is no GPU, or one too few. Here the
number is settled first, processes on a CPU are started like those on GPUs (by torchrun) and told to use gloo, and
every process checks the number again ([`check_world_size`]).
"""

import argparse
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from .config import (
    EXPECTED_PROCESSES,
    ConfigError,
    StrictParser,
    can_resume,
    launch_options,
    nearest,
    output_dir_of,
)
from .failures import STOPPED, cause_of, describe_exit, one_line, tell
from .kept_recipe import LAUNCH_OPTIONS
from .stopping import LAUNCHED, MARGIN, STOPPER, children, end_children, grace

LONGEST_BUILD = 20  # minutes
PROCESSES = ("gpu", "gpus", "num_gpus", "n_gpus", "nproc_per_node", "nproc")  # other launchers' names
ACCELERATE_FOLDERS = (Path(__file__).with_name("accelerate"), Path(str(files("trl"))) / "accelerate_configs")


def launch(recipe: ModuleType, parser: StrictParser, args: Sequence[str]) -> int:
    """Check the recipe in this process, then run it in as many processes as asked.

    Args:
        recipe (`ModuleType`): the recipe's module; [`~metatune.recipes.launch_checks.checks_of`] says what is checked.
        parser (`StrictParser`): the recipe's parser.
        args (`Sequence[str]`): the command line after the subcommand, the launcher's options among them.

    Returns:
        `int`: the exit code of the first process that failed, else 0.
    """
    from .launch_checks import run_checks

    parser.epilog = (
        "Also --accelerate_config NAME|FILE and every option of `accelerate launch`, --num_processes 2 say."
    )
    recipe_args, launch_args = separate(args, parser)
    configs = parser.parse_args_and_config(recipe_args)
    if STOPPER.output_dir is None:  # otherwise a loop launches this recipe, and the loop can be resumed
        STOPPER.output_dir, STOPPER.resumes = output_dir_of(configs), can_resume(configs)
    run_checks(recipe, configs)
    use_cpu = any(getattr(config, "use_cpu", False) for config in configs)
    os.environ[LAUNCH_OPTIONS] = json.dumps(as_values(launch_args))
    launch_args = as_options(parser.launch_values) + launch_args
    return start(plan(resolve_accelerate_config(launch_args), recipe.__name__, recipe_args, use_cpu))


def separate(args: Sequence[str], parser: StrictParser, others: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Split a command line into the recipe's arguments and the launcher's; an option that both know is the recipe's.

    Raises [`ConfigError`] for an option that neither knows; it suggests one of theirs, or of `others`.
    """
    recipe_options, recipe_args, launch_args = parser._option_string_actions, [], []
    rest = iter(args)
    for arg in rest:
        option = arg.split("=")[0]
        if option in recipe_options or not option.startswith("--"):
            recipe_args.append(arg)
            continue
        takes_value = launch_options().get(option.removeprefix("--"))
        if takes_value is None:
            known = [*others, *recipe_options, *(f"--{name}" for name in launch_options())]
            raise ConfigError(f"unknown option {option}{suggest(option, known)}")
        launch_args.append(option)
        if takes_value:
            value = arg.partition("=")[2] if "=" in arg else next(rest, "--")
            if value.startswith("--"):
                raise ConfigError(f"{option} needs a value")
            launch_args.append(value)
    return recipe_args, launch_args


def suggest(option: str, known: Sequence[str]) -> str:
    """Return a suggestion for an unknown option, also for names that other launchers use."""
    name = option.lstrip("-").replace("-", "_")
    if option not in known and name in PROCESSES and "--gpus" not in known:
        return "; did you mean '--num_processes', one for each GPU?"
    return nearest(option, known)


def as_options(values: dict[str, Any]) -> list[str]:
    """Write the launcher's keys of a recipe as command-line options."""
    options = []
    for name, value in values.items():
        if launch_options()[name]:
            options += [f"--{name}", str(value)]
        elif value is True:
            options.append(f"--{name}")
    return options


def as_values(options: Sequence[str]) -> dict[str, Any]:
    """Read the launcher's command-line options as the keys and values of a recipe; the last one of each counts."""
    values: dict[str, Any] = {}
    rest = iter(options)
    for option in rest:
        name = option.removeprefix("--")
        values[name] = yaml.safe_load(next(rest)) if launch_options()[name] else True
    return values


def resolve_accelerate_config(args: Sequence[str]) -> list[str]:
    """Replace `--accelerate_config NAME|FILE` by accelerate's `--config_file FILE`; the last one counts."""
    args = list(args)
    path = None
    while "--accelerate_config" in args:
        index = args.index("--accelerate_config")
        _, name = args[index : index + 2]
        del args[index : index + 2]
        candidates = [Path(name), *(folder / f"{name}.yaml" for folder in ACCELERATE_FOLDERS)]
        path = next((file for file in candidates if file.is_file()), None)
        if path is None:
            names = sorted({file.stem for folder in ACCELERATE_FOLDERS for file in folder.glob("*.yaml")})
            raise ConfigError(f"--accelerate_config: no file and no name '{name}'{nearest(name, names)} ({names})")
    return args if path is None else ["--config_file", str(path), *args]


def plan(launch_args: Sequence[str], module: str, recipe_args: Sequence[str], use_cpu: bool) -> argparse.Namespace:
    """Parse the launcher's arguments and settle how many processes run, on what, and started how.

    Args:
        launch_args (`Sequence[str]`): options of `accelerate launch`.
        module (`str`): importable name of the recipe.
        recipe_args (`Sequence[str]`): the recipe's own arguments.
        use_cpu (`bool`): whether the recipe asks for the CPU.

    Returns:
        `argparse.Namespace`: the arguments of `accelerate launch`, nothing in them left to be guessed.
    """
    import torch
    from accelerate.commands.launch import launch_command_parser

    parser = launch_command_parser()
    parser.error = _raise_config_error
    args = parser.parse_args([*launch_args, "--module", module, *recipe_args])
    defaults = load_accelerate_config(args)
    kind = str(getattr(defaults, "distributed_type", "NO"))
    deepspeed = args.use_deepspeed or "DEEPSPEED" in kind
    fsdp = args.use_fsdp or "FSDP" in kind
    accelerators = torch.accelerator.device_count()
    on_cpu = use_cpu or args.cpu or getattr(defaults, "use_cpu", False) or accelerators == 0

    args.num_machines = args.num_machines or getattr(defaults, "num_machines", None) or 1
    if args.num_processes is None:
        written = getattr(defaults, "num_processes", -1)  # -1: accelerate's mark for a file that does not say
        args.num_processes = written if written > 0 else max(1, 0 if on_cpu else accelerators)
    if args.num_processes < 1:
        raise ConfigError(f"num_processes must be at least 1, got {args.num_processes}")
    per_machine = args.num_processes // args.num_machines
    if not on_cpu and per_machine > accelerators:
        raise ConfigError(f"{per_machine} processes are asked for, this machine has {accelerators} GPU(s)")
    if deepspeed and find_spec("deepspeed") is None:
        raise ConfigError("DeepSpeed is not installed: pip install 'metatune[deepspeed]'")
    if deepspeed:
        refuse_abandoned_build()
    if deepspeed and on_cpu and not use_cpu:
        raise ConfigError("DeepSpeed without a GPU needs use_cpu: true in the recipe")
    if fsdp and on_cpu:
        raise ConfigError("FSDP needs GPUs; shard on a CPU with --accelerate_config zero2")

    if args.num_processes > 1 and not (deepspeed or fsdp):
        args.multi_gpu = True  # accelerate's name for "started by torchrun"
    if on_cpu:
        args.cpu = False  # the flag would start one process; the variable tells every process the same
        os.environ["ACCELERATE_USE_CPU"] = "false" if deepspeed else "true"  # true would turn DeepSpeed into DDP
    if args.num_machines == 1 and args.main_process_port is None:
        args.main_process_port = getattr(defaults, "main_process_port", None) or 0  # 0: any free port
    refuse_port_in_use(args)
    if defaults is None:  # said here, or accelerate prints a paragraph about its defaults
        args.mixed_precision, args.dynamo_backend = args.mixed_precision or "no", args.dynamo_backend or "no"
        args.use_cpu = on_cpu
    return args


def load_accelerate_config(args: argparse.Namespace) -> Any:
    """Load the accelerate configuration that applies, `None` without one."""
    from accelerate.commands.config import load_config_from_file
    from accelerate.commands.config.config_args import default_yaml_config_file

    path = args.config_file or default_yaml_config_file
    if args.config_file is None and not Path(path).is_file():
        return None
    try:
        return load_config_from_file(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # of an empty file, a list
        raise ConfigError(f"{path}: not a configuration of accelerate: {' '.join(str(error).split())}") from None


def _raise_config_error(message: str) -> None:
    raise ConfigError(f"launcher: {message}")


def refuse_port_in_use(args: argparse.Namespace) -> None:
    """Raise [`ConfigError`] if the port that the processes are to meet on is taken; accelerate would take another."""
    port = int(args.main_process_port or 0)
    if port == 0 or int(args.machine_rank or 0) != 0:
        return
    with socket.socket() as meeting_point:
        meeting_point.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            meeting_point.bind(("", port))
        except OSError as error:
            advice = ", or 0 for any free one" if args.num_machines == 1 else " on every machine"
            raise ConfigError(f"--main_process_port {port}: {error.strerror}; give another port{advice}") from None


def refuse_abandoned_build() -> None:
    """Raise [`ConfigError`] for the lock of a process that was killed while it built one of DeepSpeed's extensions.

    PyTorch lets every later start wait for it in silence. One that is younger than a build may take is told.
    """
    from torch.utils.cpp_extension import get_default_build_root

    given = os.environ.get("TORCH_EXTENSIONS_DIR")  # else PyTorch adds a folder for the Python and the accelerator
    for lock in Path(given).glob("*/lock") if given else Path(get_default_build_root()).glob("*/*/lock"):
        try:
            minutes = (time.time() - lock.stat().st_mtime) / 60
        except FileNotFoundError:  # its build has ended since
            continue
        if minutes > LONGEST_BUILD:
            raise ConfigError(
                f"{lock} is {minutes:.0f} minutes old: a process was killed while it built this extension of "
                "DeepSpeed, and every start would wait for it; delete the file"
            )
        print(f"metatune: {lock}: another process builds it, this run waits; if none does, delete it", file=sys.stderr)


def start(args: argparse.Namespace) -> int:
    """Start the processes, wait for them, and return the exit code of the one that failed first, else 0.

    The last line on stderr has the cause. No started process outlives this call.

    Raises:
        Stopped: if a signal arrived, after the processes have ended.
    """
    from accelerate.commands.launch import launch_command
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ[EXPECTED_PROCESSES] = str(args.num_processes)
    os.environ[LAUNCHED] = str(os.getpid())
    STOPPER.limit = grace() + 2 * MARGIN
    args.shutdown_timeout = math.ceil(grace() + MARGIN)  # after which torchrun sends SIGKILL
    args.signals_to_handle = "SIGQUIT"  # torchrun's handlers would replace those of `metatune`
    earlier = children()
    try:
        if args.num_processes > 1 or not runs_alone(args):
            launch_command(args)
            return 0
        failures = run_alone(args)
    except ChildFailedError as error:
        failures = error.failures
    finally:
        end_children(keep=earlier)
    STOPPER.check()  # the processes may have handled the signal before this one
    if not failures:
        return 0
    rank, failure = cause_of(failures)
    if failure.exitcode in STOPPED:  # the signal went only to that process, or to another machine
        STOPPER.signal = signal.Signals(failure.exitcode - 128)
        STOPPER.check()
    process = "the process" if args.num_processes == 1 else f"rank {rank} of {args.num_processes}"
    if failure.exitcode == 2:  # a ConfigError, which is the same on every process
        tell(one_line(failure.message))
    else:
        tell(describe_exit(failure.exitcode, failure.message, process))
    return failure.exitcode if failure.exitcode > 0 else 1


def runs_alone(args: argparse.Namespace) -> bool:
    """Complete the launcher's arguments, and return whether they start one process without torchrun."""
    from accelerate.commands.launch import _validate_launch_command

    _validate_launch_command(args)
    distributed = args.use_deepspeed or args.use_fsdp or args.use_megatron_lm or args.multi_gpu or args.tpu
    return args.cpu or not distributed


def run_alone(args: argparse.Namespace) -> dict[int, Any]:
    """Run one process like `accelerate launch`, in its own session, so that Ctrl-C reaches it only through this one.

    Returns:
        `dict[int, ProcessFailure]`: its failure in torchrun's form, by rank; empty if it succeeded.
    """
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    command, environment = prepare_simple_launcher_cmd_env(args)
    with tempfile.TemporaryDirectory() as folder:
        error_file = f"{folder}/error.json"
        environment["TORCHELASTIC_ERROR_FILE"] = error_file
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(args.shutdown_timeout)
            raise
        return {0: ProcessFailure(0, process.pid, code, error_file)} if code else {}
