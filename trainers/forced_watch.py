"""Detect forced answers that are never right although whole traces are: then the suffix does not fit the grader."""

import math
from collections import defaultdict, deque
from collections.abc import Sequence

WINDOW = 10  # batches
MIN_OUTCOME = 0.1
MAX_FORCED = 0.01


def never_right(outcomes: Sequence[float], forced: Sequence[float]) -> bool:
    """Return whether traces succeed in at least `MIN_OUTCOME` and forced answers in at most `MAX_FORCED` of the cases.

    Args:
        outcomes (`Sequence[float]`): mean outcome of each batch's traces.
        forced (`Sequence[float]`): mean success of the forced answers at their prefixes, of the same batches.

    Returns:
        `bool`: `False` without batches.
    """
    if not outcomes:
        return False
    return sum(outcomes) / len(outcomes) >= MIN_OUTCOME and sum(forced) / len(forced) <= MAX_FORCED


class ForcedWatch:
    """Watches the last `WINDOW` batches of each verifier that had both outcomes and forced answers."""

    def __init__(self) -> None:
        self._batches: dict[str | None, deque[tuple[float, float]]] = defaultdict(lambda: deque(maxlen=WINDOW))
        self._reported: set[str | None] = set()

    def observe(self, verifier: str | None, outcome: float, forced: float) -> bool:
        """Add a batch's means, NaN if unknown; return `True` once per verifier whose forced answers are never right.

        Args:
            verifier (`str`, *optional*): the name of the rows' verifier.
            outcome (`float`): mean outcome of the traces.
            forced (`float`): mean success at their prefixes.
        """
        batches = self._batches[verifier]
        if not math.isnan(outcome) and not math.isnan(forced):
            batches.append((outcome, forced))
        if verifier in self._reported or len(batches) < WINDOW or not never_right(*zip(*batches, strict=True)):
            return False
        self._reported.add(verifier)
        return True
