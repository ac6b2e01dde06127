"""Wrap a reward function so that an exception affects only the completions that cause it.

Verifiers and reward functions are often user code, and may raise for an unexpected completion. If a function raises,
it is called again for each completion separately. Completions for which it raises have no reward (`None`, never 0),
and are counted and logged. A function that raises from the start, or too often, ends the run with its own traceback.
"""

import logging
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .correctness import RowError, correctness_reward
from .judge_client import JudgeError
from .reward_server import RewardServerError

WINDOW = 256  # number of recent completions for the share of failures
LEAST_FAILURES = 8  # in the window before the share can end the run
LONGEST_COMPLETION = 200  # characters of a completion in a message
PASSED_ON = (RowError, JudgeError, RewardServerError)  # their messages are complete, and no completion causes them

logger = logging.getLogger(__name__)
Rewards = list[float | None]


class VerifierError(RuntimeError):
    """A verifier or reward function raises from its first call, or too often; `__cause__` is its exception."""


class GuardedReward:
    """A reward function for TRL that wraps one that may raise.

    Logs `NAME/raised`, the share of completions for which it raised, from the first exception on. Verifiers are
    counted by name, so that a broken one is detected even if others work.

    Args:
        function (`Callable`): a TRL reward function.
        name (`str`): the name under which TRL logs it.
        max_failures (`float`): share of the last 256 completions for which it may raise; 1 never ends the run.

    Attributes:
        trouble (`str`, *optional*): the exception of the last call, in one line.
    """

    def __init__(self, function: Callable[..., Any], name: str, max_failures: float):
        self.function, self.__name__, self.max_failures = function, name, max_failures
        self.trouble: str | None = None
        self._raised: dict[str, deque[bool]] = defaultdict(lambda: deque(maxlen=WINDOW))
        self._number_raised, self._ever_scored = 0, set[str]()

    def __call__(self, **inputs: Any) -> Rewards:
        """Reward B completions.

        Raises:
            VerifierError: the function raises from its first call, or too often.
        """
        errors: dict[int, Exception] = {}
        try:
            rewards = self.function(**inputs)
        except PASSED_ON:
            raise
        except Exception as error:
            logs, rewards = _Logs(inputs), []
            for row, alone in enumerate(logs.alone()):
                try:
                    rewards += self.function(**alone)
                except RowError as own:
                    raise RowError(own.reason, row) from own
                except PASSED_ON:
                    raise
                except Exception as own:
                    rewards.append(None)
                    errors[row] = own
            if self._merge(logs, rewards, errors, error):
                rewards = self.function(**inputs)
        self._count(inputs, errors, len(rewards))
        return rewards

    def _merge(self, logs: "_Logs", rewards: Rewards, errors: Mapping[int, Exception], first: Exception) -> bool:
        """Pass on the logs of single calls, or return whether the function must be called again for the whole batch.

        If no single call raises, the failure may have been temporary. Verifiers grade each completion independently,
        so their single calls are valid. A reward function may compare the completions of a batch.
        """
        if len(rewards) != logs.number:
            raise first
        if not errors:
            kind = "verifier" if self.function is correctness_reward else "reward function"
            reason = f"{type(first).__name__}: {first}"
            logger.warning("%s %r raised %s once, and not when it was called again", kind, self.__name__, reason)
            if self.function is not correctness_reward:
                return True
        logs.pass_on()
        return False

    def _count(self, inputs: Mapping[str, Any], errors: Mapping[int, Exception], number: int) -> None:
        """Count and log the exceptions, and raise if there are too many."""
        self.trouble = None
        verifiers = inputs["verifier"] if self.function is correctness_reward else [self.__name__] * number
        for row, verifier in enumerate(verifiers):
            if verifier:
                self._raised[verifier].append(row in errors)
        self._ever_scored |= {verifier for row, verifier in enumerate(verifiers) if verifier and row not in errors}
        self._number_raised += len(errors)
        log_metric = inputs.get("log_metric")
        if log_metric is not None and self._number_raised and number:
            log_metric(f"{self.__name__.removesuffix('_reward')}/raised", len(errors) / number)
        counts = Counter(verifiers[row] for row in errors)
        for verifier, count in counts.items():
            row = next(row for row in errors if verifiers[row] == verifier)
            what = f"{count} of {verifiers.count(verifier)} completions of this batch"
            self.trouble = self._describe(verifier, what, errors[row], inputs, row)
            logger.warning("%s; these completions have no reward", self.trouble)
            if (share := self._too_much(verifier)) is not None:
                raise VerifierError(self._describe(verifier, share, errors[row], inputs, row)) from errors[row]

    def _too_much(self, verifier: str) -> str | None:
        """Describe how often a verifier raised if that ends the run; otherwise return `None`."""
        window = self._raised[verifier]
        raised = sum(window)
        if self.max_failures == 1:
            return None
        if verifier not in self._ever_scored and raised > 1:
            return f"each of its first {raised} completions"
        if raised <= self.max_failures * len(window) or (raised < LEAST_FAILURES and self.max_failures > 0):
            return None
        allowed = f"max_verifier_failures {self.max_failures:g}"
        return f"{raised} of its last {len(window)} completions ({allowed})"

    def _describe(self, verifier: str, what: str, error: Exception, inputs: Mapping[str, Any], row: int) -> str:
        """Describe in one line the function, its exception, the distribution and the completion."""
        kind = "verifier" if self.function is correctness_reward else "reward function"
        distributions = inputs.get("distribution")
        where = "" if distributions is None else f"distribution {distributions[row]!r}, "
        completion = inputs["completions"][row]
        text = completion if isinstance(completion, str) else str(completion[-1].get("content", ""))
        shown = text if len(text) <= LONGEST_COMPLETION else f"{text[:LONGEST_COMPLETION]}…"
        reason = " ".join(str(error).split())[:LONGEST_COMPLETION]
        return (
            f"{kind} {verifier!r} raised {type(error).__name__}{f': {reason}' if reason else ''} on {what} "
            f"({where}completion {shown!r})"
        )


