"""`metatune doctor`: what it reports, and that it reads recipes as the recipes do."""

import json
import shutil
import subprocess
import sys

import pytest
from transformers import AutoConfig
from trl import GRPOConfig, SFTConfig

from metatune.recipes.config import ConfigError
from metatune.recipes.doctor import (
    DoctorArguments,
    diagnose,
    engines,
    launch_of,
    make_parser,
    package_versions,
    render,
    workload_of,
)

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
num_processes: 2
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "sft.yaml"
    path.write_text(SFT + f"output_dir: {tmp_path}\n")
    return str(path)


def test_versions_are_checked_against_the_pins():
    rows = {row["name"]: row for row in package_versions()}
    assert rows["trl"]["required"] == "<1.17,>=1.16.0" and rows["trl"]["within_pin"]
    assert rows["deepspeed"]["extra"] == "deepspeed"
    assert "pytest" not in rows


def test_engines_say_why_not(monkeypatch):
    none = {engine["name"]: engine for engine in engines({}, has_gpu=False)}
    assert none["transformers"]["usable"]
    assert not none["vLLM colocate"]["usable"] and none["vLLM colocate"]["note"] == "there is no GPU"
    assert "pip install 'metatune[deepspeed]'" in none["DeepSpeed"]["note"]
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    some = {engine["name"]: engine for engine in engines({"vllm": "0.31.0", "deepspeed": "0.19.8"}, has_gpu=True)}
    assert some["vLLM server"]["usable"]
    assert some["DeepSpeed"]["note"] == "it compiles at its first launch and needs g++ and ninja"
    monkeypatch.setattr(shutil, "which", lambda tool: "/bin/tool")
    assert {engine["name"]: engine for engine in engines({"deepspeed": "0.19.8"}, True)}["DeepSpeed"]["usable"]


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
    work = workload_of("grpo", training, "float32", (2, True, 2), prompt_length=28)
    assert (work.weight_bytes, work.activation_bytes) == (2, 2)  # DeepSpeed trains half-precision weights
    assert (work.generated, work.generated_length, work.length, work.loss_positions) == (12, 128, 128, 100)
    assert work.reference_model and work.gradient_checkpointing and work.zero_stage == 2
    assert workload_of("grpo", training, "float32", (1, False, 0), 28).weight_bytes == 4


def test_workload_of_sft(tmp_path):
    work = workload_of(
        "sft", SFTConfig(output_dir=str(tmp_path), bf16=False, max_length=64), "float32", (1, False, 0), 9
    )
    assert (work.length, work.loss_positions, work.generated) == (64, 64, 0)


def test_processes_come_from_the_option_the_recipe_or_the_accelerate_file():
    assert launch_of(DoctorArguments(), {}) == (1, False, 0)
    assert launch_of(DoctorArguments(), {"num_processes": 3, "accelerate_config": "zero2"}) == (3, True, 2)
    assert launch_of(DoctorArguments(accelerate_config="cpu2"), {}) == (2, False, 0)
    assert launch_of(DoctorArguments(num_processes=4), {"num_processes": 3}) == (4, False, 0)
    with pytest.raises(ConfigError, match="did you mean 'zero2'"):
        launch_of(DoctorArguments(accelerate_config="zero22"), {})


def test_a_recipe_is_estimated(recipe):
    report = diagnose(DoctorArguments(recipe="sft"), recipe)
    found = report["recipe"]
    assert found["recipe"] == "sft" and found["workload"]["processes"] == 2
    assert found["bytes"]["weights"] == 4 * found["model"]["parameters"]
    assert found["needed"] == 2 * found["bytes"]["peak"]  # processes on a CPU share its memory
    assert found["fits"] and "fits:" in render(report)
    json.dumps(report)


def test_adapters_need_no_copy_of_the_model_for_reference(tmp_path):
    AutoConfig.for_model("llama", **TINY).save_pretrained(tmp_path / "model")
    path = tmp_path / "grpo.yaml"
    path.write_text(
        f"model_name_or_path: {tmp_path}/model\noutput_dir: {tmp_path}\nbeta: 0.1\nbf16: true\n"
        "distributions: [{name: a, source: countdown}]\nuse_peft: true\nlora_r: 4\n"
    )
    found = diagnose(DoctorArguments(), str(path))["recipe"]
    assert found["recipe"] == "grpo"  # told from its keys
    assert found["bytes"]["reference"] == 0 and found["model"]["trainable"] < found["model"]["parameters"]
    path.write_text(path.read_text().replace("use_peft: true", "use_peft: false"))
    found = diagnose(DoctorArguments(), str(path))["recipe"]
    assert found["bytes"]["reference"] == 4 * found["model"]["parameters"]


def test_without_the_model_nothing_is_estimated(tmp_path, monkeypatch):
    path = tmp_path / "sft.yaml"
    path.write_text(
        f"model_name_or_path: {tmp_path}/none\ndataset_name: nowhere\noutput_dir: {tmp_path}\nbf16: false\n"
    )
    report = diagnose(DoctorArguments(recipe="sft"), str(path))
    assert "nothing is estimated" in report["recipe"]["error"] and "nothing is estimated" in render(report)


def test_options():
    args, options = make_parser().parse_args_and_config(["--json", "--config", "a.yaml"])
    assert args.json and options.config == "a.yaml"
    for wrong in (["--jsn"], ["--recipe", "dpo"], ["--num_processes", "two"]):
        with pytest.raises(ConfigError):
            make_parser().parse_args_and_config(wrong)


def test_json_from_the_command_line():
    done = subprocess.run(
        [sys.executable, "-m", "metatune.recipes.cli", "doctor", "--json"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["devices"]["cpu_cores"] >= 1 and {"packages", "engines", "hub"} <= report.keys()
