"""MPO's recipes: rubrics within their bounds, arms of local stand-ins for the data, and one of them run to its end.

None of them has been run on a GPU, nor against the models that they name. The server here is a stand-in over HTTP.
"""

import json
from pathlib import Path

import pytest

from metatune.curricula import load_distributions
from metatune.recipes import grpo
from metatune.recipes.config import ConfigError, read_recipe
from metatune.rewards import RubricBounds, RubricHistory, correctness_reward, read_rubric

from ..rewards.fake_judge_server import FakeJudgeServer
from .launches import GRPO, LIMIT, log_rows, metatune, succeed, write_recipe

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes" / "mpo"
TASKS = ("essay", "summary", "ethics", "math")
# Rows of each task's data: columns as its recipe reads them, and one more.
ROWS = {
    "essay": lambda i: {"prompt": f"Write a story in which {i} doors are open.", "source": "made up"},
    "summary": lambda i: {
        "text": f"SECTION {i}. The fee is {i} dollars.",
        "summary": f"A fee of {i}.",
        "title": "Fees",
    },
    "ethics": lambda i: {"text": f"I kept {i} books.", "binarized_label": ("RIGHT", "WRONG")[i % 2], "action": None},
    "math": lambda i: {"problem": f"What is ${i} + 1$?", "answer": str(i + 1), "level": 1},
}
# A right answer to row 0 and a wrong one, where the data know.
ANSWERS = {
    "ethics": ("They were lent to me. <verdict>RIGHT</verdict>", "They were lent to me. <verdict>WRONG</verdict>"),
    "math": ("It is \\boxed{1}.", "It is \\boxed{2}."),
}


def values(task):
    return read_recipe(str(FOLDER / f"{task}.yaml")).values


def write_data(folder, task):
    for split, first, end in (("train", 0, 24), ("test", 24, 32)):
        lines = [json.dumps(ROWS[task](i)) + "\n" for i in range(first, end)]
        (folder / f"{split}.jsonl").write_text("".join(lines))


def test_every_recipe_of_the_folder_is_tried_here():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(TASKS)


@pytest.mark.parametrize("path", sorted((FOLDER / "rubrics").iterdir()), ids=lambda path: path.stem)
def test_rubrics_keep_the_bounds_of_a_meta_judge(path):
    rubric = read_rubric(path, RubricBounds())
    task, _, expert = path.stem.partition("_")
    assert rubric.task == read_rubric(FOLDER / "rubrics" / f"{task}.yaml").task, "both judge the same task"
    if expert:
        assert len(rubric.items) >= 5 and rubric.lowest < 0 and "to_the_judge" in [item.name for item in rubric.items]
    else:
        assert [item.range for item in rubric.items] == [(0, 5)], "the paper's first rubrics have one item of 0 to 5"


@pytest.mark.parametrize("task", TASKS)
def test_options_can_be_used_together(task, monkeypatch):
    """What is checked before a launch: the judges' entries, their rubrics, and the trainer's options."""
    monkeypatch.chdir(ROOT)
    script, training, model = grpo.make_parser().parse_args_and_config(
        ["--config", str(FOLDER / f"{task}.yaml"), "--bf16", "false", "--use_cpu", "true"]
    )
    grpo.check(script, training, model)
    assert grpo.trainer_of(script, training).__name__ == "MPOTrainer"
    assert training.max_steps >= 4 * training.meta_every
    assert script.judge["rubric"] == f"recipes/mpo/rubrics/{task}.yaml"


@pytest.mark.parametrize("task", TASKS)
def test_arms_load_from_a_stand_in_of_the_data(task, tmp_path):
    write_data(tmp_path, task)
    (distribution,) = load_distributions([{**values(task)["distributions"][0], "path": str(tmp_path)}])
    assert len(distribution.train) == 24 and len(distribution.test) == 8
    row = distribution.train[0]
    assert row["prompt"][-1]["content"].startswith(next(iter(ROWS[task](0).values())))
    columns = {name: [row[name]] * 2 for name in ("answer", "verifier", "info")}
    known = [1.0, 0.0] if task in ANSWERS else [None, None]
    assert correctness_reward(list(ANSWERS.get(task, ("a", "b"))), **columns) == known


