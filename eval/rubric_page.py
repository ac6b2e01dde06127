"""The report's section on a judge's rubrics: the versions, why each was taken or not, what changed and what led to it.

What a policy or a model wrote is data: it is bounded, what cannot be seen in it is shown, as it is to the judge, and
the template escapes it.
"""

from typing import Any

from ..rewards.fencing import defuse
from ..rewards.meta_judge import WHY
from ..rewards.rubric import diff_rubrics
from ..rewards.rubric_history import RubricHistory, RubricVersion, event_name
from .judge_log import JudgeLog, percent, words
from .pages import cut

MOST_VERSIONS, MOST_CASES = 20, 8  # that are shown in full: the newest versions, the first cases of each
CLASSES = {"+": "good", "-": "bad"}  # of a line of a diff, by what it begins with
MEASURES = {"rank_accuracy": "rank accuracy", "drift_accuracy": "drift accuracy"}
MEASURES |= {"reliability": "reliability", "spread": "spread"}


def describe_rubrics(history: RubricHistory) -> dict[str, Any]:
    """Return what the section shows, as texts.

    Args:
        history (`RubricHistory`): of a run, as it was read.

    Returns:
        `dict`: `current`, the rubric in force; `events`, a row each; `versions`, the newest in full, the newest first;
        `left_out`, how many older ones are not among them.
    """
    shown = history.versions[1:][-MOST_VERSIONS:][::-1]
    return {
        "current": {"number": history.current.number, "rubric": history.current.rubric},
        "events": [_describe_event(event, history) for event in history.events],
        "versions": [_describe_version(version, history) for version in shown],
        "left_out": len(history.versions) - 1 - len(shown),
    }


def describe_judge_log(log: JudgeLog | None) -> list[str]:
    """Say in a sentence each what share of the judgements failed, and what share of the step time judging took.

    Args:
        log (`JudgeLog`, *optional*): of a run that has one.
    """
    if log is None:
        return []
    sentences = ["No judgement failed."]
    if log.failed:
        causes = ", ".join(f"{words(cause)} {percent(share)}" for cause, share in log.failed.items())
        sentences = [
            f"{percent(sum(log.failed.values()))} of the completions could not be judged ({causes}): the judge gave "
            "them no reward, which is not a reward of 0."
        ]
    if log.took is not None:
        judging, meta = (percent(log.took[name]) for name in ("judging", "meta steps"))
        sentences.append(
            f"Judging for the reward took {judging} of the step time; meta steps, in which the rubric is rewritten "
            f"and tried, {meta}."
        )
    return sentences


def _describe_event(event: dict[str, Any], history: RubricHistory) -> dict[str, Any]:
    row = {"step": event["step"], "name": event_name(event), "reason": _text(event["reason"]), "version": None}
    if event["version"] is None:
        return row
    version = history.versions[event["version"]]
    rubric = version.rubric
    sizes = {"items": len(rubric.items), "points": f"{rubric.lowest} to {rubric.highest}"}
    return row | {"version": version.number, "parent": version.parent, **sizes}


def _describe_version(version: RubricVersion, history: RubricHistory) -> dict[str, Any]:
    parent = history.versions[version.parent or 0].rubric
    cases = [_describe_case(case) for case in version.cases[:MOST_CASES]]
    return {
        "number": version.number,
        "parent": version.parent,
        "step": version.step,
        "outcome": "accepted" if version.accepted else "refused",
        "reason": next((_text(e["reason"]) for e in history.events if e["version"] == version.number), ""),
        "qualities": _describe_verdict(version.verdict or {}),
        "changes": [
            {"text": _text(change), "class": CLASSES.get(change[0], "")}
            for change in diff_rubrics(parent, version.rubric)
        ],
        "analyses": [_text(analysis) for analysis in version.analyses],
        "cases": cases,
        "cases_left_out": len(version.cases) - len(cases),
        "file": version.file_name,
    }


def _describe_verdict(verdict: dict[str, Any]) -> list[dict[str, Any]]:
    """The gate's measures that it has of both rubrics, on the same held-out completions."""
    old, new = verdict.get("old") or {}, verdict.get("new") or {}
    both = [key for key in MEASURES if old.get(key) is not None and new.get(key) is not None]
    return [{"name": MEASURES[key], "old": old[key], "new": new[key]} for key in both]


def _describe_case(case: dict[str, Any]) -> dict[str, Any]:
    why = case.get("why") or ""
    scores, reasons = ((case.get(key) or {}) for key in ("scores", "rationales"))
    items = [{"name": name, "score": score, "reason": _text(reasons.get(name, ""))} for name, score in scores.items()]
    return {
        "why": _text(WHY.get(why, why)),
        "total": case.get("total"),
        "gold": case.get("gold"),
        "prompt": _text(case.get("prompt") or ""),
        "completion": _text(case.get("completion") or ""),
        "scores": items,
    }


def _text(value: Any) -> str:
    return cut(defuse(str(value)))
