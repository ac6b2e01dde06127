"""Where a completion's final answer stands: in a last line `answer X`, or between `<answer>` or `<verdict>` tags."""

import re

MARK = "answer "
_OPEN = re.compile("<answer>", re.IGNORECASE)
_CLOSE = re.compile("</answer>", re.IGNORECASE)
_VERDICT = re.compile(r"<verdict>([^<]*)</verdict>", re.IGNORECASE)


def extract_answer(completion: str) -> str | None:
    """
    Read the final answer of a built-in task's trace, which ends with a line `answer X`.

    Lines end at a newline only. The last line that is not blank must begin with `answer `; earlier such lines are
    attempts and do not count. A completion that goes on after its answer has none: it did not commit to it.

    Returns:
        `str` or `None`: the answer without surrounding whitespace, or `None` if there is none or it is empty.
    """
    last = completion.rstrip().rpartition("\n")[2]
    return last.removeprefix(MARK).strip() or None if last.startswith(MARK) else None


def extract_tagged(completion: str) -> str | None:
    """Read what follows the last `<answer>`, up to `</answer>` if it is closed; `None` if there is no such tag."""
    parts = _OPEN.split(completion)
    return _CLOSE.split(parts[-1])[0].strip() if len(parts) > 1 else None


def extract_verdict(completion: str) -> str | None:
    """Read what stands between the last `<verdict>` and its `</verdict>`; `None` if nothing does."""
    verdicts = _VERDICT.findall(completion)
    return verdicts[-1].strip() or None if verdicts else None
