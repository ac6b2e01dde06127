"""Find the answer in a completion: the text after the thinking, and the marked answer in it.

Every verifier and every vote reads completions through these functions, so an answer inside the thinking never counts.
An [`AnswerForm`] describes the reverse: how to write an answer so that a verifier finds it.
"""

import re
from dataclasses import dataclass

MARK = "answer "


@dataclass(frozen=True)
class AnswerForm:
    r"""How a final answer is written, such as `\boxed{12}`. Verifiers list the forms that they read.

    Args:
        opening (`str`): the text directly before the answer.
        closing (`str`, *optional*, defaults to `""`): the text directly after it.
        on_own_line (`bool`, *optional*, defaults to `False`): whether the opening must begin a line.
    """

    opening: str
    closing: str = ""
    on_own_line: bool = False


ANSWER_LINE = AnswerForm(MARK, on_own_line=True)
BOX = AnswerForm("\\boxed{", "}")
ANSWER_TAG = AnswerForm("<answer>", "</answer>")
VERDICT_TAG = AnswerForm("<verdict>", "</verdict>")
_TAG_NAME = "(?:seed:)?(?:think|thinking|thought|reasoning)"
_THINKING = re.compile(rf"< ?(/?) ?{_TAG_NAME}\s*>|◁(/?)think▷|(?-i:\[(/?)THINK\])", re.IGNORECASE)
_OPEN = re.compile(r"< ?answer ?>", re.IGNORECASE)
_CLOSE = re.compile(r"< ?/ ?answer ?>", re.IGNORECASE)
_VERDICT = re.compile(r"<verdict>([^<]*)</verdict>", re.IGNORECASE)


def without_thinking(completion: str) -> str | None:
    """Return the text after the last `</think>`; `None` if a thinking block opens and never closes."""
    start, is_open = 0, False
    for tag in _THINKING.finditer(completion):
        is_open = not any(tag.groups())
        if not is_open:
            start = tag.end()
    return None if is_open else completion[start:]


def extract_answer(completion: str) -> str | None:
    """
    Read the final answer of a built-in task's trace, which ends with a line `answer X`.

    Lines end at a newline only. The last line that is not blank must begin with `answer `; earlier such lines are
    attempts and do not count. A completion that goes on after its answer has none: it did not commit to it.

    Returns:
        `str` or `None`: the answer without surrounding whitespace, or `None` if there is none or it is empty.
    """
    last = (without_thinking(completion) or "").rstrip().rpartition("\n")[2]
    return last.removeprefix(MARK).strip() or None if last.startswith(MARK) else None


def extract_tagged(completion: str) -> str | None:
    """Read what follows the last `<answer>`, up to `</answer>` if it is closed; `None` if there is no such tag."""
    parts = _OPEN.split(without_thinking(completion) or "")
    return _CLOSE.split(parts[-1])[0].strip() if len(parts) > 1 else None


def extract_verdict(completion: str) -> str | None:
    """Read what stands between the last `<verdict>` and its `</verdict>`; `None` if nothing does."""
    verdicts = _VERDICT.findall(without_thinking(completion) or "")
    return verdicts[-1].strip() or None if verdicts else None
