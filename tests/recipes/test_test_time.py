import json
from pathlib import Path

import pytest

from metatune.recipes import cli, evaluate
from metatune.recipes.config import ConfigError

RECIPE = """
model: starter
distributions:
  - {name: make, source: countdown, config: {numbers: 3}, train_size: 8, test_size: 6}
  - {name: sum, source: arithmetic, config: {terms: 3}, train_size: 8, test_size: 6}
budgets: [16, 48]
num_answers: 2
device: cpu
"""


def parse(*args):
    return evaluate.make_parser().parse_args_and_config(list(args))[0]


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "eval.yaml"
    path.write_text(RECIPE)
    return str(path)


def test_the_starter_at_budgets_twice_and_side_by_side(recipe, tmp_path, capsys):
    options = ["--extrapolate", "2", "--episodes", "{by: delimiter}", "--output_dir", str(tmp_path / "first")]
    assert cli.main(["eval", "--config", recipe, *options]) == 0
    printed = capsys.readouterr().out
    for text in ("mixture", "at 16", "at 48", "extended to 96", "after episode 1", "maj@2", "normalised regret"):
        assert text in printed
    written = {path.name for path in (tmp_path / "first").iterdir()}
    assert written == {
        "summary.json", "completions.parquet", "test_time.json", "traces.jsonl", "test_time.png", "episodes.png"
    }  # fmt: skip
    traces = [json.loads(line) for line in (tmp_path / "first" / "traces.jsonl").read_text().splitlines()]
    assert len(traces) == 12
    assert all(len(trace["values"]) == len(trace["episodes"]) + 1 for trace in traces)

    second = ["--config", recipe, "--temperature", "0.5", "--output_dir", str(tmp_path / "second")]
    assert cli.main(["eval", *second]) == 0
    assert not (tmp_path / "second" / "traces.jsonl").exists()
    capsys.readouterr()
    both = ["--compare", str(tmp_path / "first"), str(tmp_path / "second"), "--output_dir", str(tmp_path / "both")]
    assert cli.main(["eval", *both]) == 0
    printed = capsys.readouterr().out
    for text in ("against first", "second", "accuracy at 48", "extended to 96", "times fewer tokens", "Saved to"):
        assert text in printed
    assert {path.name for path in (tmp_path / "both").iterdir()} == {"comparison.json", "comparison.png"}


def test_numbers_with_commas_or_as_a_list(recipe):
    args = parse("--config", recipe)
    assert (args.budgets, args.max_new_tokens) == ([16, 48], None)
    args = parse("--config", recipe, "--budgets", "8,24", "--extrapolate", "2,4.5")
    assert (args.budgets, args.extrapolate) == ([8, 24], [2.0, 4.5])


@pytest.mark.parametrize(
    "options, message",
    [
        (["--budgets", "8,x"], "`budgets` are numbers separated by commas, such as 64,128,256, not '8,x'"),
        (["--budgets", "8", "--episodes", "lines"], "`episodes` is a mapping"),
        (["--extrapolate", "2"], "`extrapolate` belongs to `budgets`"),
        (["--forcing_suffix", "answer"], "`forcing_suffix` belongs to `budgets`"),
        (["--num_answers", "4"], "`num_answers` belongs to `budgets`"),
        (["--compare", "a", "b"], "`compare` reads saved evaluations"),
    ],
)
def test_mistakes_on_the_command_line(options, message):
    with pytest.raises(ConfigError, match=message):
        parse("--model", "starter", "--benchmark", "gsm8k", *options)


def test_what_is_required():
    with pytest.raises(ConfigError, match="`model` is required"):
        parse("--benchmark", "gsm8k")
    with pytest.raises(ConfigError, match="`budgets` need a `benchmark` or `distributions`"):
        parse("--model", "starter", "--lm_eval_tasks", "a", "--budgets", "8")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--budgets", "8,400", "--extrapolate", "2"], "no row would remain: set the largest budget"),
        (["--max_new_tokens", "40"], "max_new_tokens 40 is below the largest budget, 48"),
        (["--episodes", "{by: line}"], "episodes: by is one of"),
        (["--episodes", "{delimeter: x}"], "did you mean 'delimiter'"),
        (["--forcing_suffix", " "], "forcing_suffix is empty"),
        (["--forcing_suffix", "\\boxed{"], "the verifier 'countdown' rejects a correct forced answer"),
    ],
)
def test_mistakes_that_show_later_are_one_line_too(recipe, capsys, options, message):
    assert cli.main(["eval", "--config", recipe, *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("metatune: error: ") and message in error


def test_a_comparison_names_the_folder_that_is_none(tmp_path, capsys):
    assert cli.main(["eval", "--compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert f"{Path(tmp_path / 'a' / 'test_time.json')}: no such file" in capsys.readouterr().err
    assert cli.main(["eval", "--compare", str(tmp_path), str(tmp_path)]) == 2
    assert "`compare` names the same twice" in capsys.readouterr().err
