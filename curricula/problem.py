"""One problem, and the rule that keeps train and held-out problems apart.

Every built-in family (countdown, arithmetic, logic) draws `Problem`s. A problem has a canonical `key`: two problems
that are the same task in another notation (say, the same numbers in another order) have the same key. Whether a key
is held out is a fixed property of the key, so the partition holds over every seed, distribution, recipe and run,
and for warm-start demonstrations as well as for RL prompts.
"""

import hashlib
import heapq
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

HELD_OUT_FRACTION = 0.2
Message = dict[str, str]  # role and content


@dataclass(frozen=True)
class Problem:
    """A prompt, and how an answer to it is verified if it can be.

    Args:
        prompt (`str` or `list[dict]`): what the user asks: a text, or a conversation that ends with the user's turn.
        answer (`str`): a reference answer, in the form that `verifier` reads; empty where there is none.
        verifier (`str`): name of the verifier in `metatune.rewards.VERIFIERS`; empty where nothing verifies an answer.
        key (`str`): canonical identity; equal keys are the same problem.
        info (`dict`, *optional*): what the verifier needs beside the reference (JSON values only).
    """

    prompt: str | list[Message]
    answer: str
    verifier: str
    key: str
    info: dict[str, Any] = field(default_factory=dict)


class Family(Protocol):
    """A seeded procedural generator of one difficulty: a dataclass, whose fields are what `config` may set."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def sample(self, rng: random.Random) -> Problem:
        """Draw a problem."""

    def demonstrate(self, problem: Problem, rng: random.Random) -> str:
        """Write a trace that attempts `problem`; the demonstrator is imperfect by design."""


def key_position(key: str) -> float:
    """Return a key's position in [0, 1), a hash of the key alone; the lowest positions are held out."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def is_held_out(key: str) -> bool:
    """Return whether the problem with this canonical key belongs to the held-out part."""
    return key_position(key) < HELD_OUT_FRACTION


def held_out_keys(keys: Iterable[str], size: int | None) -> set[str]:
    """Choose the held-out keys of a dataset without splits: the `size` keys with the lowest positions.

    The choice depends on the keys alone, not on a seed or their order, and a smaller held-out part is a subset of a
    larger one.

    Args:
        keys (`Iterable[str]`): distinct keys.
        size (`int`, *optional*): how many; by default those below `HELD_OUT_FRACTION`, about a fifth.
    """
    if size is None:
        return {key for key in keys if is_held_out(key)}
    return set(heapq.nsmallest(size, keys, key=key_position))