class AsyncGuardedReward(GuardedReward):
    """A [`GuardedReward`] for an asynchronous reward function."""

    async def __call__(self, **inputs: Any) -> Rewards:  # type: ignore[override]
        """Reward B completions; raises as the synchronous one does."""
        errors: dict[int, Exception] = {}
        try:
            rewards = await self.function(**inputs)
        except PASSED_ON:
            raise
        except Exception as error:
            logs, rewards = _Logs(inputs), []
            for row, alone in enumerate(logs.alone()):
                try:
                    rewards += await self.function(**alone)
                except RowError as own:
                    raise RowError(own.reason, row) from own
                except PASSED_ON:
                    raise
                except Exception as own:
                    rewards.append(None)
                    errors[row] = own
            if self._merge(logs, rewards, errors, error):
                rewards = await self.function(**inputs)
        self._count(inputs, errors, len(rewards))
        return rewards


class _Logs:
    """A batch's inputs row by row, and the merged logs of the calls for single rows.

    Args:
        inputs (`Mapping[str, Any]`): what TRL passes to a reward function for B completions.
    """

    def __init__(self, inputs: Mapping[str, Any]):
        self._inputs, self.number = inputs, len(inputs["completions"])
        self._metrics: dict[str, list[float]] = defaultdict(list)
        self._columns: dict[str, list[Any]] = defaultdict(lambda: [None] * self.number)

    def alone(self) -> Iterator[dict[str, Any]]:
        """Yield the inputs of each row, as a batch of one."""
        for row in range(self.number):
            alone = {
                name: value[row : row + 1] if _is_column(value, self.number) else value
                for name, value in self._inputs.items()
            }
            if "log_metric" in alone:
                alone["log_metric"] = lambda name, value: self._metrics[name].append(value)
            if "log_extra" in alone:
                alone["log_extra"] = lambda name, values, row=row: self._columns[name].__setitem__(row, values[0])
            yield alone

    def pass_on(self) -> None:
        """Log the means of the rows' metrics, and their extra values as complete columns."""
        for name, values in self._metrics.items():
            self._inputs["log_metric"](name, sum(values) / len(values))
        for name, values in self._columns.items():
            self._inputs["log_extra"](name, values)


def _is_column(value: Any, number: int) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == number
