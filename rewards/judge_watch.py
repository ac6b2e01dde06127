"""Two running checks of a judge while a policy trains on it. Pure: numbers in, a decision out, JSON state.

[`RubricWatch`]: did the last change of the rubric make the judge worse? The gate has tried it on a few dozen
completions; this looks at every batch since, and says when the judge orders them worse than before the change, or when
its scores have risen above gold. The second is what exploitation looks like: a policy that has wholly moved to what
the rubric overpays writes nothing else any more, and within a batch the judge may order it as well as ever. Neither is
a proof, the policy moves too: the trainer then tries the parent once more and goes back to it if it is better.

[`JudgeAlarm`]: do the judge that trains and a held-out one that never does part? A policy that exploits the first
earns more and more of it and no more of the second (Gao et al., Scaling Laws for Reward Model Overoptimization,
arXiv 2210.10760).
"""

from collections import defaultdict, deque
from typing import Any

import numpy as np

from .judged_cases import JudgedCase
from .rubric_gate import pair_accuracies


class RubricWatch:
    """Compares a measure of the judge's quality after a change of the rubric with that before, and scores with gold.

    Args:
        window (`int`, *optional*, defaults to 8): batches on either side of a change.
        drop (`float`, *optional*, defaults to 0.1): by how much the mean must have fallen, in units of the measure; or
            by how much the mean score must have risen above gold since the first window under this rubric.

    Raises:
        ValueError: a window below 1, or a drop that is not above 0.
    """

    def __init__(self, window: int = 8, drop: float = 0.1):
        if window < 1 or not 0 < drop < np.inf:
            raise ValueError(f"window must be at least 1 and drop above 0, got {window} and {drop}")
        self.window, self.drop = window, drop
        self._recent: deque[float] = deque(maxlen=window)
        self._baseline: float | None = None
        self._above_gold = JudgeAlarm(window, drop)
        self._number_since = 0
        self._number_scored = 0
        self.suspicion: str | None = None  # why the rubric should be tried against its parent, said once a window

    def observe(self, quality: float | None, total: float | None = None, gold: float | None = None) -> None:
        """Take in a batch; what it has said is then in `suspicion`.

        Args:
            quality (`float`, *optional*): the measure; `None` where the batch says nothing of it, as where all
                completions of a prompt are wrong. Their scores are above gold all the same.
            total (`float`, *optional*): mean score of the completions whose gold is known.
            gold (`float`, *optional*): their mean gold.
        """
        self.suspicion = None
        if total is not None and gold is not None:
            self._above_gold.observe(total, gold)
            self._number_scored += 1
            if self._number_scored % self.window == 0 and self._above_gold.is_raised:
                self.suspicion = f"its scores had risen above gold by {self._above_gold.parted:.3f}"
        if quality is not None and np.isfinite(quality):
            self._recent.append(float(quality))
            self._number_since += 1
            if self._number_since % self.window == 0 and self.fallen is not None and self.fallen > self.drop:
                self.suspicion = f"the judge had become worse by {self.fallen:.3f}"

    def rubric_changed(self) -> None:
        """Begin anew: what came before is what the batches from now on are compared with."""
        self._baseline = float(np.mean(self._recent)) if self._recent else None
        self._recent.clear()
        self._above_gold = JudgeAlarm(self.window, self.drop)
        self._number_since = self._number_scored = 0
        self.suspicion = None

    @property
    def fallen(self) -> float | None:
        """By how much the measure has fallen since the change; `None` until a window of batches has said."""
        if self._baseline is None or len(self._recent) < self.window:
            return None
        return self._baseline - float(np.mean(self._recent))

    def state_dict(self) -> dict[str, Any]:
        return {
            "recent": list(self._recent),
            "baseline": self._baseline,
            "number_since": self._number_since,
            "number_scored": self._number_scored,
            "above_gold": self._above_gold.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._recent = deque(state["recent"], maxlen=self.window)
        self._baseline = state["baseline"]
        self._number_since, self._number_scored = state["number_since"], state["number_scored"]
        self._above_gold.load_state_dict(state["above_gold"])


class JudgeAlarm:
    """Tells when the judge that trains has risen above the held-out judge by more than it was at the start.

    Args:
        window (`int`, *optional*, defaults to 8): comparisons at the start, and of the last ones.
        gap (`float`, *optional*, defaults to 0.15): what both must have parted by, on their common scale of 0 to 1.

    Raises:
        ValueError: a window below 1, or a gap that is not above 0.
    """

    def __init__(self, window: int = 8, gap: float = 0.15):
        if window < 1 or not 0 < gap < np.inf:
            raise ValueError(f"window must be at least 1 and gap above 0, got {window} and {gap}")
        self.window, self.gap = window, gap
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=window)

    def observe(self, trained: float, held_out: float) -> None:
        """Take in the mean scores of both judges for the same completions."""
        difference = float(trained) - float(held_out)
        if not np.isfinite(difference):
            return
        if len(self._first) < self.window:
            self._first.append(difference)
        self._last.append(difference)

    @property
    def parted(self) -> float | None:
        """By how much the two have parted since the start; `None` before the first window is over."""
        if len(self._first) < self.window:
            return None
        return float(np.mean(self._last)) - float(np.mean(self._first))

    @property
    def is_raised(self) -> bool:
        return self.parted is not None and self.parted > self.gap

    def state_dict(self) -> dict[str, Any]:
        return {"first": list(self._first), "last": list(self._last)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._first, self._last = list(state["first"]), deque(state["last"], maxlen=self.window)


def batch_quality(cases: list[JudgedCase], against_gold: bool) -> float | None:
    """Return what a batch says of the judge: rank accuracy against gold, or without it the spread within prompts.

    `None` where no two completions of a prompt can be compared.
    """
    groups = defaultdict(list)
    for case in cases:
        groups[case.prompt].append(case)
    if against_gold:
        pairs_of_groups = [
            pair_accuracies(
                np.array([case.total for case in group]),
                np.array([np.nan if case.gold is None else case.gold for case in group]),
            )
            for group in groups.values()
        ]
        found = [pairs.mean() for pairs in pairs_of_groups if len(pairs)]
    else:
        found = [np.std([case.total for case in group], ddof=1) for group in groups.values() if len(group) > 1]
    return float(np.mean(found)) if found else None
