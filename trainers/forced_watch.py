"""Detect a forcing suffix that does not fit the grader: forced answers fail although complete traces succeed."""

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

MIN_BATCHES = 10
MIN_FORCED = 300  # prefixes: with a success rate of 1 %, the probability of no correct answer is 5 %
MIN_OUTCOME = 0.1
MAX_FORCED = 0.01


@dataclass(frozen=True)
class Batch:
    """The results of one verifier's rows in a batch.

    Args:
        outcomes (`tuple[float, ...]`): known outcomes of the traces.
        forced (`tuple[float, ...]`): known success rates of forced answers at their prefixes.
    """

    outcomes: tuple[float, ...]
    forced: tuple[float, ...]


def is_enough(batches: Sequence[Batch]) -> bool:
    """Return whether the batches have enough prefixes for a decision."""
    return len(batches) >= MIN_BATCHES and sum(len(batch.forced) for batch in batches) >= MIN_FORCED


def never_right(batches: Sequence[Batch]) -> bool:
    """Return whether traces succeed at a rate of at least `MIN_OUTCOME` and forced answers of at most `MAX_FORCED`.

    Args:
        batches (`Sequence[Batch]`): with at least one outcome and one prefix.
    """
    outcomes = [outcome for batch in batches for outcome in batch.outcomes]
    forced = [success for batch in batches for success in batch.forced]
    return sum(outcomes) / len(outcomes) >= MIN_OUTCOME and sum(forced) / len(forced) <= MAX_FORCED


class ForcedWatch:
    """Keep the last batches of each verifier, no more than a decision needs."""

    def __init__(self) -> None:
        self._batches: dict[str | None, deque[Batch]] = defaultdict(deque)
        self._reported: set[str | None] = set()

    def observe(self, verifier: str | None, batch: Batch) -> int:
        """Add a batch. Return the number of batches if their forced answers almost never succeed, else 0.

        A verifier is reported once.

        Args:
            verifier (`str`, *optional*): the name of the rows' verifier.
            batch (`Batch`): the batch; it is ignored if it has no outcomes or no prefixes.
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
