r"""Compare math answers with the reference, first as text, then with math-verify in a bounded child process.

The final answer is the one at the last mark after the thinking:

1. the last of `\boxed{X}` (`\fbox{X}`, `\boxed X`), `<answer>X</answer>` and a last line `answer X`; boxes that only
   commas, "and" or "or" separate are one list;
2. otherwise the text after the last `####` (a line of words with more text below it is a heading);
3. otherwise the text after the last "the answer is" or "Answer:";
4. otherwise the last formula or number that math-verify finds at the end of the text.

A marked answer is compared in full: several candidates are a list, which equals only the same list.

An exception inside math-verify is the verdict "wrong", because the reference itself can be read. A timeout, a crash
and exhausted memory make the answer unscorable.
"""

import re
from functools import lru_cache
from typing import Any

from .bounded import BoundedGrader
from .extraction import ANSWER_LINE, ANSWER_TAG, BOX, extract_answer, without_thinking
from .latex_text import braces_balance, from_ascii, from_unicode
from .math_formula import Formula, read_formula

TAIL = 4000  # characters; the final answer of a longer completion must lie within its last ones
FREE_TAIL = 1000  # characters of free text that math-verify searches
LONGEST_PHRASE = 120  # characters after "the answer is"

_BOX = re.compile(r"\\f?boxed(?![A-Za-z])|\\fbox(?![A-Za-z])")
_UNBRACED = re.compile(r"\s*([^\s$]+)")
_AND_OR = r"[\s,]*(?:\b(?:and|or)\b)?[\s,]*"
_BETWEEN_BOXES = re.compile(
    rf"(?:[\s$,;&*/|]|\\[\\,;:! ()\[\]]|\\q?quad|\b(?:and|or)\b|\\(?:text|mbox|mathrm|textrm)\s*\{{{_AND_OR}\}}"
    r"|\\(?:lor|land|vee|wedge))*"
)
_TAG = re.compile(r"< ?answer ?>", re.IGNORECASE)
_END_TAG = re.compile(r"< ?/ ?answer ?>", re.IGNORECASE)
_HEADING_WORDS = (
    "step|final|answer|solution|conclusion|result|explanation|summary|verification|check|calculation|reasoning|analysis|"
    "note|given|problem|proof|approach|method|part|case"
)
_HEADING = re.compile(rf"\W*(?:(?:{_HEADING_WORDS})s?\b[^\n]*|[^\W\d_]{{2}}[^\n]*(?:\s[^\n]*|:))\n", re.IGNORECASE)
_PHRASE = re.compile(
    r"\banswer\b[*_]*(?:\s+(?:to|of|for)\b[^.:=\n]{0,80}?)?"
    r"(?:\s+(?:is|equals|would be|will be|must be|should be|becomes)\b|\s*[:=])"
    r"(?:\s+(?:therefore|thus|then|simply|just|equal to)\b)*",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(
    r"(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?:[.?](?=\s+[A-Z*]|\s*$)|!(?=\s+[A-Z*]))|\*\*(?=\s)|,?\s+(?:because|since|so|which|as)\b"
)
_PROSE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{2,}(?![A-Za-z}])")
_MARKS = re.compile(r"boxed|fbox|####|answer", re.IGNORECASE)
_LETTER_OR_DIGIT = re.compile(r"(?<![\\A-Za-z])[A-Za-z0-9]")  # not part of a command


class MathVerifier(BoundedGrader):
    """
    Verifier of math answers; the module's docstring says which part of a completion is the answer.

    Args:
        deadline (`float`, *optional*, defaults to `3.0`): seconds of wall time for one answer.
        memory (`int`, *optional*, defaults to `2 * 2**30`): bytes of address space that the child may use.
    """

    needs_answer = True
    answer_forms = (BOX, ANSWER_LINE, ANSWER_TAG)

    def __init__(self, deadline: float = 3.0, memory: int = 2 * 2**30):
        super().__init__("math", deadline, memory)

    def score(self, completion: str, answer: str, info: dict[str, Any]) -> bool | None:
        """Compare the completion's final answer with the reference; `None` if math-verify failed on it.

        Raises:
            ValueError: the reference cannot be graded, see `check_reference`.
        """
        reference = read_reference(answer)
        final = final_answer(completion)
        if final is None:
            return False
        if isinstance(final, str):
            last_line = final.strip().rpartition("\n")[2]
            if len(last_line) < LONGEST_PHRASE and read_formula(last_line).key == reference.key:
                return True
            return self.grade({"completion": final, "answer": reference.text})
        verdict = final.equals(reference)
        if verdict is not None:
            return verdict
        if not braces_balance(final.text):
            return False
        return self.grade({"completion": rf"\boxed{{{final.text}}}", "answer": reference.text})

    def accepted_answers(self, answer: str, info: dict[str, Any]) -> None:
        """Return `None`: a value has no finite list of written forms."""

    def bare_reference(self, answer: str) -> str:
        """Return the reference without a mark of its own, as a model writes it into a box."""
        return without_mark(answer)

    def check_reference(self, answer: str) -> None:
        """Raise `ValueError` if the reference would not be graded as equal to itself."""
        sound = len(answer) <= TAIL // 2 and _LETTER_OR_DIGIT.search(answer) and not _MARKS.search(answer)
        if not sound or not braces_balance(answer):
            read_reference(answer)


