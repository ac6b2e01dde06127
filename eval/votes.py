"""The answer that a completion votes for in maj@k: read from its text, in one notation for one answer.

Which completions are right is the verifier's to say. A vote needs less, and has to come without the reference: a
string that is equal for equal answers. Where no answer can be read the completion abstains.
"""

import re
from collections.abc import Mapping
from typing import Any

from ..rewards.extraction import extract_answer, extract_tagged, extract_verdict
from ..rewards.knights_and_knaves import read_conclusion
from ..rewards.math_answer import marked_answer


def vote(verifier: str, completion: str, info: Mapping[str, Any]) -> str | None:
    """Read what a completion votes for.

    Args:
        verifier (`str`): the item's verifier. `math` reads the marked answer (`\\boxed{}`, `####`, a last line
            `answer X`) and abstains without a mark; `knights_and_knaves` the conclusion; `verdict` what stands in
            its tags; `reasoning_gym` what stands in `<answer>` tags, or else as any other the last line `answer X`.
        completion (`str`): text of the completion.
        info (`Mapping`): what the verifier needs beside the reference.
    """
    if verifier == "math":
        return normalised_math(marked_answer(completion) or "") or None
    if verifier == "knights_and_knaves":
        roles = read_conclusion(completion, info["names"])
        kinds = [f"{name}: {'knight' if knight else 'knave'}" for name, knight in sorted((roles or {}).items())]
        return ", ".join(kinds) or None
    if verifier == "verdict":
        return extract_verdict(completion)
    tagged = extract_tagged(completion) if verifier == "reasoning_gym" else None
    return extract_answer(completion) if tagged is None else tagged or None


def normalised_math(answer: str) -> str:
    """Write an extracted maths answer so that notations of the same answer vote together.

    Only what never changes the meaning: spaces, `$`, `\\left` and `\\right`, `\\dfrac`, spacing commands, a final
    full stop, and commas between groups of three digits. Equality up to algebra is for the verifier, not the vote.
    """
    text = re.sub(r"\\(left|right)(?![a-zA-Z])|\\[,;!: ]|\\quad|\$|\s", "", answer)
    text = re.sub(r"\\[dt]frac(?![a-zA-Z])", r"\\frac", text).rstrip(".")
    if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", text):
        text = text.replace(",", "")
    return text
