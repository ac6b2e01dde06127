"""Recipes and command lines of `trl grpo`, `trl sft` and `trl reward` run unchanged."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from metatune.recipes import launch
from metatune.recipes.config import ConfigError
from metatune.recipes.launch import resolve_accelerate_config

# What any machine without a GPU needs, under `trl` as well, and what makes a run short.
HERE = {"use_cpu": True, "bf16": False, "max_steps": 1, "per_device_train_batch_size": 4, "logging_steps": 1}
SHORT = {"num_generations": 2, "max_completion_length": 8}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A working folder with data sets that are named as those of the hub are, without a path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    numbers = [{"prompt": [{"role": "user", "content": f"{i} + 1 = "}], "solution": f"${i + 1}$"} for i in range(6)]
    texts = [{"text": f"{i} + 1 = {i + 1}"} for i in range(6)]
    pairs = [{"prompt": f"{i} + 1 = ", "chosen": f"{i + 1}", "rejected": f"{i + 2}"} for i in range(6)]
    for name, rows in {"numbers": numbers, "more": numbers[:2], "texts": texts, "pairs": pairs}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run(command: str, *args: str, **values) -> dict:
    """Run a recipe, or a command line, in this process, and return the first line of its log."""
    recipe = {"model_name_or_path": "starter", "output_dir": "run", **HERE, **values}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    module = import_module(f"metatune.recipes.{command}")
    module.main(*module.make_parser().parse_args_and_config(["--config", "recipe.yaml", *args]))
    return json.loads(Path("run/metrics.jsonl").read_text().splitlines()[0])


def test_one_dataset_and_one_reward_function_train_on_one_distribution(data):
    logged = run("grpo", "--dataset_name", "numbers", "--reward_funcs", "accuracy_reward", **SHORT)
    assert (
        logged["step"] == 1 and "rewards/accuracy_reward/mean" in logged and logged["curriculum/probability/all"] == 1
    )


def test_a_mixture_of_datasets_holds_out_the_share_that_it_is_asked_for(data):
    mixture = {"datasets": [{"path": "numbers", "split": "train"}, {"path": "more", "split": "train"}]}
    options = {"test_split_size": 0.25, "eval_strategy": "steps", "per_device_eval_batch_size": 2, "max_steps": 1}
    funcs = {"reward_funcs": ["think_format_reward", "get_soft_overlong_punishment"]}
    logged = run("grpo", **mixture, **options, **funcs, **SHORT)
    assert {"rewards/think_format_reward/mean", "rewards/soft_overlong_punishment_reward/mean"} <= logged.keys()
    card = (data / "run" / "README.md").read_text()
    assert "`numbers` (a local folder), `more` (a local folder)" in card and "`starter`" in card


def test_a_stream_trains(data):
    logged = run("grpo", dataset_name="numbers", dataset_streaming=True, reward_funcs=["accuracy_reward"], **SHORT)
    assert logged["step"] == 1


@pytest.mark.parametrize(
    ("command", "values"),
    [
        ("sft", {"dataset_name": "texts", "use_peft": True, "lora_r": 4}),
        ("reward", {"datasets": [{"path": "pairs", "split": "train"}]}),
    ],
)
def test_recipes_of_sft_and_reward_models(data, command, values):
    assert run(command, **values)["loss"] > 0


def test_a_reward_model_is_counted_first_by_the_weights(data):
    parse = import_module("metatune.recipes.grpo").make_parser().parse_args_and_config
    model = ["--model_name_or_path", "starter", "--dataset_name", "numbers", "--use_cpu", "--bf16", "false"]
    rewards = ["--reward_model_name_or_path", "scorer", "--reward_funcs", "accuracy_reward"]
    script_args, training_args, model_args = parse([*model, *rewards, "--reward_weights", "0.25", "2"])
    import_module("metatune.recipes.grpo").check(script_args, training_args, model_args)
    assert script_args.reward_models == [{"path": "scorer", "weight": 0.25}] and training_args.reward_weights == [2.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"datasets": [{"name": "main"}]}, r"datasets\[0\]: .*missing 1 required .*'path'"),
        ({"datasets": [{"path": "numbers", "splt": "train"}]}, "unknown key 'splt'; did you mean 'split'"),
        ({"datasets": [{"path": "numbers"}], "dataset_name": "numbers"}, "give either `distributions`"),
        ({"dataset_name": "numbers", "streaming": True}, "for dataset_name, set dataset_streaming"),
        ({"datasets": [{"path": "./nowhere"}]}, "datasets: .*nowhere"),
    ],
)
def test_a_mixture_that_cannot_be_read_is_one_line(data, values, message):
    with pytest.raises(ConfigError, match=message):
        run("grpo", reward_funcs=["accuracy_reward"], **values, **SHORT)


def test_the_sharding_names_of_trl_are_known():
    (_, path) = resolve_accelerate_config(["--accelerate_config", "fsdp2"])
    assert path.endswith("fsdp2.yaml")
    for folder in launch.ACCELERATE_FOLDERS:
        assert list(folder.glob("*.yaml"))
