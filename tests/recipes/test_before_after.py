"""`metatune eval --into RUN`: before and after training, in the run's folder, for its report."""

import json

import pytest

from metatune.eval.report import write_report
from metatune.recipes.adapters import STARTER
from metatune.recipes.evaluate import make_parser

RECIPE = """\
model_name_or_path: starter
max_completion_length: 96
distributions:
  - {name: sums, source: arithmetic, config: {terms: 3}, train_size: 40, test_size: 8}
"""


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(RECIPE)
    for file in STARTER.iterdir():  # a training that changed nothing
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def parse(*options):
    (args,) = make_parser("metatune eval").parse_args_and_config([str(option) for option in options])
    return args


def test_both_models_are_those_of_the_run(run):
    args = parse("--into", run)
    assert (args.before, args.model, args.max_new_tokens) == ("starter", str(run), 96)
    assert [one["name"] for one in args.distributions] == ["sums"]
    args = parse("--into", run, "--before", "other", "--model", run / "checkpoint-5")
    assert (args.before, args.model) == ("other", str(run / "checkpoint-5"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--into", "nowhere"], "nowhere/recipe.yaml: no such file; name the output_dir of a run"),
        (
            ["--into", "{run}", "--output_dir", "x"],
            "`into` writes its results to the run's folder: remove `output_dir`",
        ),
        (["--model", "starter", "--before", "x", "--benchmark", "gsm8k"], "`before` requires `into`"),
    ],
)
def test_what_cannot_be_is_refused(run, options, message):
    with pytest.raises(ValueError, match=message):
        parse(*(option.format(run=run) for option in options))


def test_a_run_that_started_from_no_model_needs_one(run):
    (run / "recipe.yaml").write_text(RECIPE.replace("model_name_or_path: starter\n", "init_config: {}\n"))
    with pytest.raises(ValueError, match=r"recipe.yaml does not set model_name_or_path.*specify it with --before"):
        parse("--into", run)


def test_the_report_shows_what_was_measured(run, capsys):
    from metatune.recipes import evaluate

    evaluate.main(parse("--into", run, "--num_samples", 2, "--device", "cpu"))
    printed = capsys.readouterr().out
    assert "Before training: starter" in printed and "Held-out accuracy" in printed
    summary = json.loads((run / "summary.json").read_text())
    assert summary["difference"] == 0 and summary["num_problems"] == 8
    assert summary["evaluation_tokens"] > 0 and "seconds" not in summary, "that is the training's to say"
    page = write_report(run).read_text()
    assert f"{summary['accuracy_before']:.3f} → {summary['accuracy_after']:.3f}" in page
    assert "8 \N{MULTIPLICATION SIGN} 2" in page
