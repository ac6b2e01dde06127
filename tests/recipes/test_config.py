"""Strict recipes: every mistake is one line that names the file, the line, the key and the mend."""

import dataclasses
import enum
import os
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from trl import DatasetMixtureConfig, GRPOConfig, ModelConfig, RewardConfig, SFTConfig
from trl.scripts.grpo import GRPOScriptArguments

from metatune.recipes.config import (
    EXPECTED_PROCESSES,
    ConfigError,
    StrictParser,
    check_world_size,
    config_path,
    read_recipe,
)
from metatune.recipes.conform import conform


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Options:
    model: str
    learning_rate: float = 1e-3
    steps: int = 10
    limit: int | None = 5
    shuffle: bool = True
    loss: Literal["grpo", "dapo"] = "dapo"
    names: list[str] | None = None
    weights: list[float] | None = None
    extra: dict[str, Any] | str | None = None
    distributions: list[dict] = field(default_factory=list)
    eval_strategy: Colour | str = "red"

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError("steps is negative;\nuse 0 or more")


@pytest.fixture
def parse(tmp_path, monkeypatch):
    """Parse a recipe text and a command line with `Options`; environment changes are undone."""
    monkeypatch.setattr(os, "environ", dict(os.environ))

    def parse(text, *args):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return StrictParser(Options).parse_args_and_config(["--config", str(path), *args])[0]

    return parse


def test_recipe_fills_the_dataclass_and_the_command_line_wins(parse):
    options = parse("model: tiny\nlearning_rate: 1e-4\nsteps: 3\nshuffle: no\n", "--steps", "7")
    assert options == Options(model="tiny", learning_rate=1e-4, steps=7, shuffle=False)


def test_nested_lists_of_mappings_stay_as_they_are(parse):
    options = parse("model: m\ndistributions:\n  - {name: a, config: {numbers: 2}}\n  - {name: b}\n")
    assert options.distributions == [{"name": "a", "config": {"numbers": 2}}, {"name": "b"}]


