"""A curriculum of your own: arms in turn. The name makes it a `curriculum:`."""

import numpy as np

from metatune.curricula import Curriculum


class RoundRobin(Curriculum, name="round_robin"):
    """Draw `patience` batches from one distribution, then from the next."""

    def __init__(self, arms, *, seed: int = 0, patience: int = 1):
        super().__init__(arms, seed=seed, patience=patience)

    def probabilities(self) -> np.ndarray:
        """Return each arm's share of the next draw."""
        turn = self._draws // self.options["patience"]
        return np.eye(len(self.arms))[turn % len(self.arms)]

    def learnability(self) -> np.ndarray:
        """Return what is known of how much each arm teaches; this one does not ask."""
        return np.zeros(len(self.arms))

    def _observe(self, index, advantages, rewards, tokens) -> None:
        pass
