"""Which item of a distribution comes next: shuffled passes without replacement."""

from typing import Any

import torch


class ItemCycle:
    """Walks through the items of one distribution, each once a pass, reshuffled every pass.

    The first pass is the order in which TRL's `RepeatSampler` visits a dataset of the same size and seed, so a
    curriculum over a single distribution trains on the same prompts as stock `GRPOTrainer`.

    Args:
        num_items (`int`): number of items, at least 1.
        seed (`int`): seed of the passes' orders.
        shuffle (`bool`, *optional*, defaults to `True`): `False` keeps the items' own order in every pass.
    """

    def __init__(self, num_items: int, seed: int, shuffle: bool = True):
        if num_items < 1:
            raise ValueError(f"a distribution needs at least one item, got {num_items}")
        self.num_items, self.seed, self.shuffle = num_items, seed, shuffle
        self.taken = 0
        self._start_first_pass()

    def take(self) -> int:
        """Return the index of the next item."""
        if self.taken and self.taken % self.num_items == 0:
            self._start_next_pass()
        item = self._order[self.taken % self.num_items]
        self.taken += 1
        return item

    def state_dict(self) -> dict[str, Any]:
        """Return the position and what it refers to, as JSON values."""
        return {"num_items": self.num_items, "seed": self.seed, "shuffle": self.shuffle, "taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved position.

        Raises:
            ValueError: if the state belongs to another number of items, seed or shuffling.
        """
        mine = self.state_dict()
        if state.keys() != mine.keys():
            raise ValueError(f"an item cycle's state has the keys {sorted(mine)}, got {sorted(state)}")
        for key in ("num_items", "seed", "shuffle"):
            if state[key] != mine[key]:
                raise ValueError(f"{key} was {state[key]} in the checkpoint and is {mine[key]} now")
        self.taken = state["taken"]
        self._start_first_pass()
        for _ in range(max(self.taken - 1, 0) // self.num_items):  # the pass of the last item taken
            self._start_next_pass()

    def _start_first_pass(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)
        self._start_next_pass()

    def _start_next_pass(self) -> None:
        if self.shuffle:
            self._order = torch.randperm(self.num_items, generator=self._generator).tolist()
        else:
            self._order = range(self.num_items)
