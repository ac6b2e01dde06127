"""The meta judge: a language model that rewrites a judge's rubric from cases that it has judged.

As in MPO (arXiv 2504.20157), several analyses run side by side, each of other cases; each writes a refinement of the
rubric in the same conversation; one merge makes one rubric of them. What differs, and why:

- an analysis also sees the judge's reasons, gold scores where there are any, how all scores are spread and what became
  of earlier versions; the paper's code shows one number a case, and the same refused change would come again;
- refinements and merge are JSON under bounds on number and length, read strictly and asked for once more if they are
  none: in the paper's code an empty merge ends the run, and a rubric grows without end;
- they are merged in a fixed order, all of them;
- a meta step that comes to nothing is no error of the run: the rubric in force stays.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .fencing import defuse, fence
from .judge import read_json
from .judge_client import Chat, JudgeClient, Reply, is_servers_fault
from .judged_cases import JudgedCase
from .prompt_templates import PromptTemplates
from .rubric import Rubric, RubricBounds, diff_rubrics
from .rubric_history import RubricHistory

MAX_WORDS = 600  # of an analysis
KEPT_VERSIONS = 6  # that an analysis is told of
WHY = {
    "contradiction": "the judge orders it and another answer to the same prompt otherwise than the gold score",
    "inflated": "a high total that little speaks for",
    "stratum": "drawn from all scores",
}


@dataclass(frozen=True)
class Revision:
    """What a meta step came to.

    Args:
        rubric (`Rubric`, *optional*): the new one; `None` if it came to nothing.
        analyses (`list[str]`): of the cases.
        failure (`str`, *optional*): why there is no rubric, in a sentence.
        prompt_tokens (`int`): of all requests.
        completion_tokens (`int`): likewise.
    """

    rubric: Rubric | None
    analyses: list[str] = field(default_factory=list)
    failure: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class MetaJudge:
    """
    Args:
        client (`JudgeClient`): of the meta model's server.
        bounds (`RubricBounds`, *optional*): that a new rubric must keep.
        num_refinements (`int`, *optional*, defaults to 4): analyses side by side, each of its share of the cases.
        templates (`PromptTemplates`, *optional*): in place of ours.
        max_characters (`int`, *optional*, defaults to 4000): of a prompt or an answer that are shown.

    Raises:
        ValueError: a number below 1.
    """

    def __init__(
        self,
        client: JudgeClient,
        bounds: RubricBounds | None = None,
        *,
        num_refinements: int = 4,
        templates: PromptTemplates | None = None,
        max_characters: int = 4000,
    ):
        if num_refinements < 1 or max_characters < 1:
            raise ValueError(
                f"num_refinements and max_characters must be at least 1, not {num_refinements}, {max_characters}"
            )
        self.client, self.bounds, self.num_refinements = client, bounds or RubricBounds(), num_refinements
        self.templates, self._max_characters = templates or PromptTemplates(), max_characters

    def revise(
        self,
        rubric: Rubric,
        cases: Sequence[tuple[JudgedCase, str]],
        distribution: str,
        versions: Sequence[dict[str, Any]] = (),
    ) -> Revision:
        """Write a new rubric.

        Args:
            rubric (`Rubric`): the one in force.
            cases (`Sequence[tuple[JudgedCase, str]]`): of `select_cases`, at least one.
            distribution (`str`): of `describe_scores`, over all cases since the last change.
            versions (`Sequence[dict]`): of `describe_versions`.

        Raises:
            ValueError: no case.
            JudgeError: the server does not say what it serves, or fails at all analyses.
        """
        if not cases:
            raise ValueError("a meta step needs at least one case")
        used: list[Reply] = []
        chats = [self._analyse(rubric, share, distribution, versions) for share in shares(cases, self.num_refinements)]
        replies = self._ask(chats, used)
        analysed = [
            (chat, reply.text)
            for chat, reply in zip(chats, replies, strict=True)
            if reply.failure is None and reply.text is not None
        ]
        analyses = [text for _, text in analysed]

        def nothing(failure: str) -> Revision:
            return Revision(None, analyses, failure, *_tokens(used))

        if is_servers_fault(replies):
            raise self.client.error(f"all {len(replies)} analyses failed", replies)
        if not analysed:
            return nothing(f"no analysis: {_first_failure(replies)}")
        asked = self.templates.render("refine.j2", bounds=self.bounds)
        refined = self._rubrics([_go_on(chat, text, asked) for chat, text in analysed], rubric.task, used)
        found = [each for each in refined if isinstance(each, Rubric)]
        if not found:
            return nothing(f"no refinement: {refined[0]}")
        if len(found) > 1:
            merged = self._rubrics([self._merge(rubric, found)], rubric.task, used)[0]
            if not isinstance(merged, Rubric):
                return nothing(f"no merge: {merged}")
            found = [merged]
        return Revision(found[0], analyses, None, *_tokens(used))

    def _ask(self, chats: Sequence[Chat], used: list[Reply], schema: dict[str, Any] | None = None) -> list[Reply]:
        replies = self.client.complete(chats, schema)
        used += replies
        return replies

    def _analyse(
        self,
        rubric: Rubric,
        cases: Sequence[tuple[JudgedCase, str]],
        distribution: str,
        versions: Sequence[dict[str, Any]],
    ) -> Chat:
        shown = [self._shown(case, why) for case, why in cases]
        values = {"task": rubric.task, "items": rubric.items, "distribution": distribution, "versions": versions}
        user = self.templates.render("analyse.j2", **values, cases=shown, max_words=MAX_WORDS)
        return [self._system(), {"role": "user", "content": user}]

    def _merge(self, rubric: Rubric, found: Sequence[Rubric]) -> Chat:
        values = {"task": rubric.task, "current": _items(rubric), "revisions": [_items(each) for each in found]}
        return [
            self._system(),
            {"role": "user", "content": self.templates.render("merge.j2", **values, bounds=self.bounds)},
        ]

    def _system(self) -> dict[str, str]:
        return {"role": "system", "content": self.templates.render("meta_system.j2")}

    def _shown(self, case: JudgedCase, why: str) -> dict[str, Any]:
        """Return a case as the templates are given it; everything that a model wrote is fenced."""
        limit = self._max_characters
        reference = fence(case.reference, limit, "reference answer") if case.reference else None
        return {
            "why": WHY[why],
            "total": case.total,
            "gold": case.gold,
            "agreement": case.agreement,
            "scores": case.scores,
            "rationales": {name: fence(text, limit, "reason") for name, text in case.rationales.items()},
            "prompt": fence(case.prompt, limit, "prompt"),
            "reference": reference,
            "completion": fence(case.completion, limit, "answer"),
        }

    def _rubrics(self, chats: list[Chat], task: str, used: list[Reply]) -> list[Rubric | str]:
        """Ask for rubrics, once more for those that are none; returns the reason in place of what stays none."""
        schema = self.bounds.schema()
        replies = self._ask(chats, used, schema)
        found = [read_items(reply, task, self.bounds) for reply in replies]
        again = [index for index, each in enumerate(found) if isinstance(each, str) and replies[index].failure is None]
        corrected = [
            _go_on(chats[index], replies[index].text, self.templates.render("refine_again.j2", reason=found[index]))
            for index in again
        ]
        for index, reply in zip(again, self._ask(corrected, used, schema), strict=True):
            second = read_items(reply, task, self.bounds)
            found[index] = second if isinstance(second, Rubric) else found[index]
        return found


def read_items(reply: Reply, task: str, bounds: RubricBounds) -> Rubric | str:
    """Read the items of a rubric from a reply; returns the reason if it is none."""
    if reply.failure is not None or reply.text is None:
        return f"{reply.failure}: {reply.detail}"
    try:
        values = read_json(reply.text)
    except (ValueError, RecursionError) as error:
        return f"it is not one JSON object ({str(error)[:100]})"
    if not isinstance(values, dict) or set(values) != {"items"}:
        return "it is not a JSON object with items alone"
    try:
        return Rubric.from_dict({"task": task, **values}, bounds)
    except (ValueError, TypeError) as error:
        return str(error)[:300]


def shares(cases: Sequence[tuple[JudgedCase, str]], number: int) -> list[list[tuple[JudgedCase, str]]]:
    """Deal cases out to at most `number` analyses; those of one prompt, as both sides of a contradiction, together."""
    by_prompt: dict[str, list[tuple[JudgedCase, str]]] = {}
    for case in cases:
        by_prompt.setdefault(case[0].prompt, []).append(case)
    dealt: list[list[tuple[JudgedCase, str]]] = [[] for _ in range(number)]
    for group in sorted(by_prompt.values(), key=len, reverse=True):
        min(dealt, key=len).extend(group)
    return [share for share in dealt if share]


def describe_scores(cases: Sequence[JudgedCase], rubric: Rubric) -> str:
    """Say how the scores of N > 0 cases are spread: totals by quartile, and each item's mean and ends."""
    totals = np.array([case.total for case in cases])
    low, first, median, third, high = np.quantile(totals, [0, 0.25, 0.5, 0.75, 1])
    lines = [
        f"{len(cases)} answers. Totals from {low:.2f} to {high:.2f}, quartiles {first:.2f}, {median:.2f}, {third:.2f}."
    ]
    for item in rubric.items:
        scores = np.array([case.scores[item.name] for case in cases])
        least, most = item.range
        lines.append(
            f"{item.name}: mean {scores.mean():.2f}; {(scores == least).mean():.0%} have {least}, "
            f"{(scores == most).mean():.0%} have {most}."
        )
    golds = [(case.total, case.gold) for case in cases if case.gold is not None]
    if len({gold for _, gold in golds}) > 1 and len({total for total, _ in golds}) > 1:
        lines.append(f"Correlation of the total with the gold score: {np.corrcoef(np.array(golds).T)[0, 1]:.2f}.")
    return "\n".join(lines)


