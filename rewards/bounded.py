"""Graders that run in a child process, bounded in time and memory, usable from any thread.

A grader that reads model output can hang, exhaust memory or crash. It runs in a child that is started at the first
answer and again after each kill; an answer on which the grader fails is unscorable (`None`), and no other answer
is touched. Requests and replies are lines of JSON.
"""

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from pathlib import Path
from typing import IO, Any

SCRIPT = Path(__file__).with_name("grading_process.py")
START_DEADLINE = 120.0  # seconds; importing SymPy from a cold disk on a busy machine takes long
ORPHAN_SECONDS = 5.0  # after the deadline; a grader still at work then has lost its parent
# Every BLAS thread reserves address space, which the memory limit counts.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class GraderStartError(RuntimeError):
    """The grading process could not be started: nothing can be scored."""


class _NoReplyError(Exception):
    """The child gave no reply; its text is the cause."""


class BoundedGrader:
    """
    One grader in one child process.

    Args:
        grader (`str`): name of a grader in `grading_process.GRADERS`.
        deadline (`float`, *optional*, defaults to `3.0`): seconds of wall time for one answer.
        memory (`int`, *optional*, defaults to `2 * 2**30`): bytes of address space that the child may use.

    Attributes:
        failures (`Counter[str]`): answers left unscored, by cause: `timeout`, `memory`, `recursion`, `crash`, `error`.
    """

    def __init__(self, grader: str, deadline: float = 3.0, memory: int = 2 * 2**30):
        self.grader = grader
        self.deadline = deadline
        self.memory = memory
        self.failures: Counter[str] = Counter()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        _graders.add(self)

    def grade(self, request: dict[str, Any]) -> bool | None:
        """
        Grade one request (JSON values only), waiting for those of other threads.

        Returns:
            `bool` or `None`: the verdict, or `None` if the grader failed on this answer.

        Raises:
            GraderStartError: the child process cannot be started.
            ValueError: the request itself is at fault, so that no answer to this task could be scored.
        """
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            end = time.monotonic() + self.deadline
            try:
                self._send(request, end)
                reply = self._receive(end)
            except _NoReplyError as cause:
                self._kill()
                reply = {"failure": str(cause)}
            except BaseException:  # an interrupt: the reply still to come must not pass for the next request's
                self._kill()
                raise
            if "failure" in reply:
                self.failures[reply["failure"]] += 1
            if reply.get("failure") == "memory":
                self._kill()  # what it has kept would be missing for the next answer
        if "invalid" in reply:
            raise ValueError(reply["invalid"])
        return reply.get("score")

    def close(self) -> None:
        """Stop the child; the next request starts a new one."""
        with self._lock:
            self._kill()

    def _start(self) -> None:
        self._kill()
        arguments = [self.grader, str(self.memory), str(self.deadline + ORPHAN_SECONDS)]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(SCRIPT), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env={**os.environ, **ONE_THREAD},
                start_new_session=True,  # Ctrl-C is for the parent, which then closes the child
            )
            os.set_blocking(self._pipes()[0].fileno(), False)  # a child that reads no more must not hold us up
            reply = self._receive(time.monotonic() + START_DEADLINE)
        except (OSError, _NoReplyError) as error:
            self._kill()
            raise GraderStartError(
                f"the {self.grader} grader did not start: {error}; try `{self._command()}`"
            ) from error
        except BaseException:
            self._kill()
            raise
        if "ready" not in reply:
            self._kill()
            raise GraderStartError(f"the {self.grader} grader did not start: {reply['invalid']}")

    def _command(self) -> str:
        return f"echo | {sys.executable} -P {SCRIPT} {self.grader} {self.memory} {self.deadline}"

    def _send(self, request: dict[str, Any], end: float) -> None:
        unsent = memoryview(json.dumps(request).encode() + b"\n")
        pipe = self._pipes()[0]
        try:
            while unsent:
                _wait(pipe, select.POLLOUT, end)
                unsent = unsent[pipe.write(unsent) or 0 :]
        except BrokenPipeError as error:
            raise _NoReplyError("crash") from error

    def _receive(self, end: float) -> dict[str, Any]:
        pipe = self._pipes()[1]
        line = b""
        while not line.endswith(b"\n"):
            _wait(pipe, select.POLLIN, end)
            part = os.read(pipe.fileno(), 65536)
            if not part:
                raise _NoReplyError("crash")
            line += part
        return json.loads(line)

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._drop_pipes()

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        """Return the child's input and output."""
        child = self._process
        if child is None or child.stdin is None or child.stdout is None:
            raise _NoReplyError("crash")
        return child.stdin, child.stdout

    def _drop_pipes(self) -> None:
        for pipe in self._pipes():
            pipe.close()
        self._process = None

    def _after_fork(self) -> None:
        """Leave the child to the parent, in a forked process: two writers to one pipe would mix their requests."""
        self._lock = threading.Lock()
        if self._process is not None:
            self._process.returncode = 0  # not ours to wait for
            self._drop_pipes()


def _wait(pipe: IO[bytes], event: int, end: float) -> None:
    ready = select.poll()
    ready.register(pipe, event)
    if not ready.poll(max(0.0, end - time.monotonic()) * 1000):
        raise _NoReplyError("timeout")


_graders: weakref.WeakSet[BoundedGrader] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for grader in list(_graders):
        grader.close()


def _forget_all() -> None:
    for grader in list(_graders):
        grader._after_fork()


os.register_at_fork(after_in_child=_forget_all)
