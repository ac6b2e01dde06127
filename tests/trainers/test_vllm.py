"""A real vLLM engine on the CPU, colocated and behind HTTP: it answers with the weights that are being trained."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from metatune.recipes.run_folder import last_whole_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.needs("vllm"),
]
PROGRAM = [sys.executable, "-m", "tests.trainers.vllm_program"]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "DS_ACCELERATOR": "cpu",
}
ZERO3 = Path(__file__).parents[2] / "recipes" / "accelerate" / "zero3.yaml"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def started(command, output):
    """A process in a group of its own, which is killed in the end."""
    with output.open("w") as file:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=file, stderr=file, start_new_session=True)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # it has ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def train(folder, *options, program=PROGRAM) -> dict:
    """Run the program to its end and return what it measured."""
    with started([*program, str(folder), *options], folder / "train.log") as process:
        process.wait(timeout=300)
    log = (folder / "train.log").read_text()
    assert process.returncode == 0, log[-3000:]
    return json.loads(re.findall(r'^\{"before".*$', log, re.MULTILINE)[-1])


def assert_engine_follows(measured: dict) -> None:
    assert measured["before"] < 1e-5
    assert measured["after"] < 1e-5, "the engine does not answer with the weights that were trained"
    assert measured["after_first_weights"] > 0.05, "the engine still answers with the first weights"
    for line in measured["log"]:
        assert line["sampling/sampling_logp_difference/max"] < 1e-3, "the engine computes in another type"
        assert line["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-3)
        assert line["time/sync"] > 0


def test_colocated_engine_answers_with_the_trained_weights_tied_head(tmp_path):
    measured = train(tmp_path)
    assert_engine_follows(measured)
    assert all("vllm/prefix_cache_hit_rate" in line for line in measured["log"])


def test_colocated_engine_sees_the_adapters_weights_untied_head(tmp_path):
    assert_engine_follows(train(tmp_path, "--lora", "--untied", "--learning_rate", "0.05"))


@pytest.mark.parametrize(("progress", "metric"), [("episode", "value_at_start"), ("prefix", "prefix_tokens")])
def test_forced_answers_and_stale_prefixes_go_through_the_engine(tmp_path, progress, metric):
    measured = train(tmp_path, "--progress", progress, "--steps", "4")
    assert_engine_follows(measured)
    assert [f"progress/{metric}" in line for line in measured["log"]] == [True] * 4
    assert all("vllm/prefix_cache_hit_rate" in line for line in measured["log"])


@pytest.mark.needs("deepspeed")
def test_colocated_engines_of_two_zero3_processes_see_the_gathered_weights(tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ZERO3), "--num_processes", "2"]
    launch += ["--main_process_port", "0", "--module", PROGRAM[-1]]
    assert_engine_follows(train(tmp_path, program=launch))
    sharded, of = re.search(r"ZeRO-3 shards (\d+) of (\d+)", (tmp_path / "train.log").read_text()).groups()
    assert int(sharded) >= 15, f"{sharded} of {of} parameters are sharded"


@contextmanager
def server(folder, model, port):
    command = [sys.executable, "-m", "metatune.recipes.cli", "vllm-serve", "--model", str(model)]
    with started([*command, "--port", str(port), "--max_model_len", "128"], folder / "server.log") as process:
        deadline = time.monotonic() + 200
        while True:
            assert process.poll() is None, (folder / "server.log").read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                assert time.monotonic() < deadline, (folder / "server.log").read_text()[-3000:]
                time.sleep(1)
        yield process


def test_server_takes_the_weights_over_gloo_and_its_death_ends_the_run(tmp_path):
    from .vllm_program import save_model

    model = save_model(tmp_path / "model", tied=True)
    port, group_port = free_port(), free_port()
    options = ("--mode", "server", "--port", str(port), "--group_port", str(group_port))
    with server(tmp_path, model, port) as serving:
        assert_engine_follows(train(tmp_path, *options, "--progress", "episode"))
        other = tmp_path / "other"
        other.mkdir()
        save_model(other / "model", tied=True)
        with started([*PROGRAM, str(other), *options], other / "train.log") as process:
            assert process.wait(timeout=120) != 0
        assert f"serves '{model}', this run trains '{other / 'model'}'" in (other / "train.log").read_text()

        # A new trainer comes to the same server, and then the server dies under it.
        log = tmp_path / "train.log"
        with started([*PROGRAM, str(tmp_path), *options, "--steps", "5000", "--save_steps", "5"], log) as process:
            deadline = time.monotonic() + 120
            while "step 12\n" not in log.read_text():
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.2)
            os.killpg(serving.pid, signal.SIGKILL)
            killed = time.monotonic()
            assert process.wait(timeout=120) != 0
            assert time.monotonic() - killed < 90
    last_line = log.read_text().strip().splitlines()[-1]
    assert f"lost the vLLM server at http://127.0.0.1:{port}" in last_line

    # Whatever engine comes next, the last checkpoint goes on.
    checkpoint = last_whole_checkpoint(tmp_path / "run")
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    assert step >= 10
    resume = ("--mode", "none", "--resume_from_checkpoint", str(checkpoint), "--steps", str(step + 1))
    with started([*PROGRAM, str(tmp_path), *resume], log) as process:
        assert process.wait(timeout=120) == 0, log.read_text()[-3000:]
    assert [line for line in log.read_text().splitlines() if line.startswith("step ")] == [f"step {step + 1}"]
