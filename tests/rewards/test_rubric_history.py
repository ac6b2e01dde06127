"""The rubrics of a run on disk: versions, events, resume, and a user's wish to go back."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metatune.rewards.rubric import Rubric, RubricItem
from metatune.rewards.rubric_history import RubricHistory


def rubric(number):
    return Rubric("Do it.", (RubricItem("item", f"criterion {number}", 1 + number % 9),))


def begun(folder, *outcomes):
    """A history whose versions were accepted (True), refused (False), rolled back to (a number), or failed (None)."""
    history = RubricHistory(folder)
    history.begin(rubric(0))
    for step, outcome in enumerate(outcomes, start=1):
        go_on(history, outcome, step)
    return history


def go_on(history, outcome, step):
    if outcome is None:
        history.note_failure(step, "no answer")
    elif isinstance(outcome, bool):
        number = len(history.versions)
        found = {"cases": [{"prompt": f"p{number}"}], "analyses": ["a"], "verdict": {"new": {"spread": 0.1}}}
        history.propose(rubric(number), step=step, accepted=outcome, reason=f"because {number}", **found)
    else:
        history.roll_back(outcome, step, "it fell")


def test_versions_have_their_story(tmp_path):
    history = begun(tmp_path / "rubrics", True, False, None, True, 1)
    assert [version.parent for version in history.versions] == [None, 0, 1, 1]
    assert [version.accepted for version in history.versions] == [True, True, False, True]
    assert history.current.number == 1
    values = json.loads((tmp_path / "rubrics" / "version-002.json").read_text())
    assert values["rubric"] == rubric(2).to_dict() and values["cases"] == [{"prompt": "p2"}]
    assert [(event["event"], event["version"]) for event in history.events] == [
        ("given", 0), ("accepted", 1), ("refused", 2), ("failed", None), ("accepted", 3), ("rolled_back", 1)
    ]  # fmt: skip
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_history_is_read_as_it_was_written(tmp_path):
    written = begun(tmp_path, True, False, 0)
    read = RubricHistory.read(tmp_path)
    assert (read.versions, read.events, read.current) == (written.versions, written.events, written.current)


outcomes = st.lists(st.one_of(st.none(), st.booleans(), st.just(0)), max_size=6)


@given(outcomes, outcomes, outcomes)
def test_a_resumed_history_goes_on_as_if_what_came_after_had_not_been(tmp_path_factory, first, lost, then):
    folder, other = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("other")
    history = begun(folder, *first)
    state = json.loads(json.dumps(history.state_dict()))
    for outcome in lost:
        go_on(history, outcome, 99)
    resumed = RubricHistory(folder)
    resumed.load_state_dict(state, step=len(first))
    expected = begun(other, *first)
    for step, outcome in enumerate(then, start=len(first) + 1):
        go_on(resumed, outcome, step)
        go_on(expected, outcome, step)
    assert RubricHistory.read(folder).events == expected.events
    for path in sorted(other.glob("*.json*")):
        assert (folder / path.name).read_text() == path.read_text()
    assert len(list(folder.glob("version-*"))) == len(expected.versions)
    kept = list(folder.glob("abandoned-*/version-*"))
    assert len(kept) == sum(isinstance(outcome, bool) for outcome in lost), "nothing is lost"


class Killed(BaseException):
    """Where a process ends that is killed."""


@pytest.mark.parametrize("go", ["load", "begin"])
def test_a_process_that_is_killed_at_any_moment_loses_nothing(tmp_path, monkeypatch, go):
    """Resuming and beginning again, killed before any change to the folder and repeated, end as if not killed."""
    for moment in range(100):
        folder = tmp_path / f"{go}-{moment}"
        history = begun(folder, True)
        state = history.state_dict()
        go_on(history, True, 50)
        go_on(history, False, 60)
        history.request_rollback(0, "x")
        contents = {path.read_text() for path in folder.glob("version-*")}
        left = [moment]

        def change(original, left=left):
            def counted(*args, **kwargs):
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
                return original(*args, **kwargs)

            return counted

        def do(folder=folder, state=state):
            resumed = RubricHistory(folder)
            resumed.load_state_dict(state, 40) if go == "load" else resumed.begin(rubric(8))
            return resumed

        with monkeypatch.context() as patch:
            for name in ("replace", "rename", "unlink", "mkdir", "write_text"):
                patch.setattr(Path, name, change(getattr(Path, name)))
            try:
                do()
            except Killed:
                finished = False
            else:
                finished = True
        again = RubricHistory.read(folder) if finished else do()
        story = [(event["event"], event["version"]) for event in again.events]
        assert story == ([("given", 0), ("accepted", 1), ("rolled_back", 0)] if go == "load" else [("given", 0)])
        read = RubricHistory.read(folder)
        assert (read.events, read.versions) == (again.events, again.versions) and read.wish is None
        assert contents <= {path.read_text() for path in folder.rglob("version-*")}, "all versions are somewhere"
        logs = "".join(path.read_text() for path in folder.rglob("log.jsonl"))
        assert '"version": 3, "step": 60' in logs, "and all events"
        if finished:
            break
    assert moment > 5


def test_a_fresh_run_moves_what_another_left(tmp_path):
    begun(tmp_path, True, True)
    history = begun(tmp_path)
    assert len(history.versions) == 1 and len(list(tmp_path.glob("abandoned-0/version-*"))) == 3


def test_a_wish_to_go_back_is_taken_up_once(tmp_path):
    history = begun(tmp_path, True, False, True)
    state = history.state_dict()
    RubricHistory.read(tmp_path).request_rollback(1, "it pays for length")
    resumed = RubricHistory(tmp_path)
    resumed.load_state_dict(state, step=40)
    assert resumed.current.number == 1 and resumed.wish is None
    event = {"event": "rolled_back", "version": 1, "step": 40, "reason": "it pays for length", "by": "user"}
    assert resumed.events == [*state["events"], event]
    resumed.propose(rubric(4), step=50, accepted=True, reason="lost when the run is killed")
    again = RubricHistory(tmp_path)
    again.load_state_dict(state, step=40)
    assert again.events == resumed.events[:-1] and again.current.number == 1, "the wish outlives a killed run"
    saved = json.loads(json.dumps(again.state_dict()))
    again.load_state_dict(saved, step=60)
    assert again.events == saved["events"], "and is taken up once"


def test_a_wish_of_a_later_resume_is_no_part_of_an_earlier_checkpoint(tmp_path):
    state = begun(tmp_path, True).state_dict()
    RubricHistory.read(tmp_path).request_rollback(0, "x")
    RubricHistory(tmp_path).load_state_dict(state, step=40)
    history = RubricHistory(tmp_path)
    history.load_state_dict(state, step=20)
    assert history.current.number == 1 and "rolled_back" in (tmp_path / "abandoned-0" / "log.jsonl").read_text()


def test_a_wish_for_what_the_checkpoint_does_not_know_moves_nothing(tmp_path):
    history = begun(tmp_path, True)
    state = history.state_dict()
    history.propose(rubric(2), step=50, accepted=True, reason="after the checkpoint")
    history.request_rollback(2, "x")
    files = {path: path.read_bytes() for path in tmp_path.rglob("*")}
    message = r"request.json asks for version 2, which the checkpoint of step 40 does not know \(it knows 0 to 1\)"
    with pytest.raises(ValueError, match=message):
        RubricHistory(tmp_path).load_state_dict(state, step=40)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*")} == files
    (tmp_path / "request.json").write_text('{"version": "two"}')
    with pytest.raises(ValueError, match=r"request.json: no wish to go back: delete it"):
        RubricHistory(tmp_path).load_state_dict(state, step=40)


def test_a_fresh_run_does_not_take_up_the_wish_of_another(tmp_path):
    begun(tmp_path, True).request_rollback(1, "x")
    assert begun(tmp_path).wish is None and (tmp_path / "abandoned-0" / "request.json").is_file()


def test_what_a_model_wrote_can_be_written_whatever_it_is(tmp_path):
    history = begun(tmp_path)
    odd = json.loads(r'"half a pair \ud800, a separator \u2028, \u0000 and [/INST]"')
    history.propose(rubric(1), step=1, accepted=True, reason=odd, analyses=[odd], cases=[{"completion": odd}])
    read = RubricHistory.read(tmp_path)
    assert (read.versions, read.events) == (history.versions, history.events)


def test_numbers_of_four_digits_and_folders_that_were_deleted(tmp_path):
    history = begun(tmp_path)
    state = history.state_dict()
    for number in (998, 999, 1000):
        (tmp_path / f"version-{number}.json").write_text("{}")
    (tmp_path / "abandoned-4").mkdir()
    RubricHistory(tmp_path).load_state_dict({**state, "versions": 1}, step=0)
    assert {path.name for path in (tmp_path / "abandoned-5").glob("v*")} == {
        "version-998.json", "version-999.json", "version-1000.json"
    }  # fmt: skip


def test_what_cannot_be_gone_back_to(tmp_path):
    history = begun(tmp_path, False)
    for go_back in (lambda: history.roll_back(2, 1, "x"), lambda: history.request_rollback(-1, "x")):
        with pytest.raises(ValueError, match=r"there is no version -?\d \(there are 0 to 1\)"):
            go_back()
    with pytest.raises(ValueError, match="version 1 was refused by the gate: add --force"):
        history.request_rollback(1, "x")
    history.request_rollback(1, "x", force=True)


def test_a_folder_that_is_not_the_checkpoint_s(tmp_path):
    state = begun(tmp_path / "a", True).state_dict()
    with pytest.raises(ValueError, match="has 0 events, the checkpoint knows 2: put the folder rubrics of its run"):
        RubricHistory(tmp_path / "b").load_state_dict(state, 1)
    begun(tmp_path / "c", None, True)
    with pytest.raises(ValueError, match=r"log.jsonl tells another story than the checkpoint: put the folder rubrics"):
        RubricHistory(tmp_path / "c").load_state_dict(state, 1)
    (tmp_path / "c" / "log.jsonl").write_text((tmp_path / "a" / "log.jsonl").read_text())
    (tmp_path / "c" / "version-001.json").write_text((tmp_path / "a" / "version-000.json").read_text())
    with pytest.raises(ValueError, match=r"version-001.json: no version of a rubric: it says that it is version 0"):
        RubricHistory(tmp_path / "c").load_state_dict(state, 1)
    other = RubricHistory.read(tmp_path / "a").versions[1].to_dict() | {"rubric": rubric(7).to_dict()}
    (tmp_path / "c" / "version-001.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="is not the rubric of the checkpoint"):
        RubricHistory(tmp_path / "c").load_state_dict(state, 1)
    (tmp_path / "a" / "version-000.json").unlink()
    with pytest.raises(ValueError, match=r"version-000.json is missing"):
        RubricHistory(tmp_path / "a").load_state_dict(state, 1)
    with pytest.raises(ValueError, match=r"log.jsonl is missing: the run has no rubrics"):
        RubricHistory.read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "log.jsonl").touch()
    with pytest.raises(ValueError, match=r"log.jsonl is empty: the run has no rubrics"):
        RubricHistory.read(tmp_path / "empty")
    values = begun(tmp_path / "d", True).versions[1].to_dict()
    for wrong, message in (({"parent": 1}, "version 1 cannot be its parent"), ({"cases": [1]}, "a case is a mapping")):
        (tmp_path / "d" / "version-001.json").write_text(json.dumps(values | wrong))
        with pytest.raises(ValueError, match=message):
            RubricHistory.read(tmp_path / "d")
    (tmp_path / "c" / "version-000.json").write_text('{"number": 0}')
    with pytest.raises(ValueError, match=r"version-000.json: no version of a rubric"):
        RubricHistory.read(tmp_path / "c")
