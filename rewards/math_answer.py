"""Maths answers, compared with the reference by math-verify in a bounded child process.

What counts as the final answer, in this order: the last `\\boxed{...}`, what follows the last `####` (a line of words
with more below it is a heading and none), the last line `answer X`, and else what math-verify makes of the end of the
text (a phrase like "the answer is", the last formula, the last number). Of several boxes only the last counts, and a
marked answer with several numbers is all of them, a set or nothing: listing candidates does not help.

A hang or a crash of math-verify makes the answer unscorable. Errors that math-verify itself takes for an unreadable
formula (nesting too deep, a number too large for the memory limit) stay what it says: not equal to the reference.
"""

import re
import unicodedata
from typing import Any

from .bounded import BoundedGrader
from .extraction import extract_answer

TAIL = 4000  # characters; the final answer of a longer completion must lie within its last ones
FREE_TAIL = 1000  # characters of free text that math-verify searches
MIXED = re.compile(r"(?<![\w.,/^])(\d{1,9}) (\d{1,9})/(\d{1,9})(?![\d.,]*\d)")  # 7 1/2, of which math-verify reads 1
HEADING = re.compile(r"\W*[^\W\d_]{2}[^\n]*\n")  # a line of words and text below it: #### is Markdown's there
# What is a formula, or a list, and no number with its unit; a blank may also stand before a group of three digits.
WHOLE = re.compile(r"\\|\d[^\d\n]*(?:[,;]\s|\b(?:or|and)\b)[^\d\n]*\d|\d\s+-?\d(?!\d\d(?!\d))")


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
        final, reference = final_answer(completion), _plain(answer.strip().strip("$"))
        return False if final is None else self.grade({"completion": final, "answer": reference})

    def accepted_answers(self, answer: str, info: dict[str, Any]) -> None:
        """Return `None`: a value has no finite list of written forms."""


def final_answer(completion: str) -> str | None:
    """Cut the text that holds the final answer out of a completion; `None` if its last box is empty or left open."""
    marked = marked_answer(completion)
    if marked is None:
        return _plain(completion[-FREE_TAIL:])
    if not marked:
        return None
    return _boxed(marked) if "\\boxed" in completion[-TAIL:] or WHOLE.search(marked) else marked


def marked_answer(completion: str) -> str | None:
    """Read what the last box, the last `####` or the last line `answer X` says; `None` if there is no such mark."""
    text = completion[-TAIL:]
    marked: str | None
    after = text.rpartition("####")[2].strip()
    if "\\boxed" in text:
        marked = _braced(text[text.rindex("\\boxed") + len("\\boxed") :])
    elif "####" in text and not HEADING.match(after):
        marked = after.partition("\n")[0]
    else:
        marked = extract_answer(text)
    return None if marked is None else _plain(marked)


def _plain(text: str) -> str:
    """Write what math-verify misreads as it reads it: the minus sign, digits of other scripts, mixed numbers."""
    text = "".join(str(unicodedata.decimal(character, character)) for character in text.replace("\N{MINUS SIGN}", "-"))
    return MIXED.sub(lambda number: f"{int(number[1]) * int(number[3]) + int(number[2])}/{number[3]}", text)


def _boxed(formula: str) -> str:
    return f"\\boxed{{{formula.strip().rstrip('.')}}}"


def _braced(text: str) -> str:
    """Return what stands in the braces that open the text; nothing if they do not, or stay open."""
    depth = 0
    for brace in re.finditer(r"\\.|[{}]", text if text.lstrip().startswith("{") else "", re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return text[text.index("{") + 1 : brace.start()]
    return ""
