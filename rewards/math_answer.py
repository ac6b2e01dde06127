"""Maths answers, compared with the reference by math-verify in a bounded child process.

What counts as the final answer, in this order: the last `\\boxed{...}`, what follows the last `####`, the last line
`answer X`, and else what math-verify makes of the end of the text (a phrase like "the answer is", the last formula,
the last number). Of several boxes only the last counts, so listing candidates does not help.

A hang or a crash of math-verify makes the answer unscorable. Errors that math-verify itself takes for an unreadable
formula (nesting too deep, a number too large for the memory limit) stay what it says: not equal to the reference.
"""

import re
from typing import Any

from .bounded import BoundedGrader
from .extraction import extract_answer

TAIL = 4000  # characters; the final answer of a longer completion must lie within its last ones
FREE_TAIL = 1000  # characters of free text that math-verify searches


class MathVerifier(BoundedGrader):
    """
    Verifier of maths answers.

    Args:
        deadline (`float`, *optional*, defaults to `3.0`): seconds of wall time for one answer.
        memory (`int`, *optional*, defaults to `2 * 2**30`): bytes of address space that the child may use.
    """

    needs_answer = True

    def __init__(self, deadline: float = 3.0, memory: int = 2 * 2**30):
        super().__init__("math", deadline, memory)

    def score(self, completion: str, answer: str, info: dict[str, Any]) -> bool | None:
        """Tell whether the completion's final answer equals the reference; `None` if math-verify failed on it."""
        final = final_answer(completion)
        return False if final is None else self.grade({"completion": final, "answer": answer.strip().strip("$")})

    def accepted_answers(self, answer: str, info: dict[str, Any]) -> None:
        """Return `None`: a value has no finite list of written forms."""


def final_answer(completion: str) -> str | None:
    """Cut the text that holds the final answer out of a completion; `None` if its last box is empty or left open."""
    text = completion[-TAIL:]
    if "\\boxed" in text:
        content = _braced(text[text.rindex("\\boxed") + len("\\boxed") :])
        return _boxed(content) if content else None
    marked = text.rpartition("####")[2].strip().partition("\n")[0] if "####" in text else extract_answer(text)
    if marked is None:
        return text[-FREE_TAIL:]
    return _boxed(marked) if "\\" in marked else marked


def _boxed(formula: str) -> str:
    return f"\\boxed{{{formula.strip().rstrip('.')}}}"


def _braced(text: str) -> str | None:
    """Return what stands in the braces that open the text."""
    if not text.lstrip().startswith("{"):
        return None
    depth = 0
    for brace in re.finditer(r"(?<!\\)[{}]", text):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[text.index("{") + 1 : brace.start()]
    return None
