"""The page of every kind of run: its tiles, its charts, and what it says in words instead."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from metatune.eval.report import read_run, write_report
from metatune.eval.report.charts import Chart, Line, change
from metatune.eval.report.interactive import MOST_POINTS, interactive
from metatune.eval.report.training_charts import training_charts

from .html_page import Page
from .run_folder import make_run_folder

END = {"train_runtime": 60.0, "step": 20}


def a_run(folder: Path, rows: list[dict]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text("seed: 0\n")
    return folder


def log(steps: int = 20, **values) -> list[dict]:
    """Lines with numbers that change from step to step, by key: the first value."""
    return [
        {"step": step, **{key: first + step / 100 for key, first in values.items()}} for step in range(1, steps + 1)
    ]


def titles(run: Path) -> list[str]:
    return [chart["title"] for chart in json.loads(Page(write_report(run).read_text()).data["chart-data"])]


def text_of(run: Path) -> str:
    return " ".join(" ".join(Page(write_report(run).read_text()).text).split())


def test_a_fine_tuning_has_loss_token_accuracy_learning_rate_and_gradient_norm(tmp_path):
    rows = log(loss=1.0, mean_token_accuracy=0.5, learning_rate=0.1, grad_norm=2.0, entropy=0.3, num_tokens=100.0)
    run = a_run(tmp_path, [*rows, END])
    found = titles(run)
    for title in ("Loss rose", "Token accuracy rose", "Learning rate rose", "Gradient norm rose", "Entropy in nats"):
        assert any(each.startswith(title) for each in found), title
    text = text_of(run)
    assert "Supervised fine-tuning" in text
    assert "no completions" not in text, "a fine-tuning has none"


def test_a_reward_model_has_pair_accuracy_and_needs_no_evaluation_of_answers(tmp_path):
    rows = log(loss=0.7, accuracy=0.5, margin=0.1, min_reward=-1.0, mean_reward=0.0, max_reward=1.0, grad_norm=1.0)
    rows += [{"step": step, "eval_loss": 0.6, "eval_accuracy": 0.6 + step / 100} for step in (10, 20)]
    run = a_run(tmp_path, [*rows, END])
    found = titles(run)
    assert any(title.startswith("Pair accuracy rose from") for title in found)
    assert any(title.startswith("Score of a response") for title in found)
    assert not any("Held-out accuracy" in title for title in found), "that is of verified answers"
    assert "there is no folder before" not in text_of(run)


def test_a_grpo_run_has_entropy_lengths_shares_divergence_and_speed(tmp_path):
    lengths = {f"completions/{kind}_length": first for kind, first in (("mean", 40), ("min", 10), ("max", 90))}
    speeds = {f"throughput/{kind}_tokens_per_second": 1500.0 for kind in ("rollout", "trained")}
    rows = log(reward=0.2, rollout_tokens=100, entropy=0.3, kl=0.01, loss=0.1, grad_norm=1.0, **lengths, **speeds)
    rows = [row | {"completions/clipped_ratio": row["step"] / 40} for row in rows]
    found = titles(a_run(tmp_path, [*rows, END]))
    for title in (
        "Entropy in nats per token rose",
        "Completion length in tokens rose",
        "Truncated completions rose",
        "KL divergence",
        "Tokens per second",
    ):
        assert any(each.startswith(title) for each in found), title


def test_a_number_that_never_changes_is_said_in_words_and_not_drawn(tmp_path):
    rows = [row | {"completions/clipped_ratio": 0.0} for row in log(reward=0.2, rollout_tokens=100)]
    charts, words = training_charts(rows, by_pairs=False)
    assert not any("Truncated" in chart.title for chart in charts)
    assert words == ["The same in every log line: truncated completions: 0."]
    rows = [row | {"reward": 0.0, "curriculum/probability/a": 0.5, "curriculum/probability/b": 0.5} for row in rows]
    run = a_run(tmp_path, rows)
    text = text_of(run)
    assert "The training reward is 0 in every log line." in text
    assert "The curriculum gave its 2 distributions equal shares of the prompts." in text
    assert not (run / "learning.png").exists() and not (run / "curriculum.png").exists()


def test_a_run_of_one_log_line_has_its_numbers_in_words(tmp_path):
    run = a_run(tmp_path, [{"step": 1, "loss": 0.25, "mean_token_accuracy": 0.5}, END | {"step": 1}])
    page = Page(write_report(run).read_text())
    assert not page.addresses and not page.scripts
    text = " ".join(page.text)
    assert "Logged only once, so there is no curve: loss: training 0.25; token accuracy: training 0.5" in text
    assert "For curves set logging_steps" in text and "The same in every log line" not in text


def test_a_curve_that_returns_to_its_start_is_not_called_constant():
    assert change(np.array([0.613, 0.537, 0.65, 0.613])) == "began and ended at 0.613"
    assert change(np.array([0.613, 0.6131, 0.613])) == "stayed at 0.613"


def test_time_and_tokens_are_those_of_all_launches(tmp_path):
    rows = log(10, mean_token_accuracy=0.5)
    rows = [row | {"num_tokens": 100.0 * (row["step"] if row["step"] <= 6 else row["step"] - 6)} for row in rows]
    rows = [row | {"time/run": 12.0 * row["step"]} for row in rows]  # resumed after step 6: TRL counts tokens anew
    run = read_run(a_run(tmp_path, [*rows, {"train_runtime": 48.0, "time/run": 121.0, "step": 10}]))
    assert (run.steps, run.tokens, run.seconds, run.finished) == (10, 1000, 121.0, True)
    assert "Training time 2.0 min" in text_of(tmp_path)


def test_a_resumed_run_whose_log_lacks_the_time_has_no_tile_of_it(tmp_path):
    run = a_run(tmp_path, [*log(reward=0.1), END])
    (run / "recipe.yaml").write_text("resume_from_checkpoint: 'true'\n")
    assert read_run(run).seconds is None
    assert "Training time" not in text_of(run)


def test_the_tiles_never_pass_an_evaluation_s_time_off_as_the_run_s(tmp_path):
    run = make_run_folder(tmp_path / "run")
    (run / "summary.json").unlink()
    text = text_of(run)
    assert "Wall time" not in text and "Training time" not in text
    assert f"{read_run(run).metrics[-1]['rollout_tokens']:,}" in text


def test_an_interrupted_run_says_so(tmp_path):
    run = a_run(tmp_path, log(reward=0.1, rollout_tokens=10))
    assert "This run is not finished" in text_of(run)
    assert "not finished" not in text_of(a_run(tmp_path, [*log(reward=0.1), END]))


def test_rounds_have_a_table_and_charts(tmp_path):
    rounds = [
        {"round": n, "gold": 0.2 + n / 10, "gold_interval": [0.1, 0.5], "tokens": 30.0, "score": None}
        for n in range(3)
    ]
    (tmp_path / "rounds.json").write_text(json.dumps(rounds))
    page = Page(write_report(tmp_path).read_text())
    (chart,) = json.loads(page.data["chart-data"])
    assert chart["title"] == "Gold accuracy"
    text = " ".join(" ".join(page.text).split())
    assert "gold accuracy 0.200 0.300 0.400" in text and "MetaRM rounds" in text


def test_rounds_of_star_are_read_from_their_folders(tmp_path):
    for n in (2, 1):
        (tmp_path / f"round-{n}").mkdir()
        row = {"round": n, "right": n / 4, "sampled_tokens": 1000, "forced_tokens": 500}
        (tmp_path / f"round-{n}" / "summary.json").write_text(json.dumps(row))
    text = text_of(tmp_path)
    assert "STaR rounds" in text and "Sampled tokens 3,000" in text and "right traces 0.250 0.500" in text


def test_strengths_are_shown(tmp_path):
    (tmp_path / "strength.json").write_text(json.dumps({"below_0": 0.125, "num_pairs": 80}))
    text = text_of(tmp_path)
    assert "below 0 0.125" in text and "num pairs 80" in text


@pytest.mark.parametrize(("last", "tick"), [(3, 1), (8, 1), (9, 1), (400, None)])
def test_axes_have_no_ticks_between_steps(last, tick):
    line = Line(name="", x=list(range(1, last + 1)), y=[float(n) for n in range(last)], color="#000000")
    axis = interactive(Chart(title="t", lines=[line]))["figure"]["layout"]["xaxis"]
    assert axis.get("dtick") == tick
    assert axis["tickformat"] == "d"


def test_a_long_log_makes_no_larger_page_than_a_short_one():
    line = Line(name="", x=list(range(10 * MOST_POINTS)), y=[1 / 3] * 10 * MOST_POINTS, color="#000000")
    (trace,) = interactive(Chart(title="t", lines=[line]))["figure"]["data"]
    assert len(trace["x"]) == len(trace["y"]) == MOST_POINTS
    assert trace["x"][-1] == 10 * MOST_POINTS - 1 and trace["y"][0] == 0.333333


def test_any_name_can_be_drawn(tmp_path):
    names = ["$x$_{", "</script><b>", "half \ud800", "a" * 300]
    rows = [row | {f"pass_rate/{name}": row["step"] / 20 for name in names} for row in log(reward=0.1)]
    rows = [row | {f"own/{name}": row["step"] / 20 for name in names} for row in rows]
    rows = [row | {f"eval_accuracy/{name}": row["step"] / 20 for name in names} for row in rows]
    rows = [row | {"rollout_tokens": row["step"], "eval_accuracy": row["step"] / 20} for row in rows]
    page = Page(write_report(a_run(tmp_path, rows)).read_text())
    assert page.allowed_scripts and len(page.addresses) == 3


def test_names_in_a_chart_are_text():
    lines = [Line(name="<b>a</b>", x=[1, 2], y=[0.0, 1.0], color="#000000")] * 2
    chart = interactive(Chart(title="t", lines=lines))
    assert chart["figure"]["data"][0]["name"] == "&lt;b&gt;a&lt;/b&gt;"


def test_the_sample_size_stands_beside_accuracies(tmp_path):
    run = make_run_folder(tmp_path / "run")
    text = text_of(run)
    assert text.count(" 40 \N{MULTIPLICATION SIGN} 4") == 6
    assert "240 \N{MULTIPLICATION SIGN} 4" in text
    shutil.rmtree(run / "after")
    assert "240 \N{MULTIPLICATION SIGN} 4" in text_of(run)
