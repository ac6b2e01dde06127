"""Forced answers: what a model answers after a truncated trace and a forcing suffix.

    forcing = Forcing(tokenizer)
    cuts = force_answers(engine, tokenizer, prompt_ids, traces, verifiers, forcing, num_answers=8, sampling=sampling)

The share of right ones among the `num_answers` texts of a cut estimates J, the chance of success if stopped there
(Qu et al., "Optimizing Test-Time Compute via Meta Reinforcement Fine-Tuning", 2025, call the forced model mu). Its
standard error is sqrt(J (1 - J) / num_answers), 0.18 at worst with 8.

All answers of all cuts come from one call of the engine, so that it can order them by length and share what they have
in common. Equal cuts of equal prompts are the same quantity: they are estimated once, and share their answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ..rewards.forcing import Forcing
from .engines import Engine, Sampling


@dataclass(frozen=True, kw_only=True)
class ForcedAnswers:
    """The forced answers of one cut trace.

    Args:
        texts (`list[str]` of length K): trace, suffix and answer as one text, special tokens stripped.
        suffix_tokens (`int`): length of the forcing suffix in tokens.
        answer_tokens (`list[int]` of length K): lengths of the answers in tokens, the ending token included.
    """

    texts: list[str]
    suffix_tokens: int
    answer_tokens: list[int]


def force_answers(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[Sequence[int]],
    traces: Sequence[Sequence[int]],
    verifiers: Sequence[str],
    forcing: Forcing,
    *,
    num_answers: int,
    sampling: Sampling,
) -> list[ForcedAnswers]:
    """Append the forcing suffix to every cut trace and draw `num_answers` answers of each.

    Args:
        engine ([`~metatune.eval.engines.Engine`]): what generates.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the engine's.
        prompt_ids (`Sequence[Sequence[int]]` of length N): token ids of the prompts.
        traces (`Sequence[Sequence[int]]` of length N): token ids of the traces, already cut; an ending token at the
            end is dropped, because nothing follows one, and an empty trace forces an answer at once.
        verifiers (`Sequence[str]` of length N): the name of each item's verifier, which decides how the answer is
            opened.
        forcing ([`~metatune.rewards.forcing.Forcing`]): what is appended.
        num_answers (`int`): answers of each cut; decoded greedily they are one answer, repeated.
        sampling ([`~metatune.eval.engines.Sampling`]): how to draw; `max_new_tokens` bounds an answer, without suffix.

    Returns:
        `list[ForcedAnswers]` of length N, in the order of the traces.

    Raises:
        ValueError: if `num_answers` is not positive, the lengths differ, or the engine refuses a row's length
            (prompt, trace and suffix are its prompt).
    """
    if num_answers < 1:
        raise ValueError(f"num_answers must be at least 1, got {num_answers}")
    cuts = [
        (tuple(prompt), tuple(without_end(trace, engine.eos_token_ids)), verifier)
        for prompt, trace, verifier in zip(prompt_ids, traces, verifiers, strict=True)
    ]
    distinct = list(dict.fromkeys(cuts))
    prefix_texts = tokenizer.batch_decode([list(trace) for _, trace, _ in distinct], skip_special_tokens=False)
    suffixes = [
        forcing.ids_after(text, verifier) for text, (_, _, verifier) in zip(prefix_texts, distinct, strict=True)
    ]
    draws = 1 if sampling.temperature == 0 else num_answers
    rows = []
    for (prompt, trace, _), suffix in zip(distinct, suffixes, strict=True):
        rows += [[*prompt, *trace, *suffix]] * draws
    answers = engine.generate(rows, sampling)
    forced = {}
    for index, (cut, suffix) in enumerate(zip(distinct, suffixes, strict=True)):
        drawn = answers[index * draws : (index + 1) * draws] * (num_answers // draws)
        whole = [[*cut[1], *suffix, *answer] for answer in drawn]
        forced[cut] = ForcedAnswers(
            texts=tokenizer.batch_decode(whole, skip_special_tokens=True),
            suffix_tokens=len(suffix),
            answer_tokens=[len(answer) for answer in drawn],
        )
    return [forced[cut] for cut in cuts]


def without_end(trace: Sequence[int], eos_token_ids: frozenset[int]) -> list[int]:
    """Drop the ending token that a finished trace ends with."""
    return list(trace[:-1] if trace and trace[-1] in eos_token_ids else trace)
