"""What a log tells of a judge: sums from the means of its lines, in the report and its picture."""

import json

import numpy as np
import pytest
import yaml
from matplotlib import image

from metatune.eval.judge_log import MOST_WINDOWS, percent, read_judge_log, steps_of_a_batch
from metatune.eval.report import write_report
from metatune.eval.rubric_plots import plot_judge_log
from metatune.rewards import Rubric, RubricHistory, RubricItem

from .test_report import Page

META = {"event": "refused", "version": 1, "reason": "x"}


def line(step, seconds=10.0, **causes):
    """A log line: every batch was judged in 2 s, and a meta step took 3 s."""
    row = {"step": step, "time/step": seconds, "judge/seconds": 2.0, "judge/failures": sum(causes.values())}
    return row | {f"judge/failures/{cause}": share for cause, share in {"timeout": 0.0, **causes}.items()}


def test_a_batch_lasts_as_long_as_the_recipe_says():
    recipe = {"steps_per_generation": 4, "gradient_accumulation_steps": 2}
    assert steps_of_a_batch(recipe) == 2 and steps_of_a_batch(recipe | {"num_iterations": 3}) == 6
    assert steps_of_a_batch({"steps_per_generation": 3, "gradient_accumulation_steps": 2}) == 1.5
    assert steps_of_a_batch({"gradient_accumulation_steps": 8, "num_iterations": 2}) == 2  # a batch a step by default
    assert steps_of_a_batch({"generation_batch_size": 64}) is None  # depends on the number of processes
    assert steps_of_a_batch(None) is steps_of_a_batch({}) is steps_of_a_batch({"steps_per_generation": "4"}) is None


def test_a_line_for_every_step():
    """Two steps a batch: the second line of each has no judgement."""
    rows = [line(1, no_json=0.5), {"step": 2, "time/step": 5.0}, line(3), {"step": 4, "time/step": 5.0}]
    rows[2] |= {"mpo/seconds": 3.0}
    for batch_steps in (2.0, None):
        log = read_judge_log(rows, [{**META, "step": 2}], batch_steps)
        assert log.failed == {"no_json": 0.25}
        assert log.took == {"judging": pytest.approx(4 / 30), "meta steps": pytest.approx(3 / 30)}
        assert log.edges.tolist() == [0, 2, 4] and log.lines == 2
        assert log.failed_by_window["no_json"].tolist() == [0.5, 0]
        assert log.took_by_window["meta steps"].tolist() == [0, 0.2]


def test_lines_of_several_batches_and_meta_steps():
    """Ten steps a line, five batches each; of three meta steps in the second line, one is at its first step."""
    rows = [line(10), {"eval_loss": 1.0, "step": 10}, line(20, timeout=0.1, refused=0.3) | {"mpo/seconds": 3.0}]
    events = [
        {**META, "step": step, "event": name} for step, name in ((10, "failed"), (14, "accepted"), (18, "refused"))
    ]
    events += [{**META, "step": 0, "event": "given"}, {**META, "step": 15, "event": "rolled_back", "by": "user"}]
    log = read_judge_log([*rows, {"train_runtime": 1.0, "step": 20}], events, 2.0)
    assert log.failed == {"refused": 0.15, "timeout": 0.05} and list(log.failed) == ["refused", "timeout"]
    assert log.took == {"judging": pytest.approx(20 / 200), "meta steps": pytest.approx(9 / 200)}
    assert log.took_by_window["judging"].tolist() == [0.1, 0.1]
    assert read_judge_log(rows, events, None).took is None, "nobody says how many batches a line has"
    assert (
        read_judge_log(
            [{key: value for key, value in row.items() if key != "time/step"} for row in rows], events, 2.0
        ).took
        is None
    )
    assert read_judge_log([{"step": 1, "time/step": 1.0}], events, 2.0) is None


def test_a_long_log_is_told_in_few_windows():
    rows = [line(step, timeout=step / 1000) for step in range(1, 1001)]
    log = read_judge_log(rows, [], 1.0)
    assert len(log.edges) == MOST_WINDOWS + 1 and log.lines == 42 and log.edges[[0, -1]].tolist() == [0, 1000]
    assert log.failed["timeout"] == pytest.approx(0.5005)
    assert np.average(log.failed_by_window["timeout"], weights=np.diff(log.edges)) == pytest.approx(0.5005)


def test_a_small_share_is_not_none():
    assert [percent(share) for share in (0.0, 0.0004, 0.001, 0.1234)] == ["0.0 %", "below 0.1 %", "0.1 %", "12.3 %"]


def test_the_picture_has_a_panel_for_what_there_is(tmp_path):
    heights = []
    for rows in ([line(1, timeout=0.5)], [line(1)], [line(1, seconds=0.0, timeout=0.5)]):
        plot_judge_log(read_judge_log(rows, [], 1.0), tmp_path / "p.png")
        heights.append(image.imread(tmp_path / "p.png").shape[0])
    assert heights[0] == 2 * heights[1] == 2 * heights[2]
    with pytest.raises(ValueError, match="no judgement failed, and no line"):
        plot_judge_log(read_judge_log([line(1, seconds=0.0)], [], 1.0), tmp_path / "p.png")


@pytest.fixture
def run(tmp_path):
    """Write a run of these log lines, and return the text of its report."""
    folder = tmp_path / "run"
    history = RubricHistory(folder / "rubrics")
    history.begin(Rubric("Do it.", (RubricItem("item", "Is it done?", 2),)))
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"steps_per_generation": 1}))

    def report(rows):
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return " ".join(" ".join(Page(write_report(folder).read_text()).text).split())

    return folder, report


def test_the_page_says_what_failed_and_what_it_took(run):
    folder, report = run
    text = report([line(1, no_json=0.25, timeout=0.05) | {"judge/score": 0.5}])
    assert "30.0 % of the completions could not be judged (no json 25.0 %, timeout 5.0 %)" in text
    assert (
        "Judging for the reward took 20.0 % of the step time; meta steps, in which" in text and "tried, 0.0 %." in text
    )
    assert (folder / "judge.png").is_file() and "No judgement failed" not in text


def test_the_page_says_so_where_nothing_failed_or_the_time_is_not_told(run):
    folder, report = run
    text = report([line(10) | {"judge/score": 0.5}])
    assert "No judgement failed." in text and (folder / "judge.png").is_file()
    (folder / "judge.png").unlink()
    (folder / "recipe.yaml").write_text("[")
    text = report([line(10) | {"judge/score": 0.5}])
    assert "No judgement failed." in text and "`steps_per_generation` in recipe.yaml" in text
    assert "of the step time;" not in text and not (folder / "judge.png").exists()