def describe_versions(history: RubricHistory) -> list[dict[str, Any]]:
    """Return what became of the last versions: `number`, `outcome` and `changes` of each, for the analyses."""
    described = []
    for version in history.versions[-KEPT_VERSIONS:]:
        if version.parent is None:  # the rubric that was given
            continue
        events = [event for event in history.events if event["version"] == version.number]
        outcome = "; ".join(f"{event['event'].replace('_', ' ')} ({event['reason']})" for event in events)
        changes = diff_rubrics(history.versions[version.parent].rubric, version.rubric)
        described.append({"number": version.number, "outcome": outcome, "changes": "; ".join(changes) or "no change"})
    return described


def _go_on(chat: Chat, reply: str | None, asked: str) -> Chat:
    return [*chat, {"role": "assistant", "content": defuse(reply or "")}, {"role": "user", "content": asked}]


def _items(rubric: Rubric) -> str:
    return json.dumps(rubric.to_dict()["items"], ensure_ascii=False, indent=1)


def _first_failure(replies: Sequence[Reply]) -> str:
    return next(f"{reply.failure}: {reply.detail}" for reply in replies if reply.failure is not None)


def _tokens(replies: Sequence[Reply]) -> tuple[int, int]:
    return sum(reply.prompt_tokens for reply in replies), sum(reply.completion_tokens for reply in replies)
