"""A run that cannot go on ends soon, with the cause in its last line, and its last whole checkpoint goes on."""

import errno
import json
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from metatune.recipes.failures import cause_of, describe_exit, known_cause, one_line
from metatune.trainers.server_watch import VLLMServerError

from .adapter_setup import save_adapter
from .launches import (
    GRPO,
    REWARD,
    finish,
    last_line,
    log_rows,
    metatune,
    ranks_of,
    start,
    succeed,
    wait_for,
    write_pairs,
    write_recipe,
)

# ---- what the launcher makes of the processes' ends ----


def failure(exitcode, message="", timestamp=0):
    return SimpleNamespace(exitcode=exitcode, message=message, timestamp=timestamp)


def test_the_killed_process_is_the_cause_not_those_that_lost_it():
    lost = failure(1, {"message": "RecordedError: RuntimeError: gloo: Connection reset by peer"}, timestamp=1)
    closed = failure(-15, timestamp=2)  # torchrun's own way to end the others
    assert cause_of({0: lost, 1: failure(-9, timestamp=3)})[0] == 1
    assert cause_of({0: closed, 1: failure(-9, timestamp=3)})[0] == 1
    assert cause_of({0: lost, 1: failure(1, "ValueError", timestamp=2)})[0] == 1
    assert cause_of({0: failure(-15, timestamp=1), 1: failure(2, "a mistake", timestamp=2)})[0] == 1
    assert cause_of({0: lost, 1: failure(-15, timestamp=2)})[0] == 1  # ended from outside
    assert cause_of({0: failure(1, "first", 1), 1: failure(1, "second", 2)})[0] == 0


def test_the_line_says_who_ended_and_how():
    assert "rank 1 of 2 was killed (SIGKILL), most likely because memory ran out" in describe_exit(
        -9, "", "rank 1 of 2"
    )
    recorded = {"message": "RecordedError: ValueError: two\nlines"}
    assert describe_exit(1, recorded, "rank 0 of 2") == "rank 0 of 2 failed (exit code 1): ValueError: two lines"
    assert len(one_line("x" * 9999)) == 800


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:659] . unexpected pos 64 vs 0"),
    ],
)
def test_a_failed_write_is_told_with_its_folder_and_what_to_do(error, tmp_path):
    wrapped = ValueError("while saving")
    wrapped.__cause__ = error
    message = known_cause(wrapped, str(tmp_path / "run"))
    assert message.startswith(f"{tmp_path / 'run'}: ") and "--resume_from_checkpoint true" in message
    lost = RuntimeError("a collective failed")
    lost.__cause__ = VLLMServerError("lost the vLLM server")
    assert known_cause(lost, None) == "lost the vLLM server"
    assert known_cause(ValueError("no space in this sentence"), None) is None
    assert known_cause(FileNotFoundError(errno.ENOENT, "No such file"), None) is None


def test_errors_that_caused_each_other_have_no_known_cause():
    itself, other = ValueError("raised from itself"), ValueError("another")
    itself.__cause__ = itself
    assert known_cause(itself, None) is None
    itself.__cause__, other.__context__ = other, itself
    assert known_cause(itself, None) is None


@pytest.mark.parametrize(
    ("world_size", "before", "teardown"),
    [("1", "", True), ("2", "", False), ("1", "import sys; sys.modules['vllm'] = sys", False)],
)
def test_a_process_leaves_without_the_teardown_that_threads_of_gloo_or_vllm_may_abort(world_size, before, teardown):
    program = (
        f"{before}\n"
        "import atexit\n"
        "from metatune.recipes.failures import leave\n"
        "class Late:\n"
        "    def __del__(self): print('teardown', flush=True)\n"
        "late = Late()\n"
        "atexit.register(print, 'exit functions')\n"
        "leave(3)"
    )
    code, output, errors = finish(start([sys.executable, "-c", program], WORLD_SIZE=world_size))
    assert code == 3, errors
    assert output.split("\n")[:-1] == ["exit functions", *["teardown"] * teardown]


# ---- launches ----


