"""Every trainer, however it is sharded, killed inside a generation block or at the end of an epoch, and gone on with.

Each cell is real: a recipe is started, every process of it is killed by SIGKILL once a checkpoint is whole, and
another start goes on for two steps. The files of the checkpoint then written (weights, optimizer, schedule, random
states, waiting rollouts, curriculum, rubrics, log) are those of a run that nobody killed, bit for bit. CI tries a
covering part of the table; `make resume-matrix` tries all of it and prints it.
"""

import json
import os
import shutil
from pathlib import Path

import pytest

from metatune.rewards import RubricHistory
from metatune.trainers.whole_checkpoints import MARK

from ..rewards.fake_judge_server import FakeJudgeServer
from .forks import SHARDINGS, Run
from .launches import write_recipe
from .resume_setup import STEPS_AN_EPOCH, TRAINERS, contents, differences, judge_by_rule

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CUTS = {"inside a block": 2, "end of an epoch": STEPS_AN_EPOCH}  # the step after which everything is killed
GOES_ON = 2  # steps
PART = [
    ("DUMP", "one process", "inside a block"),
    ("DUMP with vLLM", "one process", "end of an epoch"),
    ("MRT", "zero2", "end of an epoch"),
    ("MPO", "ddp", "inside a block"),
    ("Meta", "zero3", "inside a block"),
    ("MetaReward", "zero3", "end of an epoch"),
    ("MetaReward", "zero2", "inside a block"),
    ("MetaReward", "ddp", "inside a block"),
    ("SFT", "zero2", "inside a block"),
]
ALL = [(trainer, sharding, cut) for trainer in TRAINERS for sharding in SHARDINGS for cut in CUTS]
CELLS = ALL if os.environ.get("RESUME_MATRIX") == "all" else PART
TABLE: dict[tuple[str, str, str], str] = {}


def runs() -> list:
    """The cells by trainer and sharding: one unbroken run serves both cuts."""
    cuts: dict[tuple[str, str], list[str]] = {}
    for trainer, sharding, cut in CELLS:
        cuts.setdefault((trainer, sharding), []).append(cut)
    return [
        pytest.param(
            (trainer, sharding, tuple(each)),
            id=f"{trainer}-{sharding}".replace(" ", "_"),
            marks=[
                pytest.mark.needs(package)
                for package, needed in (("deepspeed", "zero" in sharding), ("vllm", "vLLM" in trainer))
                if needed
            ],
        )
        for (trainer, sharding), each in cuts.items()
    ]


@pytest.mark.parametrize("run", runs())
def test_a_run_goes_on_bit_for_bit(tmp_path, run):
    trainer, sharding, cuts = run
    command, recipe = TRAINERS[trainer]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    steps = [CUTS[cut] for cut in cuts]
    with FakeJudgeServer(judge_by_rule) as server:
        values = recipe(tmp_path, SHARDINGS[sharding], server.url)
        write_recipe(tmp_path / "recipe.yaml", values, max_steps=steps[-1] + GOES_ON, save_steps=2)
        Run(command, sharding, whole).finish()
        going_on, resume = Run(command, sharding, killed), ()
        for step in steps:
            going_on.die(killed / f"checkpoint-{step}" / MARK, *resume)
            forget_what_is_later(killed, step)
            resume = ("--resume_from_checkpoint", "true")
        going_on.finish(*resume)
    assert "starting from the beginning" not in going_on.log.read_text()
    assert_is_sharded(whole, sharding)

    found = {}
    for cut, step in zip(cuts, steps, strict=True):
        assert_is_cut(whole / f"checkpoint-{step}", step)
        after = f"checkpoint-{step + GOES_ON}"
        found[cut] = differences(contents(killed / after), contents(whole / after))
        TABLE[trainer, sharding, cut] = "not equal" if found[cut] else "equal"
    final = {path.name for path in whole.glob("*") if path.suffix == ".safetensors"}
    assert final and all((killed / name).read_bytes() == (whole / name).read_bytes() for name in final)
    assert {path.name for path in killed.iterdir()} == {path.name for path in whole.iterdir()}, "nothing lies about"
    if (whole / "rubrics").is_dir():
        mine, theirs = (RubricHistory.read(folder / "rubrics") for folder in (killed, whole))
        assert theirs.version(1) and mine.current == theirs.current
        assert [(e["event"], e["version"], e["step"]) for e in mine.events] == [
            (e["event"], e["version"], e["step"]) for e in theirs.events
        ]
    assert not any(found.values()), "\n".join(line for lines in found.values() for line in lines[:10])


def forget_what_is_later(run: Path, step: int) -> None:
    """Delete what a run did before the signal reached it."""
    for later in run.glob("checkpoint-*"):
        if int(later.name.split("-")[1]) > step:
            shutil.rmtree(later)


def assert_is_sharded(run: Path, sharding: str) -> None:
    """See that optimizer states, and under ZeRO-3 the weights too, lie in one file a process."""
    files = [path.name for path in (run / "checkpoint-2").rglob("*")]
    states = [
        sum(f"rank_{rank}_mp_rank_00_{kind}_states.pt" in name for name in files for rank in (0, 1))
        for kind in ("optim", "model")
    ]
    assert states == {"zero2": [2, 0], "zero3": [2, 2]}.get(sharding, [0, 0]), files
    assert ("rng_state_1.pth" in files) == (SHARDINGS[sharding] == 2)


def assert_is_cut(checkpoint: Path, step: int) -> None:
    """See that the checkpoint lies where its cell says, and that training has done something until then."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert state["global_step"] == step and state["epoch"] == step / STEPS_AN_EPOCH
    assert any(row.get("grad_norm") for row in state["log_history"])
    moves = [row["meta/move_cosine"] for row in state["log_history"] if "meta/move_cosine" in row]
    assert all(cosine > 0.999 for cosine in moves), (
        "MetaRM's moves are the intended ones, also in bf16 under DeepSpeed"
    )
    if (checkpoint / "metatune_state.json").is_file():
        waiting = json.loads((checkpoint / "metatune_state.json").read_text())["rollouts_waiting"]
        assert waiting == (step % STEPS_AN_EPOCH != 0)


@pytest.fixture(scope="module", autouse=True)
def _table():
    """Print what was tried, when all of it was."""
    yield
    if CELLS is not ALL:
        return
    print("\n\n| trainer | cut | " + " | ".join(SHARDINGS) + " |\n|---|---|" + "---|" * len(SHARDINGS))
    for trainer in TRAINERS:
        for cut in CUTS:
            cells = [TABLE.get((trainer, sharding, cut), "not run") for sharding in SHARDINGS]
            print(f"| {trainer} | {cut} | " + " | ".join(cells) + " |")
