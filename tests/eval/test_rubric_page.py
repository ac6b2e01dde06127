"""The report's section on a judge's rubrics, and its picture."""

import json

import pytest
from matplotlib import image

from metatune.eval import rubric_plots
from metatune.eval.report import write_report
from metatune.eval.rubric_page import MOST_CASES, MOST_VERSIONS, describe_rubrics
from metatune.eval.rubric_plots import plot_rubrics
from metatune.rewards import Rubric, RubricHistory, RubricItem

from .test_report import Page

EVIL = "</pre><script>alert(1)</script> \u202e \ud800"


def rubric(points, criterion="Is it done?"):
    return Rubric("Do <it>.", (RubricItem("item", criterion, points),))


def case(number):
    judged = {"total": 0.25, "scores": {"item": 1}, "rationales": {"item": f"because {number} {EVIL}"}}
    return {"why": "inflated", "prompt": f"prompt {number}", "completion": f"written {EVIL}", "gold": None, **judged}


def qualities(old, new):
    return {side: {"rank_accuracy": value, "spread": None} for side, value in (("old", old), ("new", new))}


@pytest.fixture
def run(tmp_path):
    """A run that was judged: one change taken, one refused, one that failed, and a way back."""
    history = RubricHistory(tmp_path / "run" / "rubrics")
    history.begin(rubric(2))
    story = {"cases": [case(n) for n in range(MOST_CASES + 1)], "analyses": [f"found {EVIL}"]}
    taken = {"accepted": True, "reason": "it ranks better", "verdict": qualities(0.5, 0.75)}
    history.propose(rubric(3), step=10, **taken, **story)
    history.propose(rubric(3, "<b>Is it?</b>"), step=20, accepted=False, reason=f"it ranks worse {EVIL}")
    history.note_failure(30, "no answer")
    history.roll_back(0, 40, "it fell")
    rows = [
        {"step": step, "judge/score": step / 50, "rewards/judge/mean": 0.1, "rewards/gold/mean": 0.5}
        for step in range(1, 50)
    ]
    rows[9]["held_out_judge/score"] = 0.4
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "run"


def test_the_section_tells_the_story(run):
    source = write_report(run).read_text(encoding="utf-8")
    text = " ".join(" ".join(Page(source).text).split())
    dash = "\N{EN DASH} "
    for said in (
        "In force: version 0",
        "it ranks better (rank accuracy 0.500 → 0.750)",
        "Version 2 against version 1: refused at step 20",
        "~ item: 'Is it done?' -> '<b>Is it?</b>'",
        "~ item: +2 -> +3 points",
        f"{MOST_CASES} cases that led to it",
        "1 more are in rubrics/version-001.json",
        "judge 0.25, gold \N{EN DASH}",
        "item 1: because 0",
        "a high total that little speaks for",
        "the batch that led to it is in the log line of the next",
        f"failed {4 * dash}no answer",
        f"rolled back 0 {dash}1 0 to 2 it fell",
    ):
        assert said in text, said
    assert (run / "rubrics.png").is_file()


def test_what_models_wrote_is_data(run):
    source = write_report(run).read_text(encoding="utf-8")
    assert Page(source).allowed_scripts and "&lt;script&gt;alert(1)" in source and "<b>Is" not in source
    assert "\u202e" not in source and "\N{REPLACEMENT CHARACTER}" in source


def test_only_the_newest_versions_are_shown_in_full(tmp_path):
    history = RubricHistory(tmp_path)
    history.begin(rubric(1))
    for number in range(1, MOST_VERSIONS + 3):
        history.propose(rubric(1 + number), step=number, accepted=True, reason="x")
    section = describe_rubrics(history)
    assert [version["number"] for version in section["versions"]] == list(range(MOST_VERSIONS + 2, 2, -1))
    assert section["left_out"] == 2 and len(section["events"]) == MOST_VERSIONS + 3


def test_a_damaged_history_is_named_and_the_rest_is_shown(run):
    (run / "rubrics" / "version-001.json").write_text("{")
    text = " ".join(Page(write_report(run).read_text()).text)
    assert "The judge's rubrics: " in text and "version-001.json: cannot be read" in text and "In force" not in text


def test_a_run_without_rubrics_has_no_section(run):
    (run / "rubrics").rename(run / "elsewhere")
    assert "rubric" not in " ".join(Page(write_report(run).read_text()).text)


def test_a_mark_stands_at_the_last_scores_by_the_rubric_before(tmp_path):
    """The batch of a meta step is logged one step later; what a user wished for came before its batch."""
    rows = [{"step": step, "judge/score": 0.5} for step in range(1, 10)]
    event = {"event": "rolled_back", "version": 0}
    for name, more in (("meta", {"step": 4}), ("user", {"step": 5, "by": "user"}), ("later", {"step": 5})):
        plot_rubrics(rows, [event | more], tmp_path / name)
    pictures = {name: image.imread(tmp_path / name, format="png") for name in ("meta", "user", "later")}
    assert (pictures["meta"] == pictures["user"]).all() and (pictures["meta"] != pictures["later"]).any()


def test_a_reward_of_another_scale_is_named_and_not_drawn(tmp_path, monkeypatch):
    headings = []
    monkeypatch.setattr(rubric_plots, "set_heading", lambda axes, finding, caption: headings.append((axes, caption)))
    row = {"step": 1, "judge/score": 0.5, "rewards/length/mean": -40.0, "rewards/gold/mean": 1.0}
    plot_rubrics([row, {**row, "step": 2}], [], tmp_path / "p.png")
    axes, caption = headings[0]
    assert [curve.get_label() for curve in axes.get_lines()] == ["judge", "gold"]
    assert caption.endswith("; not on this scale: length")


def test_the_picture(tmp_path):
    events = [{"event": name, "version": n, "step": n} for n, name in enumerate(("given", "accepted", "refused"))]
    plot_rubrics([{"step": 1, "judge/score": 0.5}, {"eval": 1}], events, tmp_path / "p.png")
    assert image.imread(tmp_path / "p.png").std() > 0
    with pytest.raises(ValueError, match=r"no line of metrics.jsonl has `judge/score`: nothing was judged yet"):
        plot_rubrics([{"step": 1, "reward": 0.5}], events, tmp_path / "q.png")
