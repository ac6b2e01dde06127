"""What is installed from the wheel is everything, and works without the repository."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("curricula", "eval", "recipes", "rewards", "trainers")
NOT_SOURCE = shutil.ignore_patterns("__pycache__", ".*", "build", "dist", "*.egg-info", "metatune", "runs", "tests")
SHORT = ("--samples", "1", "--max_steps", "1", "--eval_strategy", "no", "--eval_on_start", "false")


def run(*command, cwd, **variables) -> str:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **variables}
    command = [str(word) for word in command]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that is built from the sdist of a clean copy."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=NOT_SOURCE)
    told = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, cwd=folder / "source")
    assert "is absent from the `packages`" not in told
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_the_five_folders_and_nothing_else(wheel):
    files = [path for name in FOLDERS for path in (ROOT / name).rglob("*") if "__pycache__" not in path.parts]
    expected = {f"metatune/{path.relative_to(ROOT)}" for path in files if path.is_file()}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected
    assert {f"metatune/{name}/py.typed" for name in FOLDERS} <= names


@pytest.mark.slow
def test_the_quickstart_runs_from_the_wheel_alone(wheel, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv" / "lib").glob("*/site-packages")
    # The libraries of this environment by path: .pth files there, an editable metatune among them, are not read.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(
        python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", wheel, cwd=tmp_path
    )
    metatune = tmp_path / "venv" / "bin" / "metatune"
    where = run(python, "-c", "import metatune.trainers as room; print(room.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(site)

    assert wheel.name.split("-")[1] in run(metatune, "--version", cwd=tmp_path)
    assert "Held-out accuracy" in run(metatune, "quickstart", *SHORT, cwd=tmp_path)
    assert (tmp_path / "runs" / "quickstart" / "report.html").stat().st_size > 0
    run(metatune, "recipes", "--copy_to", "recipes", cwd=tmp_path)
    assert (tmp_path / "recipes" / "mpo" / "rubrics" / "essay.yaml").is_file()
