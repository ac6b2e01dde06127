"""A vLLM server that is absent, dies, hangs or serves another model ends the run with its cause, soon and in one line.

TRL's requests to the server have no time limit, and a collective with a dead server need not end by itself (NCCL's
does not). So while a run depends on the server, a thread asks it for its health: refused several times in a row, or
without an answer for `PATIENCE` seconds, the process says so and ends; the launcher then ends the others. Nothing is
being written while rollouts are generated or weights are sent, so the last checkpoint is whole.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

PATIENCE = 90.0  # seconds without an answer
REFUSALS = 4  # in a row: nobody listens there any more
INTERVAL = 3.0
ANSWER = 10.0  # seconds for one answer


class VLLMServerError(RuntimeError):
    """The vLLM server cannot be used, with the cause and the mend in one line."""


def probe(base_url: str) -> str | None:
    """Return `None` if the server at `base_url` is well, else what is wrong: `refused` if nobody listens there."""
    try:
        response = httpx.get(f"{base_url}/health", timeout=ANSWER)
    except httpx.ConnectTimeout:
        return f"no answer within {ANSWER:.0f} s"
    except httpx.ReadTimeout:
        return f"connected, but no answer within {ANSWER:.0f} s"
    except httpx.HTTPError:
        return "refused"
    return None if response.status_code == 200 else f"its engine is dead or ill (HTTP {response.status_code})"


def wait_for_server(base_url: str, timeout: float) -> None:
    """Wait until the server is up.

    Raises:
        VLLMServerError: if it is not within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while (trouble := probe(base_url)) is not None:
        if time.monotonic() + INTERVAL > deadline:
            trouble = "connection refused" if trouble == "refused" else trouble
            raise VLLMServerError(
                f"no vLLM server at {base_url} after {timeout:.0f} s ({trouble}): start it with `metatune vllm-serve`"
                ", correct vllm_server_host and vllm_server_port, or raise vllm_server_timeout"
            )
        time.sleep(INTERVAL)


def check_model(base_url: str, model: str) -> None:
    """Check that the server serves `model`, a hub name or a folder.

    Raises:
        VLLMServerError: if it serves another: it would take the weights and answer with another tokenizer or shape.
    """
    served = httpx.get(f"{base_url}/v1/models", timeout=ANSWER).json()["data"]
    names = {name for entry in served for name in (entry["id"], entry.get("root"))}
    folder = Path(model)
    if model in names or any(name and Path(name).resolve() == folder.resolve() for name in names):
        return
    raise VLLMServerError(
        f"the vLLM server at {base_url} serves {served[0]['id']!r}, this run trains {model!r}: start it with "
        f"`metatune vllm-serve --model {model}`; if the same model lies there under another path, add "
        f"--served-model-name {model}"
    )


def check_port(port: int) -> None:
    """Check that this process can listen on `port`, where the server's workers come to fetch weights.

    Raises:
        VLLMServerError: if it is taken.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError as error:
            raise VLLMServerError(
                f"port {port}, on which the vLLM server is to fetch weights: {error.strerror}; another run "
                "may use it: set vllm_group_port to a free one"
            ) from None


@contextmanager
def watched(base_url: str) -> Iterator[None]:
    """Run the block while a thread watches the server; end the process if the server is gone.

    Raises:
        VLLMServerError: if the block fails and the server is not well.
    """
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(base_url, over), daemon=True)
    thread.start()
    try:
        yield
    except Exception as error:
        trouble = probe(base_url)
        if trouble is None:
            raise
        raise VLLMServerError(lost(base_url, trouble)) from error
    finally:
        over.set()


def lost(base_url: str, trouble: str) -> str:
    """Say that the server was lost in the middle of a run."""
    trouble = "it no longer runs" if trouble == "refused" else trouble
    return (
        f"lost the vLLM server at {base_url}: {trouble}; see its own log, start it again, and go on from the last "
        "checkpoint with --resume_from_checkpoint true"
    )


def _watch(base_url: str, over: threading.Event) -> None:
    last_well, refusals = time.monotonic(), 0
    while not over.wait(INTERVAL):
        trouble = probe(base_url)
        if trouble is None:
            last_well, refusals = time.monotonic(), 0
            continue
        refusals = refusals + 1 if trouble == "refused" else 0
        if not over.is_set() and (refusals >= REFUSALS or time.monotonic() - last_well > PATIENCE):
            _end(lost(base_url, trouble))


def _end(message: str) -> None:
    """End the process from a thread: the main one may be in a collective that never returns."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:  # the launcher reads the cause there
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(VLLMServerError(message))
    print(f"metatune: error: {message}", file=sys.stderr, flush=True)
    os._exit(1)
