"""`metatune doctor`: what this machine can run, what it cannot and why, and whether a recipe fits its memory.

metatune doctor
metatune doctor --config recipes/dump/FILE.yaml --num_processes 4 --accelerate_config zero2
metatune doctor --json
"""

import json
import os
import platform
import shutil
import sys
from argparse import Namespace
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement

from metatune.recipes.config import ConfigError, StrictParser, read_recipe, run
from metatune.recipes.launch import resolve_accelerate_config
from metatune.recipes.memory import Workload, estimate, shape_of

GIB = 2**30
RECIPES = ("grpo", "sft")


@dataclass
class DoctorArguments:
    """
    What to look at.

    Args:
        recipe (`str`, *optional*):
            Which recipe the file named by `--config` is for, `grpo` or `sft`; by default the one that knows its keys.
        num_processes (`int`, *optional*):
            Number of processes to estimate for; by default the recipe's, else one.
        accelerate_config (`str`, *optional*):
            Name or file of the accelerate configuration to estimate for; by default the recipe's.
        prompt_length (`int`, *optional*, defaults to `256`):
            Tokens of a prompt to estimate for: GRPO does not limit it.
        json (`bool`, *optional*, defaults to `False`):
            Print one JSON object.
    """

    recipe: str | None = field(default=None, metadata={"help": "What --config is for: grpo or sft."})
    num_processes: int | None = field(default=None, metadata={"help": "Number of processes to estimate for."})
    accelerate_config: str | None = field(default=None, metadata={"help": "Accelerate configuration to estimate for."})
    prompt_length: int = field(default=256, metadata={"help": "Tokens of a prompt to estimate for (grpo)."})
    json: bool = field(default=False, metadata={"help": "Print one JSON object."})

    def __post_init__(self):
        if self.recipe not in (None, *RECIPES):
            raise ValueError(f"--recipe is one of {', '.join(RECIPES)}, not {self.recipe}")


class DoctorParser(StrictParser):
    """A parser whose `--config` is the recipe to examine, not options of its own."""

    def parse_args_and_config(self, args=None) -> tuple[DoctorArguments, Namespace]:
        """Parse the command line only; the second result holds `config`."""
        args = list(sys.argv[1:] if args is None else args)
        self.refuse_unknown_options(args)
        try:
            return self.parse_args_into_dataclasses(args, look_for_args_file=False)
        except ValueError as error:
            raise ConfigError(str(error)) from None


def package_versions() -> list[dict[str, Any]]:
    """Return every package that metatune names, its installed version and whether it is within the pin."""
    rows = []
    for line in requires("metatune") or []:
        requirement = Requirement(line)
        extra = str(requirement.marker).split('"')[1] if requirement.marker else None
        if extra == "dev":
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            installed = None
        rows.append(
            {
                "name": requirement.name,
                "installed": installed,
                "required": str(requirement.specifier),
                "extra": extra,
                "within_pin": installed is not None and requirement.specifier.contains(installed, prereleases=True),
            }
        )
    return rows


def memory_limit() -> int:
    """Return the bytes of memory this process may use: the machine's, or its container's if that is less."""
    import psutil

    limits = [psutil.virtual_memory().total]
    group = Path("/sys/fs/cgroup/memory.max")
    if group.is_file() and group.read_text().strip().isdigit():
        limits.append(int(group.read_text()))
    return min(limits)


def devices() -> dict[str, Any]:
    """Return the processors, memory and accelerators found."""
    import torch

    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gpus.append({"name": properties.name, "memory": properties.total_memory})
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu_cores": cores, "memory": memory_limit(), "gpus": gpus, "disk_free": shutil.disk_usage(".").free}


def engines(packages: dict[str, str | None], has_gpu: bool) -> list[dict[str, Any]]:
    """Tell which engines can run here and, for the others, why not.

    Args:
        packages (`dict[str, str | None]`): installed version of each package, `None` where it is missing.
        has_gpu (`bool`): whether there is a CUDA device.
    """
    vllm = packages.get("vllm")
    if vllm is None:
        no_vllm = "not installed: pip install 'metatune[vllm]'" if has_gpu else "there is no GPU"
    else:
        no_vllm = None if has_gpu else "there is no GPU"
    tools = [tool for tool in ("g++", "ninja") if shutil.which(tool) is None]
    if packages.get("deepspeed") is None:
        no_deepspeed = "not installed: pip install 'metatune[deepspeed]'"
    else:
        no_deepspeed = f"it compiles at its first launch and needs {' and '.join(tools)}" if tools else None
    on_cpu = "" if has_gpu else "on a CPU far slower than transformers"
    reasons = {
        "transformers": (None, ""),
        "continuous batching": (None, on_cpu),
        "vLLM colocate": (no_vllm, ""),
        "vLLM server": (no_vllm, ""),
        "DeepSpeed": (no_deepspeed, "" if has_gpu else "set use_cpu: true in the recipe"),
    }
    return [
        {"name": name, "usable": reason is None, "note": reason or note} for name, (reason, note) in reasons.items()
    ]


