"""What a recipe asks for and cannot have is told before any process is launched, with file, line and the mend."""

import inspect
import json
import os
import re
import stat
import sys
from pathlib import Path

import pytest
from trl import GRPOTrainer
from trl.generation.vllm_generation import VLLMGeneration

from metatune.curricula import CURRICULA
from metatune.recipes import cli, launch
from metatune.recipes.config import read_recipe
from metatune.recipes.grpo_checks import WORDS
from metatune.recipes.reward_functions import load_reward

from .launches import GRPO, REWARD, last_line, write_pairs, write_recipe

SFT = {key: value for key, value in REWARD.items() if key != "max_steps"}
MINE = """
import numpy as np
from metatune.curricula import Curriculum

class Mine(Curriculum, name="mine"):
    def __init__(self, arms, shares: dict, seed: int = 0):
        super().__init__(arms, seed=seed, shares=shares)
        lacking = [arm for arm in arms if arm not in shares]
        if lacking:
            raise ValueError(f"shares lack {lacking}")
        self.shares = np.array([shares[arm] for arm in arms]) / sum(shares[arm] for arm in arms)

    def probabilities(self):
        return self.shares

    def learnability(self):
        return 0 * self.shares

    def _observe(self, index, advantages, rewards, tokens):
        pass

def brevity(completions, **kwargs):
    return [0.0] * len(completions)

not_a_function = 3
"""


@pytest.fixture
def started(monkeypatch):
    """The launches that were started, in place of starting them."""
    found = []
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(launch, "start", lambda args: found.append(args) or 0)
    return found


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A user's module `mine_of_test`, where the run is started."""
    (tmp_path / "mine_of_test.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine_of_test", raising=False)  # it registers when it is imported
    yield
    CURRICULA.pop("mine", None)


@pytest.fixture
def refused(tmp_path, started, capsys):
    """Run a command on a recipe that must be refused before its launch; returns the error, and the recipe."""

    def refused(command, values, *args, **options):
        recipe = write_recipe(tmp_path / "recipe.yaml", values, **{"output_dir": str(tmp_path / "run"), **options})
        assert cli.main([command, "--config", str(recipe), *args]) == 2
        assert started == []
        return last_line(capsys.readouterr().err).removeprefix("metatune: error: "), recipe

    return refused


@pytest.mark.parametrize(
    ("options", "key", "message"),
    [
        ({"curriculum": "dmup"}, "curriculum", "unknown 'dmup'; did you mean 'dump'?"),
        ({"curriculum": "xyz"}, "curriculum", "unknown 'xyz'; there are uniform, easy_to_hard, pools,"),
        ({"curriculum_options": {"temprature": 1}}, "curriculum_options", "(did you mean 'temperature'?)"),
        ({"curriculum_options": {"temperature": "hot"}}, "curriculum_options", "must be a float, got 'hot'"),
        ({"curriculum_options": {"floor": 0.6}}, "curriculum_options", "floor 0.6 times 2 arms is more than 1"),
        ({"curriculum_options": {1: 2}}, "curriculum_options", "keywords must be strings"),
        ({"curriculum": "sec", "curriculum_options": {"window": 3}}, "curriculum_options", "option 'window' of"),
        (
            {"progress": "episode", "episodes": {"by": "delimitr"}},
            "episodes",
            "by is one of phrases, delimiter, regex, tokens",
        ),
        (
            {"progress": "episode", "episodes": {"dlimiter": "x"}},
            "episodes",
            "unknown option 'dlimiter'; did you mean 'delimiter'?",
        ),
        ({"progress": "episodes"}, "progress", "progress is one of none, episode,"),
        ({"reward_funcs": ["corectness"]}, "reward_funcs", "unknown 'corectness'; did you mean 'correctness'?"),
        ({"reward_funcs": ["correctness", "x"]}, "reward_funcs", "unknown 'x'; there are correctness, accuracy_rew"),
        ({"reward_funcs": ["accuracy_rewards"]}, "reward_funcs", "did you mean 'accuracy_reward'?"),
        ({"reward_funcs": ["get_soft_overlong"]}, "reward_funcs", "did you mean 'get_soft_overlong_punishment'?"),
        ({"reward_funcs": ["json.lods"]}, "reward_funcs", "json has no 'lods'; did you mean 'loads'?"),
        ({"reward_funcs": ["nowhere_at_all.f"]}, "reward_funcs", "'nowhere_at_all' cannot be imported"),
        ({"reward_funcs": ["json.decoder"]}, "reward_funcs", "'json.decoder' is no function"),
        ({"reward_weights": [1.0, 2.0]}, "reward_weights", "has 2 weights for 1 reward_funcs"),
        ({"progress": "episode", "reward_weights": [0.0]}, "progress", "the weight of 'correctness' is 0: raise it"),
        ({"loss_type": "dappo"}, "loss_type", "'dappo' is not one of grpo, dr_grpo, bnpo,"),
        ({"scale_rewards": "bath"}, "scale_rewards", "did you mean 'batch'?"),
        ({"vllm_mode": "serve"}, "vllm_mode", "did you mean 'server'?"),
        ({"model_name_or_path": "/no/where"}, "model_name_or_path", "no such folder: /no/where"),
        ({"model_name_or_path": str(Path(__file__).parent)}, "model_name_or_path", "holds no model (no config.json)"),
        (
            {"resume_from_checkpoint": str(Path(__file__).parent)},
            "resume_from_checkpoint",
            "is no checkpoint that was",
        ),
        ({"resume_from_checkpoint": "/no/where"}, "resume_from_checkpoint", "no such folder: /no/where"),
        ({"output_dir": __file__}, "output_dir", f"{__file__} is a file: name a folder"),
        ({"output_dir": f"{__file__}/run"}, "output_dir", f"{__file__} is a file: name a folder"),
        ({"dataset_config": "main"}, "dataset_config", "goes with `dataset_name`"),
        ({"num_processes": 0}, "num_processes", "must be at least 1, got 0"),
    ],
)
def test_a_mistake_in_a_grpo_recipe(refused, options, key, message):
    error, recipe = refused("grpo", GRPO, **options)
    lines = read_recipe(str(recipe)).lines
    likely = {line for path, line in lines.items() if path == key or path.startswith((f"{key}.", f"{key}["))}
    assert any(error.startswith(f"{recipe}:{line}: ") for line in likely) and message in error
    assert key in error


