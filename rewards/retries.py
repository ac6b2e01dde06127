"""Retries of requests: the pauses between attempts, and the log lines in the meantime."""

import asyncio
import logging
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

LONGEST_PAUSE = 30.0  # seconds between two attempts
REPORT_EVERY = 15.0  # seconds between two log lines of a waiting call

logger = logging.getLogger(__name__)


def pause_before_retry(attempt: int, requested: float | None, longest: float = LONGEST_PAUSE) -> float:
    """Return the seconds to wait after attempt `attempt` (from 0): exponential, or as requested if longer."""
    return max(min(2.0**attempt, longest) * random.uniform(0.5, 1.0), requested or 0.0)


class WaitReport:
    """Logs that a call is waiting for a server: at the first retry, and every 15 seconds until the call ends.

    A call without a retry is reported only until its first request is answered, so that a slow but healthy server logs
    nothing. The first process logs warnings, the others at level INFO: all of them wait for the same server.

    Args:
        server (`str`): the server, such as `judge (http://127.0.0.1:8001/v1, model m)`.
        number (`int`): requests of the call.
    """

    def __init__(self, server: str, number: int):
        self._server, self._number, self._answered = server, number, 0
        self._last_failure: str | None = None
        self._started = time.monotonic()
        self._level = logging.WARNING if os.environ.get("RANK", "0") == "0" else logging.INFO

    def answered(self) -> None:
        """Count a completed request."""
        self._answered += 1

    def retry(self, failure: str, tried: int, tries: int, pause: float) -> None:
        """Record that attempt `tried` of at most `tries` failed and is repeated after `pause` seconds."""
        if self._last_failure is None:
            self._log(f"try {tried} of {tries} failed: {failure}; trying again in {pause:.1f} s")
        self._last_failure = f"{failure} (try {tried} of {tries})"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Report while the body runs."""
        task = asyncio.create_task(self._repeat())
        try:
            yield
        finally:
            task.cancel()

    async def _repeat(self) -> None:
        while True:
            await asyncio.sleep(REPORT_EVERY)
            if self._last_failure is None and self._answered:
                continue
            seconds = time.monotonic() - self._started
            why = "no answer yet" if self._last_failure is None else f"last failure: {self._last_failure}"
            self._log(f"{self._answered} of {self._number} requests done after {seconds:.0f} s; {why}")

    def _log(self, text: str) -> None:
        logger.log(self._level, "%s: %s", self._server, text)
