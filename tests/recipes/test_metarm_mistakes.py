"""What `metatune metarm` refuses, and that its own recipes are read strictly."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from metatune.recipes import cli, metarm
from metatune.recipes.config import ConfigError
from metatune.recipes.metarm_policy import Policy

from .launches import last_line, write_pairs, write_recipe
from .metarm_setup import METARM, run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"correction": "meta"}, "`correction`: 'meta' is not one of metarm, ocrm, none"),
        ({"num_responses": 1}, "`num_responses` is 1; responses to one prompt are compared, so give at least 2"),
        ({"rounds": 0}, "`rounds` is 0; it must be at least 1"),
        ({"num_respones": 4}, "unknown key 'num_respones'; did you mean 'num_responses'?"),
        ({"reward": {"learning_rat": 1}}, "block `reward`: unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        ({"grpo": {"max_steps": "many"}}, "block `grpo`: `max_steps`: expected a whole number, got 'many'"),
        ({"grpo": {"num_generations": 3}}, "block `grpo`: "),
        ({"reward": {"output_dir": "x"}}, "block `reward`: `output_dir` is set by the loop; remove it"),
        ({"reward": {"meta_dataset_name": "x"}}, "block `reward`: `meta_dataset_name` is set by the loop"),
        ({"grpo": {"model_name_or_path": "x"}}, "block `grpo`: `model_name_or_path` is set by the loop"),
        ({"grpo": {"reward_models": []}}, "block `grpo`: `reward_models` is set by the loop"),
        ({"grpo": {"push_to_hub": True}}, "push the model of the round that you want afterwards"),
        ({"reward": {"meta_step": "none"}}, "block `reward`: meta_step: none does not go with correction: metarm"),
        (
            {"correction": "none", "reward": {"meta_step": "plain"}},
            "meta_step: plain does not go with correction: none",
        ),
        ({"grpo": {"use_peft": True}, "rounds": 2}, "block `grpo`: use_peft makes adapters"),
        ({"grpo": {"accelerate_config": "zero22"}}, "block `grpo`: --accelerate_config: no file and no name 'zero22'"),
        ({"grpo": {"top_p": 2.0}}, "`top_p` must be above 0 and at most 1, got 2.0"),
        ({"num_processes": 2}, "`num_processes` is the launcher's: write it into the blocks reward and grpo"),
        ({"num_prompts": 3}, "num_prompts is 3, and one MetaRM step takes 4"),
        ({"num_prompts": 100}, "num_prompts is 100, and there are 60 prompts"),
        ({"importance_alpha": 1.0}, "`importance_alpha` is 1.0"),
        ({"importance_exponent": 0.0}, "`importance_exponent` is 0.0"),
        ({"distributions": None}, "either `distributions` or `prompts_name`"),
        ({"prompts_name": "x"}, "either `distributions` or `prompts_name`"),
        ({"distributions": None, "prompts_name": "x"}, "give dataset_name"),
        ({"dataset_name": "x"}, "`num_pairs` and `label_noise` are of pairs that are made"),
        ({"label_noise": 1.5}, "`label_noise` is 1.5"),
        ({"reward": None, "grpo": None, "output_dir": None}, "give `output_dir`"),
        ({"model_name_or_path": None}, "give `model_name_or_path`"),
        ({"num_pairs": None, "dataset_name": "missing.jsonl"}, "dataset_name: missing.jsonl: no such file or folder"),
        ({"reward_model_name_or_path": "nowhere/at/all"}, "reward_model_name_or_path: no such folder: nowhere/at/all"),
        ({"model_name_or_path": "./nowhere"}, "model_name_or_path: no such folder: ./nowhere"),
        ({"output_dir": f"{__file__}/run"}, f"output_dir: {__file__} is a file: name a folder"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, options, message):
    assert run(tmp_path, **options) == 2
    error = last_line(capsys.readouterr().err)
    assert error.startswith("metatune: error: ")
    assert message in error
    assert not list((tmp_path / "run").glob("round-*"))


def test_a_block_that_is_missing(tmp_path, capsys):
    values = {**METARM, "output_dir": "x"}
    del values["grpo"]
    assert cli.main(["metarm", "--config", str(write_recipe(tmp_path / "metarm.yaml", values))]) == 2
    assert "give `grpo`" in capsys.readouterr().err


def test_the_launcher_s_options_belong_to_the_blocks(tmp_path, monkeypatch, capsys):
    assert run(tmp_path, "--num_processes", "2") == 2
    assert "--num_processes is the launcher's: write it into the blocks" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(tmp_path) == 2
    assert "start it with metatune metarm" in capsys.readouterr().err


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_no_pairs_where_all_is_right_or_all_wrong(tmp_path, monkeypatch, capsys, right):
    monkeypatch.setattr("metatune.recipes.metarm_policy.gold", lambda row, text: right)
    assert run(tmp_path) == 2
    assert "no pairs can be made: of none of 60 problems" in last_line(capsys.readouterr().err)
    assert not (tmp_path / "run" / "round-1").exists()


def test_prompts_that_do_not_do(tmp_path, capsys):
    def prompts(train, test, **values):
        folder = tmp_path / "prompts"
        folder.mkdir(exist_ok=True)
        for part, lines in (("train", train), ("test", test)):
            (folder / f"{part}.jsonl").unlink(missing_ok=True)
            if lines is not None:
                (folder / f"{part}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        pairs = str(write_pairs(tmp_path / "pairs.jsonl", 8))
        data = {"distributions": None, "prompts_name": str(folder), "num_pairs": None, "num_prompts": None}
        assert run(tmp_path, dataset_name=pairs, **data, **values) == 2
        return last_line(capsys.readouterr().err)

    good = [{"prompt": "1"}]
    assert "has no split 'test'" in prompts(good, None)
    assert "no column 'prompt'" in prompts([{"promt": "1"}], [{"promt": "1"}])
    assert "row 2 has no 'prompt'" in prompts([*good, {"prompt": None}], good)
    assert "set curriculum: uniform" in prompts(good, good, grpo={"curriculum": "sec"})
    assert "a column 'verifier' and none 'answer'" in prompts([{"prompt": "1", "verifier": "exact"}], good)


def test_a_policy_that_is_not_there(tmp_path):
    args = SimpleNamespace(engine="compact", sampling_batch_size=8, sampling_dtype=None)
    model = SimpleNamespace(model_revision="main", dtype="float32", attn_implementation=None)
    with pytest.raises(ConfigError, match="nowhere"):
        Policy(str(tmp_path / "nowhere"), args, SimpleNamespace(use_cpu=True), model)


@pytest.mark.parametrize("name", ["starter", pytest.param("hh_1node", marks=pytest.mark.needs("deepspeed"))])
def test_recipes_are_read_strictly(name, tmp_path):
    path = Path(metarm.__file__).parent / "metarm" / f"{name}.yaml"
    values = yaml.safe_load(path.read_text())
    for block in ("reward", "grpo"):  # transformers refuses bf16 without a GPU, and a CPU has no eight
        values[block] |= {"bf16": False, "use_cpu": True}
    (args,) = metarm.make_parser().parse_args_and_config(["--config", str(write_recipe(tmp_path / "r.yaml", values))])
    assert metarm.check(args)[1][0].reward_models
    assert f"metatune metarm --config recipes/metarm/{name}.yaml" in path.read_text()


@pytest.mark.parametrize("correction", ["ocrm", "none"])
def test_the_starter_recipe_serves_every_correction(correction):
    path = Path(metarm.__file__).parent / "metarm" / "starter.yaml"
    (args,) = metarm.make_parser().parse_args_and_config(["--config", str(path), "--correction", correction])
    assert metarm.check(args)[0][1].meta_step == "none"
