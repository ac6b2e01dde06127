"""The answer that a completion votes for in maj@k: read from its text, in one notation for one answer.

Which completions are right is the verifier's to say. A vote needs less, and has to come without the reference: a
string that is equal for equal answers. Where no answer can be read the completion abstains.
"""

from collections.abc import Mapping
from typing import Any

from ..rewards.extraction import extract_answer, extract_tagged, extract_verdict
from ..rewards.knights_and_knaves import read_conclusion
from ..rewards.math_answer import marked_answer
from ..rewards.math_formula import read_formula


def vote(verifier: str, completion: str, info: Mapping[str, Any]) -> str | None:
    """Read what a completion votes for.

    Args:
        verifier (`str`): the item's verifier. `math` reads the marked answer (see `rewards.math_answer`) in one
            notation, and abstains without a mark; `knights_and_knaves` the conclusion; `verdict` what stands in
            its tags; `reasoning_gym` what stands in `<answer>` tags, or else as any other the last line `answer X`.
        completion (`str`): text of the completion.
        info (`Mapping`): what the verifier needs beside the reference.
    """
    if verifier == "math":
        formula = read_formula(marked_answer(completion) or "")
        return (formula.key if formula.marks else formula.bare_key) or None  # 11_2 and 11_3 are two answers
    if verifier == "knights_and_knaves":
        roles = read_conclusion(completion, info["names"])
        kinds = [f"{name}: {'knight' if knight else 'knave'}" for name, knight in sorted((roles or {}).items())]
        return ", ".join(kinds) or None
    if verifier == "verdict":
        return extract_verdict(completion)
    tagged = extract_tagged(completion) if verifier == "reasoning_gym" else None
    return extract_answer(completion) if tagged is None else tagged or None