def parse_recipe(path: str, kind: str | None, has_gpu: bool) -> tuple[str, StrictParser, tuple[Any, ...]]:
    """Parse a recipe with the parser of `kind`, by default of the recipe that knows most of its keys."""
    args = ["--config", path]
    if not has_gpu:  # transformers refuses bf16 without a GPU otherwise, and a GPU's recipe is worth an estimate here
        args += ["--use_cpu", "true"]
    recipe = read_recipe(path)
    parsers = {name: import_module(f"metatune.recipes.{name}").make_parser() for name in ([kind] if kind else RECIPES)}
    best = max(parsers, key=lambda name: len(parsers[name].hints.keys() & recipe.values.keys()))
    return best, parsers[best], parsers[best].parse_args_and_config(args)


def launch_of(args: DoctorArguments, launch_values: dict[str, Any]) -> tuple[int, bool, int]:
    """Return the number of processes, whether DeepSpeed runs, and its ZeRO stage."""
    name = args.accelerate_config or launch_values.get("accelerate_config")
    file = {}
    if name is not None:
        _, path = resolve_accelerate_config(["--accelerate_config", name])
        file = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    processes = args.num_processes or launch_values.get("num_processes") or file.get("num_processes") or 1
    deepspeed = file.get("distributed_type") == "DEEPSPEED"
    return processes, deepspeed, file.get("deepspeed_config", {}).get("zero_stage", 0)


def workload_of(
    kind: str, training, dtype: str | None, launched: tuple[int, bool, int], prompt_length: int
) -> Workload:
    """Read what the memory formulas need off the arguments of a recipe.

    Args:
        kind (`str`): `grpo` or `sft`.
        training (`GRPOConfig` or `SFTConfig`): its training arguments.
        dtype (`str`): the type the weights are loaded in.
        launched (`tuple[int, bool, int]`): processes, DeepSpeed, ZeRO stage.
        prompt_length (`int`): tokens of a prompt (`grpo`).
    """
    processes, deepspeed, stage = launched
    half = training.bf16 or training.fp16
    weight_bytes = 2 if dtype in ("bfloat16", "float16") or (deepspeed and half) else 4
    shared = {
        "weight_bytes": weight_bytes,
        "activation_bytes": 2 if half else weight_bytes,
        "batch": training.per_device_train_batch_size,
        "gradient_checkpointing": training.gradient_checkpointing,
        "processes": processes,
        "deepspeed": deepspeed,
        "zero_stage": stage,
    }
    if kind == "sft":
        length = training.max_length or prompt_length
        return Workload(**shared, length=length, loss_positions=length)
    length = prompt_length + training.max_completion_length
    return Workload(
        **shared,
        length=length,
        loss_positions=training.max_completion_length,
        generated=0 if training.use_vllm else training.per_device_train_batch_size * training.steps_per_generation,
        generated_length=length,
        reference_model=training.beta > 0,
    )


