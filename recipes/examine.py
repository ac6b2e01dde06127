"""Examine a recipe before it is launched: does it fit the hardware it is meant for, and what is missing.

The recipe is parsed as the launcher parses it, for the same number of processes, so that TRL's errors are reported
unchanged. Every check of the launch runs on it (`launch_checks`), with all rows of its data. Nothing is allocated or
started, and only the files that the launch needs first are downloaded: data, and the model's configuration.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from .checks import (
    device_problems,
    disk_report,
    engine_problems,
    estimate_notes,
    package_problems,
    scoring_notes,
    server_problems,
)
from .config import ConfigError, MissingHereError, StrictParser, read_recipe
from .launch import separate
from .launch_checks import checks_of
from .phases import Phase, phases_of
from .remedies import remedies
from .target import Hardware, Launch, hardware_of, launch_of, paired
from .verdict import verdict_of

RECIPES = ("grpo", "sft", "reward", "star", "strength", "metarm", "eval")
MODULES = {"eval": "evaluate"}  # others are named as their command
ONE_PROCESS = ("strength", "eval")


def module_of(kind: str) -> ModuleType:
    """Return the module of a command."""
    return import_module(f"{__package__}.{MODULES.get(kind, kind)}")


def choose_recipe(path: str, kind: str | None) -> str:
    """Return the name of the command that a file is for: `kind`, or the command whose options have most of its keys.

    In a tie it is the command that a comment in the file names, as in `metatune sft --config`.

    Raises [`ConfigError`] if that leaves several.
    """
    if kind is not None:
        return kind
    keys = read_recipe(path).values.keys()
    known = {name: len(module_of(name).make_parser().hints.keys() & keys) for name in RECIPES}
    likely = [name for name in RECIPES if known[name] == max(known.values())]
    text = Path(path).read_text(encoding="utf-8")
    named = [name for name in re.findall(r"metatune (\w+)", text) if name in likely]
    if len(likely) > 1 and not named:
        raise ConfigError(f"{path}: the keys fit {' and '.join(likely)}: select one with --recipe {likely[0]}")
    return named[0] if named else likely[0]


def parser_for(kind: str, processes: int) -> StrictParser:
    """Return the parser of a recipe whose training arguments believe to be one of `processes` processes."""

    def targeted(cls: type) -> type:
        return type(cls.__name__, (cls,), {"world_size": property(lambda self: processes)})

    parser = module_of(kind).make_parser(prog=f"metatune {kind}")
    types = [targeted(cls) if hasattr(cls, "world_size") else cls for cls in parser.dataclass_types]
    return type(parser)(types, prog=parser.prog)


def parse(
    kind: str, args: Sequence[str], processes: int, told: bool, elsewhere: bool
) -> tuple[tuple | None, bool, list[str], StrictParser]:
    """Parse a recipe for `processes` processes on a machine that was described, or whose files are elsewhere.

    Where transformers refuses the machine this runs on (bf16 without a GPU), the recipe is parsed once more as if for
    a CPU: its memory can be estimated all the same.

    Returns:
        the configurations, `None` if they are refused; whether the recipe itself asks for the CPU; what the checks of
        the launch find; and the parser, which has the recipe's lines.

    Raises [`ConfigError`] for mistakes in the file, which have their line.
    """
    problems: list[str] = []
    for force_cpu in (False, True):
        parser = parser_for(kind, processes)
        try:
            configs = parser.parse_args_and_config([*args, *_cpu_options(parser, force_cpu)])
            if force_cpu and kind == "metarm":
                _train_on_cpu(configs[0])
            for key in parser.launch_values if kind in ONE_PROCESS else ():
                parser.refuse_launch(f"`{key}`")
        except ConfigError as error:
            if error.__cause__ is None:
                raise
            problems.append(str(error))
            continue
        found = findings(kind, parser, configs, elsewhere)
        if not force_cpu and any("there is no GPU here" in problem for problem in found):  # of a block of metarm
            problems += found
            continue
        if force_cpu and told:  # the refusal was of this machine
            problems = problems[1:]
        elif force_cpu:
            problems[0] += ". To check it for another machine, specify --gpus N --gpu_memory GiB"
        return configs, not force_cpu and asks_for_cpu(configs), list(dict.fromkeys(problems + found)), parser
    return None, False, list(dict.fromkeys(problems)), parser


def _cpu_options(parser: StrictParser, force_cpu: bool) -> list[str]:
    return ["--use_cpu", "true"] if force_cpu and "--use_cpu" in parser._option_string_actions else []


def _train_on_cpu(script: Any) -> None:
    for block in (script.reward, script.grpo):
        block["use_cpu"] = True


def asks_for_cpu(configs: tuple[Any, ...]) -> bool:
    """Return whether a recipe requests the CPU."""
    script = configs[0]
    blocks = [getattr(script, name, None) or {} for name in ("reward", "grpo")]
    return (
        any(getattr(config, "use_cpu", False) for config in configs)
        or any(isinstance(block, dict) and block.get("use_cpu") is True for block in blocks)
        or getattr(script, "device", None) == "cpu"
    )


def findings(kind: str, parser: StrictParser, configs: tuple[Any, ...], elsewhere: bool) -> list[str]:
    """Run every check of the launch on all rows; with `elsewhere`, ignore what only this machine lacks."""
    found = []
    for check in checks_of(module_of(kind), configs, rows=None):
        try:
            check()
        except MissingHereError as error:
            found += [] if elsewhere else [str(parser.locate(error))]
        except ConfigError as error:
            found.append(str(parser.locate(error)))
    return found


def examine(args, recipe_args: Sequence[str], found: dict[str, Any], packages: list[dict]) -> dict[str, Any]:
    """Run every check of a recipe's launch, estimate its memory, and compare it with the hardware.

    Args:
        args (`DoctorArguments`): the doctor's own options.
        recipe_args (`Sequence[str]`): `--config FILE` and what else the launch would be given.
        found (`dict[str, Any]`): this machine's devices ([`~metatune.recipes.machine.devices`]).
        packages (`list[dict]`): installed packages ([`~metatune.recipes.machine.package_versions`]).
    """
    path = recipe_args[recipe_args.index("--config") + 1]
    kind = choose_recipe(path, args.recipe)
    parser = parser_for(kind, 1)
    recipe_args, options = separate(recipe_args, parser, [f"--{option.name}" for option in fields(args)])
    given = parser.check_recipe(read_recipe(path)) | paired(recipe_args)
    values = parser.launch_values | paired(options)
    hardware = hardware_of(args, found)
    wants_cpu = str(given.get("use_cpu", False)).lower() == "true"
    gpus = 0 if wants_cpu or kind in ONE_PROCESS else hardware.gpus
    launch = launch_of(args.num_processes, args.accelerate_config, values, gpus)
    elsewhere = hardware.told or args.model is not None
    configs, use_cpu, problems, parser = parse(kind, recipe_args, launch.processes, hardware.told, elsewhere)
    result: dict[str, Any] = {
        "file": path,
        "recipe": kind,
        "launch": asdict(launch),
        "hardware": asdict(hardware),
        "problems": problems,
        "notes": [],
        "ready": False,
    }
    if configs is None:
        return result
    on_gpu = hardware.gpus > 0 and not use_cpu
    result["on_gpu"] = on_gpu
    if not on_gpu and hardware.memory is None:
        raise ConfigError(f"{path} trains on a CPU (use_cpu): say by --host_memory GiB what the machine has")
    problems += device_problems(launch, hardware, on_gpu, use_cpu)
    note_environment(result, kind, configs, launch, packages, hardware)
    try:
        phases = phases_of(kind, configs, launch, args, hardware, on_gpu)
    except ConfigError as error:
        text = str(parser.locate(error))
        place = text.partition(": ")[0]  # a check of the launch has named it there, in more detail
        problems += [] if any(problem.startswith(f"{place}: ") for problem in problems) else [text]
        return result
    except (OSError, ValueError) as error:  # not on this disk and no hub at hand
        reason = str(error).splitlines()[0]
        problems.append(
            f"the model's configuration cannot be read, so nothing is estimated: {reason} (--model FOLDER names a "
            "local copy or a folder with its config.json)"
        )
        return result
    compare(result, phases, hardware, on_gpu)
    result["ready"] = result.get("fits", True) and not problems
    return result


def note_environment(
    result: dict[str, Any],
    kind: str,
    configs: tuple[Any, ...],
    launch: Launch,
    packages: list[dict],
    hardware: Hardware,
) -> None:
    """Add the problems of packages and the vLLM server; as notes if the recipe is for another machine."""
    where = result["notes"] if hardware.told else result["problems"]
    training: Any = next((config for config in configs if hasattr(config, "report_to")), None)
    model: Any = next((config for config in configs if hasattr(config, "load_in_4bit")), None)
    lacking = package_problems(configs[0], training, model, launch, packages, result["on_gpu"])
    where += [f"not in this environment, needed there: {each}" if hardware.told else each for each in lacking]
    if kind == "grpo" and training.use_vllm and training.vllm_mode == "server":
        where += server_problems(training, model.model_name_or_path)
    if kind == "grpo":
        from .judges import given_judges
        from .reward_models import read_entries

        result["notes"] += scoring_notes(given_judges(configs[0]), read_entries(configs[0].reward_models or []))
    if training is not None and model is not None:
        result["notes"] += estimate_notes(kind, training, model)


def compare(result: dict[str, Any], phases: Sequence[Phase], hardware: Hardware, on_gpu: bool) -> None:
    """Add the estimate of the largest phase, whether it fits, the remedies, and the disk space."""
    if not phases:
        return
    refined = [_with_engine(phase, on_gpu) for phase in phases]
    for phase in phases:
        if phase.work.engine_share:
            share = phase.work.engine_share if on_gpu else 0
            result["problems"] += engine_problems(
                phase.training, phase.config, phase.shape, phase.launch, share, phase.work.length
            )
        if phase.training is not None:
            full, notes = disk_report(phase.training, phase.shape, phase.work, hardware)
            result["problems"] += full
            result["notes"] += notes
    verdicts = [verdict_of(phase, hardware, on_gpu) for phase in refined]
    worst = max(range(len(phases)), key=lambda index: (not verdicts[index].fits, verdicts[index].needed))
    phase, verdict = refined[worst], verdicts[worst]
    result |= {
        "phase": phase.name,
        "phases": {phase.name: verdict.needed for phase, verdict in zip(refined, verdicts, strict=True)},
        "model": asdict(phase.shape),
        "workload": asdict(phase.work),
        "bytes": verdict.estimate.as_dict(),
        "needed": verdict.needed,
        "available": verdict.available,
        "fits": all(each.fits for each in verdicts),
        "remedies": [] if verdict.fits else remedies(phase, hardware, on_gpu),
    }
    if on_gpu and verdict.estimate.host:
        result |= {"host_needed": verdict.host_needed, "host_available": verdict.host_available}
    if on_gpu and 0.9 * verdict.available < verdict.needed <= verdict.available:
        result["notes"].append(
            "tight: CUDA context, buffers and fragmentation are not counted; keep 10 % of a GPU free"
        )


def _with_engine(phase: Phase, on_gpu: bool) -> Phase:
    """Add the engine's weights to vLLM's share on a CPU, where the share is only its cache."""
    if not phase.work.engine_share or on_gpu:
        return phase
    share = phase.work.engine_share + phase.work.weight_bytes * phase.shape.parameters
    return replace(phase, work=replace(phase.work, engine_share=share))
