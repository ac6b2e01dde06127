"""What a run is told of a vLLM server that is not as it should be. The servers here are stand-ins that speak HTTP."""

import json
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from metatune.trainers import server_watch
from metatune.trainers.server_watch import VLLMServerError, check_model, check_port, probe, wait_for_server, watched


@contextmanager
def fake_server(status: int = 200, model: str = "some/model", root: str = "some/model"):
    """Answers /health with `status` and names a model."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/health" else 200)
            self.end_headers()
            self.wfile.write(json.dumps({"data": [{"id": model, "root": root}]}).encode())

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}"
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


@pytest.fixture
def silent_port():
    """A port that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def nobody():
    with socket.socket() as probe_socket:
        probe_socket.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe_socket.getsockname()[1]}"


@pytest.fixture(autouse=True)
def short_times(monkeypatch):
    monkeypatch.setattr(server_watch, "ANSWER", 0.3)
    monkeypatch.setattr(server_watch, "INTERVAL", 0.05)


def test_probe_tells_the_ways_of_being_ill_apart(nobody, silent_port):
    assert probe(nobody) == "refused"
    assert "no answer within" in probe(f"http://127.0.0.1:{silent_port}")
    with fake_server() as url:
        assert probe(url) is None
    with fake_server(status=503) as url:
        assert "dead or ill (HTTP 503)" in probe(url)


def test_waiting_ends_with_the_mend(nobody, silent_port):
    with pytest.raises(
        VLLMServerError, match=r"after 0 s \(connection refused\): start it with `metatune vllm-serve`"
    ):
        wait_for_server(nobody, timeout=0.2)
    with pytest.raises(VLLMServerError, match="connected, but no answer"):
        wait_for_server(f"http://127.0.0.1:{silent_port}", timeout=0.2)
    with fake_server() as url:
        wait_for_server(url, timeout=5)


def test_another_model_is_refused(tmp_path):
    with fake_server(model="Qwen/Qwen2.5-7B", root="Qwen/Qwen2.5-7B") as url:
        check_model(url, "Qwen/Qwen2.5-7B")
        with pytest.raises(VLLMServerError, match=r"serves 'Qwen/Qwen2.5-7B', this run trains 'Qwen/Qwen2.5-1.5B'"):
            check_model(url, "Qwen/Qwen2.5-1.5B")
    with fake_server(model="mine", root=str(tmp_path)) as url:  # --served-model-name mine
        check_model(url, "mine")
        check_model(url, f"{tmp_path}/../{tmp_path.name}")


def test_a_taken_port_is_named():
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(VLLMServerError, match=f"port {port}, on which .* set vllm_group_port"):
            check_port(port)
    check_port(port)


def test_an_error_while_the_server_is_gone_is_the_servers(nobody):
    lost = r"lost the vLLM server at .*no longer runs.*resume_from_checkpoint"
    with pytest.raises(VLLMServerError, match=lost), watched(nobody):
        raise ConnectionError("Max retries exceeded")


def test_an_error_while_the_server_is_well_stays_what_it_is():
    with fake_server() as url, pytest.raises(ZeroDivisionError), watched(url):
        raise ZeroDivisionError


@pytest.mark.parametrize("silent", [False, True], ids=["dead", "hanging"])
def test_a_block_that_never_returns_is_ended(nobody, silent_port, silent):
    url = f"http://127.0.0.1:{silent_port}" if silent else nobody
    program = f"""
import time
from metatune.trainers import server_watch
server_watch.ANSWER, server_watch.INTERVAL, server_watch.PATIENCE = 0.2, 0.05, 0.5
with server_watch.watched({url!r}):
    time.sleep(60)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50)
    assert result.returncode == 1
    assert result.stderr.startswith(f"metatune: error: lost the vLLM server at {url}")
    assert len(result.stderr.strip().splitlines()) == 1