MORE = {"name": "padding", "criterion": "Takes up to 3 for what could be left out.", "points": -3}


@pytest.mark.parametrize(("gold", "message"), [("correctnes", "did you mean 'correctness'"), ("judge", "is none of")])
def test_gold_is_one_of_the_reward_functions(gold, message):
    arguments = ["--config", str(FOLDER / "math.yaml"), "--gold_reward", gold, "--bf16", "false"]
    with pytest.raises(ConfigError, match=f"gold_reward: '{gold}'.*{message}"):
        grpo.check(*grpo.make_parser().parse_args_and_config(arguments))


def test_gold_has_the_recipe_s_name_there_and_the_function_s_in_the_trainer(tmp_path):
    with FakeJudgeServer(answer) as server:
        judge = {"url": server.url, "rubric": str(FOLDER / "rubrics" / "math.yaml")}
        gold = {"reward_funcs": ["correctness"], "reward_weights": [0.0], "gold_reward": "correctness"}
        recipe = write_recipe(tmp_path / "recipe.yaml", {**GRPO, "judge": judge, "meta_every": 0, **gold})
        script, training, model = grpo.make_parser().parse_args_and_config(["--config", str(recipe)])
        grpo.check(script, training, model)
        names = [function.__name__ for function in grpo.load_rewards(script, training)]
    assert names[0] == training.gold_reward == "correctness_reward"


def answer(body):
    """Judge by length, whatever the items are; the meta judge adds an item."""
    first = body["messages"][1]["content"]
    if "You improve the rubric" not in body["messages"][0]["content"]:
        items = body["response_format"]["json_schema"]["schema"]["properties"]
        scores = {name: item["properties"]["score"] for name, item in items.items()}
        return json.dumps(
            {
                name: {"rationale": "its length", "score": score["minimum"] + len(first) % (score["maximum"] + 1)}
                for name, score in scores.items()
            }
        )
    if len(body["messages"]) == 2 and "Merge them into one" not in first:
        return "an analysis"
    return json.dumps({"items": [*read_rubric(FOLDER / "rubrics" / "summary.yaml").to_dict()["items"], MORE]})


@pytest.mark.slow
@pytest.mark.timeout(2 * LIMIT)
def test_the_summary_recipe_runs_to_its_end(tmp_path):
    """With the starter on the CPU, for two steps; judge, meta judge and held-out judge are one stand-in."""
    write_data(tmp_path, "summary")
    recipe = values("summary")
    recipe["distributions"][0]["path"] = str(tmp_path)
    smaller = {key: value for key, value in GRPO.items() if key != "distributions"}
    smaller |= {"max_steps": 2, "steps_per_generation": 2, "max_completion_length": 16, "save_strategy": "no"}
    smaller |= {"meta_every": 1, "meta_cases": 2, "gate": False, "held_out_every": 1}
    smaller |= {"use_vllm": False, "vllm_enable_sleep_mode": False, "num_processes": 1, "log_completions": False}
    recipe = {key: value for key, value in recipe.items() if key != "accelerate_config"} | smaller
    recipe["output_dir"] = str(tmp_path / "run")
    with FakeJudgeServer(answer) as server:
        for entry in ("judge", "meta_judge", "held_out_judge"):
            recipe[entry]["url"] = server.url
        for entry in ("judge", "held_out_judge"):
            recipe[entry]["rubric"] = str(ROOT / recipe[entry]["rubric"])
        succeed(metatune("grpo", "--config", write_recipe(tmp_path / "recipe.yaml", recipe)))
    rows = log_rows(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(0 <= row["judge/score"] <= 1 and 0 <= row["held_out_judge/score"] <= 1 for row in rows)
    assert [row["rubric/version"] for row in rows] == [0, 1]
    history = RubricHistory.read(tmp_path / "run" / "rubrics")
    assert [item.name for item in history.current.rubric.items] == ["faithful_and_concise", "padding"]
    judged = [body["messages"][1]["content"] for body in server.bodies if "response_format" in body]
    assert any("The fee is" in text for text in judged) and all("A fee of" not in text for text in judged)
