import json
import sys
from types import SimpleNamespace

import pytest

from metatune.eval import Evaluation, load_held_out
from metatune.recipes import cli, evaluate
from metatune.recipes.config import ConfigError

RECIPE = """
model: starter
distributions:
  - {name: sum, source: arithmetic, config: {terms: 3}, train_size: 8, test_size: 6}
  - {name: island, source: logic, config: {people: 3}, train_size: 8, test_size: 4}
max_new_tokens: 48
device: cpu
"""


def parse(*args):
    return evaluate.make_parser().parse_args_and_config(list(args))[0]


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "eval.yaml"
    path.write_text(RECIPE)
    return str(path)


def test_the_starter_on_a_recipes_held_out_problems(recipe, tmp_path, capsys):
    folder = tmp_path / "out"
    assert cli.main(["eval", "--config", recipe, "--num_samples", "2", "--output_dir", str(folder)]) == 0
    printed = capsys.readouterr().out
    for text in ("sum", "island", "mixture", "pass@2", "maj@2", "sampled at temperature 1", f"Saved to {folder}"):
        assert text in printed
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["num_completions"] == 20
    assert set(summary["distributions"]) == {"sum", "island"}
    assert summary["distributions"]["sum"]["accuracy"] > 0.5, "the starter can add"
    assert summary["settings"]["model"].endswith("starter")
    assert len(Evaluation.load(folder).completions) == 20


def test_greedy_on_a_local_benchmark(tmp_path, capsys):
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps({"question": f"{i}+1?", "answer": f"#### {i + 1}"}) + "\n" for i in range(5)))
    options = ["--temperature", "0", "--max_new_tokens", "16", "--limit", "3", "--device", "cpu"]
    evaluate.main(parse("--model", "starter", "--benchmark", "gsm8k", "--data", str(data), *options))
    printed = capsys.readouterr().out
    assert "greedy" in printed and "gsm8k" in printed
    assert "mixture" not in printed, "one distribution is its own mixture"


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "`benchmark`, `recipe`, `distributions` or `lm_eval_tasks`"),
        (["--data", "x"], "what to evaluate on"),
        (["--lm_eval_tasks", "a", "--data", "x"], "`data` belongs to a `benchmark`"),
        (["--lm_eval_tasks", "a", "--temperature", "0"], "say themselves how they sample: remove `temperature`"),
        (["--benchmark", "gsm8k", "--k", "4", "--num_samples", "2"], "`k` 4 must be between 1 and `num_samples`, 2"),
        (["--benchmark", "gsm8k", "--engine", "vlm"], "engine"),
        (["--benchmark", "gsm8k", "--sample", "2"], "unknown option --sample; did you mean"),
        (["--benchmark", "gsm8k", "--num_samples", "two"], "num_samples"),
    ],
)
def test_mistakes_on_the_command_line(options, message):
    with pytest.raises(ConfigError, match=message):
        parse("--model", "starter", *options)