def test_env_is_set_and_is_no_field(parse):
    parse("model: m\nenv: {METATUNE_TEST_VARIABLE: 3}\n")
    assert os.environ["METATUNE_TEST_VARIABLE"] == "3"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: m\nlearning_rte: 1\n", ":2: unknown key 'learning_rte'; did you mean 'learning_rate'?"),
        ("model: m\nlearning-rate: 1\n", ":2: unknown key 'learning-rate'; did you mean 'learning_rate'?"),
        ("model: m\n\n7: 1\n", ":3: unknown key '7'"),
        ("model: m\nextra: &a {stps: 1}\n<<: *a\n", ": unknown key 'stps'; did you mean 'steps'?"),
        ("model: m\nlearning_rate: fast\n", ":2: `learning_rate`: expected a number, got 'fast'"),
        ("model: m\nlearning_rate: true\n", ":2: `learning_rate`: expected a number, got the truth value true"),
        ("model: m\nsteps: true\n", ":2: `steps`: expected a whole number, got the truth value true"),
        ("model: m\nsteps: 1.5\n", ":2: `steps`: expected a whole number, got 1.5"),
        ("model: m\nsteps: [1]\n", ":2: `steps`: expected a whole number, got a list"),
        ("model: m\nshuffle: 1\n", ":2: `shuffle`: expected true or false, got 1"),
        ("model: m\nnames: a\nsteps: 1\n", ":2: `names`: expected a list, got 'a'; write [a]"),
        ("model: m\nnames: [a, 1]\n", ':2: `names`: expected text, got 1; write it in "quotes"'),
        ("model: m\nextra: [a]\n", ":2: `extra`: expected a mapping, got a list"),
        ("model: m\ndistributions: {name: a}\n", ":2: `distributions`: expected a list, got a mapping"),
        ("model: m\ndistributions: [a]\n", ":2: `distributions`: expected a mapping, got 'a'"),
        ("model: null\n", ":1: `model`: expected text, got null"),
        ("model: no\n", ":1: `model`: expected text, got a truth value"),
        ("model: m\nloss: dap\n", ":2: `loss`: 'dap' is not one of grpo, dapo; did you mean 'dapo'?"),
        ("model: m\neval_strategy: rd\n", ":2: `eval_strategy`: 'rd' is not one of red, blue; did you mean 'red'?"),
        ("model: m\nsteps: 1\nmodel: n\n", ":3: duplicate key 'model'; first on line 1"),
        ("model: m\nextra:\n  a: 1\n  a: 2\n", ":4: duplicate key 'a'; first on line 3"),
        ("model: [m\n", ":2: not valid YAML"),
        ("model: \0\n", ": not valid YAML: unacceptable character"),
        ("model: 2001-99-99\n", ": not valid YAML: month must be in 1..12"),
        ("[" * 5000, ": not valid YAML: nested too deep"),
        ("model: m\nsteps: 1" + 30 * "0" + "\n", ":2: `steps` is 1" + 30 * "0" + ", more than any library can count"),
        ("model: m\nlearning_rate: .nan\n", ":2: `learning_rate` is not a number (nan)"),
        ("model: m\nlearning_rate: -1\n", ":2: `learning_rate` must be at least 0, and finite, got -1"),
        ("- model\n", ": a recipe is a YAML mapping `key: value`, this is a list"),
        ("", ": a recipe is a YAML mapping `key: value`, this is null"),
        ("model: m\nenv: [A]\n", ":2: `env` is a mapping"),
        ("steps: 3\n", "the following arguments are required: --model (give them here or in"),
        ("model: m\nsteps: -1\n", "steps is negative; use 0 or more"),
        ("model: m\nnum_processes: two\n", ":2: `num_processes`: expected a whole number, got 'two'"),
    ],
)
def test_mistakes_in_the_file(parse, text, message):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--learnin_rate", "3"], "unknown option --learnin_rate; did you mean '--learning_rate'?"),
        (["--learning_rate", "fast"], "invalid float value: 'fast'"),
        (["--loss", "dap"], "invalid choice: 'dap'"),
        (["stray"], "unexpected argument 'stray'"),
        (["other.yaml"], "did you mean --config other.yaml?"),
        (["--config", "other.yaml"], "--config is given 2 times"),
        (["--learn", "1"], "unknown option --learn"),
        (["--num_processes", "2"], "--num_processes is the launcher's: put it before the script's name"),
    ],
)
def test_mistakes_on_the_command_line(parse, args, message):
    with pytest.raises(ConfigError) as caught:
        parse("model: m\n", *args)
    assert message in str(caught.value)


def test_missing_file_names_its_nearest_neighbour(tmp_path):
    (tmp_path / "countdown.yaml").write_text("a: 1\n")
    with pytest.raises(ConfigError, match=r"countdwon.yaml: no such file; did you mean 'countdown.yaml'"):
        read_recipe(str(tmp_path / "countdwon.yaml"))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_recipe(str(tmp_path))
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_recipe(str(tmp_path / "latin.yaml"))


def test_an_alias_to_its_own_parent_is_read(tmp_path):
    (tmp_path / "loop.yaml").write_text("a: &a\n  - 1\n  - *a\n")
    assert read_recipe(str(tmp_path / "loop.yaml")).values["a"][0] == 1


def test_config_path_in_both_spellings():
    assert config_path(["--config", "a.yaml", "--x", "1"]) == "a.yaml"
    assert config_path(["--config=a.yaml"]) == "a.yaml"
    assert config_path(["--x", "1"]) is None
    for args in (["--config"], ["--config", "--x"]):
        with pytest.raises(ConfigError, match="needs a file"):
            config_path(args)


def test_text_is_read_as_on_the_command_line(parse):
    options = parse('model: m\nlearning_rate: "2"\nsteps: "4"\nshuffle: "false"\nlimit: None\nweights: [1e-1, 2]\n')
    assert (options.learning_rate, options.steps, options.shuffle, options.limit) == (2.0, 4, False, None)
    assert options.weights == [0.1, 2]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_survives_yaml(number):
    for text in (yaml.safe_dump(number), repr(number), f"{number:e}"):
        assert conform(yaml.safe_load(text), float) == pytest.approx(number, rel=1e-6)


