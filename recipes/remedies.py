"""What would make a command fit that does not: options, each with the memory that it would then need.

Every remedy is computed with the formulas of `memory`, and only those that fit are named. None changes the optimizer's
batch: where a smaller `per_device_train_batch_size` is named, so are more `gradient_accumulation_steps`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .memory import shape_of
from .phases import Phase, needs_float32
from .target import Hardware, readable
from .verdict import verdict_of

LONGEST = 4  # remedies that are named


@dataclass(frozen=True)
class Remedy:
    """A change of a phase: what to write, and the phase with it."""

    text: str
    phase: Phase


def remedies(phase: Phase, hardware: Hardware, on_gpu: bool) -> list[str]:
    """Return what would make a phase fit, one line each, the least intrusive first; empty if nothing known here does.

    Args:
        phase (`Phase`): what does not fit.
        hardware (`Hardware`): the machine.
        on_gpu (`bool`): whether it runs on GPUs.
    """
    fitting = []
    for family in _families(phase, hardware, on_gpu):
        tried = ((remedy, verdict_of(remedy.phase, hardware, on_gpu)) for remedy in family)
        found = next(((remedy, verdict) for remedy, verdict in tried if verdict.fits), None)
        if found is not None:
            fitting.append(f"{found[0].text} ({readable(found[1].needed)})")
    return fitting[:LONGEST] or _combined(phase, hardware, on_gpu)


def _families(phase: Phase, hardware: Hardware, on_gpu: bool) -> Iterator[Iterator[Remedy]]:
    """Yield kinds of remedies; of each the first that fits is the one to name."""
    yield _smaller_batches(phase)
    if phase.training is not None:
        yield _checkpointing(phase)
    if on_gpu:
        yield _engine(phase, hardware)
        if phase.training is not None:
            yield _sharding(phase, hardware)
        yield _half_precision(phase)
    elif phase.launch.processes > 1:
        yield _fewer_processes(phase)
    if phase.training is not None:
        yield _adapters(phase)
    yield _shorter(phase)


def _combined(phase: Phase, hardware: Hardware, on_gpu: bool) -> list[str]:
    """Apply kinds of remedies one after the other until the phase fits."""
    texts = []
    for kind in ("checkpointing", "precision" if on_gpu else "processes", "batch", "sharding"):
        options = list(_of_kind(kind, phase, hardware, on_gpu))
        if not options:
            continue
        verdicts = [verdict_of(each.phase, hardware, on_gpu) for each in options]
        index = next((index for index, verdict in enumerate(verdicts) if verdict.fits), len(options) - 1)
        texts.append(options[index].text)
        phase = options[index].phase
        if verdicts[index].fits:
            return [f"{' with '.join(texts)} ({readable(verdicts[index].needed)})"]
    return []


def _of_kind(kind: str, phase: Phase, hardware: Hardware, on_gpu: bool) -> Iterator[Remedy]:
    if kind == "batch":
        yield from _smaller_batches(phase)
    elif kind == "precision":
        yield from _half_precision(phase)
    elif kind == "processes":
        yield from _fewer_processes(phase)
    elif phase.training is not None and kind == "checkpointing":
        yield from _checkpointing(phase)
    elif phase.training is not None and on_gpu:
        yield from _sharding(phase, hardware)


def _smaller_batches(phase: Phase) -> Iterator[Remedy]:
    """Halve the batch, and accumulate over as many more."""
    batch, option = phase.batch, phase.prefix + phase.batch_option
    while batch > 1:
        batch //= 2
        work, text = phase.work, f"{option}: {batch}"
        if phase.training is None:
            work = replace(work, generated=max(1, work.generated * batch // phase.batch))
        else:
            if phase.batch % batch:
                continue
            work = replace(work, batch=work.batch * batch // phase.batch)
            factor = phase.batch // batch
            text += f", gradient_accumulation_steps: {phase.training.gradient_accumulation_steps * factor}"
            steps = getattr(phase.training, "steps_per_generation", None)
            if steps is not None and steps != phase.training.gradient_accumulation_steps:
                text += f", steps_per_generation: {steps * factor}"
        yield Remedy(text, replace(phase, work=work, batch=batch))


def _checkpointing(phase: Phase) -> Iterator[Remedy]:
    if not phase.work.gradient_checkpointing:
        work = replace(phase.work, gradient_checkpointing=True)
        yield Remedy(f"{phase.prefix}gradient_checkpointing: true, slower by about a third", replace(phase, work=work))


def _half_precision(phase: Phase) -> Iterator[Remedy]:
    if phase.work.weight_bytes > 2 and not phase.work.deepspeed and not needs_float32(phase.training):
        work = replace(phase.work, weight_bytes=2, activation_bytes=2)
        yield Remedy(f"{phase.prefix}{phase.dtype_option}: bfloat16", replace(phase, work=work))


def _adapters(phase: Phase) -> Iterator[Remedy]:
    if phase.adapters is None:
        from peft import LoraConfig

        shape = shape_of(phase.config, LoraConfig(r=16, target_modules="all-linear"))
        text = f"{phase.prefix}use_peft: true, lora_r: 16, lora_target_modules: [all-linear], which trains adapters"
        yield Remedy(text, replace(phase, shape=shape, work=replace(phase.work, reference_model=False)))


def _engine(phase: Phase, hardware: Hardware) -> Iterator[Remedy]:
    """Let vLLM sleep while the model trains, or give it a smaller share that still holds the weights twice."""
    if not phase.work.engine_share:
        return
    if not phase.work.engine_sleeps:
        work = replace(phase.work, engine_sleeps=True)
        yield Remedy(f"{phase.prefix}vllm_enable_sleep_mode: true", replace(phase, work=work))
    for tenths in range(8, 0, -1):
        share = tenths * hardware.gpu_memory // 10
        if 4 * phase.shape.parameters < share < phase.work.engine_share:
            work = replace(phase.work, engine_share=share)
            text = f"{phase.prefix}vllm_gpu_memory_utilization: {tenths / 10}"
            yield Remedy(text, replace(phase, work=work))


def _sharding(phase: Phase, hardware: Hardware) -> Iterator[Remedy]:
    """Shard over the processes that are there or over all GPUs, with more and more of the state."""
    half = phase.work.activation_bytes == 2 and not needs_float32(phase.training)
    numbers = sorted({phase.launch.processes, hardware.gpus * phase.launch.machines} - {0})
    for processes in numbers:
        more = f"--num_processes {processes} " if processes != phase.launch.processes else ""
        for name, stage in (("zero1", 1), ("zero2", 2), ("zero3", 3), ("zero3_offload", 3)):
            offload = name == "zero3_offload"
            if (processes == 1 and not offload) or (offload and hardware.memory is None):
                continue
            work = replace(
                phase.work,
                processes=processes,
                deepspeed=True,
                zero_stage=stage,
                weight_bytes=2 if half else phase.work.weight_bytes,
                offload_optimizer=offload,
                offload_parameters=offload,
            )
            launch = replace(phase.launch, processes=processes, deepspeed=True, zero_stage=stage)
            yield Remedy(f"{more}--accelerate_config {name}", replace(phase, work=work, launch=launch))


def _fewer_processes(phase: Phase) -> Iterator[Remedy]:
    processes = phase.launch.processes
    while processes > 1:
        processes //= 2
        work, launch = replace(phase.work, processes=processes), replace(phase.launch, processes=processes)
        yield Remedy(f"--num_processes {processes}", replace(phase, work=work, launch=launch))


def _shorter(phase: Phase) -> Iterator[Remedy]:
    """Halve the length of what is generated or trained on."""
    length = phase.length or 0
    while length > 64:
        length //= 2
        less = (phase.length or 0) - length
        work = replace(
            phase.work,
            length=max(phase.work.length - less, 0),
            loss_positions=max(phase.work.loss_positions - less, 0),
            generated_length=max(phase.work.generated_length - less, 0),
        )
        text = f"{phase.prefix}{phase.length_option}: {length}, which changes what is learned"
        yield Remedy(text, replace(phase, work=work))
