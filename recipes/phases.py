"""The parts of a command that need memory: what the formulas of `memory` take, read off its configurations.

`grpo`, `sft`, `reward` and `strength` train; `eval` samples; `star` samples and fine-tunes; `metarm` samples, trains
reward models and trains policies. Each such part is a [`Phase`]; the largest decides whether the command fits.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..curricula.hub_access import hub_answers
from .adapters import adapter_error, base_and_adapter, folder_of
from .config import ConfigError, launch_options
from .memory import ModelShape, Workload, shape_of
from .target import GIB, Hardware, Launch, launch_of

TRAINS = {"grpo": "grpo", "sft": "sft", "reward": "reward", "strength": "reward", "star": "sft"}


@dataclass(frozen=True)
class Phase:
    """One part of a command, and the options that its memory depends on.

    Args:
        name (`str`): what it does: `training`, `sampling`, …
        shape (`ModelShape`): its model.
        work (`Workload`): what it does with it, on one process.
        launch (`Launch`): its processes.
        config (`PreTrainedConfig`): the model's configuration.
        prefix (`str`): before the options below, the block of `metarm` that they are in.
        batch_option (`str`): the option that sets the batch.
        batch (`int`): its value.
        length_option (`str`): the option that limits the length.
        length (`int`, *optional*): its value.
        training (`TrainingArguments`, *optional*): of a part that trains; `None` for one that samples.
        adapters (`PeftConfig`, *optional*): adapters, if only these are trained.
        dtype_option (`str`, *optional*, defaults to `"dtype"`): the option that sets the type of the weights.
    """

    name: str
    shape: ModelShape
    work: Workload
    launch: Launch
    config: Any
    prefix: str
    batch_option: str
    batch: int
    length_option: str
    length: int | None
    training: Any = None
    adapters: Any = None
    dtype_option: str = "dtype"


def needs_float32(training) -> bool:
    """Return whether the weights stay float32 regardless of other options, as with MetaRM's step."""
    return getattr(training, "meta_step", "none") != "none"


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
    cast = launch.deepspeed and half and not needs_float32(training)
    weight_bytes = 2 if dtype in ("bfloat16", "float16") or cast else 4
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
        views = 1 if getattr(training, "contrastive", "none") == "none" else 2  # every row is in the batch twice
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
    revision = None if folder else model.model_revision
    return AutoConfig.from_pretrained(name, revision=revision, local_files_only=not hub_answers())


def shape_with(config: Any, adapters: Any) -> ModelShape:
    """Return the shape of a model with adapters; raises [`ConfigError`] for modules that it does not have."""
    try:
        return shape_of(config, adapters)
    except ValueError as error:
        raise adapter_error(error) or ConfigError(f"the model cannot be built: {error}") from error


def training_phase(
    kind: str,
    configs: tuple[Any, ...],
    launch: Launch,
    args: Any,
    hardware: Hardware,
    on_gpu: bool,
    name: str = "training",
    prefix: str = "",
) -> Phase:
    """Return the part of a command that trains; raises OSError or ValueError where its model cannot be read.

    Args:
        kind (`str`): `grpo`, `sft` or `reward`.
        configs (`tuple`): script, training and model arguments.
        launch (`Launch`): its processes.
        args (`DoctorArguments`): the folder of the model, and the length of a prompt.
        hardware (`Hardware`): the machine.
        on_gpu (`bool`): whether it trains on GPUs.
        name (`str`, *optional*, defaults to `"training"`): what to call it.
        prefix (`str`, *optional*, defaults to `""`): of its options.
    """
    from trl import get_peft_config

    script, training, model = configs[:3]
    adapters = get_peft_config(model)
    config = read_model(script, model, args.model)
    work = workload_of(kind, training, model.dtype, launch, args.prompt_length, hardware, on_gpu)
    if adapters is not None:
        work = replace(work, reference_model=False)  # the model itself, adapters off, is the reference
    length = "max_completion_length" if kind == "grpo" else "max_length"
    return Phase(
        name,
        shape_with(config, adapters),
        work,
        launch,
        config,
        prefix,
        "per_device_train_batch_size",
        training.per_device_train_batch_size,
        length,
        getattr(training, length),
        training,
        adapters,
    )