def examine_recipe(args: DoctorArguments, path: str, found: dict[str, Any]) -> dict[str, Any]:
    """Estimate a recipe's memory and compare it with the device found."""
    from transformers import AutoConfig
    from trl import get_peft_config

    kind, parser, (script, training, model, *_) = parse_recipe(path, args.recipe, bool(found["gpus"]))
    result: dict[str, Any] = {"file": path, "recipe": kind}
    adapters = get_peft_config(model)
    try:
        if getattr(script, "init_config", None) is not None:
            from metatune.recipes.sft import build_config, load_tokenizer

            config = build_config({"vocab_size": len(load_tokenizer(script.tokenizer)), **script.init_config})
        else:
            name = model.model_name_or_path
            path_or_name = Path(__file__).with_name("starter") if name == "starter" else name
            config = AutoConfig.from_pretrained(path_or_name, revision=model.model_revision)
    except (OSError, ValueError) as error:  # not on this disk and no hub at hand
        reason = str(error).splitlines()[0]
        return result | {"error": f"the model's configuration cannot be read, so nothing is estimated: {reason}"}
    launched = launch_of(args, parser.launch_values)
    shape = shape_of(config, adapters)
    work = workload_of(kind, training, model.dtype, launched, args.prompt_length)
    if adapters is not None:
        work = replace(work, reference_model=False)  # the model itself, adapters off, is the reference
    bytes_needed = estimate(shape, work)
    if found["gpus"] and not training.use_cpu:
        available, needed = found["gpus"][0]["memory"], bytes_needed.peak
        if kind == "grpo" and training.use_vllm and training.vllm_mode == "colocate":
            available = int(available * (1 - training.vllm_gpu_memory_utilization))
    else:  # processes on a CPU share its memory
        available, needed = found["memory"], bytes_needed.peak * work.processes
    return result | {
        "model": asdict(shape),
        "workload": asdict(work),
        "bytes": bytes_needed.as_dict(),
        "needed": needed,
        "available": available,
        "fits": needed <= available,
    }


def diagnose(args: DoctorArguments, path: str | None) -> dict[str, Any]:
    """Collect everything that `metatune doctor` reports, as JSON values."""
    import torch

    rows, found = package_versions(), devices()
    installed = {row["name"]: row["installed"] for row in rows}
    report = {
        "metatune": version("metatune"),
        "python": platform.python_version(),
        "torch_build": f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}",
        "packages": rows,
        "devices": found,
        "engines": engines(installed, bool(found["gpus"])),
        "hub": "off (HF_HUB_OFFLINE)"
        if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON")
        else "on",
    }
    return report if path is None else report | {"recipe": examine_recipe(args, path, found)}


def readable(amount: int) -> str:
    """Write a number of bytes in GiB or MiB."""
    return f"{amount / GIB:.2f} GiB" if amount >= GIB else f"{amount / 2**20:.1f} MiB"


def render(report: dict[str, Any]) -> str:
    """Write the report as text for people."""
    found = report["devices"]
    gpus = ", ".join(f"{gpu['name']} ({gpu['memory'] / GIB:.0f} GiB)" for gpu in found["gpus"]) or "none"
    lines = [
        f"metatune {report['metatune']}, Python {report['python']}, torch {report['torch_build']}",
        f"CPU cores {found['cpu_cores']}, memory {found['memory'] / GIB:.1f} GiB, GPUs: {gpus}",
        f"disk free here {found['disk_free'] / GIB:.1f} GiB, model hub {report['hub']}",
        "",
        "packages",
    ]
    for row in report["packages"]:
        state = "ok" if row["within_pin"] else "OUTSIDE THE PIN" if row["installed"] else "missing"
        extra = f" (extra {row['extra']})" if row["extra"] else ""
        lines.append(f"  {row['name']:16}{row['installed'] or '-':16}{row['required']:18}{state}{extra}")
    lines += ["", "engines"]
    for engine in report["engines"]:
        lines.append(f"  {engine['name']:22}{'yes' if engine['usable'] else 'no':5}{engine['note']}".rstrip())
    recipe = report.get("recipe")
    if recipe is None:
        return "\n".join(lines)
    lines += ["", f"memory of {recipe['file']} ({recipe['recipe']}), a process"]
    if "error" in recipe:
        return "\n".join([*lines, f"  {recipe['error']}"])
    shape = recipe["model"]
    lines.append(f"  {shape['parameters']:,} parameters, {shape['trainable']:,} trained")
    lines += [f"  {name:14}{readable(amount):>12}" for name, amount in recipe["bytes"].items() if amount]
    verdict = "fits" if recipe["fits"] else "DOES NOT FIT"
    lines.append(f"  {verdict}: {readable(recipe['needed'])} of {readable(recipe['available'])}")
    return "\n".join(lines)


def main(args: DoctorArguments, options: Namespace) -> None:
    """Print the diagnosis."""
    report = diagnose(args, options.config)
    print(json.dumps(report, indent=2) if args.json else render(report))


def make_parser(prog: str | None = None) -> DoctorParser:
    """Return the parser of the doctor's options."""
    return DoctorParser(DoctorArguments, prog=prog)


if __name__ == "__main__":
    run(make_parser, main)