def test_a_port_in_use_is_one_line_that_names_it(tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", GRPO, output_dir=str(tmp_path / "run"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        launch = metatune("grpo", "--config", recipe, "--num_processes", "2", "--main_process_port", port)
        code, _, errors = finish(start(launch), limit=60)
    assert code == 2
    assert errors == (
        f"metatune: error: --main_process_port {port}: Address already in use; "
        "give another port, or 0 for any free one\n"
    )


@pytest.mark.slow
def test_two_machines_that_disagree_about_the_number_of_processes_end_with_one_line_each(tmp_path):
    """Both on this machine: the first was told two processes in all, the second four."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    recipe = write_recipe(tmp_path / "recipe.yaml", GRPO, output_dir=str(tmp_path / "run"))
    two = ("--num_machines", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", port)
    machines = [
        start(metatune("grpo", "--config", recipe, *two, "--machine_rank", str(rank), "--num_processes", total))
        for rank, total in enumerate(("2", "4"))
    ]
    for machine, total in zip(machines, ("2", "4"), strict=True):
        code, _, errors = finish(machine, limit=120)
        assert code == 2, errors
        assert f"{total} processes were asked for" in last_line(errors) and "3 would train" in last_line(errors)
        assert "Traceback" not in errors and errors.count("processes were asked for") == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_rank_ends_a_run_of_ddp_and_its_last_checkpoint_goes_on(tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", GRPO, output_dir=str(tmp_path / "run"), max_steps=16, save_steps=1)
    launch = metatune("grpo", "--config", recipe, "--num_processes", "2")
    process = start(launch)
    wait_for(tmp_path / "run" / "checkpoint-5" / "trainer_state.json", process)
    ranks = ranks_of(process)
    assert sorted(ranks) == [0, 1]
    ranks[1].kill()
    code, _, errors = finish(process, limit=60)
    assert code != 0
    assert last_line(errors).startswith("metatune: error: rank 1 of 2 was killed (SIGKILL)")
    assert "--resume_from_checkpoint true" in last_line(errors)
    assert not any(rank.is_running() for rank in ranks.values())

    # Going on from an earlier checkpoint gives what the killed run had logged after it.
    before = log_rows(tmp_path / "run")
    resume = ("--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-3"), "--save_strategy", "no")
    succeed([*launch, *resume])
    after = log_rows(tmp_path / "run")
    assert len(after) == 16 and len(before) >= 5
    for row, other in zip(before, after, strict=False):
        assert [row.get(key) for key in ("step", "loss", "reward", "grad_norm")] == [
            other.get(key) for key in ("step", "loss", "reward", "grad_norm")
        ]


def can_mount() -> bool:
    """Tell whether a process may mount a tmpfs in a name space of its own."""
    try:
        mounted = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
    except OSError:
        return False
    return mounted.returncode == 0


def on_a_small_disk(launch: list[str], disk: Path, size: str) -> tuple[int, str, Path]:
    """Run a launch with a tmpfs of that size at `disk`; returns exit code, stderr, and where its files are kept.

    The disk is gone when its last process ends, so what is on it is copied away first.
    """
    disk.mkdir()
    kept = disk.with_name("kept")
    mount = f'mount -t tmpfs -o size={size} none {disk} || exit 99; "$@"; code=$?; cp -r {disk} {kept}; exit $code'
    code, _, errors = finish(start(["unshare", "-rm", "sh", "-c", mount, "sh", *launch]))
    return code, errors, kept


needs_tmpfs = pytest.mark.skipif(not can_mount(), reason="needs user name spaces, to mount a small tmpfs")


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_tmpfs
def test_a_full_disk_simulated_by_a_small_tmpfs_is_one_line_and_leaves_the_checkpoint_before_whole(tmp_path):
    disk = tmp_path / "disk"
    recipe = write_recipe(tmp_path / "recipe.yaml", GRPO, output_dir=str(disk / "run"), max_steps=40, save_steps=1)
    launch = metatune("grpo", "--config", recipe, "--num_processes", "2")
    code, errors, kept = on_a_small_disk(launch, disk, "22m")
    assert code == 1, errors[-3000:]
    line = last_line(errors)
    assert line.startswith("metatune: error: ") and f"{disk / 'run'}: no space left (0 MiB free" in line, line

    from metatune.recipes.run_folder import last_whole_checkpoint

    last = last_whole_checkpoint(kept / "run")
    torn = kept / "run" / f"checkpoint-{int(last.name.split('-')[1]) + 1}"
    assert torn.is_dir() and not (torn / "trainer_state.json").exists()
    step = json.loads((last / "trainer_state.json").read_text())["global_step"]
    more = ("--max_steps", str(step + 1), "--output_dir", str(kept / "run"), "--resume_from_checkpoint", "true")
    succeed([*launch, *more])
    assert [row["step"] for row in log_rows(kept / "run")] == list(range(1, step + 2))


@pytest.mark.slow
@needs_tmpfs
def test_a_full_disk_simulated_by_a_small_tmpfs_ends_a_command_that_is_not_launched(tmp_path):
    """A run that can be gone on with says so; one that cannot says to run it again."""
    disk = tmp_path / "disk"
    values = {key: value for key, value in REWARD.items() if not key.startswith(("save_", "logging_"))}
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        values,
        dataset_name=str(write_pairs(tmp_path / "pairs.jsonl")),
        num_models=2,
        num_folds=2,
    )
    strength = ("strength", "--config", recipe, "--output_dir")
    code, errors, kept = on_a_small_disk(metatune(*strength, disk / "run"), disk, "16k")  # lock, recipe, two votes
    assert code == 1, errors[-3000:]
    line = last_line(errors)
    assert line.startswith("metatune: error: ") and "no space left (0 MiB free" in line, line
    assert "--resume_from_checkpoint true" in line and "Traceback" not in errors
    votes = {path.name: path.read_bytes() for path in (kept / "run" / "votes").glob("*.json")}
    assert len(votes) == 2
    succeed(metatune(*strength, kept / "run", "--resume_from_checkpoint", "true"))
    assert all((kept / "run" / "votes" / name).read_bytes() == vote for name, vote in votes.items())
    assert (kept / "run" / "strength.json").is_file()


@pytest.mark.slow
@needs_tmpfs
def test_a_full_disk_simulated_by_a_small_tmpfs_ends_a_command_that_cannot_be_gone_on_with(tmp_path):
    save_adapter(tmp_path / "lora")
    disk = tmp_path / "disk"
    merge = metatune("merge", "--model", tmp_path / "lora", "--output_dir", disk / "merged")
    code, errors, _ = on_a_small_disk(merge, disk, "256k")
    assert code == 1, errors[-3000:]
    line = last_line(errors)
    assert line.startswith("metatune: error: ") and "no space left (0 MiB free" in line, line
    assert "run it again" in line and "resume" not in line and "Traceback" not in errors


@pytest.mark.slow
def test_a_single_process_that_is_killed_is_one_line(tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", GRPO, output_dir=str(tmp_path / "run"), max_steps=400)
    process = start(metatune("grpo", "--config", recipe))
    wait_for(tmp_path / "run" / "checkpoint-3" / "trainer_state.json", process)
    (child,) = psutil.Process(process.pid).children()
    child.kill()
    code, _, errors = finish(process, limit=60)
    assert code == 1
    assert last_line(errors).startswith("metatune: error: the process was killed (SIGKILL)")


@pytest.mark.slow
def test_an_unexpected_error_keeps_its_traceback_and_the_cause_is_the_last_line(tmp_path):
    """Below a progress bar, which is closed first: the traceback begins a line of its own."""
    (tmp_path / "broken.py").write_text("def reward(completions, **kwargs):\n    return 1 / 0\n")
    options = {"reward_funcs": ["broken.reward"], "disable_tqdm": False, "output_dir": str(tmp_path / "run")}
    recipe = write_recipe(tmp_path / "recipe.yaml", GRPO, **options)
    code, _, errors = finish(start(metatune("grpo", "--config", recipe), PYTHONPATH=str(tmp_path)))
    assert code == 1
    assert "Traceback (most recent call last):" in errors.splitlines()
    assert "broken.py" in errors and "0/8" in errors
    assert last_line(errors).startswith(
        "metatune: error: the process failed (exit code 1): VerifierError: reward function 'reward' raised "
        "ZeroDivisionError: division by zero on each of its first 16 completions"
    )
