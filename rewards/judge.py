"""A judge: a prompted language model that scores answers by a rubric, item by item, each with its reason.

In a single pass it reads task, rubric, prompt and answer and scores. With `mode: plan_execute` (MPO's form for maths,
arXiv 2504.20157) it first writes how an answer to the problem is to be checked, then carries that out on the answer,
then scores what it found: one request a problem and two an answer, instead of one.

An answer's text is data: fenced, bounded and defused (`fencing.py`). A judgement has exactly the rubric's items, whole
numbers in their ranges, or it is none: the strict reader guesses nothing. A reply that cannot be read is asked for
once more. A judgement that failed has no total: it is never a score of 0.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .fencing import defuse, fence
from .judge_client import FAILURES as CLIENT_FAILURES
from .judge_client import Chat, JudgeClient, Reply
from .prompt_templates import PromptTemplates
from .rubric import Rubric

MODES = ("single", "plan_execute")
UNREADABLE = ("no_json", "bad_scores")
FAILURES = (*CLIENT_FAILURES, *UNREADABLE)
SECOND_TEMPERATURE = 0.5  # at 0 the same reply would come again


@dataclass(frozen=True)
class Judgement:
    """What a judge said of an answer.

    Args:
        total (`float`, *optional*): normalised, 0 to 1; `None` if judging failed.
        scores (`dict[str, int]`, *optional*): of the rubric's items.
        rationales (`dict[str, str]`, *optional*): the reasons.
        failure (`str`, *optional*): one of `FAILURES`.
        detail (`str`, *optional*): of a failure: what the server said, or what is wrong with the reply.
        prompt_tokens (`int`): of all requests for this answer; a plan counts for the first answer that it is for.
        completion_tokens (`int`): likewise.
        tries (`int`): requests sent for the last step of this judgement.
        status (`int`, *optional*): HTTP status of a failure, if the server sent one.
    """

    total: float | None = None
    scores: dict[str, int] | None = None
    rationales: dict[str, str] | None = None
    failure: str | None = None
    detail: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tries: int = 0
    status: int | None = None


class Judge:
    """
    Args:
        client (`JudgeClient`): of the server.
        rubric (`Rubric`): may be replaced between calls; a call judges all by the one that it began with.
        mode (`str`, *optional*, defaults to `"single"`): `single` or `plan_execute`.
        templates (`str`, *optional*): folder of templates in place of ours; see `prompt_templates.py`.
        max_prompt_characters (`int`, *optional*, defaults to 8000): of a prompt, and of a reference, that are shown.
        max_completion_characters (`int`, *optional*, defaults to 16000): of an answer that are shown.

    Raises:
        ValueError: an unknown mode, a limit below 1, or templates that cannot be used.
    """

    def __init__(
        self,
        client: JudgeClient,
        rubric: Rubric,
        *,
        mode: str = "single",
        templates: str | Path | None = None,
        max_prompt_characters: int = 8000,
        max_completion_characters: int = 16000,
    ):
        if mode not in MODES:
            raise ValueError(f"mode is one of {', '.join(MODES)}, not {mode!r}")
        if max_prompt_characters < 1 or max_completion_characters < 1:
            raise ValueError("max_prompt_characters and max_completion_characters must be at least 1")
        self.client, self.rubric, self.mode = client, rubric, mode
        self.templates = PromptTemplates(templates)
        self._max_prompt, self._max_completion = max_prompt_characters, max_completion_characters

    def judge(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        references: Sequence[str | None] | None = None,
        *,
        rubric: Rubric | None = None,
        temperature: float | None = None,
    ) -> list[Judgement]:
        """Judge N answers.

        Args:
            prompts (`Sequence`): N texts or conversations.
            completions (`Sequence`): N texts or conversations.
            references (`Sequence[str | None]`, *optional*): N known answers.
            rubric (`Rubric`, *optional*): other than the judge's.
            temperature (`float`, *optional*): other than the client's, to judge the same answer again.

        Returns:
            `list[Judgement]`: N judgements in their order, failed ones among them.

        Raises:
            ValueError: the numbers differ.
            JudgeError: the server does not say what it serves.
        """
        rubric = rubric or self.rubric
        references = [None] * len(prompts) if references is None else references
        if not len(prompts) == len(completions) == len(references):
            raise ValueError(
                f"{len(prompts)} prompts, {len(completions)} completions and {len(references)} references do not go "
                "together"
            )
        cases = [
            self._shown(rubric, *each) | {"plan": None, "execution": None}
            for each in zip(prompts, completions, references, strict=True)
        ]
        replies: list[list[Reply]] = [[] for _ in cases]
        if self.mode == "plan_execute":
            self._plan(cases, replies, temperature)
        open_cases = [index for index, each in enumerate(replies) if not each or each[-1].failure is None]
        chats = [self._chat("judge_user.j2", cases[index]) for index in open_cases]
        found = self._score(chats, rubric, temperature)
        judgements = {index: judgement for index, (judgement, _) in zip(open_cases, found, strict=True)}
        for index, (_, used) in zip(open_cases, found, strict=True):
            replies[index] += used
        return [_with_tokens(judgements.get(index), each) for index, each in enumerate(replies)]

    def _shown(self, rubric: Rubric, prompt: Any, completion: Any, reference: str | None) -> dict[str, Any]:
        """Return what the templates are given of an answer."""
        known = reference is not None and str(reference).strip()
        shown = fence(str(reference), self._max_prompt, "reference answer") if known else None
        return {
            "task": rubric.task,
            "items": rubric.items,
            "prompt": fence(conversation_text(prompt), self._max_prompt, "prompt"),
            "reference": shown,
            "completion": fence(conversation_text(completion), self._max_completion, "answer to be judged"),
        }

    def _chat(self, template: str, values: Mapping[str, Any]) -> Chat:
        system = self.templates.render("judge_system.j2", task=values["task"])
        user = self.templates.render(template, **values)
        return [{"role": "system", "content": system}, {"role": "user", "content": user}]

    def _plan(self, cases: list[dict[str, Any]], replies: list[list[Reply]], temperature: float | None) -> None:
        """Write into each case how it is to be checked and what the check found; a failure ends it in its replies."""
        first: dict[tuple, int] = {}
        for index, case in enumerate(cases):
            first.setdefault((case["prompt"], case["reference"]), index)
        plans = self.client.complete(
            [self._chat("plan.j2", cases[index]) for index in first.values()], None, temperature
        )
        by_problem = dict(zip(first, plans, strict=True))
        for index, case in enumerate(cases):
            plan = by_problem[case["prompt"], case["reference"]]
            # what a plan cost is counted once, its failure is that of all its answers
            shared = (
                plan
                if first[case["prompt"], case["reference"]] == index
                else replace(plan, prompt_tokens=0, completion_tokens=0)
            )
            replies[index].append(shared)
            case["plan"] = plan.text
        going = [index for index, each in enumerate(replies) if each[-1].failure is None]
        checks = self.client.complete([self._chat("execute.j2", cases[index]) for index in going], None, temperature)
        for index, check in zip(going, checks, strict=True):
            replies[index].append(check)
            # the check quotes the answer, and is as little to be trusted
            cases[index]["execution"] = fence(check.text or "", self._max_completion, "check")

    def _score(
        self, chats: list[Chat], rubric: Rubric, temperature: float | None
    ) -> list[tuple[Judgement, list[Reply]]]:
        """Ask for scores, and once more for those that cannot be read."""
        schema = rubric.schema()
        replies = self.client.complete(chats, schema, temperature)
        found = [(read_judgement(reply, rubric), [reply]) for reply in replies]
        again = [index for index, (judgement, _) in enumerate(found) if judgement.failure in UNREADABLE]
        corrected = [
            [
                *chats[index],
                {"role": "assistant", "content": defuse(replies[index].text or "")},
                {"role": "user", "content": self.templates.render("again.j2", reason=found[index][0].detail)},
            ]
            for index in again
        ]
        usual = self.client.temperature or 0.0
        warmer = max(usual if temperature is None else temperature, SECOND_TEMPERATURE)
        for index, reply in zip(again, self.client.complete(corrected, schema, warmer), strict=True):
            judgement = read_judgement(reply, rubric)
            if judgement.failure is not None:
                judgement = found[index][0]
            found[index] = (judgement, [*found[index][1], reply])
        return found


def read_judgement(reply: Reply, rubric: Rubric) -> Judgement:
    """Read a reply strictly: one JSON object, in a fence of Markdown or none, with exactly the rubric's items."""
    if reply.failure is not None or reply.text is None:
        return Judgement(failure=reply.failure or "empty", detail=reply.detail)
    try:
        values = read_json(reply.text)
    except (ValueError, RecursionError) as error:
        return Judgement(failure="no_json", detail=f"it is not one JSON object ({str(error)[:100]})")
    try:
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
        for name, value in values.items():
            if not isinstance(value, dict) or set(value) != {"rationale", "score"}:
                raise ValueError(f"'{str(name)[:40]}' is not an object with rationale and score")
            if not isinstance(value["rationale"], str):
                raise ValueError(f"the rationale of '{str(name)[:40]}' is no text")
        total = rubric.total({name: value["score"] for name, value in values.items()})
    except ValueError as error:
        return Judgement(failure="bad_scores", detail=defuse(str(error)[:200]))
    scores = {item.name: values[item.name]["score"] for item in rubric.items}
    # defused: a meta judge reads it, and half a surrogate pair, which JSON can spell, is no text that can be written
    return Judgement(total, scores, {item.name: defuse(values[item.name]["rationale"]) for item in rubric.items})


