"""The quickstart, cut to a few steps: everything that it promises to leave behind is there and agrees."""

import json
import os
import signal
import subprocess
import sys

import pandas as pd
import pytest

from ..eval.html_page import without_scripts

SUMMARY_KEYS = {"accuracy_before", "accuracy_after", "ci_low", "ci_high", "seconds", "generated_tokens"}


def quickstart(folder, *options) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "metatune.recipes.quickstart", "--output_dir", folder, *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def says(folder, words, *options) -> bool:
    """Return whether a quickstart prints some words, and kill it as soon as it does."""
    command = [sys.executable, "-u", "-m", "metatune.recipes.quickstart", "--output_dir", folder, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        found = any(words in line for line in process.stdout)
        os.killpg(process.pid, signal.SIGKILL)
    return found


@pytest.mark.slow
def test_a_short_quickstart_leaves_what_it_promises(tmp_path):
    folder = tmp_path / "quickstart"
    options = ("--samples", "1", "--max_steps", "4", "--eval_steps", "2", "--save_steps", "2")
    output = quickstart(folder, *options)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary.keys() >= SUMMARY_KEYS
    assert len(summary["distributions"]) == 9
    assert all(part.keys() >= SUMMARY_KEYS for part in summary["distributions"].values())
    assert summary["accuracy_before"] > 0.2
    assert f"{summary['accuracy_before']:.3f} -> {summary['accuracy_after']:.3f}" in output

    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log if "eval_accuracy" in row] == [0, 2, 4]
    assert summary["generated_tokens"] == log[-1]["rollout_tokens"]
    completions = pd.concat(pd.read_parquet(path) for path in (folder / "completions").glob("*.parquet"))
    assert len(completions) == 4 * 32
    page = (folder / "report.html").read_text()
    page = without_scripts(page)
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert page.count("<script") == page.count("</script>") == 5, "three of ours, and two of data"
    for name in ("learning.png", "curriculum.png", "before_after.png", "model.safetensors", "recipe.yaml"):
        assert (folder / name).stat().st_size > 0

    assert says(folder, "An earlier run is kept in", *options)
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith("quickstart-") and (kept / "report.html").is_file()
