"""Answers to reasoning-gym problems, scored by the generator's own scorer in a bounded child process."""

import importlib.util
from typing import Any

from .bounded import BoundedGrader
from .extraction import ANSWER_LINE, ANSWER_TAG, extract_answer, extract_tagged, without_thinking


class ReasoningGymVerifier(BoundedGrader):
    """
    Verifier of reasoning-gym problems; partial marks do not count. Needs the extra `reasoning-gym`.

    The answer is the text in the last `<answer>` tags, otherwise the last line `answer X`, otherwise all text after
    the thinking; a completion whose thinking never closes is wrong.
    A few scorers evaluate the answer as code; to those, only text that can do nothing but compute is passed, and
    other answers are wrong.

    Args:
        deadline (`float`, *optional*, defaults to `3.0`): seconds of wall time for one answer.
        memory (`int`, *optional*, defaults to `2 * 2**30`): bytes of address space that the child may use.
    """

    needs_answer = False  # the entry has it; some problems have a scorer only
    answer_forms = (ANSWER_TAG, ANSWER_LINE)

    def __init__(self, deadline: float = 3.0, memory: int = 2 * 2**30):
        super().__init__("reasoning_gym", deadline, memory)

    def score(self, completion: str, answer: str, info: dict[str, Any]) -> bool | None:
        """Score by `info`: `generator`, its `config` and the `entry` that it drew; `None` if the scorer failed."""
        if importlib.util.find_spec("reasoning_gym") is None:
            raise ImportError("the verifier reasoning_gym needs an extra: pip install 'metatune[reasoning-gym]'")
        for key in ("generator", "config", "entry"):
            if key not in info:
                raise ValueError(f"reasoning_gym: info lacks {key!r}; it needs generator, config and entry")
        shown = without_thinking(completion)
        if shown is None:
            return False
        given = extract_tagged(shown)
        if given is None:
            given = extract_answer(shown) or shown.strip()
        return self.grade({"answer": given, **{key: info[key] for key in ("generator", "config", "entry")}})

    def accepted_answers(self, answer: str, info: dict[str, Any]) -> None:
        """Return `None`: the scorer is code."""