def failure_shares(judgements: Sequence[Judgement]) -> dict[str, float]:
    """Return the share of each cause of failure that occurs, 0 to 1."""
    causes = Counter(judgement.failure for judgement in judgements if judgement.failure is not None)
    return {cause: number / len(judgements) for cause, number in sorted(causes.items())}


def _with_tokens(judgement: Judgement | None, replies: Sequence[Reply]) -> Judgement:
    """Return a judgement with what its requests cost; without one, the failure of the last of them."""
    last = replies[-1]
    if judgement is None:
        judgement = Judgement(failure=last.failure, detail=last.detail)
    return replace(
        judgement,
        prompt_tokens=sum(reply.prompt_tokens for reply in replies),
        completion_tokens=sum(reply.completion_tokens for reply in replies),
        tries=last.tries,
        status=last.status,
    )


def read_json(text: str) -> Any:
    """Read a model's JSON, which stands alone in its reply; raises `ValueError` or `RecursionError` for anything else.

    Control characters in texts are let through, as xgrammar does where the length of a text is bounded.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_without_doubles, parse_constant=_refuse, strict=False)
    return decoder.decode(unwrap(text))


def unwrap(text: str) -> str:
    """Take off the fence of Markdown and the thoughts before the answer that many models cannot do without."""
    text = text.strip()
    if not text.startswith(("{", "```")) and "</think>" in text:  # some templates open the thinking themselves
        text = text.partition("</think>")[2].strip()
    if text.startswith("```") and text.endswith("```") and "\n" in text:
        text = text[text.index("\n") : -3].strip()
    return text


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def conversation_text(value: Any) -> str:
    """Return a text, or a conversation with its roles."""
    if isinstance(value, str):
        return value
    if len(value) == 1:
        return _content(value[0])
    return "\n\n".join(f"{turn['role']}:\n{_content(turn)}" for turn in value)


def _content(turn: dict[str, Any]) -> str:
    content = turn.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(str(part.get("text", "")) for part in content)
