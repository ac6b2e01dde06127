"""A small recipe of `metatune metarm`, written and run."""

import json

from metatune.recipes import cli

from .launches import write_recipe

TRAINING = {
    "dtype": "float32",
    "max_steps": 4,
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 2,
    "report_to": "none",
    "disable_tqdm": True,
}
METARM = {
    "model_name_or_path": "starter",
    "distributions": [
        {"name": "sums", "source": "arithmetic", "config": {"terms": 6}, "train_size": 30, "test_size": 6},
        {"name": "search", "source": "countdown", "config": {"numbers": 3}, "train_size": 30, "test_size": 6},
    ],
    "rounds": 1,
    "num_responses": 4,
    "num_prompts": 8,
    "num_pairs": 16,
    "reward": {
        **TRAINING,
        "per_device_train_batch_size": 4,
        "per_device_meta_batch_size": 4,
        "learning_rate": 1.0e-3,
    },
    "grpo": {
        **TRAINING,
        "curriculum": "uniform",
        "compact_generation": True,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "max_completion_length": 48,
        "learning_rate": 1.0e-4,
    },
}


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def read(path):
    return json.loads(path.read_text())


def write(tmp_path, *, reward=None, grpo=None, **values):
    """Write a recipe; `reward` and `grpo` are added to its blocks, `None` takes a key out."""
    merged = {**METARM, "output_dir": str(tmp_path / "run"), **values}
    merged = {key: value for key, value in merged.items() if value is not None}
    for name, block in (("reward", reward), ("grpo", grpo)):
        if name in merged:
            merged[name] = {**merged[name], **(block or {})}
    return write_recipe(tmp_path / "metarm.yaml", merged)


def run(tmp_path, *options, **values):
    return cli.main(["metarm", "--config", str(write(tmp_path, **values)), *options])
