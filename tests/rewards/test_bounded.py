import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from metatune.rewards import BoundedGrader, GraderStartError, bounded

SCRIPT = """
import os, sys, time
sys.path.insert(0, %(rewards)r)
import grading_process

def hang():
    while True: pass

def recurse():
    recurse()

def refuse():
    raise grading_process.InvalidRequestError("mend this")

def write():
    with open(%(target)r, "w") as file:
        file.write("text")

hoard = []
def keep():
    while True: hoard.append(bytearray(1 << 22))

DEEDS = dict(
    right=lambda: True, wrong=lambda: False, hang=hang, sleep=lambda: time.sleep(60), error=lambda: 1 / 0,
    memory=lambda: bytearray(1 << 40), recurse=recurse, crash=lambda: os._exit(1), abort=os.abort, refuse=refuse,
    chatter=lambda: print('{"score": true}'), write=write,
    keep=keep, need=lambda: len(bytearray(1 << 26)) > 0,
)
grading_process.GRADERS["deeds"] = lambda: lambda request: DEEDS[request["do"]]()
grading_process.main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
"""


@pytest.fixture
def grader(tmp_path, monkeypatch):
    script = tmp_path / "deeds.py"
    script.write_text(SCRIPT % {"rewards": str(bounded.SCRIPT.parent), "target": str(tmp_path / "written")})
    monkeypatch.setattr(bounded, "SCRIPT", script)
    grader = BoundedGrader("deeds", deadline=0.5)
    yield grader
    grader.close()


@pytest.mark.parametrize(
    ("deed", "cause"),
    [
        ("hang", "timeout"),
        ("sleep", "timeout"),
        ("memory", "memory"),
        ("recurse", "recursion"),
        ("crash", "crash"),
        ("abort", "crash"),
        ("error", "error"),
    ],
)
def test_a_failure_leaves_one_answer_unscored_and_no_other(grader, deed, cause):
    verdicts = [grader.grade({"do": do}) for do in ("right", deed, "right", "wrong")]
    assert verdicts == [True, None, True, False]
    assert grader.failures == {cause: 1}


def test_memory_that_an_answer_leaves_behind_is_not_missing_for_the_next(grader):
    grader.memory = 2**28
    assert [grader.grade({"do": do}) for do in ("need", "keep", "need")] == [True, None, True]
    assert grader.failures == {"memory": 1}


def test_a_grader_that_prints_cannot_fake_a_reply(grader):
    assert [grader.grade({"do": do}) for do in ("chatter", "wrong", "right")] == [False, False, True]


def test_a_grader_writes_no_files(grader, tmp_path):
    assert [grader.grade({"do": do}) for do in ("write", "right")] == [None, True]
    assert grader.failures == {"error": 1}
    assert (tmp_path / "written").read_text() == ""


@pytest.mark.timeout(20)
@pytest.mark.parametrize("size", [1, 1_000_000])  # the second is more than a pipe holds
def test_a_child_that_stands_still_holds_nobody_up(grader, size):
    grader.grade({"do": "right"})
    os.kill(grader._process.pid, signal.SIGSTOP)
    assert grader.grade({"do": "right", "more": "x" * size}) is None
    assert grader.failures == {"timeout": 1}
    assert grader.grade({"do": "right", "more": "x" * size}) is True


def test_a_request_at_fault_raises(grader):
    with pytest.raises(ValueError, match="mend this"):
        grader.grade({"do": "refuse"})
    assert grader.grade({"do": "right"}) is True


def test_the_child_starts_late_stays_and_comes_back_after_close(grader):
    assert grader._process is None
    grader.grade({"do": "right"})
    first = grader._process.pid
    grader.grade({"do": "wrong"})
    assert grader._process.pid == first
    grader.close()
    assert grader.grade({"do": "right"}) is True
    assert grader._process.pid != first


def test_a_child_killed_while_idle_costs_no_answer(grader):
    grader.grade({"do": "right"})
    grader._process.kill()
    grader._process.wait()
    assert grader.grade({"do": "right"}) is True
    assert not grader.failures


def test_threads_share_one_child(grader):
    deeds = ["right", "wrong", "crash", "right", "hang", "wrong"] * 3
    with ThreadPoolExecutor(6) as pool:
        verdicts = list(pool.map(lambda do: grader.grade({"do": do}), deeds))
    assert verdicts == [True, False, None, True, None, False] * 3
    assert grader.failures == {"crash": 3, "timeout": 3}


def test_an_interrupted_request_does_not_answer_the_next(grader):
    grader.deadline = 30.0
    grader.grade({"do": "right"})

    def interrupt(*_):
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            grader.grade({"do": "sleep"})
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert grader.grade({"do": "wrong"}) is False


def test_a_forked_process_has_its_own_child(grader):
    grader.grade({"do": "right"})
    first = grader._process.pid
    pid = os.fork()
    if pid == 0:
        own = grader.grade({"do": "right"}) is True and grader._process.pid != first
        grader.close()
        os._exit(0 if own else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert grader.grade({"do": "right"}) is True
    assert grader._process.pid == first


def test_a_grader_that_cannot_start_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(GraderStartError, match="KeyError: 'nonsense'"):
        BoundedGrader("nonsense").grade({})
    monkeypatch.setattr(bounded, "SCRIPT", tmp_path / "absent.py")
    with pytest.raises(GraderStartError, match="did not start: crash; try"):
        BoundedGrader("math").grade({})
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(GraderStartError, match="No such file"):
        BoundedGrader("math").grade({})


def _grandchild(tmp_path, deed):
    """Start a process with a grader at `deed`, kill it, and return the grader's process."""
    program = tmp_path / "parent.py"
    program.write_text(
        textwrap.dedent(f"""
        import threading, time
        from metatune.rewards import BoundedGrader, bounded
        from pathlib import Path
        bounded.SCRIPT = Path({str(bounded.SCRIPT)!r})
        bounded.ORPHAN_SECONDS = 1.0
        grader = BoundedGrader("deeds", deadline=1.0)
        grader.grade({{"do": "right"}})
        print(grader._process.pid, flush=True)
        grader.deadline = 60.0
        grader.grade({{"do": {deed!r}}})
        time.sleep(60)
        """)
    )
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True) as parent:
        grader = psutil.Process(int(parent.stdout.readline()))
        time.sleep(0.3)
        parent.kill()
    return grader


@pytest.mark.parametrize("deed", ["right", "hang"])
def test_the_child_of_a_killed_parent_ends(grader, tmp_path, deed):
    ended, alive = psutil.wait_procs([_grandchild(tmp_path, deed)], timeout=10)
    assert ended and not alive


def test_it_works_outside_the_main_thread(grader):
    verdicts = []
    thread = threading.Thread(
        target=lambda: verdicts.extend(grader.grade({"do": d}) for d in ("right", "hang", "wrong"))
    )
    thread.start()
    thread.join()
    assert verdicts == [True, None, False]
