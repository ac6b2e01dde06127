"""What the documentation says of bringing one's own parts, done as a reader would do it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ..rewards.fake_judge_server import FakeJudgeServer

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
SHORT = {"max_steps": 2, "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 24}
QUIET = {"bf16": False, "use_cpu": True, "report_to": "none", "save_strategy": "no", "logging_steps": 1}
FILES = sorted(path for path in EXAMPLES.iterdir() if path.is_file())


def metatune(folder: Path, *arguments: str) -> None:
    """Run the command line where the examples stand."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "metatune.recipes.cli", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]


def written(folder: Path, recipe: dict) -> str:
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, **SHORT, **QUIET}))
    return "recipe.yaml"


def logged(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True)
    problems = [
        (f"compute {a}+{b}", a + b, "hard" if a + b > 9 else "easy") for a in range(1, 10) for b in range(1, 10)
    ]
    lines = [
        json.dumps({"question": question, "answer": str(answer), "level": level})
        for question, answer, level in problems
    ]
    (tmp_path / "problems.jsonl").write_text("\n".join(lines))
    return tmp_path


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_example_is_short(path):
    assert len(path.read_text().splitlines()) <= 30


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_page_shows_the_file_that_is_run(path):
    assert f"\n{path.read_text().rstrip()}\n```" in (ROOT / "docs" / "extend.md").read_text()


@pytest.mark.slow
def test_task_verifier_curriculum_and_dataset_of_ones_own_train_and_are_evaluated(folder):
    own = yaml.safe_load((folder / "own_dataset.yaml").read_text())
    own["distributions"][0]["verifier"] = "about"
    own["distributions"].append({"name": "reversed", "source": "reversal", "config": {"digits": 2}, "train_size": 20})
    own["distributions"][1]["test_size"] = 5
    own |= {"imports": ["own_task", "own_verifier", "own_curriculum"], "curriculum": "round_robin"}
    own["reward_funcs"] = ["correctness", "own_reward.brevity"]
    metatune(folder, "grpo", "--config", written(folder, own))
    first, second = logged(folder / "runs" / "own")
    arms = {name for name in first if name.startswith("curriculum/probability/")}
    assert arms == {f"curriculum/probability/{name}" for name in ("sums-easy", "sums-hard", "reversed")}
    assert first["curriculum/count/sums-easy"] == 2 and second["curriculum/count/sums-hard"] == 2
    assert 0 < first["rewards/brevity/mean"] < 1
    metatune(folder, "eval", "--model", "runs/own", "--output_dir", "found")
    assert set(json.loads((folder / "found" / "summary.json").read_text())["distributions"]) >= {"reversed"}


@pytest.mark.slow
def test_a_judge_of_ones_own(folder):
    def answer(body: dict) -> str:
        items = body["response_format"]["json_schema"]["schema"]["properties"]
        return json.dumps(
            {
                name: {"rationale": "so", "score": item["properties"]["score"]["maximum"]}
                for name, item in items.items()
            }
        )

    with FakeJudgeServer(answer) as server:
        recipe = yaml.safe_load((folder / "own_judge.yaml").read_text())
        recipe["judge"]["url"] = server.url
        metatune(folder, "grpo", "--config", written(folder, recipe))
    row = logged(folder / "runs" / "judged")[-1]
    assert row["rewards/judge/mean"] == 1.0 and "rewards/correctness_reward/mean" in row


def test_a_module_that_is_not_there_is_told(folder, monkeypatch):
    from metatune.recipes.config import ConfigError
    from metatune.recipes.own_code import import_own

    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match="imports: 'own_tasks' cannot be imported: No module named"):
        import_own(["own_tasks"])
    (folder / "broken.py").write_text("limits = {}\nlimits['most']\n")
    with pytest.raises(
        ConfigError, match=r"imports: 'broken' cannot be imported: KeyError: 'most' \(.*broken.py, line 2\)"
    ):
        import_own(["broken"])
