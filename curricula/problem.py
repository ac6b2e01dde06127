"""One problem, and the rule that keeps train and held-out problems apart.

Every built-in family (countdown, arithmetic, logic) draws `Problem`s. A problem has a canonical `key`: two problems
that are the same task in another notation (say, the same numbers in another order) have the same key. Whether a key
is held out is a fixed property of the key, so the partition holds over every seed, distribution, recipe and run,
and for warm-start demonstrations as well as for RL prompts.
"""

import hashlib
import random
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

HELD_OUT_FRACTION = 0.2


@dataclass(frozen=True)
class Problem:
    """A prompt, and how an answer to it is verified if it can be.

    Args:
        prompt (`str`): what the user asks.
        answer (`str`): a reference answer, in the form that `verifier` reads; empty where there is none.
        verifier (`str`): name of the verifier in `metatune.rewards.VERIFIERS`; empty where nothing verifies an answer.
        key (`str`): canonical identity; equal keys are the same problem.
        info (`dict`, *optional*): what the verifier needs beside the reference (JSON values only).
    """

    prompt: str
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


def is_held_out(key: str) -> bool:
    """Tell whether the problem with this canonical key belongs to the held-out part."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < HELD_OUT_FRACTION
