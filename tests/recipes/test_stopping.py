"""A command that is asked to stop ends soon, with every process it started, and its run can be resumed."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from metatune.recipes.stopping import resume_command
from metatune.trainers.whole_checkpoints import last_whole_checkpoint

from .forks import Run, is_written
from .launches import GRPO, environment, finish, last_line, log_rows, metatune, ranks_of, start, wait_for, write_recipe
from .resume_setup import TRAINERS, contents, differences


@pytest.fixture(autouse=True)
def _signals_are_not_ignored():
    """Let the programs take the signals even if the suite runs in the background or under nohup, which ignore some."""
    numbers = (signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        if before[number] == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


# ---- one process, without a trainer ----


def program(text: str, **variables: str) -> subprocess.Popen:
    """Start a program that takes the signals, and wait until it says that it is ready."""
    head = (
        "import os, signal, subprocess, sys, time\n"
        "from metatune.recipes.stopping import *\n"
        "from metatune.recipes.failures import leave\n"
        "ready = lambda: print('ready', flush=True)\n"
        "STOPPER.listen()\n"
    )
    process = start([sys.executable, "-c", head + text], **variables)
    assert process.stdout.readline() == "ready\n", process.communicate()
    return process


def stop(process: subprocess.Popen, *numbers: int) -> tuple[int, str, str, float]:
    """Send signals and return the exit code, stdout, stderr, and the seconds until the end."""
    began = time.monotonic()
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.3)
    return *finish(process, limit=30), time.monotonic() - began


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_command_by_its_own_exit_code(number):
    text = "try:\n  ready()\n  time.sleep(60)\nexcept Stopped as stopped:\n  leave(stopped.code)"
    code, _, errors, seconds = stop(program(text), number)
    assert code == 128 + number and seconds < 5
    assert "Traceback" not in errors


def test_what_is_being_finished_is_finished_first():
    text = (
        "try:\n"
        "  with STOPPER.finishing():\n    ready()\n    time.sleep(1)\n    print('saved', flush=True)\n"
        "  print('never')\n"
        "except Stopped as stopped:\n  leave(stopped.code)"
    )
    code, output, errors, _ = stop(program(text), signal.SIGTERM, signal.SIGTERM)
    assert (code, output) == (143, "saved\n")
    assert "SIGTERM: stopping after this step and its checkpoint, within 25 s" in errors


@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM,)])
def test_a_second_ctrl_c_and_the_end_of_the_grace_period_end_what_does_not_finish(numbers):
    """With every process that it started, also one that ignores SIGTERM."""
    text = (
        "child = subprocess.Popen([sys.executable, '-c', 'import signal, time; signal.signal(15, signal.SIG_IGN); "
        "print(flush=True); time.sleep(60)'], stdout=subprocess.PIPE, start_new_session=True)\n"
        "child.stdout.readline()\n"
        "with STOPPER.finishing():\n  ready()\n  time.sleep(60)"
    )
    process = program(text, METATUNE_GRACE_SECONDS="30" if len(numbers) == 2 else "1")
    (child,) = psutil.Process(process.pid).children()
    code, _, errors, seconds = stop(process, *numbers)
    assert code == 128 + numbers[0] and seconds < 10
    assert last_line(errors) == f"metatune: stopped by {signal.Signals(numbers[0]).name}"
    assert not psutil.wait_procs([child], timeout=5)[1]


def test_a_signal_that_is_ignored_stays_ignored_as_under_nohup():
    nohup = (
        "import signal, os, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.executable, sys.argv[1:])"
    )
    child = "from metatune.recipes.stopping import STOPPER; STOPPER.listen(); print(1, flush=True); input(); print(2)"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment()}
    process = subprocess.Popen([sys.executable, "-c", nohup, sys.executable, "-c", child], **pipes)
    assert process.stdout.readline() == "1\n"
    process.send_signal(signal.SIGHUP)
    assert process.communicate("\n", timeout=30)[0] == "2\n" and process.returncode == 0


def test_a_forked_worker_can_be_terminated():
    text = (
        "import multiprocessing\n"
        "worker = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,), daemon=True)\n"
        "STOPPER.finish_first = True\n"
        "ready(); worker.start(); time.sleep(0.5); worker.terminate(); worker.join(5)\n"
        "print(worker.exitcode)"
    )
    code, output, _ = finish(program(text))
    assert (code, output) == (0, "-15\n")


def test_a_process_whose_launcher_is_dead_stops():
    code = "from metatune.recipes.config import run; run(None, None)"
    ended, _, errors = finish(start([sys.executable, "-c", code], METATUNE_LAUNCHED=str(2**22)))
    assert ended == 143
    assert last_line(errors) == f"metatune: stopped, because its launcher (process {2**22}) died"


def test_the_resume_command_is_the_command_with_one_option():
    resumed = "metatune grpo --config 'my recipe.yaml' --max_steps 3 --resume_from_checkpoint true"
    command = ["grpo", "--config", "my recipe.yaml", "--max_steps", "3"]
    assert resume_command(command) == resumed
    assert resume_command([*command[:3], "--resume_from_checkpoint", "run/checkpoint-2", *command[3:]]) == resumed
    assert resume_command([*command, "--resume_from_checkpoint=true"]) == resumed
    assert resume_command([]) == "the same command with --resume_from_checkpoint true"


# ---- runs ----


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["one process", "ddp"])
def test_a_stopped_run_resumes_bit_for_bit(tmp_path, sharding):
    """It stops after the step in which one of its processes got the signal: inside a generation block here."""
    recipe, values = TRAINERS["DUMP"]
    processes = 2 if sharding == "ddp" else 1
    write_recipe(tmp_path / "recipe.yaml", values(tmp_path, processes, ""), max_steps=8, save_steps=8)
    whole = Run(recipe, sharding, tmp_path / "whole", "--save_steps", "1")
    whole.finish()
    stopped = Run(recipe, sharding, tmp_path / "stopped")
    started = stopped.start()
    while not is_written(stopped.folder / "metrics.jsonl") or not (stopped.folder / "metrics.jsonl").read_text():
        assert all(process.is_alive() for process in started), stopped.log.read_text()[-3000:]
        time.sleep(0.01)
    os.kill(started[-1].pid, signal.SIGTERM)
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [143] * processes, stopped.log.read_text()[-3000:]
    last = last_whole_checkpoint(stopped.folder)
    assert f"stopped by SIGTERM; last complete checkpoint: {last}" in last_line(stopped.log.read_text())
    stopped.finish("--resume_from_checkpoint", "true")
    for name in (last.name, "checkpoint-8"):
        found = differences(contents(stopped.folder / name), contents(whole.folder / name))
        assert [each for each in found if "/save_steps" not in each] == []


LONG = {**GRPO, "max_steps": 400, "save_steps": 100, "dataloader_num_workers": 1}


@pytest.mark.slow
def test_ctrl_c_ends_a_run_with_its_last_checkpoint_and_the_command_that_resumes_it(tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", LONG, output_dir=str(tmp_path / "run"))
    process = start(metatune("grpo", "--config", recipe))
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    while not log_rows(tmp_path / "run"):
        time.sleep(0.1)
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    code, _, errors = finish(process, limit=60)
    last = last_whole_checkpoint(tmp_path / "run")
    assert code == 130 and "Traceback" not in errors
    assert last_line(errors) == (
        f"metatune: stopped by SIGINT; last complete checkpoint: {last}; resume: metatune grpo --config {recipe} "
        "--resume_from_checkpoint true"
    )
    assert len(started) >= 2 and not any(child.is_running() for child in started)


@pytest.mark.slow
def test_processes_whose_launcher_is_killed_save_and_end(tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", LONG, output_dir=str(tmp_path / "run"))
    process = start(metatune("grpo", "--config", recipe, "--num_processes", "2"))
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    while not log_rows(tmp_path / "run"):
        time.sleep(0.1)
    ranks = ranks_of(process)
    started = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    _, alive = psutil.wait_procs(started, timeout=40)
    assert len(ranks) == 2 and not alive
    assert last_whole_checkpoint(tmp_path / "run") is not None
    assert "because its launcher" in process.communicate()[1]
