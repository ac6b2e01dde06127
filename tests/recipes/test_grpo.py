"""The grpo recipe as users run it: `metatune grpo --config FILE`, on one process and on two, killed and resumed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from metatune.recipes import grpo
from metatune.recipes.config import ConfigError

LIMIT = 240  # seconds a launch may take
DISTRIBUTIONS = ("sums", "search", "island")
COMPARED = ("loss", "grad_norm", "reward", "rollout_tokens", *(f"curriculum/probability/{d}" for d in DISTRIBUTIONS))


def recipe(folder: Path, **options) -> Path:
    """Write a recipe of six generation blocks of two optimizer steps each, with a checkpoint at every step."""
    values = {
        "model_name_or_path": "starter",
        "dtype": "float32",
        "output_dir": str(folder / "run"),
        "distributions": [
            {"name": "sums", "source": "arithmetic", "config": {"terms": 6}, "train_size": 40, "test_size": 8},
            {"name": "search", "source": "countdown", "config": {"numbers": 3}, "train_size": 40, "test_size": 8},
            {"name": "island", "source": "logic", "config": {"people": 3}, "train_size": 40, "test_size": 8},
        ],
        "num_generations": 8,
        # With two processes a group of eight lies on both of them.
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
        "max_completion_length": 48,
        "max_steps": 12,
        "learning_rate": 1.0e-4,
        "compact_generation": True,
        "length_grouping": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "logging_steps": 1,
        "log_completions": True,
        "num_completions_to_print": 0,
        "save_strategy": "steps",
        "save_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        **options,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def start(*args: str | Path) -> subprocess.Popen:
    """Start `metatune grpo` in a process group of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "metatune.recipes.cli", "grpo", *map(str, args)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen) -> str:
    """Wait for a launch that must succeed and return what it printed."""
    try:
        output, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"no end after {LIMIT} s:\n{output[-3000:]}")
    assert process.returncode == 0, output[-3000:]
    return output


def curve(folder: Path) -> list[tuple]:
    """What must not differ between runs, one tuple an optimizer step."""
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [tuple(row.get(key) for key in ("step", *COMPARED)) for row in rows if "loss" in row]


@pytest.mark.slow
@pytest.mark.timeout(4 * LIMIT)
@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_run_trains_on_whole_groups_and_a_finished_one_is_not_trained_further(tmp_path, num_processes):
    whole = tmp_path / "whole"
    whole.mkdir()
    processes = ("--num_processes", str(num_processes))
    finish(start("--config", recipe(whole), *processes))
    expected = curve(whole)
    assert [row[0] for row in expected] == list(range(1, 13))
    assert any(row[2] > 0 for row in expected)

    # Every group of eight answers one prompt, also where it lies on two processes.
    table = pd.read_parquet(whole / "run" / "completions" / "completions_00001.parquet")
    assert len(table) == 4 * 4 * num_processes
    prompts = [prompt[0]["content"] for prompt in table["prompt"]]
    for first in range(0, len(prompts), 8):
        assert len(set(prompts[first : first + 8])) == 1
    assert (whole / "run" / "model.safetensors").exists()

    if num_processes == 1:  # a run that is over is not trained further
        trained = (whole / "run" / "model.safetensors").read_bytes()
        output = finish(start("--config", whole / "recipe.yaml", "--resume_from_checkpoint", "true"))
        assert "is the end of its run" in output
        assert curve(whole) == expected
        assert (whole / "run" / "model.safetensors").read_bytes() == trained


@pytest.mark.slow
def test_the_script_runs_under_accelerate_launch_with_held_out_evaluation(tmp_path):
    path = recipe(
        tmp_path,
        max_steps=2,
        save_strategy="no",
        eval_strategy="steps",
        eval_steps=2,
        num_generations_eval=1,
        per_device_eval_batch_size=12,
    )
    root = Path(__file__).parents[2]
    output = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch"),
            *("--config_file", root / "recipes/accelerate/cpu2.yaml", "--main_process_port", "0"),
            *(root / "recipes/grpo.py", "--config", path),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert output.returncode == 0, output.stderr[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    evaluation = next(row for row in rows if "eval_accuracy" in row)
    assert all(0 <= evaluation[f"eval_accuracy/{name}"] <= 1 for name in DISTRIBUTIONS)
    trained = [row for row in rows if "loss" in row][-1]
    assert sum(trained[f"curriculum/count/{name}"] for name in DISTRIBUTIONS) == 4  # two processes share one batch


def run_to_error(tmp_path, **options) -> str:
    process = start("--config", recipe(tmp_path, **options))
    output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 2, output[-3000:]
    assert "Traceback" not in output
    return output


def test_a_distribution_without_items_is_one_clear_line(tmp_path):
    data = tmp_path / "empty.jsonl"
    data.write_text("")
    entry = {"name": "nothing", "source": "dataset", "path": str(data), "verifier": "math"}
    assert "empty.jsonl" in run_to_error(tmp_path, distributions=[entry])


def test_duplicate_names_are_one_clear_line(tmp_path):
    entry = {"name": "sums", "source": "arithmetic", "train_size": 4}
    assert "the name 'sums' is taken" in run_to_error(tmp_path, distributions=[entry, entry])


def test_a_missing_answer_column_names_the_file_and_the_column(tmp_path):
    data = tmp_path / "questions.jsonl"
    data.write_text('{"question": "1 + 1", "anser": "2"}\n')
    entry = {"name": "x", "source": "dataset", "path": str(data), "verifier": "math", "prompt_column": "question"}
    output = run_to_error(tmp_path, distributions=[entry])
    assert "questions.jsonl" in output
    assert "anser" in output


def test_an_unknown_key_names_the_file_and_the_nearest_key(tmp_path):
    output = run_to_error(tmp_path, learning_rte=1e-4)
    assert "recipe.yaml" in output
    assert "learning_rate" in output


def test_correctness_alone_over_data_without_a_verifier_is_refused_before_a_launch(tmp_path):
    def check(**options):
        path = recipe(tmp_path, distributions=entries, **options)
        grpo.check(*grpo.make_parser().parse_args_and_config(["--config", str(path)]))

    entries = [
        {"name": "sums", "source": "arithmetic", "train_size": 4},
        {"name": "essays", "source": "dataset", "path": "essays.jsonl"},
    ]
    for options in ({}, {"reward_funcs": ["correctness"]}):
        with pytest.raises(ConfigError, match=r"correctness says nothing of .* without a `verifier` \(essays\): give"):
            check(**options)
    check(reward_funcs=["correctness", "think_format_reward"])
    entries[1]["verifier"] = "exact"
    check()
    del entries[1]["verifier"]
    with pytest.raises(
        ConfigError, match=r"curriculum_reward: gold hardly draws .* without a `verifier` \(essays\): set"
    ):
        check(reward_funcs=["correctness", "think_format_reward"], curriculum_reward="gold")
    entries[1]["verifier"] = "exact"
    check(gold_reward="correctness")
    with pytest.raises(ConfigError, match="eval_on_start needs held-out items, which eval_strategy: no leaves out"):
        check(eval_on_start=True, eval_strategy="no")