@pytest.fixture
def trained(tmp_path):
    """A run's folder as far as its recipe goes; no model is read before the tasks are known."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(
        "model_name_or_path: starter\nlearning_rate: 1e-4\nmax_completion_length: 48\nimports: [json]\n"
        "distributions: [{name: sum, source: arithmetic, config: {terms: 2}, test_size: 4}]\n"
    )
    return folder


def test_a_run_is_evaluated_on_what_it_was_trained_on(trained):
    (args,) = evaluate.make_parser().parse_args_and_config(["--model", str(trained)])
    assert [entry["name"] for entry in args.distributions] == ["sum"]
    assert args.max_new_tokens == 48
    assert len(load_held_out(args.distributions)) == 4


def test_another_model_is_evaluated_on_a_training_recipe(trained, capsys):
    recipe = str(trained / "recipe.yaml")
    evaluate.main(parse("--model", "starter", "--recipe", recipe, "--max_new_tokens", "16", "--device", "cpu"))
    assert "sum" in capsys.readouterr().out


def test_a_benchmark_goes_before_the_run_s_own_tasks(trained):
    assert parse("--model", str(trained), "--benchmark", "gsm8k").distributions is None
    assert parse("--model", str(trained), "--lm_eval_tasks", "arc_easy").distributions is None


@pytest.mark.parametrize(
    "text, message",
    [
        ("learning_rate: 1e-4", "recipe.yaml has no `distributions` to evaluate on"),
        ("beta: 0\ndistributions: 3", "recipe.yaml:2: `distributions`: expected"),
        ("- a", "a recipe is a YAML mapping"),
    ],
)
def test_a_recipe_without_tasks_is_told(trained, text, message):
    (trained / "recipe.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        parse("--model", str(trained))


def test_a_benchmark_and_distributions_exclude_each_other(recipe):
    with pytest.raises(ConfigError, match="not both"):
        parse("--config", recipe, "--benchmark", "gsm8k")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--benchmark", "gsm8", "--data", "x"], "benchmark: unknown 'gsm8'; did you mean 'gsm8k'"),
        (["--benchmark", "gsm8k", "--data", "nowhere"], "no such file or folder: nowhere"),
        (["--config", "RECIPE", "--temperature", "0", "--num_samples", "2"], "greedy decoding repeats itself"),
        (["--config", "RECIPE", "--max_new_tokens", "5000"], "no row would remain: set max_new_tokens to at most"),
        (["--config", "RECIPE", "--limit", "0"], "`limit` must be at least 1"),
        (["--config", "RECIPE", "--max_new_tokens", "0"], "`max_new_tokens` must be at least 1"),
        (["--config", "RECIPE", "--batch_size", "0"], "`batch_size` must be at least 1"),
        (["--config", "RECIPE", "--device", "gpu"], "device: 'gpu' is not here: "),
        (["--config", "RECIPE", "--output_dir", __file__], f"output_dir: {__file__} is a file: name a folder"),
        (["--config", "RECIPE", "--model", "no/such/model/folder"], "no/such/model/folder"),
    ],
)
def test_mistakes_that_show_later_are_one_line_too(recipe, capsys, options, message):
    options = [recipe if option == "RECIPE" else option for option in options]
    model = [] if "--config" in options else ["--model", "starter"]
    assert cli.main(["eval", *model, *options]) == 2
    error = capsys.readouterr().err
    assert "metatune: error: " in error and message in error.splitlines()[-1]


def test_a_missing_engine_names_its_extra(recipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"metatune\[vllm\]"):
        evaluate.main(parse("--config", recipe, "--engine", "vllm"))


def test_a_missing_lm_eval_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"metatune\[eval\]"):
        evaluate.main(parse("--model", "starter", "--lm_eval_tasks", "arc_easy"))


def test_standard_suites_go_through_lm_eval(monkeypatch, tmp_path, capsys):
    asked = {}

    def simple_evaluate(**options):
        asked.update(options)
        return {"results": {"arc_easy": {"alias": "arc_easy", "acc,none": 0.25, "acc_stderr,none": 0.009}}}

    monkeypatch.setitem(sys.modules, "lm_eval", SimpleNamespace(simple_evaluate=simple_evaluate))
    options = ["--lm_eval_tasks", "arc_easy,hellaswag", "piqa", "--limit", "10", "--output_dir", str(tmp_path)]
    evaluate.main(parse("--model", "some/model", "--dtype", "bfloat16", *options))
    assert asked["model"] == "hf"
    assert asked["model_args"] == {"pretrained": "some/model", "dtype": "bfloat16"}
    assert asked["tasks"] == ["arc_easy", "hellaswag", "piqa"]
    assert asked["limit"] == 10
    assert json.loads((tmp_path / "lm_eval.json").read_text())["arc_easy"]["acc,none"] == 0.25
    printed = capsys.readouterr().out
    assert "0.250" in printed and "0.009" in printed
