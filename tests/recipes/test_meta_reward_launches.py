"""MetaRM as users launch it: one run by one process, DDP, ZeRO-2 and ZeRO-3, whose shards are moved and put back."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from .launches import (
    REWARD,
    difference,
    finish,
    last_line,
    log_rows,
    metatune,
    start,
    succeed,
    weights,
    write_pairs,
    write_recipe,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
needs_deepspeed = pytest.mark.needs("deepspeed")

META = {"meta_step": "normalised", "meta_step_size": 0.5, "learning_rate": 1.0e-2, "max_steps": 4}
SHARED = ("loss", "grad_norm", "meta/difference", "meta/gradient_norm", "meta/reward_std")


def write_meta_set(path: Path, number: int = 12) -> Path:
    rows = [
        {"prompt": [{"role": "user", "content": f"{i} + {i}"}], "responses": [str(2 * i), str(3 * i + 1), f"1{i}"]}
        for i in range(number)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe(folder: Path, per_device: int, **options) -> Path:
    return write_recipe(
        folder / f"recipe_{per_device}.yaml",
        {**REWARD, **META},
        dataset_name=str(write_pairs(folder / "pairs.jsonl")),
        meta_dataset_name=str(write_meta_set(folder / "meta.jsonl")),
        per_device_train_batch_size=per_device,
        per_device_meta_batch_size=per_device,
        **options,
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process: its folder."""
    folder = tmp_path_factory.mktemp("meta")
    succeed(metatune("reward", "--config", recipe(folder, 4), "--output_dir", folder / "alone"))
    return folder


def test_the_move_changes_the_run(alone):
    plain = write_recipe(
        alone / "plain.yaml", REWARD, dataset_name=str(alone / "pairs.jsonl"), per_device_train_batch_size=4
    )
    options = ("--learning_rate", "1e-2", "--output_dir", alone / "plain")
    succeed(metatune("reward", "--config", plain, *options))
    assert difference(weights(alone / "plain", True), weights(alone / "alone", True)) > 1e-4
    first, moved = log_rows(alone / "plain")[0], log_rows(alone / "alone")[0]
    assert abs(first["loss"] - moved["loss"]) > 1e-4  # the logged loss is the one at the moved weights


@pytest.mark.parametrize("config", ["ddp", *(pytest.param(c, marks=needs_deepspeed) for c in ("zero2", "zero3"))])
def test_two_processes_make_the_run_of_one(alone, config):
    launch = ("--num_processes", "2", "--accelerate_config", config, "--output_dir", alone / config)
    succeed(metatune("reward", "--config", recipe(alone, 2), *launch))
    mine, theirs = log_rows(alone / config), log_rows(alone / "alone")
    assert [row["step"] for row in mine] == [row["step"] for row in theirs] == [1, 2, 3, 4]
    for row, other in zip(mine, theirs, strict=True):
        for key in SHARED:
            assert row[key] == pytest.approx(other[key], abs=2e-4, rel=2e-3), (key, row["step"])
    assert difference(weights(alone / config, True), weights(alone / "alone", True)) < 2e-5


@needs_deepspeed
def test_adapters_are_moved_under_zero3(alone):
    lora = {"use_peft": True, "lora_target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0}
    folder = alone / "lora"
    folder.mkdir()
    rows = {}
    for name, per_device, launch in (
        ("one", 4, ()),
        ("two", 2, ("--num_processes", "2", "--accelerate_config", "zero3")),
    ):
        succeed(
            metatune("reward", "--config", recipe(folder, per_device, **lora), "--output_dir", folder / name, *launch)
        )
        rows[name] = log_rows(folder / name)
    for row, other in zip(rows["two"], rows["one"], strict=True):
        for key in SHARED:
            assert row[key] == pytest.approx(other[key], abs=2e-4, rel=2e-3), (key, row["step"])


@needs_deepspeed
def test_prototypes_are_trained_by_every_engine(tmp_path):
    """DDP refuses parameters that are used outside of the forward pass, and ZeRO-3 gathers none of them there."""
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    path = write_recipe(tmp_path / "recipe.yaml", REWARD, dataset_name=str(pairs), contrastive="swav", max_steps=3)
    for config in ("ddp", "zero2", "zero3"):
        launch = ("--num_processes", "2", "--accelerate_config", config, "--output_dir", tmp_path / config)
        succeed(metatune("reward", "--config", path, *launch))
        for row, other in zip(log_rows(tmp_path / config), log_rows(tmp_path / "ddp"), strict=True):
            for key in ("loss", "contrastive", "grad_norm"):
                assert row[key] == pytest.approx(other[key], abs=1e-4), (config, key, row["step"])
        assert (tmp_path / config / "prototypes.safetensors").is_file()
        past = load_file(tmp_path / config / "checkpoint-3" / "contrastive_queue.safetensors")["features"]
        assert len(past.unique(dim=0)) == 3 * 2 * 4, "every process's four items of every step"
        assert difference(weights(tmp_path / config, True), weights(tmp_path / "ddp", True)) < 1e-5


def test_a_meta_set_that_is_too_small_is_one_line(tmp_path):
    path = recipe(tmp_path, 16, output_dir=str(tmp_path / "run"))
    code, _, errors = finish(start(metatune("reward", "--config", path)))
    assert code == 2
    assert "the meta set has 12 prompts, and one step takes 16" in last_line(errors)
    assert "Traceback" not in errors
