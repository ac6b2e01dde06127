"""Adapters through the recipes: trained as any model, saved alone, resumed bit for bit, evaluated and merged."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig

from metatune.curricula import build_tokenizer
from metatune.recipes import cli
from metatune.recipes.adapters import STARTER, adapter_error, base_of, check_adapter_options, is_adapter
from metatune.recipes.config import ConfigError
from metatune.trainers import DUMPTrainer

from ..trainers.dump_setup import config, digits, rows, tiny_model
from .adapter_setup import save_adapter

LIMIT = 240  # seconds a launch may take
LORA = {"use_peft": True, "lora_r": 4, "lora_alpha": 8, "lora_target_modules": ["q_proj", "v_proj", "down_proj"]}


# ---- the trainer ----


def make(folder, **options) -> DUMPTrainer:
    blocks = {"max_steps": 4, "per_device_train_batch_size": 8, "steps_per_generation": 2, "learning_rate": 1e-2}
    return DUMPTrainer(
        tiny_model(),
        reward_funcs=digits,
        args=config(folder, save_strategy="steps", save_steps=1, **{**blocks, **options}),
        train_dataset=rows(),
        processing_class=build_tokenizer(),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.05),
    )


def curve(trainer) -> list[tuple]:
    return [(row["loss"], row["grad_norm"]) for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize(
    "options",
    [
        {"compact_generation": False},
        {"compact_generation": True, "length_grouping": True},
        {"compact_generation": True, "gradient_checkpointing": True, "beta": 0.04},
    ],
)
def test_only_the_adapter_is_trained_and_a_resume_inside_a_block_goes_on_bit_for_bit(tmp_path, options):
    whole = make(tmp_path, **options)
    base = {name: value.clone() for name, value in whole.model.named_parameters() if "lora_" not in name}
    assert len(base) > 10
    whole.train()
    assert any(norm > 0 for _, norm in curve(whole))
    trained = dict(whole.model.named_parameters())
    assert all(torch.equal(trained[name], value) for name, value in base.items())
    assert any(value.any() for name, value in trained.items() if "lora_B" in name)
    resumed = make(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))  # a block is two steps
    assert curve(resumed) == curve(whole)
    for mine, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


# ---- options ----


@pytest.mark.parametrize("option", [{"lora_r": 8}, {"lora_target_modules": ["q_proj"]}, {"use_rslora": True}])
def test_an_option_of_lora_without_lora_is_refused(option):
    with pytest.raises(ConfigError, match=rf"`{next(iter(option))}` is given, but .* `use_peft: true`"):
        check_adapter_options(ModelConfig(model_name_or_path="starter", **option))
    check_adapter_options(ModelConfig(model_name_or_path="starter", use_peft=True, **option))


def test_an_adapter_is_no_model_to_start_from(tmp_path):
    save_adapter(tmp_path / "lora")
    with pytest.raises(ConfigError, match=r"holds an adapter.*metatune merge --model .*lora --output_dir"):
        check_adapter_options(ModelConfig(model_name_or_path=str(tmp_path / "lora")))


def test_an_adapter_needs_a_base_that_is_kept():
    with pytest.raises(ConfigError, match="`use_peft: true` needs `model_name_or_path`"):
        check_adapter_options(ModelConfig(use_peft=True))


@pytest.mark.parametrize(("given", "meant"), [("q_proj", ["q_proj"]), (".*q_proj", ".*q_proj"), ("all-linear",) * 2])
def test_one_name_is_a_name_and_no_pattern_for_whole_names(given, meant):
    model_args = ModelConfig(model_name_or_path="starter", use_peft=True, lora_target_modules=[given])
    check_adapter_options(model_args)
    assert model_args.lora_target_modules == meant


def test_modules_that_a_model_lacks_are_one_line(tmp_path):
    with pytest.raises(ValueError) as caught:
        save_adapter(tmp_path, target_modules=["q_prj"])
    assert str(adapter_error(caught.value)).startswith("lora_target_modules: Target modules {'q_prj'} not found")
    assert adapter_error(ValueError("something else")) is None


# ---- metatune grpo, eval, merge ----


def recipe(folder: Path, **options) -> Path:
    """Write a recipe of three generation blocks of two optimizer steps, with a checkpoint at every step."""
    values = {
        "model_name_or_path": "starter",
        "dtype": "float32",
        "output_dir": str(folder / "run"),
        "distributions": [
            {"name": "sums", "source": "arithmetic", "config": {"terms": 6}, "train_size": 40, "test_size": 8},
            {"name": "search", "source": "countdown", "config": {"numbers": 3}, "train_size": 40, "test_size": 8},
        ],
        **LORA,
        "num_generations": 8,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
        "max_completion_length": 48,
        "max_steps": 6,
        "learning_rate": 1.0e-2,
        "compact_generation": True,
        "length_grouping": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        **options,
    }
    folder.mkdir(exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def start(command: str, *args: str | Path) -> subprocess.Popen:
    """Start a command of metatune in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "metatune.recipes.cli", command, *map(str, args)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, code: int = 0) -> str:
    """Wait for a launch that must end with `code` and return what it printed."""
    try:
        output, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"no end after {LIMIT} s:\n{output[-3000:]}")
    assert process.returncode == code, output[-3000:]
    return output


