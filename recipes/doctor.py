"""`metatune doctor`: what this machine can run, and whether a recipe can be launched on it or on another.

metatune doctor
metatune doctor --config recipes/dump/FILE.yaml --accelerate_config zero2 [any option of the launch]
metatune doctor --config recipes/dump/FILE.yaml --gpus 8 --gpu_memory 79       for a machine that this one is not
metatune doctor --json

With `--config` the exit code is 0 when the recipe fits and nothing is missing, else 1.
"""

import json
import math
import os
import platform
import sys
from argparse import Namespace
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from metatune.recipes.config import ConfigError, StrictParser, config_path, run
from metatune.recipes.examine import RECIPES, examine
from metatune.recipes.machine import devices, engines, package_versions
from metatune.recipes.target import GIB, readable


@dataclass
class DoctorArguments:
    """
    What to look at. With `--config`, every option that the launch would be given may stand here too.

    Args:
        recipe (`str`, *optional*):
            Which command the file named by `--config` is for, `grpo`, `sft`, `reward`, `star`, `strength`, `metarm` or
            `eval`; by default the one that knows its keys.
        num_processes (`int`, *optional*):
            Number of processes, over all machines; by default the recipe's, else the accelerate configuration's, else
            one a GPU.
        accelerate_config (`str`, *optional*):
            Name or file of the accelerate configuration; by default the recipe's.
        gpus (`int`, *optional*):
            GPUs of one machine that the recipe is meant for; by default those found here.
        gpu_memory (`float`, *optional*):
            GiB of one such GPU: 79 for one of 80 GB, 139 for an H200.
        host_memory (`float`, *optional*):
            GiB of such a machine's own memory, which offloading needs.
        model (`str`, *optional*):
            Folder with the model's `config.json`, where the model itself is out of reach.
        prompt_length (`int`, *optional*, defaults to `256`):
            Tokens of a prompt to estimate for: GRPO does not limit it.
        json (`bool`, *optional*, defaults to `False`):
            Print one JSON object.
    """

    recipe: str | None = field(default=None, metadata={"help": f"What --config is for: {', '.join(RECIPES)}."})
    num_processes: int | None = field(default=None, metadata={"help": "Number of processes, over all machines."})
    accelerate_config: str | None = field(default=None, metadata={"help": "Accelerate configuration to estimate for."})
    gpus: int | None = field(default=None, metadata={"help": "GPUs of one machine that the recipe is meant for."})
    gpu_memory: float | None = field(default=None, metadata={"help": "GiB of one such GPU."})
    host_memory: float | None = field(default=None, metadata={"help": "GiB of such a machine's own memory."})
    model: str | None = field(default=None, metadata={"help": "Folder with the model's config.json."})
    prompt_length: int = field(default=256, metadata={"help": "Tokens of a prompt to estimate for (grpo)."})
    json: bool = field(default=False, metadata={"help": "Print one JSON object."})

    def __post_init__(self):
        if self.recipe not in (None, *RECIPES):
            raise ValueError(f"--recipe is one of {', '.join(RECIPES)}, not {self.recipe}")
        for name in ("num_processes", "gpus", "gpu_memory", "host_memory", "prompt_length"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"--{name} must be above 0, and finite, got {value}")


class DoctorParser(StrictParser):
    """A parser whose `--config` is the recipe to examine; options that are not the doctor's are the recipe's."""

    def parse_args_and_config(self, args=None) -> tuple[DoctorArguments, Namespace]:
        """Parse the command line only; the second result holds `config` and `recipe_args`, the recipe's own."""
        args = list(sys.argv[1:] if args is None else args)
        path = config_path(args)
        if path is None:
            self.refuse_unknown_options(args)
        namespace, others = self.parse_known_args(args)
        if others and path is None:
            raise ConfigError(f"unexpected argument '{others[0]}'; did you mean --config {others[0]}?")
        values = {name: value for name, value in vars(namespace).items() if name != "config"}
        for name, value in values.items():
            if path is None and name != "json" and value != self.get_default(name):
                raise ConfigError(f"--{name} is about a recipe: name it by --config FILE.yaml")
        try:
            doctor = DoctorArguments(**values)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        recipe_args = [] if path is None else ["--config", path, *others]
        return doctor, Namespace(config=path, recipe_args=recipe_args)