def sampling_phase(
    config: Any, dtype: str | None, batch_option: str, batch: int, length_option: str, length: int, prompt_length: int
) -> Phase:
    """Return the part of a command that samples, in one process.

    Args:
        config (`PreTrainedConfig`): the model's configuration.
        dtype (`str`, *optional*): the type that the weights are loaded in.
        batch_option (`str`): the option that says how many completions are decoded together.
        batch (`int`): its value.
        length_option (`str`): the option that limits a completion.
        length (`int`): its value.
        prompt_length (`int`): tokens of a prompt.
    """
    stored = str(getattr(config, "dtype", None)).removeprefix("torch.")
    size = 2 if (stored if dtype in (None, "auto") else dtype) in ("bfloat16", "float16") else 4
    work = Workload(size, size, 0, 0, 0, generated=batch, generated_length=prompt_length + length)
    shape = replace(shape_of(config), trainable=0)
    return Phase("sampling", shape, work, Launch(), config, "", batch_option, batch, length_option, length)


def phases_of(
    kind: str, configs: tuple[Any, ...], launch: Launch, args: Any, hardware: Hardware, on_gpu: bool
) -> list[Phase]:
    """Return the parts of a command that need memory, in the order in which they run; see [`training_phase`]."""
    rest = (launch, args, hardware, on_gpu)
    if kind in ("grpo", "sft", "reward", "strength"):
        return [training_phase(TRAINS[kind], configs, *rest)]
    makers: dict[str, Callable[..., list[Phase]]] = {"star": _star, "metarm": _metarm, "eval": _evaluation}
    return makers[kind](configs, *rest)


def _star(configs: tuple[Any, ...], launch: Launch, args: Any, hardware: Hardware, on_gpu: bool) -> list[Phase]:
    script, training, model = configs[:3]
    config = read_model(script, model, args.model)
    options = ("sampling_batch_size", script.sampling_batch_size)
    length = ("max_completion_length", script.max_completion_length)
    sampling = sampling_phase(config, script.sampling_dtype or model.dtype, *options, *length, args.prompt_length)
    sampling = replace(sampling, dtype_option="sampling_dtype")
    fine_tuning = training_phase("sft", (script, training, model), launch, args, hardware, on_gpu, "fine-tuning")
    return [sampling, fine_tuning]


def _metarm(configs: tuple[Any, ...], launch: Launch, args: Any, hardware: Hardware, on_gpu: bool) -> list[Phase]:
    from .metarm_blocks import check

    (script,) = configs
    reward, grpo = check(script)
    config = read_model(grpo[0], grpo[2], args.model)
    options = ("sampling_batch_size", script.sampling_batch_size)
    length = ("grpo.max_completion_length", grpo[1].max_completion_length)
    sampling = sampling_phase(config, script.sampling_dtype or grpo[2].dtype, *options, *length, args.prompt_length)
    parts = [replace(sampling, dtype_option="sampling_dtype")]
    for kind, block, of_block in (("reward", script.reward, reward), ("grpo", script.grpo, grpo)):
        values = {key: value for key, value in block.items() if key in launch_options()}
        its = launch_of(args.num_processes, args.accelerate_config, values, hardware.gpus if on_gpu else 0)
        name = "reward model" if kind == "reward" else "policy"
        parts.append(training_phase(kind, of_block, its, args, hardware, on_gpu, name, f"{kind}."))
    return parts


def _evaluation(configs: tuple[Any, ...], launch: Launch, args: Any, hardware: Hardware, on_gpu: bool) -> list[Phase]:
    from transformers import AutoConfig

    from .evaluate import MAX_NEW_TOKENS

    (script,) = configs
    if script.model is None:  # reward models, or saved evaluations
        return []
    base = base_and_adapter(args.model or script.model)[0]
    config = AutoConfig.from_pretrained(base.name, revision=base.revision, local_files_only=not hub_answers())
    length = script.max_new_tokens or max(script.budgets or [MAX_NEW_TOKENS])
    options = ("batch_size", script.batch_size, "max_new_tokens", length)
    return [sampling_phase(config, script.dtype, *options, args.prompt_length)]
