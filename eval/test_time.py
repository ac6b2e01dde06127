"""Test-time compute: how good a model's answers are if its traces are stopped at token budgets.

    measured = evaluate_at_budgets(engine, tokenizer, items, forcing=Forcing(tokenizer), budgets=[16, 32, 64])
    measured.save("runs/mine/test_time")

Traces are sampled once and cut at every budget. One that had ended by itself by then counts with its own outcome and
its own tokens; another gets the forcing suffix and `num_answers` forced answers, and counts with the share of right
ones. docs/test_time_compute.md has all definitions; `budget_curves.py` the regret, `extension.py` the extrapolation.
"""

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..rewards.episodes import EpisodeRule, episode_ends, token_texts
from ..rewards.forcing import Forcing, longest_suffix, opens_thinking
from ..rewards.forcing_check import check_forcing, rows_by_verifier
from ..rewards.rendering import Rendering
from .budget_evaluation import BudgetEvaluation, Cuts, TraceMeasurement, extended_budget
from .engines import Engine, Sampling
from .evaluation import Completion, Evaluation
from .extension import default_phrases, extend_traces
from .files import write_rows
from .forced import ForcedAnswers, force_answers
from .scoring import evaluate, score
from .statistics import majority_at_k

TRACES = "traces.jsonl"


@dataclass
class MeasuredTraces:
    """All that [`evaluate_at_budgets`] found.

    Args:
        evaluation ([`Evaluation`]): the traces as ordinary completions.
        budgets ([`BudgetEvaluation`]): the same traces cut at budgets and episodes.
        episodes (`list[list[str]]`): the episodes' texts of each trace; empty lists where none were asked for.
    """

    evaluation: Evaluation
    budgets: BudgetEvaluation
    episodes: list[list[str]]

    def save(self, folder: str | Path, k_values: Sequence[int] | None = None) -> None:
        """Write `summary.json`, `completions.parquet`, `test_time.json`, and with episodes `traces.jsonl`."""
        folder = Path(folder)
        self.evaluation.save(folder, k_values)
        self.budgets.save(folder)
        if any(self.episodes):
            write_rows(folder / TRACES, self.trace_rows())

    def trace_rows(self) -> list[dict[str, Any]]:
        """One row a trace: its episodes, and the success if stopped after each; `null` where none could be scored."""
        rows = []
        for completion, trace, texts in zip(
            self.evaluation.completions, self.budgets.traces, self.episodes, strict=True
        ):
            shared = {"step": None, "distribution": trace.distribution, "prompt": completion.prompt}
            rows.append({**shared, "episodes": texts, "values": trace.episodes.success, "correct": completion.correct})
        return rows