def diagnose(args: DoctorArguments, recipe_args: list[str] | None = None) -> dict[str, Any]:
    """Collect everything that `metatune doctor` reports, as JSON values.

    Args:
        args (`DoctorArguments`): its options.
        recipe_args (`list[str]`, *optional*): `--config FILE` and the other arguments of the launch to examine.
    """
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
    if not recipe_args:
        return report
    return report | {"recipe": examine(args, recipe_args, found, rows)}


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
    return "\n".join([*lines, *render_recipe(report["recipe"])] if "recipe" in report else lines)


ROWS = {  # the rows of the memory table, in order
    "weights": "the model's parameters",
    "gradients": "one for each trained parameter",
    "optimizer": "AdamW's two moments, with DeepSpeed also a float32 copy of the weights",
    "reference": "a frozen copy of the model, for beta above 0",
    "gathered": "ZeRO-3: the parameters in use at one time",
    "autocast": "bf16 or fp16 copies of float32 weights, during the forward pass",
    "activations": "what the forward pass keeps for the backward pass; grows with batch and length",
    "block": "the gradients inside one transformer block, during the backward pass",
    "head": "the loss over the vocabulary, including its gradients",
    "kv_cache": "keys and values of the sequences generated at once, between optimizer steps",
    "engine": "vLLM's share in the same process",
    "peak": "the peak at any time; training and generation alternate, so it is not the sum",
    "host": "offloaded to host memory",
}


def render_recipe(recipe: dict[str, Any]) -> list[str]:
    """Write what was found about a recipe as lines of text."""
    launch = recipe["launch"]
    sharding = f", ZeRO-{launch['zero_stage']}" if launch["deepspeed"] else ""
    machines = f" on {launch['machines']} machines" if launch["machines"] > 1 else ""
    lines = ["", f"{recipe['file']} ({recipe['recipe']}), {launch['processes']} process(es){machines}{sharding}"]
    if "bytes" in recipe:
        lines += render_memory(recipe)
    lines += [f"  note: {note}" for note in recipe["notes"]]
    lines += [f"  PROBLEM: {problem}" for problem in recipe["problems"]]
    return [*lines, "  ready to launch" if recipe["ready"] else "  NOT READY"]


def render_memory(recipe: dict[str, Any]) -> list[str]:
    """Format the memory estimate of a recipe: the rows with their meaning, the verdict, and options that fit."""
    shape, hardware = recipe["model"], recipe["hardware"]
    phase = "" if len(recipe["phases"]) == 1 else f"{recipe['phase']}, the largest part: "
    lines = [f"  {phase}{shape['parameters']:,} parameters, {shape['trainable']:,} trained; memory of one process:"]
    for name, amount in recipe["bytes"].items():
        if amount:
            lines.append(f"  {name:14}{readable(amount):>12}   {ROWS[name]}")
    whose = (
        f"one GPU (of {hardware['gpus']} a machine)" if recipe["on_gpu"] else "this machine's memory, all processes"
    )
    needed, available = readable(recipe["needed"]), readable(recipe["available"])
    fits = recipe["needed"] <= recipe["available"]
    lines.append(f"  {'fits' if fits else 'DOES NOT FIT'}: needs {needed} of {available}, {whose}")
    if len(recipe["phases"]) > 1:
        others = [f"{name} {readable(amount)}" for name, amount in recipe["phases"].items()]
        lines.append(f"  one after the other: {', '.join(others)}")
    if recipe.get("host_needed"):
        limit = recipe["host_available"]
        compared = f" of {readable(limit)}" if limit else "; to compare, specify --host_memory GiB"
        lines.append(f"  offloaded to host memory: {readable(recipe['host_needed'])}{compared}")
    if not recipe["fits"]:
        lines += [f"  to make it fit: {remedy}" for remedy in recipe["remedies"]]
    if not recipe["fits"] and not recipe["remedies"]:
        lines.append("  no known option makes it fit: use a smaller model, or more or larger GPUs (--gpus N)")
    return lines


def main(args: DoctorArguments, options: Namespace) -> None:
    """Print the diagnosis; exit with code 1 if a recipe is not ready to launch."""
    report = diagnose(args, options.recipe_args)
    print(json.dumps(report, indent=2) if args.json else render(report))
    if not report.get("recipe", {"ready": True})["ready"]:
        raise SystemExit(1)


def make_parser(prog: str | None = None) -> DoctorParser:
    """Return the parser of the doctor's options."""
    return DoctorParser(DoctorArguments, prog=prog)


if __name__ == "__main__":
    run(make_parser, main)
