"""Reward models in the grpo recipe: what an entry may say, and real runs that they reward."""

import json
import threading
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from metatune.recipes import grpo
from metatune.recipes.adapters import STARTER, record_base
from metatune.recipes.config import ConfigError
from metatune.recipes.reward_models import RewardModelEntry, load_reward_models, read_entries
from metatune.rewards.reward_model import RewardModel

from ..rewards.test_reward_model import tiny_model
from ..rewards.test_reward_server import FakePoolingServer
from .launches import GRPO, finish, last_line, log_rows, metatune, start, succeed, write_recipe


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two reward models that disagree, and an adapter of the starter."""
    folder = tmp_path_factory.mktemp("models")
    for number, name in enumerate(("a", "b")):
        tiny_model(folder / name, num_labels=1, hidden_size=32 + 32 * number)
    torch.manual_seed(0)
    starter = AutoModelForSequenceClassification.from_pretrained(STARTER, num_labels=1)
    adapted = get_peft_model(starter, LoraConfig(task_type="SEQ_CLS", init_lora_weights=False))
    record_base(adapted, SimpleNamespace(model_name_or_path="starter", model_revision="main"))
    adapted.save_pretrained(folder / "adapter")
    return folder


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "give exactly one of path, paths and url"),
        ({"path": "a", "url": "http://b"}, "give exactly one of path, paths and url"),
        ({"path": "a", "wieght": 2}, "unknown key 'wieght'; did you mean 'weight'?"),
        ({"path": "a", "weight": "much"}, "expected a number, got 'much'"),
        ({"path": "a", "weight": float("nan")}, "weight is not finite: nan"),
        ({"paths": ["a"]}, "paths are two or more; give a single one as path"),
        ({"path": "a", "combine": "min"}, "combine: min needs several paths"),
        ({"paths": ["a", "b"], "combine": "mean_minus_std"}, "mean_minus_std needs a std_weight above 0, not None"),
        ({"paths": ["a", "b"], "std_weight": 1}, "std_weight is given, but combine: mean does not use it"),
        ({"path": "a", "model": "b"}, "`model` does not go with path or paths"),
        ({"url": "http://b", "device": "cpu"}, "`device` does not go with url"),
    ],
)
def test_what_an_entry_may_not_say(entry, message):
    with pytest.raises(ValueError, match=r"^reward_models\[1\]: ") as error:
        read_entries([{"path": "right"}, entry])
    assert message in str(error.value)


def test_a_recipe_is_checked_as_it_is_read(tmp_path):
    path = write_recipe(tmp_path / "recipe.yaml", GRPO, reward_models=[{"paths": ["a", "b"], "combne": "min"}])
    with pytest.raises(ConfigError, match=r"recipe.yaml:\d+: reward_models\[0\]: unknown key 'combne'; .*'combine'"):
        grpo.make_parser().parse_args_and_config(["--config", str(path)])
    options = {"reward_models": [{"path": "a", "weight": 2}], "reward_weights": [1.0, 2.0]}
    path = write_recipe(tmp_path / "recipe.yaml", GRPO, **options)
    configs = grpo.make_parser().parse_args_and_config(["--config", str(path)])
    with pytest.raises(ConfigError, match="reward_weights has 2 weights for 0 reward_funcs"):
        grpo.check(*configs)
    configs[1].reward_weights = None
    for progress in ("episode", "anytime", "length_penalty"):
        configs[1].progress = progress
        with pytest.raises(ConfigError, match=f"progress: {progress} needs a gold reward"):
            grpo.check(*configs)


def test_models_stand_beside_the_functions_or_in_their_place(models):
    def loaded(**options):
        arguments = SimpleNamespace(reward_weights=options.pop("reward_weights", None), gold_reward=None)
        functions = grpo.load_rewards(grpo.GRPOScriptArguments(dataset_name="d", **options), arguments)
        return [function.__name__ for function in functions], arguments.reward_weights

    one, two = {"path": str(models / "a")}, {"path": str(models / "b"), "weight": -0.5}
    assert loaded() == (["correctness_reward"], None)
    assert loaded(reward_models=[one]) == (["reward_model"], [1.0])
    assert loaded(reward_models=[one, two]) == (["reward_model_1", "reward_model_2"], [1.0, -0.5])
    both = loaded(reward_models=[two], reward_funcs=["correctness"], reward_weights=[3.0])
    assert both == (["correctness_reward", "reward_model"], [3.0, -0.5])


def test_an_adapter_of_the_starter_finds_its_base(models):
    assert json.loads((models / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == "starter"
    [reward] = load_reward_models([RewardModelEntry(path=str(models / "adapter"), device="cpu", max_length=32)])
    rewards = reward(["1 + 1 = ", "1"], ["2", "2" * 40])
    assert isinstance(rewards[0], float) and rewards[1] is None
    with pytest.raises(ValueError, match="its base model starter cannot be loaded"):
        RewardModel(models / "adapter", device="cpu")


def test_what_cannot_be_loaded_names_its_entry(tmp_path):
    with pytest.raises(ConfigError, match=r"reward_models\[0\]: .*starter is no reward model"):
        load_reward_models([RewardModelEntry(path=str(STARTER))])
    with pytest.raises(ConfigError, match=r"reward_models\[0\]: .*nothing cannot be loaded"):
        load_reward_models([RewardModelEntry(path=str(tmp_path / "nothing"))])
    with pytest.raises(ConfigError, match=r"reward server at not-a-url.*must start with http"):
        load_reward_models([RewardModelEntry(url="not-a-url")])


def entries(models) -> list[dict]:
    ensemble = {"paths": [str(models / "a"), str(models / "b")], "combine": "mean_minus_std", "std_weight": 0.5}
    return [{"path": str(models / "a"), "weight": 2.0}, {**ensemble, "weight": 0.5}]


@pytest.mark.slow
def test_a_run_on_prompts_alone_is_rewarded_by_models(tmp_path, models):
    """No verifier, no answer, no distribution: a column of prompts, as texts."""
    rows = [{"prompt": f"{i} + {i} = "} for i in range(8)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"distributions": None, "dataset_name": str(tmp_path / "data"), "curriculum": "uniform"}
    run = {"output_dir": str(tmp_path / "run"), "max_steps": 2, "save_strategy": "no", "log_completions": True}
    values = {**GRPO, **data, **run, "reward_models": entries(models)}
    path = write_recipe(tmp_path / "recipe.yaml", {name: value for name, value in values.items() if value is not None})
    succeed(metatune("grpo", "--config", path))
    logged = log_rows(tmp_path / "run")
    assert len(logged) == 2
    first = logged[0]
    expected = 2 * first["rewards/reward_model_1/mean"] + 0.5 * first["rewards/reward_model_2/mean"]
    assert first["reward"] == pytest.approx(expected, abs=1e-5) and first["reward_std"] > 0.01
    assert first["reward_model_2/disagreement"] > 0.01 and "reward_model_1/disagreement" not in first
    assert first["reward_model_1/unscorable"] == 0 and first["reward_model_1/length"] > 1

    import pandas as pd

    table = pd.read_parquet(next((tmp_path / "run" / "completions").glob("*.parquet")))
    model = RewardModel(models / "a", device="cpu")
    assert table["reward_model_1"].to_numpy() == pytest.approx(
        model.score(list(table["prompt"]), list(table["completion"])), abs=1e-5
    )
    assert "std_weight: 0.5" in (tmp_path / "run" / "recipe.yaml").read_text()
    assert "reward_weights" not in (tmp_path / "run" / "recipe.yaml").read_text()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.needs("deepspeed")
def test_every_process_holds_its_models_whole_under_zero3(tmp_path, models):
    path = write_recipe(
        tmp_path / "recipe.yaml",
        GRPO,
        max_steps=3,
        save_strategy="no",
        reward_models=entries(models),
        reward_funcs=["correctness"],
    )
    for config in ("ddp", "zero3"):
        two = ("--num_processes", "2", "--accelerate_config", config, "--output_dir", tmp_path / config)
        succeed(metatune("grpo", "--config", path, *two))
    rewards = {}
    for config in ("ddp", "zero3"):  # a generation block is two steps
        rewards[config] = [
            [row[key] for key in ("reward", "rewards/reward_model_1/mean", "rewards/reward_model_2/mean")]
            for row in log_rows(tmp_path / config)
            if "reward" in row
        ]
    assert len(rewards["ddp"]) == 2
    for mine, theirs in zip(rewards["zero3"], rewards["ddp"], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)


@pytest.mark.slow
def test_a_server_that_fails_ends_the_run_in_one_line(tmp_path, models):
    """It answers until the first rewards are given, and then no more: nothing is trained on a made-up reward."""
    server = FakePoolingServer(str(models / "a"))
    server.failures = [None, *[(503, {"error": {"message": "engine is dead"}})] * 100]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    run = {"output_dir": str(tmp_path / "run"), "max_steps": 4, "save_strategy": "no"}
    path = write_recipe(tmp_path / "recipe.yaml", {**GRPO, **run}, reward_models=[{"url": server.url, "retries": 2}])
    code, _, errors = finish(start(metatune("grpo", "--config", path)))
    server.shutdown()
    server.server_close()
    assert code == 1 and len(log_rows(tmp_path / "run")) == 2
    assert f"cannot use the reward server at {server.url}/classify, tried 3 times (HTTP 503" in last_line(errors)
