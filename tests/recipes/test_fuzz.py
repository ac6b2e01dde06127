"""The front door under random recipes and data: a run that ends well or one clear line, never a traceback or a hang.

A failure prints the recipe and its files. `METATUNE_FUZZ=1000` tries as many, and others every time; without it a
fixed choice of a fraction of them.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from metatune.curricula import build_tokenizer
from metatune.recipes.cli import COMMANDS
from metatune.recipes.config import StrictParser
from tests.recipes.fuzz_cases import Case, cases
from tests.recipes.fuzz_run import complaint, run
from tests.trainers.dump_setup import tiny_model

TRIES = int(os.environ.get("METATUNE_FUZZ", "0"))
SHARES = {"grpo": 0.3, "sft": 0.25, "reward": 0.25, "star": 0.06, "metarm": 0.06, "eval": 0.08}
FEW = 160
FILES = ("recipe.yaml", "data.jsonl", "folder", "distributions[", "of the training set")


def examples(command: str):
    """As many examples as the command's share."""
    return settings(
        max_examples=max(1, round((TRIES or FEW) * SHARES[command])),
        derandomize=not TRIES,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    """A folder with the model that all cases train."""
    folder = tmp_path_factory.mktemp("fuzz")
    tiny_model().save_pretrained(folder / "tiny")
    build_tokenizer().save_pretrained(folder / "tiny")
    return folder


def options_of(command: str) -> list[str]:
    """The names of all options of a command."""
    from importlib import import_module

    parser: StrictParser = import_module(f"metatune.recipes.{COMMANDS[command].module}").make_parser()
    return list(parser.hints)


def ends_well(lab: Path, case: Case, train: bool) -> None:
    """Assert that a case ends as it should."""
    folder = Path(tempfile.mkdtemp(dir=lab))
    try:
        case.write(folder)
        outcome = run(case.command, folder, train)
        wrong = complaint(outcome, folder, [*FILES, *options_of(case.command)], train)
        assert wrong is None, f"{wrong}\n{case!r}---- stderr\n{outcome.errors[-3000:]}"
    finally:
        shutil.rmtree(folder)


@pytest.mark.timeout(3600 if TRIES else 300)
@given(case=cases("grpo"))
@examples("grpo")
def test_grpo(lab, case):
    ends_well(lab, case, train=True)


@pytest.mark.timeout(3600 if TRIES else 300)
@given(case=cases("sft"))
@examples("sft")
def test_sft(lab, case):
    ends_well(lab, case, train=True)


@pytest.mark.timeout(3600 if TRIES else 300)
@given(case=cases("reward"))
@examples("reward")
def test_reward(lab, case):
    ends_well(lab, case, train=True)


@given(case=cases("star"))
@examples("star")
def test_star_is_read_and_checked(lab, case):
    ends_well(lab, case, train=False)


@given(case=cases("metarm"))
@examples("metarm")
def test_metarm_is_read_and_checked(lab, case):
    ends_well(lab, case, train=False)


@given(case=cases("eval"))
@examples("eval")
def test_eval_is_read_and_checked(lab, case):
    ends_well(lab, case, train=False)
