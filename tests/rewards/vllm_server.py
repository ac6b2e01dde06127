"""A real vLLM server of a model, on the CPU."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

START_LIMIT = 200  # seconds


@contextmanager
def vllm_server(model: Path, log: Path, max_model_len: int, *options: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """Serve a model, with vLLM's further `options`; yields the server's address, and its process, which is killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    command += ["--block-size", "32", "--max-model-len", str(max_model_len), *options]
    variables = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment = {**os.environ, **variables, "TORCH_COMPILE_DISABLE": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        deadline = time.monotonic() + START_LIMIT
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            with suppress(httpx.TransportError):
                if httpx.get(f"{url}/health", timeout=5).is_success:
                    break
            time.sleep(1)
        yield url, process
    finally:
        kill(process)


def kill(process: subprocess.Popen) -> None:
    """Kill a server with all of its processes, as a crash does."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