def log_lines(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def logged(folder: Path) -> list[tuple]:
    return [tuple(row.get(key) for key in ("step", "loss", "grad_norm", "reward")) for row in log_lines(folder)]


@pytest.mark.slow
@pytest.mark.timeout(4 * LIMIT)
def test_two_processes_train_an_adapter_are_killed_resumed_evaluated_and_merged(tmp_path, capsys):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    two = ("--num_processes", "2")
    finish(start("grpo", "--config", recipe(whole), *two))
    expected = logged(whole)
    assert [row[0] for row in expected] == [1, 2, 3, 4, 5, 6]
    assert any(row[2] > 0 for row in expected)
    counted = 0
    for row in log_lines(whole):  # the throughput counts the tokens of both processes
        counted += row.get("throughput/rollout_tokens_per_second", 0) * row["time/generate"]
        assert counted == pytest.approx(row["rollout_tokens"], rel=1e-3)

    interrupted = start("grpo", "--config", recipe(killed), *two)
    deadline = time.monotonic() + LIMIT
    while not (killed / "run" / "checkpoint-3" / "trainer_state.json").exists():  # inside the second block
        assert interrupted.poll() is None, interrupted.communicate()[0][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(interrupted.pid, signal.SIGKILL)
    interrupted.communicate()
    finish(start("grpo", "--config", killed / "recipe.yaml", *two, "--resume_from_checkpoint", "true"))
    assert logged(killed) == expected
    weights = [load_file(folder / "run" / "adapter_model.safetensors") for folder in (whole, killed)]
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())

    # The folder holds the adapter alone, and works where it is moved to.
    run = tmp_path / "moved"
    shutil.move(whole / "run", run)
    assert not list(run.rglob("model.safetensors"))
    for folder in (run, run / "checkpoint-6"):
        assert is_adapter(folder)
        assert base_of(folder).name == str(STARTER)
    tasks = tmp_path / "eval.yaml"
    tasks.write_text(
        "distributions: [{name: sums, source: arithmetic, config: {terms: 3}, train_size: 8, test_size: 4}]"
    )
    options = ["--config", str(tasks), "--max_new_tokens", "16", "--device", "cpu", "--temperature", "0"]
    tables = []
    assert cli.main(["merge", "--model", str(run), "--output_dir", str(tmp_path / "merged")]) == 0
    for model in (run, tmp_path / "merged"):
        capsys.readouterr()
        assert cli.main(["eval", "--model", str(model), *options]) == 0
        tables.append(capsys.readouterr().out.split(" tokens generated")[0])
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_supervised_fine_tuning_leaves_an_adapter_too(tmp_path):
    values = {
        "model_name_or_path": str(STARTER),
        "dtype": "float32",
        "output_dir": str(tmp_path / "run"),
        "distributions": [{"name": "sums", "source": "arithmetic", "config": {"terms": 3}}],
        "demonstrations": 16,
        **LORA,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "max_length": None,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
    }
    path = tmp_path / "sft.yaml"
    path.write_text(yaml.safe_dump(values))
    finish(start("sft", "--config", path))
    assert is_adapter(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "adapter_config.json").read_text())["base_model_name_or_path"] == "starter"
    finish(start("merge", "--model", tmp_path / "run", "--output_dir", tmp_path / "merged"))
    AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template


@pytest.mark.slow
def test_a_module_that_is_not_there_ends_a_launch_with_one_line(tmp_path):
    path = recipe(tmp_path / "x", lora_target_modules=["q_prj"])
    output = finish(start("grpo", "--config", path), code=2)
    line = path.read_text().splitlines().index("lora_target_modules:") + 1
    problem = "lora_target_modules: the model has no module 'q_prj'; did you mean 'q_proj'?"
    assert f"error: {path}:{line}: {problem}" in output
    assert "Traceback" not in output
