"""Detect forced answers that are never right although whole traces are: then the suffix does not fit the grader."""

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

MIN_BATCHES = 10
MIN_FORCED = 300  # prefixes: at a chance of success of 1 %, none of them is right in 5 % of the cases
MIN_OUTCOME = 0.1
MAX_FORCED = 0.01


@dataclass(frozen=True)
class Batch:
    """What a batch shows of one verifier's rows.

    Args:
        outcomes (`tuple[float, ...]`): known outcomes of the traces.
        forced (`tuple[float, ...]`): known chances of success at their prefixes.
    """

    outcomes: tuple[float, ...]
    forced: tuple[float, ...]


def is_enough(batches: Sequence[Batch]) -> bool:
    """Return whether the batches have enough prefixes to judge by."""
    return len(batches) >= MIN_BATCHES and sum(len(batch.forced) for batch in batches) >= MIN_FORCED


def never_right(batches: Sequence[Batch]) -> bool:
    """Return whether traces succeed in at least `MIN_OUTCOME` and forced answers in at most `MAX_FORCED` of the cases.

    Args:
        batches (`Sequence[Batch]`): with at least one outcome and one prefix.
    """
    outcomes = [outcome for batch in batches for outcome in batch.outcomes]
    forced = [success for batch in batches for success in batch.forced]
    return sum(outcomes) / len(outcomes) >= MIN_OUTCOME and sum(forced) / len(forced) <= MAX_FORCED


class ForcedWatch:
    """Watches the last batches of each verifier, as few as are enough."""

    def __init__(self) -> None:
        self._batches: dict[str | None, deque[Batch]] = defaultdict(deque)
        self._reported: set[str | None] = set()

    def observe(self, verifier: str | None, batch: Batch) -> int:
        """Add a batch. Return the number of batches if their forced answers are never right, else 0.

        A verifier is reported once.

        Args:
            verifier (`str`, *optional*): the name of the rows' verifier.
            batch (`Batch`): one without outcomes or prefixes is left out.
        """
        batches = self._batches[verifier]
        if batch.outcomes and batch.forced:
            batches.append(batch)
        while is_enough(list(batches)[1:]):
            batches.popleft()
        if verifier in self._reported or not is_enough(batches) or not never_right(batches):
            return 0
        self._reported.add(verifier)
        return len(batches)