def test_an_option_of_the_command_line_has_no_line(refused):
    error, _ = refused("grpo", GRPO, "--curriculum", "dmup", curriculum="uniform")
    assert error == "curriculum: unknown 'dmup'; did you mean 'dump'?"


def test_a_curriculum_and_a_reward_of_the_user_s_own_are_found(tmp_path, started, own_module, refused):
    mine = {"imports": ["mine_of_test"], "curriculum": "mine", "reward_funcs": ["mine_of_test.brevity"]}
    recipe = write_recipe(
        tmp_path / "recipe.yaml", GRPO, **mine, curriculum_options={"shares": {"sums": 1, "search": 3}}
    )
    assert cli.main(["grpo", "--config", str(recipe)]) == 0
    assert len(started) == 1
    started.clear()
    error, _ = refused("grpo", GRPO, **mine, curriculum_options={"shares": {"sums": 1}})
    assert "curriculum_options: shares lack ['search']" in error
    error, _ = refused("grpo", GRPO, **{**mine, "reward_funcs": ["mine_of_test.not_a_function"]})
    assert "curriculum_options: curriculum 'mine' needs the option 'shares'" in error


def test_a_curriculum_of_the_user_s_own_waits_for_arms_that_the_data_names(tmp_path, started, own_module):
    """It may know arms by their names, and with dataset_name these are told by the rows."""
    values = {key: value for key, value in GRPO.items() if key != "distributions"}
    row = {"prompt": "1 + 1", "distribution": "sums", "answer": "2", "verifier": "math", "info": "{}"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    mine = {"imports": ["mine_of_test"], "curriculum": "mine", "curriculum_options": {"shares": {"sums": 1}}}
    recipe = write_recipe(tmp_path / "recipe.yaml", values, **mine, dataset_name="rows.jsonl")
    assert cli.main(["grpo", "--config", str(recipe)]) == 0
    assert len(started) == 1


def test_options_of_data_that_is_not_given(refused, tmp_path):
    pairs = str(write_pairs(tmp_path / "pairs.jsonl"))
    error, _ = refused("sft", SFT, dataset_name=pairs, demonstrations=5)
    assert "`demonstrations` goes with `distributions`" in error
    error, _ = refused("sft", SFT, dataset_name=pairs, dataset_streaming=True, max_steps=3, length_buckets=True)
    assert "`length_buckets` sorts all rows" in error
    values = {key: value for key, value in GRPO.items() if key != "distributions"}
    error, _ = refused("grpo", values, dataset_name=pairs, dataset_streaming=True, curriculum="sec")
    assert "curriculum: sec draws from all rows, and the data is a stream" in error
    error, _ = refused("grpo", values, dataset_name=pairs, dataset_streaming=True, max_steps=-1)
    assert "max_steps: required" in error


@pytest.mark.parametrize("command", ["sft", "grpo", "reward", "strength"])
def test_a_path_that_is_not_there(refused, command):
    values = {key: value for key, value in (GRPO if command == "grpo" else REWARD).items() if key != "distributions"}
    values |= {"save_strategy": "no"}
    for name in ("/nowhere", "./nowhere", "nowhere.jsonl"):
        error, recipe = refused(command, values, dataset_name=name)
        line = read_recipe(str(recipe)).lines["dataset_name"]
        assert error == f"{recipe}:{line}: dataset_name: {name}: no such file or folder"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_dir_without_rights(refused, tmp_path):
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(stat.S_IRUSR | stat.S_IXUSR)
    error, _ = refused("grpo", GRPO, output_dir=str(tmp_path / "closed" / "run"))
    assert "output_dir: " in error and "cannot be written" in error


def test_the_words_are_those_that_trl_knows():
    source = inspect.getsource(GRPOTrainer) + inspect.getsource(VLLMGeneration)
    for words in WORDS.values():
        for word in words:
            assert f'"{word}"' in source or f"'{word}'" in source
    compared = set(re.findall(r'self\.loss_type (?:==|in) \[?((?:"\w+"(?:, )?)+)', source))
    assert {word for group in compared for word in re.findall(r"\w+", group)} == set(WORDS["loss_type"])


@pytest.mark.parametrize("name", ["accuracy_reward", "reasoning_accuracy_reward", "think_format_reward"])
def test_the_rewards_of_trl_are_found(name):
    assert load_reward(name).__name__ == name
