"""What a recipe is meant for: how many processes, how DeepSpeed shards them, and the hardware of one machine."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import ConfigError, read_recipe
from .launch import resolve_accelerate_config

GIB = 2**30


@dataclass(frozen=True)
class Hardware:
    """The machine that a recipe is meant for.

    Args:
        gpus (`int`): GPUs of one machine.
        gpu_memory (`int`): bytes of one GPU.
        memory (`int`, *optional*): bytes of one machine's own memory, `None` if nobody said.
        told (`bool`): whether it was described on the command line and is not the machine this runs on.
    """

    gpus: int
    gpu_memory: int
    memory: int | None
    told: bool


@dataclass(frozen=True)
class Launch:
    """How many processes run, and what DeepSpeed does for them."""

    processes: int = 1
    machines: int = 1
    deepspeed: bool = False
    zero_stage: int = 0
    offload_optimizer: bool = False
    offload_parameters: bool = False

    @property
    def processes_per_machine(self) -> int:
        """Processes that share one machine, rounded up."""
        return -(-self.processes // self.machines)


def launch_of(num_processes: int | None, accelerate_config: str | None, values: dict[str, Any], gpus: int) -> Launch:
    """Settle the launch as `metatune` would.

    Args:
        num_processes (`int`, *optional*): asked for on the command line.
        accelerate_config (`str`, *optional*): name or file, from the command line.
        values (`dict[str, Any]`): the launcher's options from the recipe and the command line.
        gpus (`int`): GPUs of the machine, the number of processes where nothing else says it; 0 on a CPU.
    """
    name = accelerate_config or values.get("accelerate_config")
    file = {}
    if name is not None:
        _, path = resolve_accelerate_config(["--accelerate_config", name])
        file = read_recipe(path).values  # any mapping in YAML
    processes = num_processes or values.get("num_processes") or file.get("num_processes") or max(gpus, 1)
    deepspeed = {**file.get("deepspeed_config", {}), **values}
    if deepspeed.get("deepspeed_config_file"):
        inner = read_deepspeed(deepspeed["deepspeed_config_file"]).get("zero_optimization", {})
        offload = {part: inner.get(f"offload_{part}", {}).get("device") for part in ("optimizer", "param")}
        deepspeed |= {"zero_stage": inner.get("stage", 0)}
        deepspeed |= {f"offload_{part}_device": device for part, device in offload.items()}

    return Launch(
        processes=int(processes),
        machines=int(values.get("num_machines") or file.get("num_machines") or 1),
        deepspeed=file.get("distributed_type") == "DEEPSPEED" or bool(values.get("use_deepspeed")),
        zero_stage=int(deepspeed.get("zero_stage") or 0),
        offload_optimizer=deepspeed.get("offload_optimizer_device") not in (None, "none"),
        offload_parameters=deepspeed.get("offload_param_device") not in (None, "none"),
    )


def read_deepspeed(path: str) -> dict[str, Any]:
    """Read DeepSpeed's own configuration; raises [`ConfigError`]."""
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"deepspeed_config_file: {path}: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"deepspeed_config_file: {path}: not a mapping")
    return config


def hardware_of(args, found: dict[str, Any]) -> Hardware:
    """Return the machine described by `--gpus`, `--gpu_memory` and `--host_memory`, else the one found."""
    gpus = found["gpus"]
    if args.gpus is None and args.gpu_memory is None:
        memory = found["memory"] if args.host_memory is None else int(args.host_memory * GIB)
        return Hardware(len(gpus), min((gpu["memory"] for gpu in gpus), default=0), memory, told=False)
    if args.gpu_memory is None and not gpus:
        raise ConfigError("--gpus needs --gpu_memory GiB too: there is no GPU here to look at")
    memory = min(gpu["memory"] for gpu in gpus) if args.gpu_memory is None else int(args.gpu_memory * GIB)
    host = None if args.host_memory is None else int(args.host_memory * GIB)
    return Hardware(args.gpus or 1, memory, host, told=True)


def paired(options: Sequence[str]) -> dict[str, Any]:
    """Read `--name value` and `--flag` as a mapping."""
    values: dict[str, Any] = {}
    for option in options:
        if option.startswith("--"):
            name = option.removeprefix("--")
            values[name] = True
        else:
            values[name] = option
    return values


def readable(amount: int) -> str:
    """Write a number of bytes in GiB or MiB."""
    return f"{amount / GIB:.2f} GiB" if amount >= GIB else f"{amount / 2**20:.1f} MiB"
