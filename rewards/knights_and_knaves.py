"""Conclusions of Knights & Knaves puzzles, read from free-form completions.

The conclusion is what follows the last `<answer>`, or the last line that opens with "conclusion"; without such a mark
it is the closing run of statements. In a marked conclusion every line that speaks of knights or knaves must consist
of plain statements, like "Zoey is a knave": a hedge ("a knight or a knave"), a negation or a condition makes the
answer wrong, as does a name with both roles or none. So listing several roles earns nothing.
"""

import re
from collections.abc import Collection
from typing import Any

from .extraction import ANSWER_TAG, extract_tagged, without_thinking

_CONCLUSION = re.compile(r"^[^\w\n]*(?:in )?conclusion\b", re.MULTILINE | re.IGNORECASE)
_ROLE = re.compile(r"knight|knave", re.IGNORECASE)
_MARKUP = re.compile(r"[*_`#>]")
_LEAD_IN = re.compile(r"^\W*(?:(?:therefore|thus|hence|so|(?:the )?(?:final )?answer(?: is)?)\b\W*)*", re.IGNORECASE)
_SEPARATOR = re.compile(r"\(?\b\d+[).:]|[,;.•]|(?:^|\s)-\s|\band\b", re.IGNORECASE)
Statements = list[tuple[str, bool]]  # a name, and whether it is a knight


class KnightsAndKnavesVerifier:
    """Verifier of Knights & Knaves puzzles; `info` has `names` and `solution` (`True` = knight), in one order."""

    needs_answer = False  # `info` has the solution
    answer_forms = (ANSWER_TAG,)

    def score(self, completion: str, answer: str, info: dict[str, Any]) -> bool:
        """Tell whether the conclusion gives every inhabitant exactly one role, the right one."""
        solution = _solution(info)
        return read_conclusion(completion, solution) == solution

    def accepted_answers(self, answer: str, info: dict[str, Any]) -> list[str]:
        """List the one solution, in its canonical form: a numbered list, one inhabitant a line."""
        roles = enumerate(_solution(info).items(), 1)
        return ["\n".join(f"({i}) {name} is a {'knight' if knight else 'knave'}" for i, (name, knight) in roles)]


def read_conclusion(completion: str, names: Collection[str]) -> dict[str, bool] | None:
    """Read each named inhabitant's role (`True` = knight); `None` if the conclusion is hedged or contradictory."""
    section = extract_tagged(completion)
    text = (without_thinking(completion) or "") if section is None else section
    marks = list(_CONCLUSION.finditer(text))
    if section is None and not marks:
        lines = _closing_run(text, names)
    else:
        text = text[marks[-1].end() :] if marks else text
        lines = []
        for line in filter(_ROLE.search, text.split("\n")):
            found = _statements(line, names)
            if found is None:
                return None
            lines.append(found)
    statements = {statement for line in lines for statement in line}
    roles = dict(statements)
    return roles if len(roles) == len(statements) else None


def _closing_run(text: str, names: Collection[str]) -> list[Statements]:
    """Read the last lines that are plain statements, past remarks that mention no role."""
    run = []
    for line in filter(str.strip, reversed(text.split("\n"))):
        if _ROLE.search(line):
            statements = _statements(line, names)
            if statements is None:
                break
            run.append(statements)
        elif run:
            break
    return run


def _statements(line: str, names: Collection[str]) -> Statements | None:
    """Read a line that is nothing but plain statements; `None` if it holds anything else."""
    spelling = {name.casefold(): name for name in names}
    name = "|".join(map(re.escape, names))
    plain = re.compile(rf"({name}) ?(?:\bis\b|[:=]) ?(?:a )?(knight|knave)", re.IGNORECASE)
    clauses = [" ".join(clause.split()) for clause in _SEPARATOR.split(_LEAD_IN.sub("", _MARKUP.sub("", line)))]
    statements = []
    for clause in filter(None, clauses):
        match = plain.fullmatch(clause)
        if match is None:
            return None
        statements.append((spelling[match[1].casefold()], match[2].casefold() == "knight"))
    return statements


def _solution(info: dict[str, Any]) -> dict[str, bool]:
    names, solution = info.get("names"), info.get("solution")
    if not names or not solution or len(names) != len(solution) or len(set(names)) != len(names):
        raise ValueError(
            f"knights_and_knaves: info needs distinct names and a solution for each, got {names} and {solution}"
        )
    return dict(zip(names, solution, strict=True))
