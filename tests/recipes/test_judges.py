"""Judges in the grpo recipe: what may be said of them, and real runs over two processes, killed and gone on with.

The server is a stand-in over HTTP: it judges by the length of an answer, and its meta judge raises the item's points.
"""

import dataclasses
import json
import os
import re
import signal
from pathlib import Path

import pytest
import yaml

from metatune.recipes import doctor, grpo
from metatune.recipes.config import ConfigError, read_recipe
from metatune.recipes.judges import ENTRIES
from metatune.rewards import RubricHistory
from metatune.rewards.judge_client import PROBE

from ..rewards.fake_judge_server import FakeJudgeServer
from .launches import GRPO, LIMIT, finish, last_line, log_rows, metatune, start, succeed, wait_for, write_recipe

RUBRIC = {"task": "Find the number.", "items": [{"name": "short", "criterion": "Is it short?", "points": 2}]}


def answer(body):
    """Judge by length; revise by one point more, so that a reply follows from the request alone."""
    first = body["messages"][1]["content"]
    if first == PROBE[1]["content"]:
        return '{"ok": true}'
    if "You improve the rubric" not in body["messages"][0]["content"]:
        text = re.search(r"answer to be judged\n(.*)\n~+ end of", first, re.S)[1]
        most = body["response_format"]["json_schema"]["schema"]["properties"]["short"]["properties"]["score"][
            "maximum"
        ]
        return json.dumps({"short": {"rationale": "its length", "score": max(0, most - len(text) // 12)}})
    if len(body["messages"]) == 2:
        return "an analysis"
    if "Merge them into one" in first:
        points = max(map(int, re.findall(r'"points": (\d+)', first.partition("Reply with")[0])))
    else:
        points = 1 + int(re.search(r"short \(a whole number from 0 to (\d+)\)", first)[1])
    return json.dumps({"items": [{**RUBRIC["items"][0], "points": min(points, 10)}]})


def judged(folder, url, **options):
    """Write a rubric and a recipe that is judged by it; `None` leaves a key out."""
    (folder / "rubric.yaml").write_text(yaml.safe_dump(RUBRIC))
    judge = {"judge": {"url": url, "rubric": str(folder / "rubric.yaml")}, "meta_judge": {"url": url}}
    options = {"output_dir": str(folder / "run"), "meta_every": 1, "meta_cases": 4, "gate_cases": 4, **options}
    values = {key: value for key, value in {**GRPO, **judge, **options}.items() if value is not None}
    return write_recipe(folder / "recipe.yaml", values)


NOWHERE = "http://127.0.0.1:9/v1"
KEPT = {"meta_cases": None, "gate_cases": None, "resume_from_checkpoint": True}  # with a rubric that does not change


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"judge": {"url": NOWHERE}}, "judge: give `rubric`, a JSON or YAML file"),
        ({"judge": {"rubric": "r.yaml"}}, "judge: give `url`, the address of the server"),
        ({"judge": {"url": "localhost", "rubric": "r"}}, "judge: `url` is the address of a server"),
        ({"judge": {"url": NOWHERE, "rubrik": "r"}}, "judge: unknown key 'rubrik'; did you mean 'rubric'?"),
        ({"judge": {"url": NOWHERE, "rubric": "r", "mode": "both"}}, "judge: `mode` is one of single, plan_execute"),
        ({"judge": {"url": NOWHERE, "rubric": "none.yaml"}}, "judge: `rubric`: none.yaml: no such file"),
        (
            {"meta_judge": {"url": NOWHERE, "structured": "xml"}},
            "meta_judge: structured is one of json_schema, none, not 'xml'",
        ),
        ({"meta_judge": {"url": NOWHERE, "max_points": 1}}, "judge: {}/rubric.yaml: 'short' has 2 points, and 1 are"),
        ({"meta_judge": None}, "set a `meta_judge` that rewrites the judge's rubric, or keep it with `meta_every: 0`"),
        ({"judge": None}, "`meta_judge` goes with a `judge`"),
        ({"alarm_gap": 0.3}, "`alarm_gap` has no effect without a held-out judge: set `held_out_judge`, or remove it"),
        ({"judge": None, "meta_judge": None}, "`meta_every` has no effect without a judge: set `judge`, or remove it"),
        ({"meta_pool": 5}, "meta_pool is 5, and a meta step takes 4 meta_cases and 4 gate_cases: raise it"),
        ({"progress": "episode"}, "progress: episode needs a gold reward, which judge cannot be: add a verifier"),
        ({"progress": "prefix"}, "progress: prefix needs a gold reward, which judge cannot be: add a verifier"),
        (
            {"curriculum_reward": "gold"},
            "curriculum_reward: gold needs a verifier in reward_funcs (correctness) beside",
        ),
        (
            {"reward_weights": [1.0]},
            "reward_weights has 1 weights for 0 reward_funcs: those of judge are written beside",
        ),
        (
            {"curriculum": "pools", "reward_funcs": ["correctness"]},
            "curriculum: pools needs rewards from 0 to 1, and the weights are 1, 1: none below 0, at most 1 in all",
        ),
        (
            {"curriculum": "dump_plus", "reward_models": [{"path": "runs/rm"}]},
            "needs rewards from 0 to 1, and a reward model's may be anything; or take sec or dump",
        ),
        (
            {"held_out_judge": {"url": NOWHERE, "rubric": "none.json"}},
            "held_out_judge: `rubric`: none.json: no such file",
        ),
    ],
)
def test_mistakes_are_told_before_a_launch(tmp_path, options, message):
    with pytest.raises((ConfigError, ValueError)) as error:
        grpo.check(*grpo.make_parser().parse_args_and_config(["--config", str(judged(tmp_path, NOWHERE, **options))]))
    assert message.format(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("entry", "option", "message"),
    [
        ("judge", {"url": "http://127.0.0.1:80x1/v1"}, "`url` is the address of a server"),
        ("judge", {"url": "http:///v1"}, "`url` is the address of a server"),
        ("judge", {"url": "http://me:secret@host/v1"}, "`url` contains a user or a password: set `api_key_variable`"),
        ("judge", {"api_key_variable": "sk-12"}, "`api_key_variable` is the name of an environment variable, such as"),
        ("judge", {"max_tokens_field": "tokens"}, "max_tokens_field is one of max_tokens, max_completion_tokens, not"),
        ("judge", {"max_failure_rate": 1.5}, "`max_failure_rate` is between 0 and 1, not 1.5"),
        ("judge", {"max_failure_rate": -0.1}, "`max_failure_rate` is between 0 and 1, not -0.1"),
        ("judge", {"weight": float("inf")}, "`weight` is not finite: inf"),
        ("judge", {"max_prompt_characters": 0}, "`max_prompt_characters` is at least 1, not 0"),
        ("held_out_judge", {"max_completion_characters": -3}, "`max_completion_characters` is at least 1, not -3"),
        ("judge", {"max_concurrency": 0}, "max_concurrency must be above 0, not 0"),
        ("judge", {"max_concurrency": 2.5}, "`max_concurrency`: expected a whole number, got 2.5"),
        ("judge", {"timeout": "soon"}, "`timeout`: expected a number, got 'soon'"),
        ("meta_judge", {"timeout": 0}, "timeout must be above 0, not 0"),
        ("meta_judge", {"deadline": -1.0}, "deadline must be above 0, not -1.0"),
        ("meta_judge", {"retries": -1}, "retries must be a number of at least 0, not -1"),
        ("held_out_judge", {"temperature": float("nan")}, "temperature must be a number of at least 0, not nan"),
        ("held_out_judge", {"max_tokens": 0}, "max_tokens must be above 0, not 0"),
        ("meta_judge", {"num_refinements": 0}, "`num_refinements` is a whole number of at least 1, not 0"),
        ("meta_judge", {"max_characters": 0}, "`max_characters` is a whole number of at least 1, not 0"),
        ("meta_judge", {"num_refinements": 1.5}, "`num_refinements`: expected a whole number, got 1.5"),
        ("meta_judge", {"max_items": 0}, "max_items must be a whole number of at least 1, not 0"),
        ("meta_judge", {"max_points": -2}, "max_points must be a whole number of at least 1, not -2"),
        ("meta_judge", {"max_criterion_characters": 0}, "max_criterion_characters must be a whole number of at least"),
        ("meta_judge", {"max_task_characters": 9}, "unknown key 'max_task_characters'"),
        ("meta_judge", {"templates": "none"}, "`templates`: none: no such folder of templates"),
        ("judge", {"api_key_variable": "NOT_SET"}, "`api_key_variable`: the environment variable NOT_SET is not set"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it_and_its_entry(tmp_path, monkeypatch, entry, option, message):
    monkeypatch.delenv("NOT_SET", raising=False)
    values = {"url": NOWHERE} | ({} if entry == "meta_judge" else {"rubric": str(tmp_path / "rubric.yaml")})
    recipe = judged(tmp_path, NOWHERE, **{entry: values | option})
    with pytest.raises(ConfigError) as error:
        grpo.check(*grpo.make_parser().parse_args_and_config(["--config", str(recipe)]))
    assert f"{entry}: {message}" in str(error.value) and "\n" not in str(error.value)
    assert "secret" not in str(error.value) and "sk-12" not in str(error.value)


def test_the_documentation_has_every_option_of_every_judge():
    page = (Path(__file__).parents[2] / "docs" / "judges.md").read_text()
    for entry in ENTRIES.values():
        missing = [option.name for option in dataclasses.fields(entry) if f"| `{option.name}` |" not in page]
        assert not missing


def test_the_given_rubric_keeps_the_bounds_but_for_the_length_that_no_meta_judge_changes(tmp_path):
    recipe = judged(tmp_path, NOWHERE, meta_judge={"url": NOWHERE, "max_points": 2, "max_items": 1})
    (tmp_path / "rubric.yaml").write_text(yaml.safe_dump(RUBRIC | {"task": "x" * 2000}))
    grpo.check(*grpo.make_parser().parse_args_and_config(["--config", str(recipe)]))


def test_a_judge_stands_beside_functions_or_in_their_place(tmp_path):
    with FakeJudgeServer(answer) as server:
        for options, names, weights in (
            ({}, ["judge"], [1.0]),
            ({"reward_funcs": ["correctness"], "reward_weights": [0.0]}, ["correctness_reward", "judge"], [0.0, 1.0]),
        ):
            recipe = judged(tmp_path, server.url, **options)
            script, training, model = grpo.make_parser().parse_args_and_config(["--config", str(recipe)])
            grpo.check(script, training, model)
            assert [function.__name__ for function in grpo.load_rewards(script, training)] == names
            assert training.reward_weights == weights
        assert set(grpo.load_judges(script)) == {"meta_judge"}
        assert grpo.trainer_of(script, training).__name__ == "MPOTrainer"


def test_a_server_that_is_not_there_is_one_line(tmp_path):
    recipe = judged(tmp_path, NOWHERE)
    code, _, errors = finish(start(metatune("grpo", "--config", recipe)))
    error, line = last_line(errors), read_recipe(str(recipe)).lines["judge"]
    told = f"metatune: error: {recipe}:{line}: judge: cannot use the judge's server at"
    assert code == 2 and error.startswith(told), errors[-2000:]
    assert "vllm serve" in error


def rubric_of(body):
    """Return the points in a judge's training request; `None` for a second judgment and for the meta judge."""
    if body["temperature"] or "You improve the rubric" in body["messages"][0]["content"]:
        return None
    return body["response_format"]["json_schema"]["schema"]["properties"]["short"]["properties"]["score"]["maximum"]


@pytest.mark.slow
@pytest.mark.timeout(3 * LIMIT)
def test_two_processes_judge_by_one_version_and_a_killed_run_goes_on(tmp_path):
    """No request by an old version comes after one by a new: all ranks change at once. Killed, it goes on the same."""
    options = {"num_processes": 2, "per_device_train_batch_size": 2, "reward_funcs": ["correctness"], "save_steps": 2}
    options |= {"reward_weights": [0.0], "gate": False}  # the gate's judgments would look like training
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    with FakeJudgeServer(answer) as server:
        succeed(metatune("grpo", "--config", judged(tmp_path / "whole", server.url, **options)))
        versions = [points for body in server.bodies if (points := rubric_of(body)) is not None]
        assert versions == sorted(versions) and len(versions) == 8 // 2 * 16

        recipe = judged(tmp_path / "killed", server.url, **options, resume_from_checkpoint=True)
        process = start(metatune("grpo", "--config", recipe))
        wait_for(tmp_path / "killed" / "run" / "checkpoint-4" / "trainer_state.json", process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        succeed(metatune("grpo", "--config", recipe))
    whole, killed = (RubricHistory.read(tmp_path / name / "run" / "rubrics") for name in ("whole", "killed"))
    assert killed.events == whole.events and len(whole.events) == 1 + 8 // 2
    assert [version.rubric for version in killed.versions] == [version.rubric for version in whole.versions]
    keys = ("step", "loss", "reward", "rubric/version")
    rows = [
        [tuple(row.get(key) for key in keys) for row in log_rows(tmp_path / name / "run")]
        for name in ("whole", "killed")
    ]
    assert rows[0] == rows[1]


@pytest.mark.slow
@pytest.mark.timeout(2 * LIMIT)
def test_a_judge_that_fails_ends_the_run_in_its_words_and_the_run_goes_on(tmp_path):
    broken = []

    def fault(number, body):
        return ("status", 400) if broken or (number >= 40 and not broken.append(1)) else None

    with FakeJudgeServer(answer, fault) as server:
        recipe = judged(tmp_path, server.url, meta_every=0, meta_judge=None, save_steps=1, **KEPT)
        code, _, errors = finish(start(metatune("grpo", "--config", recipe)))
        error = last_line(errors)
        assert code != 0 and error.startswith("metatune: error: ") and "told to answer 400" in error, errors[-2000:]
        assert f"judge ({server.url}, model fake): the last " in error and "after 1 try each" in error
        assert "resume_from_checkpoint: true. The last complete checkpoint is " in error and "correctness" not in error
    with FakeJudgeServer(answer) as server:
        recipe = judged(tmp_path, server.url, meta_every=0, meta_judge=None, save_steps=1, **KEPT)
        succeed(metatune("grpo", "--config", recipe))
    assert [row["step"] for row in log_rows(tmp_path / "run")] == list(range(1, 9))


def doctored(recipe, *arguments):
    """What `metatune doctor` says of a recipe: its problems that name a judge, and its notes."""
    args, options = doctor.make_parser().parse_args_and_config(["--config", str(recipe), *arguments])
    found = doctor.diagnose(args, options.recipe_args)["recipe"]
    return [each for each in found["problems"] if "judge" in each], found["notes"]


def test_doctor_asks_the_judges_of_a_recipe_and_leaves_their_memory_out(tmp_path):
    other = ("--gpus", "8", "--gpu_memory", "79", "--host_memory", "64")  # the recipe trains on a CPU
    with FakeJudgeServer(answer) as server:
        recipe = judged(tmp_path, server.url)
        problems, notes = doctored(recipe)
        assert problems == []
        assert f"judge: needs its model served at {server.url}; that memory is not in this estimate" in notes
        judge = {"url": server.url, "rubric": str(tmp_path / "rubric.yaml")}
        recipe = judged(tmp_path, server.url, judge={**judge, "api_key_variable": "NOT_SET", "model": "fake"})
        assert "NOT_SET is not set" in doctored(recipe)[0][0] and doctored(recipe, *other)[0] == []
        recipe = judged(tmp_path, server.url, meta_judge={"url": NOWHERE, "model": "big"})
        (problem,) = doctored(recipe)[0]
        assert f": meta_judge: cannot use the judge's server at {NOWHERE}" in problem and "vllm serve" in problem
        problems, notes = doctored(recipe, *other)
        assert problems == [] and any(note.startswith(f"meta_judge: needs big served at {NOWHERE}") for note in notes)
