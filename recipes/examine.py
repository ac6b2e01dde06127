"""Examine a recipe before it is launched: does it fit the hardware it is meant for, and what is missing.

The recipe is parsed as its launch would parse it, on as many processes as would run, so that TRL's refusals are told
in TRL's own words. Nothing is allocated, downloaded (but for the model's configuration) or started.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import import_module
from typing import Any

from .adapters import folder_of
from .checks import (
    device_problems,
    disk_report,
    engine_problems,
    estimate_notes,
    judge_problems,
    package_problems,
    scoring_notes,
    server_problems,
)
from .config import ConfigError, MissingHereError, StrictParser, read_recipe
from .launch import separate
from .memory import ModelShape, Workload, estimate, shape_of
from .target import GIB, Hardware, Launch, hardware_of, launch_of, paired

RECIPES = ("grpo", "sft", "reward")
OTHERS = ("star", "strength", "metarm")


def choose_recipe(path: str, kind: str | None) -> str:
    """Return the name of the recipe that a file is for, `kind` or else the one that knows most of its keys.

    Raises [`ConfigError`] for a recipe of another command.
    """
    if kind is not None:
        return kind
    keys = read_recipe(path).values.keys()
    known = {
        name: len(import_module(f"{__package__}.{name}").make_parser().hints.keys() & keys)
        for name in (*RECIPES, *OTHERS)  # of equals the first counts
    }
    found = max(known, key=lambda name: known[name])
    if found in OTHERS:
        raise ConfigError(f"{path}: a recipe of metatune {found}; doctor examines those of {', '.join(RECIPES)}")
    return found


def parser_for(kind: str, processes: int) -> StrictParser:
    """Return the parser of a recipe whose training arguments believe to be one of `processes` processes."""

    def targeted(cls: type) -> type:
        return type(cls.__name__, (cls,), {"world_size": property(lambda self: processes)})

    types = import_module(f"{__package__}.{kind}").make_parser().dataclass_types
    return StrictParser([targeted(cls) if hasattr(cls, "world_size") else cls for cls in types])


def parse(
    kind: str, args: Sequence[str], processes: int, told: bool, elsewhere: bool
) -> tuple[tuple | None, bool, list[str]]:
    """Parse a recipe for `processes` processes on a machine that was told, or whose files are elsewhere.

    Where transformers refuses the machine this runs on (bf16 without a GPU), the recipe is parsed once more as if for
    a CPU: its memory can be told all the same.

    Returns:
        the configurations, `None` if they are refused; whether the recipe itself asks for the CPU; and the refusals.

    Raises [`ConfigError`] for mistakes in the file, which have their line.
    """
    problems = []
    for forced in ([], ["--use_cpu", "true"]):
        parser = parser_for(kind, processes)
        try:
            configs = parser.parse_args_and_config([*args, *forced])
        except ConfigError as error:
            if error.__cause__ is None:
                raise
            problems.append(str(error))
            continue
        try:
            check = getattr(import_module(f"{__package__}.{kind}"), "check", None)
            if check is not None:
                check(*configs)
        except MissingHereError as error:
            problems += [] if elsewhere else [str(parser.locate(error))]  # another machine may have it
        except ConfigError as error:
            problems.append(str(parser.locate(error)))
        if forced and told:  # the refusal was of this machine
            problems = problems[1:]
        elif forced:
            problems[0] += " To examine it for another machine, give --gpus N --gpu_memory GiB"
        return configs, not forced and configs[1].use_cpu, problems
    return None, False, list(dict.fromkeys(problems))


def workload_of(
    kind: str, training, dtype: str | None, launch: Launch, prompt_length: int, hardware: Hardware, on_gpu: bool
) -> Workload:
    """Read what the memory formulas need off the arguments of a recipe.

    Args:
        kind (`str`): `grpo`, `sft` or `reward`.
        training (`MetaConfig`, `SFTConfig` or `MetaRewardConfig`): its training arguments.
        dtype (`str`): the type the weights are loaded in.
        launch (`Launch`): the processes.
        prompt_length (`int`): tokens of a prompt (`grpo`), or of a sequence that nothing else limits.
        hardware (`Hardware`): the machine.
        on_gpu (`bool`): whether it trains on GPUs.
    """
    half = training.bf16 or training.fp16
    weight_bytes = 2 if dtype in ("bfloat16", "float16") or (launch.deepspeed and half) else 4
    shared = {
        "weight_bytes": weight_bytes,
        "activation_bytes": 2 if half else weight_bytes,
        "batch": training.per_device_train_batch_size,
        "gradient_checkpointing": training.gradient_checkpointing,
        "processes": launch.processes,
        "deepspeed": launch.deepspeed,
        "zero_stage": launch.zero_stage,
        "offload_optimizer": launch.offload_optimizer,
        "offload_parameters": launch.offload_parameters,
        "on_gpu": on_gpu,
    }
    if kind == "sft":
        length = training.max_length or prompt_length
        return Workload(**shared, length=length, loss_positions=length)
    if kind == "reward":  # a pair is two sequences; its head is one number a sequence
        views = 1 if training.contrastive == "none" else 2  # every row is in the batch twice
        pairs = shared | {"batch": 2 * views * training.per_device_train_batch_size}
        return Workload(**pairs, length=training.max_length or prompt_length, loss_positions=0)
    length = prompt_length + training.max_completion_length
    colocate = training.use_vllm and training.vllm_mode == "colocate"
    share = int(training.vllm_gpu_memory_utilization * hardware.gpu_memory)
    if not on_gpu:  # vLLM's cache there, with the default of `metatune.trainers.vllm_rollouts`
        share = int(os.environ.get("VLLM_CPU_KVCACHE_SPACE", "2")) * GIB
    return Workload(
        **shared,
        length=length,
        loss_positions=training.max_completion_length if on_gpu else length,  # on a CPU TRL scores the prompt too
        generated=0 if training.use_vllm else training.per_device_train_batch_size * training.steps_per_generation,
        generated_length=length,
        reference_model=training.beta > 0,
        gather_to_generate=training.ds3_gather_for_generation,
        engine_share=share if colocate else 0,
        engine_sleeps=colocate and training.vllm_enable_sleep_mode,
    )


def read_model(script, model, folder: str | None):
    """Return the configuration of the model to be trained; raises OSError or ValueError where there is none."""
    from transformers import AutoConfig

    if getattr(script, "init_config", None) is not None:
        from .sft import build_config, load_tokenizer

        return build_config({"vocab_size": len(load_tokenizer(script.tokenizer)), **script.init_config})
    name = folder_of(folder or model.model_name_or_path)
    return AutoConfig.from_pretrained(name, revision=None if folder else model.model_revision)


def examine(args, recipe_args: Sequence[str], found: dict[str, Any], packages: list[dict]) -> dict[str, Any]:
    """Estimate a recipe's memory, compare it with the hardware, and list what is missing.

    Args:
        args (`DoctorArguments`): the doctor's own options.
        recipe_args (`Sequence[str]`): `--config FILE` and what else the launch would be given.
        found (`dict[str, Any]`): this machine's devices ([`~metatune.recipes.machine.devices`]).
        packages (`list[dict]`): installed packages ([`~metatune.recipes.machine.package_versions`]).
    """
    from trl import get_peft_config

    path = recipe_args[recipe_args.index("--config") + 1]
    kind = choose_recipe(path, args.recipe)
    parser = parser_for(kind, 1)
    recipe_args, options = separate(recipe_args, parser)
    given = parser.check_recipe(read_recipe(path)) | paired(recipe_args)
    values = parser.launch_values | paired(options)
    hardware = hardware_of(args, found)
    wants_cpu = str(given.get("use_cpu", False)).lower() == "true"
    launch = launch_of(args.num_processes, args.accelerate_config, values, 0 if wants_cpu else hardware.gpus)
    elsewhere = hardware.told or args.model is not None
    configs, use_cpu, problems = parse(kind, recipe_args, launch.processes, hardware.told, elsewhere)
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
    script, training, model = configs[:3]
    on_gpu = hardware.gpus > 0 and not use_cpu
    result["on_gpu"] = on_gpu
    if not on_gpu and hardware.memory is None:
        raise ConfigError(f"{path} trains on a CPU (use_cpu): say by --host_memory GiB what the machine has")
    problems += device_problems(launch, hardware, on_gpu, use_cpu)
    lacking = package_problems(script, training, model, launch, packages, on_gpu)
    if hardware.told:
        result["notes"] += [f"not in this environment, needed there: {problem}" for problem in lacking]
    else:
        problems += lacking
    if kind == "grpo" and training.use_vllm and training.vllm_mode == "server":
        where = result["notes"] if hardware.told else problems  # from elsewhere the server need not be reachable
        where += server_problems(training, model.model_name_or_path)
    if kind == "grpo":
        from .judges import given_judges
        from .reward_models import read_entries

        judges = given_judges(script)
        problems += [] if hardware.told else judge_problems(judges)
        result["notes"] += scoring_notes(judges, read_entries(script.reward_models or []))
    adapters = get_peft_config(model)
    try:
        config = read_model(script, model, args.model)
    except (OSError, ValueError) as error:  # not on this disk and no hub at hand
        reason = str(error).splitlines()[0]
        problems.append(
            f"the model's configuration cannot be read, so nothing is estimated: {reason} (--model FOLDER names a "
            "local copy or a folder with its config.json)"
        )
        return result
    shape = shape_of(config, adapters)
    result["notes"] += estimate_notes(kind, training, model)
    work = workload_of(kind, training, model.dtype, launch, args.prompt_length, hardware, on_gpu)
    if adapters is not None:
        work = replace(work, reference_model=False)  # the model itself, adapters off, is the reference
    if work.engine_share:
        share = work.engine_share if on_gpu else 0
        problems += engine_problems(training, config, shape, launch, share, work.length)
        if not on_gpu:  # the share is the cache; the engine's weights are beside it
            work = replace(work, engine_share=work.engine_share + work.weight_bytes * shape.parameters)
    result |= memory_verdict(shape, work, launch, hardware, on_gpu)
    if on_gpu and 0.9 * result["available"] < result["needed"] <= result["available"]:
        result["notes"].append("tight: context, buffers and fragmentation are not counted, keep a tenth of a GPU free")
    full, notes = disk_report(training, shape, work, hardware)
    problems += full
    result["notes"] += notes
    result["ready"] = result["fits"] and not problems
    return result


def memory_verdict(shape: ModelShape, work: Workload, launch: Launch, hardware: Hardware, on_gpu: bool) -> dict:
    """Estimate and compare with what there is: a GPU, or the machine's memory that its processes share."""
    needs = estimate(shape, work)
    per_machine = launch.processes_per_machine
    if on_gpu:
        needed, available = needs.peak, hardware.gpu_memory
    else:
        needed, available = (needs.peak + needs.host) * per_machine, hardware.memory or 0
    verdict: dict[str, Any] = {
        "model": asdict(shape),
        "workload": asdict(work),
        "bytes": needs.as_dict(),
        "needed": needed,
        "available": available,
        "fits": needed <= available,
    }
    if on_gpu and needs.host:
        verdict |= {"host_needed": needs.host * per_machine, "host_available": hardware.memory}
        if hardware.memory is not None:
            verdict["fits"] = verdict["fits"] and verdict["host_needed"] <= hardware.memory
    return verdict
