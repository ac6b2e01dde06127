"""A verifier of your own: the answer may be off by one."""

from typing import Any

from metatune.rewards import VERIFIERS, AnswerForm, extract_answer


class AboutVerifier:
    """Right if the last line `answer X` is within 1 of the reference."""

    needs_answer = True
    answer_forms = (AnswerForm("answer ", on_own_line=True),)

    def score(self, completion: str, answer: str, info: dict[str, Any]) -> bool | None:
        """Return True or False, and None only where the grader itself failed."""
        given = extract_answer(completion)
        try:
            return abs(int(given or "") - int(answer)) <= 1
        except ValueError:
            return False

    def accepted_answers(self, answer: str, info: dict[str, Any]) -> list[str] | None:
        """List all accepted answers, or return None where they cannot be listed."""
        return [str(int(answer) + shift) for shift in (-1, 0, 1)]


VERIFIERS["about"] = AboutVerifier()
