"""A run keeps the recipe as it was given, and says what differs when it is resumed with another one."""

import json
import subprocess
import sys

import pytest
import yaml

from metatune.recipes import grpo, sft
from metatune.recipes.config import ConfigError
from metatune.recipes.kept_recipe import LAUNCH_OPTIONS, describe, differences, fixed
from metatune.recipes.launch import as_values
from metatune.recipes.run_folder import begin_run

from .launches import GRPO, environment, write_recipe
from .test_run_folder import checkpoint


@pytest.fixture
def parse(tmp_path, monkeypatch):
    """Parse a GRPO recipe and a command line over it."""
    monkeypatch.delenv(LAUNCH_OPTIONS, raising=False)

    def parse(*args, **options):
        values = {**GRPO, "output_dir": str(tmp_path / "run"), **options}
        path = write_recipe(tmp_path / "given.yaml", values)
        return values, grpo.make_parser().parse_args_and_config(["--config", str(path), *args])

    return parse


def test_it_is_the_recipe_with_what_the_command_line_changed(parse, tmp_path, monkeypatch):
    options = {"num_processes": 2, "accelerate_config": "ddp", "beta": 0.0, "env": {"SHOWN": "1", "HF_TOKEN": "hf_x"}}
    monkeypatch.setenv(LAUNCH_OPTIONS, '{"num_processes": 1}')
    kwargs = (
        "--chat_template_kwargs",
        '{"a": 1}',
        "--hub_token",
        "hf_x",
        "--learning_rate=2e-4",
        "--compact_generation",
        "false",
    )
    values, (script_args, *_) = parse(*kwargs, "--temperature", "1.0", **options, temperature=0.5)
    kept = yaml.safe_load(script_args.recipe)
    changed = {"num_processes": 1, "learning_rate": 2e-4, "chat_template_kwargs": {"a": 1}, "temperature": 1.0}
    changed["compact_generation"] = False
    assert kept == {**values, **changed, "env": {"SHOWN": "1"}}
    written = [key for key in kept if key in values and key != "env"]
    assert written == [key for key in yaml.safe_load((tmp_path / "given.yaml").read_text()) if key in written]


def test_a_number_of_steps_is_kept_as_it_was_typed(parse):
    _, (script_args, *_) = parse("--save_steps", "20", "--eval_steps=0.5")
    assert "save_steps: 20\n" in script_args.recipe and "eval_steps: 0.5\n" in script_args.recipe


def test_the_same_command_takes_it(parse, tmp_path):
    _, configs = parse("--num_generations", "2", "--log_completions")
    (tmp_path / "recipe.yaml").write_text(configs[0].recipe)
    again = grpo.make_parser().parse_args_and_config(["--config", str(tmp_path / "recipe.yaml")])
    assert again[0] == configs[0] and again[2] == configs[2]
    assert again[1].to_dict() | {"logging_dir": None} == configs[1].to_dict() | {"logging_dir": None}


def test_the_launcher_s_options_are_keys_of_a_recipe():
    options = ["--num_processes", "2", "--accelerate_config", "zero2", "--multi_gpu", "--num_processes", "3"]
    assert as_values(options) == {"num_processes": 3, "accelerate_config": "zero2", "multi_gpu": True}


def test_differences_name_the_old_value_and_the_new(parse):
    began, _ = parse()
    entries = [{**began["distributions"][0], "train_size": 50}, began["distributions"][1]]
    _, configs = parse("--learning_rate", "2e-4", "--seed", "7", distributions=entries)
    assert describe(differences(began, configs[0].given, *configs)) == [
        "distributions.sums.train_size: 40 -> 50",
        "learning_rate: 0.0001 -> 0.0002",
        "seed: 42 -> 7",
    ]


def test_an_older_recipe_with_derived_values_is_the_same_one(parse):
    began, _ = parse()
    del began["use_cpu"]
    _, configs = parse()
    older = {**began, "use_cpu": True, "remove_unused_columns": False, "lr_scheduler_type": "linear", "beta": 0.0}
    assert differences(older, configs[0].given, *configs) == {}
    del configs[0].given["steps_per_generation"]
    assert differences({**older, "steps_per_generation": 4}, configs[0].given, *configs) == {}


def test_a_checkpoint_is_not_resumed_with_another_model_or_optimizer(parse, tmp_path, capsys):
    _, configs = parse()
    assert begin_run(*configs) == configs[0].recipe
    checkpoint(tmp_path / "run", 2)
    (tmp_path / "run" / "recipe.yaml").write_text(configs[0].recipe)
    assert not capsys.readouterr().out
    resume = ("--resume_from_checkpoint", "true")
    begin_run(*parse(*resume)[1])
    assert not capsys.readouterr().out
    begin_run(*parse(*resume, "--beta", "0.5")[1])
    assert (
        f"Resuming the run in {tmp_path / 'run'} with another recipe:\n  beta: 0.0 -> 0.5\n" in capsys.readouterr().out
    )
    for option, value in (("--optim", "sgd"), ("--model_name_or_path", "some/other"), ("--lora_r", "4")):
        with pytest.raises(ConfigError, match=f"^{option[2:]}: the run in .* cannot be resumed with {value}"):
            begin_run(*parse(*resume, option, value)[1])


def test_a_model_that_was_moved_is_no_other_model():
    assert fixed({"model_name_or_path": ("Qwen/Qwen3-0.6B", "/scratch/Qwen3-0.6B")}) == []
    assert fixed({"model_name_or_path": ("a/b", None), "lora_alpha": (16, 32), "seed": (1, 2)}) == [
        "model_name_or_path",
        "lora_alpha",
    ]


def test_a_folder_is_held_by_one_run(tmp_path):
    """The other one waits for as long as a stopped run may take, and is refused then."""
    hold = "from metatune.recipes.folder_lock import hold_folder; hold_folder({!r}); print(1, flush=True); input()"
    command = [sys.executable, "-c", hold.format(str(tmp_path / "run"))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command, env=environment(), **pipes)
    assert first.stdout.readline() == "1\n"
    second = subprocess.Popen(command, env=environment(METATUNE_GRACE_SECONDS="60"), **pipes)
    assert second.stderr.readline().startswith(f"metatune: waiting for process {first.pid} on ")
    refused = subprocess.run(command, env=environment(METATUNE_GRACE_SECONDS="0"), capture_output=True, text=True)
    assert f"output_dir: {tmp_path / 'run'} is in use by process {first.pid} on " in refused.stderr
    first.communicate("\n", timeout=30)
    assert second.communicate("\n", timeout=30)[0] == "1\n" and second.returncode == 0


def test_sft_keeps_its_recipe_too(tmp_path):
    options = {"init_config": {"model_type": "llama"}, "tokenizer": "starter", "dataset_name": "x", "bf16": False}
    path = write_recipe(tmp_path / "sft.yaml", options, use_cpu=True, output_dir=str(tmp_path / "run"))
    config = {"model_type": "llama", "num_hidden_layers": 2}
    script_args, *_ = sft.make_parser().parse_args_and_config(
        ["--config", str(path), "--init_config", json.dumps(config)]
    )
    assert script_args.given == {
        **options,
        "use_cpu": True,
        "output_dir": str(tmp_path / "run"),
        "init_config": config,
    }
