"""DeepSpeed on two processes of a CPU, as users launch it: the same run as DDP, really sharded, saved and resumed."""

import re
import shutil
from pathlib import Path

import pytest

from .launches import (
    GRPO,
    REWARD,
    difference,
    finish,
    last_line,
    log_rows,
    metatune,
    ranks_of,
    start,
    succeed,
    wait_for,
    weights,
    write_pairs,
    write_recipe,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # the first launch compiles a collective, and a fixture makes several launches
    pytest.mark.needs("deepspeed"),
]

# Two processes that add in another order: what DDP and ZeRO may differ by.
LOSS_TOLERANCE = 1e-5
WEIGHT_TOLERANCE = 1e-6  # root mean square; training moves the weights by more than a hundred times as much


def command(recipe: str, folder: Path, config: str, *more: str) -> list[str]:
    two = ("--num_processes", "2", "--accelerate_config", config)
    return metatune(recipe, "--config", folder / "recipe.yaml", "--output_dir", folder / config, *two, *more)


@pytest.fixture(scope="module")
def grpo(tmp_path_factory):
    """One GRPO run with the curriculum under DDP, ZeRO-2 and ZeRO-3: the folder, and what each printed."""
    folder = tmp_path_factory.mktemp("grpo")
    write_recipe(folder / "recipe.yaml", GRPO)
    return folder, {config: succeed(command("grpo", folder, config)) for config in ("ddp", "zero2", "zero3")}


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    """One reward model under DDP, ZeRO-2 and ZeRO-3: the folder, and what each printed."""
    folder = tmp_path_factory.mktemp("reward")
    write_recipe(folder / "recipe.yaml", REWARD, dataset_name=str(write_pairs(folder / "pairs.jsonl")))
    return folder, {config: succeed(command("reward", folder, config)) for config in ("ddp", "zero2", "zero3")}


def assert_same_run(mine: list[dict], theirs: list[dict], exact: tuple[str, ...], close: tuple[str, ...]) -> None:
    assert [row["step"] for row in mine] == [row["step"] for row in theirs] == list(range(1, len(theirs) + 1))
    for row, other in zip(mine, theirs, strict=True):
        assert [row.get(key) for key in exact] == [other.get(key) for key in exact]
        for key in close:
            assert row[key] == pytest.approx(other[key], abs=LOSS_TOLERANCE), (key, row["step"])


GRPO_EXACT = ("reward", "rollout_tokens", "curriculum/count/sums", "curriculum/count/search")


@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_grpo_with_the_curriculum_is_the_run_of_ddp(grpo, config):
    folder, _ = grpo
    expected = log_rows(folder / "ddp")
    assert any(row["loss"] != 0 for row in expected)
    assert_same_run(log_rows(folder / config), expected, GRPO_EXACT, ("loss", "grad_norm"))


@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_a_reward_model_is_the_one_of_ddp(reward, config):
    folder, _ = reward
    close = ("loss", "mean_reward", "margin", "grad_norm")
    assert_same_run(log_rows(folder / config), log_rows(folder / "ddp"), ("num_tokens",), close)


def test_zero3_shards_every_matrix_of_a_small_model(grpo, reward):
    """DeepSpeed's own threshold would shard none of them, without a word."""
    for (folder, printed), recipe, reward_model in ((grpo, "grpo", False), (reward, "reward", True)):
        parameters = weights(folder / "zero3", reward_model).values()
        matrices = sum(parameter.dim() > 1 and parameter.numel() > 1280 for parameter in parameters)
        found = re.search(r"ZeRO-3 shards (\d+) of (\d+) parameters, (\S+)% of the weights, over 2", printed["zero3"])
        assert found, (recipe, printed["zero3"])
        assert (int(found[1]), int(found[2])) == (matrices, len(parameters))
        assert matrices >= 28 and float(found[3]) > 99
        shards = sorted(file.name for file in (folder / "zero3" / "checkpoint-3").rglob("*_model_states.pt"))
        assert [name.split("rank_")[1][0] for name in shards] == ["0", "1"]


@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_the_saved_model_loads_in_one_process_with_the_trained_weights(grpo, reward, config):
    from metatune.recipes.adapters import STARTER

    for (folder, _), reward_model in ((grpo, False), (reward, True)):
        saved, ddp = weights(folder / config, reward_model), weights(folder / "ddp", reward_model)
        assert difference(saved, ddp) < WEIGHT_TOLERANCE
        last = folder / config / ("checkpoint-4" if reward_model else "checkpoint-8")
        assert difference(weights(last, reward_model), saved) == 0
        if not reward_model:
            assert difference(saved, weights(STARTER)) > 100 * WEIGHT_TOLERANCE


@pytest.mark.parametrize("config", ["zero3"])  # the others: test_resume_matrix.py
def test_a_killed_rank_ends_the_run_and_the_last_checkpoint_goes_on_as_if_nothing_had_happened(grpo, tmp_path, config):
    folder, _ = grpo
    write_recipe(tmp_path / "recipe.yaml", GRPO)
    process = start(command("grpo", tmp_path, config))
    wait_for(tmp_path / config / "checkpoint-3" / "trainer_state.json", process)  # inside a generation block
    ranks = ranks_of(process)
    assert sorted(ranks) == [0, 1]
    ranks[1].kill()
    code, _, errors = finish(process, limit=60)
    assert code != 0
    assert "rank 1 of 2 was killed (SIGKILL)" in last_line(errors)
    assert not any(rank.is_running() for rank in ranks.values())

    succeed(command("grpo", tmp_path, config, "--resume_from_checkpoint", "true"))
    kept = ("loss", "grad_norm", *GRPO_EXACT, "curriculum/probability/sums")
    assert_same_run(log_rows(tmp_path / config), log_rows(folder / config), kept, ())
    assert difference(weights(tmp_path / config), weights(folder / config)) == 0


def test_a_reward_model_goes_on_from_its_checkpoint(reward, tmp_path):
    folder, _ = reward
    run = tmp_path / "zero3"
    shutil.copytree(folder / "zero3" / "checkpoint-3", run / "checkpoint-3")
    (run / "checkpoint-4").mkdir()  # a torn one, which is passed over
    shutil.copy(folder / "recipe.yaml", tmp_path)
    succeed(command("reward", tmp_path, "zero3", "--resume_from_checkpoint", "true"))
    assert_same_run(log_rows(run), log_rows(folder / "zero3"), ("loss", "mean_reward", "grad_norm"), ())
    assert difference(weights(run, True), weights(folder / "zero3", True)) == 0

    trained = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").unlink()  # killed between its last step and its end: nothing is left to train
    assert "is the end of its run" in succeed(command("reward", tmp_path, "zero3", "--resume_from_checkpoint", "true"))
    assert (run / "model.safetensors").read_bytes() == trained
