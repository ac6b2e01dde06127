"""Check before a run that each verifier accepts a correct forced answer.

    check_forcing(Forcing(tokenizer), rows_by_verifier(dataset))

Without this check, a suffix that opens an answer in a form that the verifier does not read would silently make the
success rate 0 at every prefix.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from .forcing import THINKING_START, Forcing
from .verifiers import Verifier, get_verifier

ROWS_PER_DISTRIBUTION = 4
Row = Mapping[str, Any]

logger = logging.getLogger(__name__)


def rows_by_verifier(rows: Any) -> dict[str, list[Row]]:
    """Return the first rows of each distribution, by the name of their verifier.

    Args:
        rows (`datasets.Dataset` or `Sequence[Mapping]`): rows; those without a `verifier` are left out.
    """
    chosen: dict[tuple[str, Any], list[int]] = defaultdict(list)
    for index, place in enumerate(zip(column_of(rows, "verifier"), column_of(rows, "distribution"), strict=True)):
        if place[0] and len(chosen[place]) < ROWS_PER_DISTRIBUTION:
            chosen[place].append(index)
    found: dict[str, list[Row]] = defaultdict(list)
    for (verifier, _), indices in chosen.items():
        found[verifier] += [rows[index] for index in indices]
    return dict(found)


def check_forcing(forcing: Forcing, rows: Mapping[str, Iterable[Row]], starts_in_thinking: bool = False) -> None:
    """Grade a correct answer after the forcing suffix with each verifier; one accepted row per verifier is enough.

    Rows without a known correct answer, and rows that the verifier cannot grade, are skipped. For a verifier that
    neither has `answer_forms` nor lists its accepted answers, the reference may have another form, so a rejection is
    only a warning.

    Args:
        forcing ([`Forcing`]): the suffix.
        rows (`Mapping[str, Iterable[Mapping]]`): rows with `answer` and `info` by the name of their verifier, as
            [`rows_by_verifier`] returns them.
        starts_in_thinking (`bool`, *optional*, defaults to `False`): whether the chat template opens the thinking
            before the completion.

    Raises:
        ValueError: if a verifier is unknown, no suffix is known for it, or it rejects all correct forced answers.
    """
    for name, of_verifier in rows.items():
        verifier, rejected = get_verifier(name), None
        for row in of_verifier:
            answer = right_answer(verifier, row)
            if answer is None:
                continue
            text = (THINKING_START if starts_in_thinking else "") + forced_text(forcing, name, answer)
            verdict = _verdict(verifier, text, row)
            if verdict is True:
                rejected = None
                break
            if verdict is False and rejected is None:
                rejected = text, answer, row
        if rejected is None:
            continue
        problem = _problem(forcing, name, *rejected)
        if not getattr(verifier, "answer_forms", ()) and not _listed(verifier, of_verifier):
            logger.warning(problem)
        else:
            raise ValueError(problem)


def forced_text(forcing: Forcing, verifier: str | None, answer: str, prefix: str = "") -> str:
    """Return a completion that is cut after `prefix` and gives `answer` in the form that the suffix opens."""
    form = forcing.form_after(verifier)
    return prefix + forcing.text_after(prefix, verifier) + form.opening + answer + form.closing


def right_answer(verifier: Verifier, row: Row) -> str | None:
    """Return an accepted answer of a row, or the reference if they cannot be listed; `None` if there is neither."""
    if accepted := _listed(verifier, [row]):
        return accepted[0] or None
    reference = row.get("answer")
    if not reference:
        return None
    return verifier.bare_reference(reference) if hasattr(verifier, "bare_reference") else reference


def _listed(verifier: Verifier, rows: Iterable[Row]) -> list[str]:
    """Return the accepted answers of the first row for which the verifier lists any."""
    for row in rows:
        try:
            accepted = verifier.accepted_answers(row.get("answer") or "", _info(row))
        except Exception:  # a user's verifier, or a faulty row, which training reports
            accepted = None
        if accepted:
            return accepted
    return []


def _verdict(verifier: Verifier, text: str, row: Row) -> bool | None:
    try:
        return verifier.score(text, row.get("answer") or "", _info(row))
    except Exception:  # as above
        return None


def _problem(forcing: Forcing, name: str, text: str, answer: str, row: Row) -> str:
    verifier = get_verifier(name)
    forms = getattr(verifier, "answer_forms", ())
    own = forms[0].opening + answer + forms[0].closing if forms else ""
    if own and _verdict(verifier, own, row) is False:
        fix = (
            f"it also graded {own!r} without the suffix as wrong, so it rejects every completion in this form: fix "
            "the row's answer, or the verifier's `answer_forms`"
        )
    elif forcing.given is None or not forms:
        fix = (
            "set forcing_suffix to a text that opens an answer in the form that the verifier reads, or add "
            "`answer_forms` to the verifier (docs/extend.md)"
        )
    else:
        line = ", on a line of its own" if forms[0].on_own_line else ""
        fix = f"remove forcing_suffix to use each verifier's default, or end it with {forms[0].opening!r}{line}"
    return f"the verifier {name!r} rejects a correct forced answer: it graded {text!r} as wrong; {fix}"


def _info(row: Row) -> dict[str, Any]:
    return json.loads(row["info"]) if row.get("info") else {}


def column_of(rows: Any, name: str) -> list[Any]:
    """Return a column of a dataset or a list of rows, `None` for each row without it."""
    if hasattr(rows, "column_names"):
        return rows[name][:] if name in rows.column_names else [None] * len(rows)
    return [row.get(name) for row in rows]
