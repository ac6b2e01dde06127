"""`metatune rubric`: what it prints of a run's history, and what it refuses."""

import json

import pytest

from metatune.recipes import cli
from metatune.rewards import Rubric, RubricHistory, RubricItem, read_rubric

from .launches import last_line


def rubric(points):
    return Rubric("Do it.", (RubricItem("item", "Is it done?", points),))


@pytest.fixture
def run(tmp_path):
    """A run whose rubric was changed once, once not, and whose third change failed."""
    history = RubricHistory(tmp_path / "run" / "rubrics")
    history.begin(rubric(2))
    history.propose(rubric(3), step=10, accepted=True, reason="it ranks better")
    history.propose(rubric(9), step=20, accepted=False, reason="it ranks worse")
    history.note_failure(30, "no answer")
    return tmp_path / "run"


def test_the_log(run, capsys):
    assert cli.main(["rubric", "log", str(run)]) == 0
    printed = capsys.readouterr().out
    for said in ("given", "accepted", "refused", "failed", "it ranks worse", "0 to 9", "In force: version 1"):
        assert said in printed


def test_the_log_prints_a_server_s_words_as_they_are(run, capsys):
    history = RubricHistory.read(run / "rubrics")
    history.note_failure(40, "500: [/INST] [bold]no\x1b[31m")
    history.roll_back(0, 50, "it fell")
    assert cli.main(["rubric", "log", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "500: [/INST] [bold]no\N{REPLACEMENT CHARACTER}[31m" in printed and "by the user" not in printed
    assert "In force: version 0" in printed


def test_the_diff_is_coloured_on_a_terminal_alone(run, capsys, monkeypatch):
    history = RubricHistory.read(run / "rubrics")
    long = RubricItem("item", "[b]Is it done?[/b] " + "word " * 100, 3)
    history.propose(Rubric("Do it.", (long,)), step=40, accepted=True, reason="x")
    assert cli.main(["rubric", "diff", str(run)]) == 0
    plain = capsys.readouterr().out
    assert plain.count("\n") == 3 and "[b]Is it done?[/b]" in plain and "\x1b" not in plain
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert cli.main(["rubric", "diff", str(run)]) == 0
    assert "\x1b[33m~ item" in capsys.readouterr().out


def test_the_diff(run, capsys):
    assert cli.main(["rubric", "diff", str(run)]) == 0
    assert capsys.readouterr().out == "version 0 -> version 1\n~ item: +2 -> +3 points\n"
    assert cli.main(["rubric", "diff", str(run), "1", "2"]) == 0
    assert "+3 -> +9 points" in capsys.readouterr().out
    assert cli.main(["rubric", "diff", str(run), "1"]) == 0
    assert "no change" in capsys.readouterr().out


def test_a_version_is_what_a_recipe_can_start_from(run, capsys):
    assert cli.main(["rubric", "show", str(run)]) == 0
    assert json.loads(capsys.readouterr().out) == rubric(3).to_dict()
    assert cli.main(["rubric", "show", str(run), "2", "--output", str(run / "r.json")]) == 0
    assert read_rubric(run / "r.json") == rubric(9)


def test_a_rollback_waits_for_the_next_resume(run, capsys):
    state = RubricHistory.read(run / "rubrics").state_dict()
    assert cli.main(["rubric", "rollback", str(run), "0", "--reason", "it pays for length"]) == 0
    assert "goes on with version 0" in capsys.readouterr().out
    assert cli.main(["rubric", "log", str(run)]) == 0
    assert "In force: version 1\nThe next resume goes on with version 0" in capsys.readouterr().out
    history = RubricHistory(run / "rubrics")
    history.load_state_dict(state, step=40)
    assert history.current.number == 0 and history.events[-1]["reason"] == "it pays for length"
    assert cli.main(["rubric", "log", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "rolled back by the user" in printed and "next resume" not in printed


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["log"], "the following arguments are required: RUN; see metatune rubric log --help"),
        (["blame", "{run}"], "invalid choice: 'blame'"),
        (["log", "{run}/nowhere"], "nowhere/rubrics/log.jsonl is missing: the run has no rubrics"),
        (["show", "{run}", "7"], "there is no version 7 (there are 0 to 2)"),
        (["diff", "{run}", "zero"], "argument OLD: invalid int value: 'zero'"),
        (["rollback", "{run}", "0"], "the following arguments are required: --reason"),
        (["rollback", "{run}", "2", "--reason", "x"], "version 2 was refused by the gate: add --force"),
        (["show", "{run}", "--output", "{run}/no/r.json"], "No such file or directory"),
    ],
)
def test_mistakes_are_one_line(run, capsys, args, message):
    assert cli.main(["rubric", *(arg.format(run=run) for arg in args)]) == 2
    error = capsys.readouterr().err
    assert last_line(error).startswith("metatune: error: ") and message in error and error.count("\n") == 1
