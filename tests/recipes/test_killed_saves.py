"""Runs that are killed by SIGKILL at a random instant of a save, again and again, and gone on with each time.

CI makes three kills of each run; `make resume-matrix` makes fifty (RESUME_KILLS).
"""

import os
import random
from pathlib import Path

import pytest

from metatune.recipes.run_folder import last_whole_checkpoint

from .forks import SHARDINGS, Run
from .launches import log_rows, write_recipe
from .resume_setup import TRAINERS, contents, differences

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

KILLS = int(os.environ.get("RESUME_KILLS", "3"))


def steps_of(folder: Path) -> set[int]:
    return {int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*")}


def seconds_of_a_save(folder: Path, step: int) -> float:
    """From the first file of a checkpoint to its last."""
    times = [path.stat().st_mtime for path in (folder / f"checkpoint-{step}").rglob("*") if path.is_file()]
    return max(times) - min(times)


needs_deepspeed = pytest.mark.needs("deepspeed")


@pytest.mark.parametrize(
    ("trainer", "sharding"),
    [("DUMP", "one process"), ("SFT", "ddp"), pytest.param("DUMP", "zero2", marks=needs_deepspeed)],
)
def test_the_newest_whole_checkpoint_goes_on_whenever_a_save_is_killed(tmp_path, trainer, sharding):
    recipe, values = TRAINERS[trainer]
    last = 2 * KILLS + 2
    options = {"max_steps": last, "save_steps": 1, "lr_scheduler_type": "constant"}
    write_recipe(tmp_path / "recipe.yaml", values(tmp_path, SHARDINGS[sharding], ""), **options)
    whole = Run(recipe, sharding, tmp_path / "whole")
    whole.finish()
    killed = Run(recipe, sharding, tmp_path / "killed", "--save_total_limit", "1")
    duration = max(seconds_of_a_save(whole.folder, step) for step in range(2, last))
    chance = random.Random(0)
    at, torn = 0, 0
    for number in range(KILLS):
        ends = [step for step in (at + 1, at + 2) if step < last]
        begun = killed.folder / f"checkpoint-{chance.choice(ends)}"
        killed.die(begun, "--resume_from_checkpoint", "true", after=chance.uniform(0, 1.2 * duration))
        there, newest = steps_of(killed.folder), last_whole_checkpoint(killed.folder)
        if newest is None:
            assert at == 0 and there == {1}, (number, there)
        else:
            step = int(newest.name.split("-")[1])
            assert step >= at and there <= {step - 1, step, step + 1}, (number, there)
            lost = differences(contents(newest), contents(whole.folder / newest.name))
            assert not lost, (number, newest.name, lost[:5])
            at = step
        torn += any(each > at for each in there)
        progress = f"{trainer}, {sharding}: {number + 1} kills, {torn} left a torn checkpoint, at step {at}"
        print(progress, flush=True)
    killed.finish("--resume_from_checkpoint", "true")
    assert steps_of(killed.folder) == {last}, "nothing torn lies about"
    assert not differences(
        contents(killed.folder / f"checkpoint-{last}"), contents(whole.folder / f"checkpoint-{last}")
    )
    names = [{path.name for path in run.folder.iterdir() if path.is_file()} for run in (killed, whole)]
    assert names[0] == names[1]
    assert [row["step"] for row in log_rows(killed.folder)] == list(range(1, last + 1))