@lru_cache(maxsize=4096)
def read_reference(answer: str) -> Formula:
    """Normalize a reference in the same way as answers: its mark, delimiters and trailing period do not count.

    Raises:
        ValueError: it is empty after normalization, its braces do not balance, or it is too long for an answer.
    """
    text = without_mark(answer)
    formula = read_formula(text)
    fix = "fix the row, or drop it"
    if not re.search(r"[^\W_]|\\[a-z]|[<>=+*/^|]|\{\}", formula.key):
        raise ValueError(f"the reference {answer[:200]!r} contains no answer to compare: {fix}")
    if not braces_balance(formula.text):
        raise ValueError(f"the braces of the reference {answer[:200]!r} do not balance: {fix}")
    if len(text) > TAIL // 2:
        raise ValueError(
            f"the reference {answer[:40]!r}… has {len(text)} characters; an answer has at most {TAIL // 2}: {fix}"
        )
    return formula


def without_mark(answer: str) -> str:
    """Return a reference without a mark of its own, such as `#### 12`."""
    marked = marked_answer(answer)
    return answer if marked is None else marked


def final_answer(completion: str) -> Formula | str | None:
    """Find a completion's final answer.

    Returns:
        `Formula`, `str` or `None`: the answer, or free text for math-verify to search; `None` if there is no answer,
            because its mark is empty, a box stays open, or the thinking never closes.
    """
    shown = (without_thinking(completion) or "").strip()
    marked = marked_answer(shown)
    if marked is not None:
        return read_formula(marked) if marked.strip() else None
    if "\n" not in shown and len(shown) < LONGEST_PHRASE and not _PROSE.search(shown):
        return read_formula(shown) if shown else None
    return "\n".join(map(_with_math, shown[-FREE_TAIL:].split("\n")))


def marked_answer(completion: str) -> str | None:
    """Return the answer at the last mark.

    Returns:
        `str` or `None`: the answer as written; empty if the mark is empty or a box stays open; `None` without a mark,
            and if the thinking never closes.
    """
    text = (without_thinking(completion) or "")[-TAIL:]
    line = extract_answer(text)
    if line is not None:
        return _boxed(line) if _BOX.search(line) else re.sub(r"^(?:is\b|[:=])\s*", "", line)
    if tags := list(_TAG.finditer(text)):
        inside, *outside = _END_TAG.split(text[tags[-1].end() :], maxsplit=1)
        if not (outside and _BOX.search(outside[0])):
            nested = marked_answer(inside)
            return inside if nested is None else nested
    if _BOX.search(text):
        return _boxed(text)
    after = text.rpartition("####")[2].strip()
    if "####" in text and not _HEADING.match(after):
        return after.partition("\n")[0]
    return _after_phrase(text)


def _with_math(line: str) -> str:
    """Write Unicode math of free text as LaTeX between dollars, where math-verify looks for it: `2√3` is not 3."""
    line = re.sub(r"-\$(?=\d)", "-", line)
    if "$" in line or "\\" in line or line.isascii():
        return from_unicode(line)

    def rewritten(word: re.Match[str]) -> str:
        latex = from_ascii(from_unicode(word[1]))
        return f"${latex}$" if re.search(r"[\\^_]", latex) else latex

    return re.sub(r"([^\s.,;:!?]+(?:[.,]\d+)*)", rewritten, line)


def _boxed(text: str) -> str:
    """Return the content of the last box, or a list if only separators are between the last boxes."""
    contents: list[str] = []
    end = len(text)
    for box in reversed(list(_BOX.finditer(text))):
        content, after = _content(text, box.end())
        if contents and not _BETWEEN_BOXES.fullmatch(text, after, end):
            break
        if not content.strip():
            break
        contents.insert(0, content.strip())
        end = box.start()
    return ", ".join(dict.fromkeys(contents))


def _content(text: str, start: int) -> tuple[str, int]:
    """Return the content and the end of the box whose command ends at `start`; empty if it is not closed."""
    if not text[start:].lstrip().startswith("{"):
        unbraced = _UNBRACED.match(text, start)
        return (unbraced[1].rstrip(".,;"), unbraced.end()) if unbraced else ("", len(text))
    opening, depth = text.index("{", start), 0
    for brace in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, opening):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return text[opening + 1 : brace.start()], brace.end()
    return "", len(text)


def _after_phrase(text: str) -> str | None:
    """Return the text after the last "the answer is" or "Answer:", if it is short enough to be an answer."""
    phrases = list(_PHRASE.finditer(text))
    if not phrases:
        return None
    after = text[phrases[-1].end() :].lstrip(" *_:\n\t")
    line = after.partition("\n")[0]
    end = _SENTENCE_END.search(line)
    said = line[: end.start()] if end else line
    return None if len(said) > LONGEST_PHRASE or len(_PROSE.findall(said)) > 6 else said