@pytest.mark.parametrize(
    "dataclasses_",
    [
        (GRPOScriptArguments, GRPOConfig, ModelConfig, DatasetMixtureConfig),
        (SFTConfig, ModelConfig),
        (RewardConfig,),
    ],
    ids=["grpo", "sft", "reward"],
)
def test_every_default_of_trl_is_accepted(tmp_path, dataclasses_):
    """A file with every field at its default parses to what TRL makes of those values itself."""
    values = {}
    for dataclass_ in dataclasses_:
        for item in dataclasses.fields(dataclass_):
            if item.init:
                default = item.default if item.default is not dataclasses.MISSING else item.default_factory()
                values[item.name] = default.value if isinstance(default, enum.Enum) else default
    values |= {"bf16": False, "output_dir": str(tmp_path)}
    path = tmp_path / "all.yaml"
    path.write_text(yaml.safe_dump(values))
    parsed = StrictParser(dataclasses_).parse_args_and_config(["--config", str(path)])
    for dataclass_, result in zip(dataclasses_, parsed, strict=True):
        names = {item.name for item in dataclasses.fields(dataclass_)}
        assert result == dataclass_(**{name: value for name, value in values.items() if name in names})


@pytest.mark.parametrize(
    "text",
    [
        "report_to: none",
        "report_to: [tensorboard]",
        "lr_scheduler_type: cosine",
        "lr_scheduler_kwargs: {num_cycles: 0.5}",
        "lr_scheduler_kwargs: '{\"num_cycles\": 0.5}'",
        "optim: adamw_torch",
        'eval_strategy: "no"',
        "model_init_kwargs: {attn_implementation: sdpa}",
        "lora_target_modules: [q_proj, v_proj]",
        "warmup_steps: 0.1",
        "top_p: 1",
        "pad_to_multiple_of: 8",
        "resume_from_checkpoint: true",
        "gradient_checkpointing_kwargs: {use_reentrant: false}",
        "reward_weights: [1, 0.5]",
        "datasets: [{path: a, split: train}, {path: b, columns: [x]}]",
        "accelerate_config: zero2\nnum_processes: 2",
    ],
)
def test_recipes_of_trl_are_accepted(tmp_path, monkeypatch, text):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    path = tmp_path / "recipe.yaml"
    path.write_text(f"output_dir: {tmp_path}\nbf16: false\n{text}\n")
    StrictParser((GRPOScriptArguments, GRPOConfig, ModelConfig, DatasetMixtureConfig)).parse_args_and_config(
        ["--config", str(path)]
    )


def test_unknown_key_in_a_nested_dataclass(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("datasets:\n  - {path: a, splt: train}\n")
    with pytest.raises(ConfigError, match="unknown key 'splt'; did you mean 'split'"):
        StrictParser(DatasetMixtureConfig).parse_args_and_config(["--config", str(path)])


def test_resume_true_means_the_last_checkpoint(tmp_path):
    parser = StrictParser(SFTConfig)
    args = ["--output_dir", str(tmp_path), "--bf16", "false", "--resume_from_checkpoint"]
    assert parser.parse_args_and_config([*args, "true"])[0].resume_from_checkpoint is True
    assert parser.parse_args_and_config([*args, "a/checkpoint-3"])[0].resume_from_checkpoint == "a/checkpoint-3"


def test_world_size_is_compared_with_what_was_asked(monkeypatch):
    for name in (EXPECTED_PROCESSES, "WORLD_SIZE", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    check_world_size()
    for name in (EXPECTED_PROCESSES, "WORLD_SIZE"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "1")
            check_world_size()
            patch.setenv(name, "2")
            with pytest.raises(ConfigError, match="2 processes were asked for"):
                check_world_size()
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ConfigError, match="makes DDP of DeepSpeed"):
        check_world_size()