def evaluate_at_budgets(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    items: Iterable[Mapping[str, Any]],
    *,
    forcing: Forcing,
    budgets: Sequence[int],
    num_samples: int = 1,
    num_answers: int = 8,
    answer_tokens: int = 32,
    max_new_tokens: int | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    extrapolate: Sequence[float] = (),
    extend_with: Sequence[str] | None = None,
    episodes: EpisodeRule | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> MeasuredTraces:
    """Draw `num_samples` traces of every item, cut each at every budget, and score what it answers there.

    Args:
        engine ([`~metatune.eval.engines.Engine`]): what generates.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): with a chat template.
        items (`Iterable[Mapping]`): as for [`~metatune.eval.evaluate`].
        forcing ([`~metatune.rewards.forcing.Forcing`]): appends the forcing suffix of the item's verifier.
        budgets (`Sequence[int]`): token budgets; duplicates count once, the order does not matter.
        num_samples (`int`, *optional*, defaults to `1`): traces of each item.
        num_answers (`int`, *optional*, defaults to `8`): forced answers of each cut.
        answer_tokens (`int`, *optional*, defaults to `32`): largest number of tokens of a forced answer.
        max_new_tokens (`int`, *optional*): largest number of tokens of a trace; the largest budget by default.
        temperature (`float`, *optional*, defaults to `1.0`): of traces and answers; 0 decodes greedily.
        top_p (`float`, *optional*, defaults to `1.0`): nucleus mass.
        top_k (`int`, *optional*, defaults to `0`): number of likeliest tokens kept; 0 keeps all.
        seed (`int`, *optional*, defaults to `0`): seed of the sampling.
        extrapolate (`Sequence[float]`, *optional*): multiples of the largest budget to extend the traces to.
        extend_with (`Sequence[str]`, *optional*): phrases that make an ended trace go on; see `default_phrases`.
        episodes ([`~metatune.rewards.episodes.EpisodeRule`], *optional*): also cut at the end of every episode.
        chat_template_kwargs (`Mapping`, *optional*): as for [`~metatune.eval.evaluate`].
        settings (`Mapping`, *optional*): what else to keep in the settings, such as the model's name.

    Raises:
        ValueError: for budgets, factors or numbers out of range, if a verifier rejects a correct forced answer, and
            as [`~metatune.eval.evaluate`].
    """
    items, budgets, factors = list(items), sorted(set(budgets)), sorted(set(extrapolate))
    limit = _checked_limit(budgets, factors, num_answers, max_new_tokens)
    targets = [extended_budget(budgets, factor) for factor in factors]
    rendering = Rendering(tokenizer, chat_template_kwargs or {})
    check_forcing(forcing, rows_by_verifier(items), opens_thinking(rendering))
    suffixes = {str(item.get("verifier")): forcing.suffix_for(item.get("verifier")) for item in items}
    _check_positions(engine, rendering, items, max([limit, *targets]), forcing, answer_tokens)
    phrases = tuple(default_phrases(next(iter(suffixes.values()), "")) if extend_with is None else extend_with)
    settings = dict(settings or {}) | {"num_answers": num_answers, "answer_tokens": answer_tokens}
    one_suffix = next(iter(suffixes.values())) if len(set(suffixes.values())) == 1 else suffixes
    settings |= {"forcing_suffix": one_suffix} | ({"extend_with": list(phrases)} if factors else {})
    settings |= {"episodes": dataclasses.asdict(episodes) | {"phrases": list(episodes.phrases)}} if episodes else {}
    drawing: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    started = time.perf_counter()
    recorder = _Recorder(engine)
    evaluation = evaluate(
        recorder,
        tokenizer,
        items,
        num_samples=num_samples,
        max_new_tokens=limit,
        **drawing,
        seed=seed,
        chat_template_kwargs=chat_template_kwargs,
        settings=settings,
    )
    prompts, traces = recorder.prompt_ids, recorder.completion_ids
    verifiers = [item["verifier"] for item in items for _ in range(num_samples)]

    # seeds of their own: an answer forced from nothing should not repeat how the trace itself began
    sampling = Sampling(max_new_tokens=answer_tokens, **drawing, seed=seed + 1)
    extended = extend_traces(
        recorder,
        tokenizer,
        prompts,
        traces,
        targets,
        suffixes=[suffixes[verifier] for verifier in verifiers],
        phrases=phrases,
        sampling=replace(sampling, seed=seed + 2),
    )
    ends, episode_texts = _episodes(tokenizer, traces, episodes)
    cuts = [
        _cuts(
            ids,
            budgets,
            [at_target[row] for at_target in extended],
            ends[row] if episodes else None,
            engine.eos_token_ids,
        )
        for row, ids in enumerate(traces)
    ]
    places = [(row, cut) for row, cuts_of_row in enumerate(cuts) for cut in cuts_of_row if cut is not None]
    columns = [prompts[row] for row, _ in places], [cut for _, cut in places], [verifiers[row] for row, _ in places]
    forced = iter(force_answers(recorder, tokenizer, *columns, forcing, num_answers=num_answers, sampling=sampling))

    score_answers, measured = _AnswerScorer(num_answers), []
    for row, completion in enumerate(evaluation.completions):
        item = items[row // num_samples]
        points = [
            _own_outcome(completion, num_answers) if cut is None else score_answers(item, cut, next(forced))
            for cut in cuts[row]
        ]
        measured.append(_measurement(completion, points, len(budgets) + 1, len(factors), ends[row]))
    seconds = time.perf_counter() - started
    forced_tokens = recorder.generated_tokens - evaluation.generated_tokens
    found = BudgetEvaluation(budgets, factors, measured, evaluation.settings, seconds, forced_tokens)
    return MeasuredTraces(evaluation, found, episode_texts)


class _Recorder:
    """An engine that keeps the rows of its first call, which are the traces, and counts what it generates."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self.eos_token_ids = engine.eos_token_ids
        self._heard = False
        self.prompt_ids: list[list[int]] = []
        self.completion_ids: list[list[int]] = []
        self.generated_tokens = 0

    def generate(self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
        completions = self._engine.generate(prompt_ids, sampling) if prompt_ids else []
        if not self._heard:
            self._heard = True
            self.prompt_ids, self.completion_ids = [list(ids) for ids in prompt_ids], completions
        self.generated_tokens += sum(map(len, completions))
        return completions


@dataclass(frozen=True)
class _Point:
    """What was measured at one cut; see [`Cuts`]."""

    success: float | None
    spent: float
    answer: float
    majority: dict[int, float | None]


class _AnswerScorer:
    """Scores the forced answers of a cut by the item's verifier, each distinct text of an item once."""

    def __init__(self, num_answers: int):
        self._ks = majority_ks(num_answers)
        self._verdicts: dict[tuple[str, str, str], tuple[bool | None, str | None]] = {}

    def __call__(self, item: Mapping[str, Any], cut: Sequence[int], forced: ForcedAnswers) -> _Point:
        said = [self._verdict(item, text) for text in forced.texts]
        scored = [(correct, given) for correct, given in said if correct is not None]
        verdicts, votes = [correct for correct, _ in scored], [given for _, given in scored]
        majority = {k: majority_at_k(votes, verdicts, k) if len(scored) >= k else None for k in self._ks}
        cost = forced.suffix_tokens + float(np.mean(forced.answer_tokens))
        return _Point(float(np.mean(verdicts)) if scored else None, len(cut) + cost, cost, majority)

    def _verdict(self, item: Mapping[str, Any], text: str) -> tuple[bool | None, str | None]:
        key = item["distribution"], item["key"], text
        if key not in self._verdicts:
            completion = score(item, 0, text, (), frozenset())
            self._verdicts[key] = completion.correct, completion.extracted
        return self._verdicts[key]


def majority_ks(num_answers: int) -> list[int]:
    """The k's of maj@k: powers of two up to the number of answers; maj@1 is the accuracy and is left out."""
    return [2**i for i in range(1, num_answers.bit_length())]


def _own_outcome(completion: Completion, num_answers: int) -> _Point:
    """The point of a trace that had ended: more answers are the same answer again."""
    success = None if completion.correct is None else float(completion.correct)
    return _Point(success, float(completion.tokens), 0.0, dict.fromkeys(majority_ks(num_answers), success))


def _cuts(
    ids: list[int],
    budgets: Sequence[int],
    extended: list[list[int]],
    ends: list[int] | None,
    eos_token_ids: frozenset[int],
) -> list[list[int] | None]:
    """List every cut of a trace: budgets, extended budgets, episodes; `None` where its own outcome stands."""
    ended = bool(ids) and ids[-1] in eos_token_ids
    at_budgets = [None if ended and budget >= len(ids) else ids[:budget] for budget in (0, *budgets)]
    at_episodes = []
    if ends is not None:  # an empty completion has no episode, and still what it would answer at once
        at_episodes = [ids[:end] for end in (0, *ends[:-1])] + [None] * bool(ends)
    return [*at_budgets, *extended, *at_episodes]


def _measurement(
    completion: Completion, points: list[_Point], num_budgets: int, num_extended: int, ends: list[int]
) -> TraceMeasurement:
    first, last = num_budgets, num_budgets + num_extended
    return TraceMeasurement(
        distribution=completion.distribution,
        key=completion.key,
        sample=completion.sample,
        tokens=completion.tokens,
        ended=not completion.truncated,
        correct=completion.correct,
        budgets=_as_cuts(points[:first]),
        extended=_as_cuts(points[first:last]),
        episode_ends=ends,
        episodes=_as_cuts(points[last:]),
    )


def _as_cuts(points: Sequence[_Point]) -> Cuts:
    return Cuts(
        success=[point.success for point in points],
        spent=[point.spent for point in points],
        answer=[point.answer for point in points],
        majority={k: [point.majority[k] for point in points] for k in (points[0].majority if points else ())},
    )


def _episodes(
    tokenizer: PreTrainedTokenizerBase, traces: Sequence[Sequence[int]], rule: EpisodeRule | None
) -> tuple[list[list[int]], list[list[str]]]:
    """Cut traces into episodes: their ends and their texts; empty lists without a rule."""
    if rule is None:
        return [[] for _ in traces], [[] for _ in traces]
    ends, episodes = [], []
    for ids in traces:
        texts = token_texts(tokenizer, ids)
        ends.append(episode_ends(ids, texts, rule))
        episodes.append(["".join(texts[start:end]) for start, end in pairwise((0, *ends[-1]))])
    return ends, episodes


def _checked_limit(
    budgets: Sequence[int], factors: Sequence[float], num_answers: int, max_new_tokens: int | None
) -> int:
    """Return the largest number of tokens of a trace."""
    if not budgets or budgets[0] < 1:
        raise ValueError(f"budgets must be token numbers of at least 1, at least one of them, got {list(budgets)}")
    if factors and factors[0] < 1:
        raise ValueError(f"extrapolate multiplies the largest budget, by at least 1, got {factors[0]:g}")
    if num_answers < 1:
        raise ValueError(f"num_answers must be at least 1, got {num_answers}")
    if max_new_tokens is not None and max_new_tokens < budgets[-1]:
        raise ValueError(
            f"max_new_tokens {max_new_tokens} is below the largest budget, {budgets[-1]}: raise it, or leave it out"
        )
    return max_new_tokens or budgets[-1]


def longest_answered(
    forcing: Forcing,
    verifiers: Iterable[str | None],
    budgets: Sequence[int],
    factors: Sequence[float],
    max_new_tokens: int | None,
    answer_tokens: int,
) -> int:
    """Return the maximum number of tokens after a prompt: a trace (extended or not), the suffix and an answer.

    Args:
        forcing ([`~metatune.rewards.forcing.Forcing`]): appends the text that makes the model answer.
        verifiers (`Iterable[str]`): the names of the items' verifiers.
        budgets (`Sequence[int]`): as for [`evaluate_at_budgets`].
        factors (`Sequence[float]`): its `extrapolate`.
        max_new_tokens (`int`, *optional*): the same.
        answer_tokens (`int`): the same.
    """
    budgets = sorted(set(budgets))
    longest = max([max_new_tokens or budgets[-1], *(extended_budget(budgets, factor) for factor in factors)])
    return longest + longest_suffix(forcing, verifiers) + answer_tokens


def _check_positions(
    engine: Engine,
    rendering: Rendering,
    items: Sequence[Mapping[str, Any]],
    trace_tokens: int,
    forcing: Forcing,
    answer_tokens: int,
) -> None:
    """Raise before anything is generated if the longest forced answer would outgrow a local model's positions."""
    model = getattr(engine, "model", None)  # vLLM refuses a row that is too long by itself
    positions = None if model is None else getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return
    prompt = max((len(rendering.prompt_ids(item["prompt"])) for item in items if "prompt" in item), default=0)
    suffix = longest_suffix(forcing, (item.get("verifier") for item in items))
    if prompt + trace_tokens + suffix + answer_tokens > positions:
        raise ValueError(
            f"a prompt of {prompt} tokens, a trace of {trace_tokens}, the forcing suffix of {suffix} and an answer of "
            f"{answer_tokens} exceed the model's {positions} positions; lower budgets, extrapolate or answer_tokens"
        )
