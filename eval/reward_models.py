"""Reward models on preference pairs: accuracy, calibration, length, by strength and by subset; ensembles.

What is measured are scores of the chosen and the rejected response of N pairs. A response that a model cannot score,
because it is longer than the model's positions or because its score is no finite number, takes its pair out of every
number and is counted. docs/reward_models.md has the definitions; the pure parts are in `pair_statistics.py`,
`calibration.py`, `reward_bench.py` and `best_of_n.py`.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Protocol

import numpy as np

from ..rewards.rendering import Messages, Rendering
from ..rewards.responses import response_ids
from ..rewards.reward_ensemble import combine_rewards
from .calibration import expected_calibration_error, fit_temperature, pair_loss, reliability
from .pair_statistics import clustered_mean, correctness, correlation_within, rank_correlation
from .reward_bench import SECTION_OF, SECTIONS, section_weights

STRENGTH_BINS = 10
ENSEMBLES = {"mean": None, "min": None, "mean_minus_std": 1.0}  # each with what it takes off for a deviation of 1
Row = dict[str, Any]


class Scorer(Protocol):
    """A reward model that scores token ids, such as [`~metatune.rewards.reward_model.RewardModel`]."""

    tokenizer: Any
    max_length: int | None

    def score_ids(self, responses: Sequence[list[int]]) -> np.ndarray:
        """Return N rewards, of shape (N,), NaN for what is too long."""
        ...


@dataclass(frozen=True)
class Pairs:
    """N preference pairs.

    Args:
        chosen (`Sequence` of length N): the better responses, texts or conversations.
        rejected (`Sequence` of length N): the worse ones.
        prompts (`Sequence` of length N, *optional*): their prompts; `None` where the responses hold them.
        groups (`Sequence[Hashable]` of length N): the prompt's identity: pairs of one group are redrawn together.
        strength (`np.ndarray` of shape (N,), *optional*): preference strength.
        subsets (`Sequence[str]` of length N, *optional*): the subset of each pair.
        turns (`bool`, *optional*, defaults to `False`): texts are turns of a conversation; see [`as_turns`].
        template (`Sequence[Mapping]` of length N, *optional*): each pair's own variables of the chat template.
    """

    chosen: Sequence[str | Messages]
    rejected: Sequence[str | Messages]
    prompts: Sequence[str | Messages] | None
    groups: Sequence[Hashable]
    strength: np.ndarray | None = None
    subsets: Sequence[str] | None = None
    turns: bool = False
    template: Sequence[Mapping[str, Any]] | None = None

    def __len__(self) -> int:
        return len(self.chosen)


@dataclass(frozen=True)
class PairScores:
    """What one model says of N pairs; index 0 of the second axis is the chosen response, 1 the rejected one.

    Args:
        rewards (`np.ndarray` of shape (N, 2)): scores, NaN where there is none.
        lengths (`np.ndarray` of shape (N, 2)): tokens of the response after its prompt; where the pairs name no
            prompt, after the beginning that all responses of a prompt share.
        too_long (`np.ndarray` of shape (N, 2)): whether the response is longer than the model reads.
        equal (`np.ndarray` of shape (N,)): whether both responses are the same tokens.
    """

    rewards: np.ndarray
    lengths: np.ndarray
    too_long: np.ndarray
    equal: np.ndarray

    @property
    def margins(self) -> np.ndarray:
        """The margins r(chosen) - r(rejected), of shape (N,); NaN where one of the two has no score."""
        margins_N = np.subtract(*self.rewards.T)
        return np.where(self.scored, margins_N, np.nan)

    @property
    def scored(self) -> np.ndarray:
        """Which pairs have two finite scores, of shape (N,)."""
        return np.isfinite(self.rewards).all(axis=1)


def score_pairs(model: Scorer, pairs: Pairs) -> PairScores:
    """Score pairs by a reward model, each response tokenized as it was trained.

    Raises:
        ValueError: as [`~metatune.rewards.responses.response_ids`].
    """
    tokenizer = model.tokenizer
    prompts, chosen = as_turns(tokenizer, pairs.prompts, pairs.chosen, pairs.turns)
    rejected = as_turns(tokenizer, pairs.prompts, pairs.rejected, pairs.turns)[1]
    ids_2N = [response_ids(tokenizer, prompts, side, pairs.template) for side in (chosen, rejected)]
    rewards_2N = model.score_ids(ids_2N[0] + ids_2N[1]).reshape(2, -1)
    total_2N = np.array([[len(ids) for ids in side] for side in ids_2N]).reshape(2, -1)
    given = prompts is not None
    before_N = (
        _prompt_lengths(tokenizer, prompts, pairs.template) if given else _shared_beginnings(ids_2N, pairs.groups)
    )
    limit = math.inf if model.max_length is None else model.max_length
    equal_N = np.array([first == second for first, second in zip(*ids_2N, strict=True)], dtype=bool)
    return PairScores(rewards_2N.T, (total_2N - np.array(before_N, dtype=int)).T, (total_2N > limit).T, equal_N)


def as_turns(tokenizer: Any, prompts: Any, responses: Sequence[Any], turns: bool = True) -> tuple[Any, Sequence[Any]]:
    """Make a user's and an assistant's message of texts, if they are turns and the model has a chat template."""
    if not (turns and prompts is not None and tokenizer.chat_template):
        return prompts, responses

    def messages(role: str, texts: Sequence[Any]) -> list[Any]:
        return [[{"role": role, "content": text}] if isinstance(text, str) else text for text in texts]

    return messages("user", prompts), messages("assistant", responses)


def ensembles(scores: Mapping[str, PairScores]) -> dict[str, PairScores]:
    """Combine models on one scale: the mean of their scores, the least, and the mean less the standard deviation.

    A pair has a score where every model gives one. Returns an empty dictionary for a single model.
    """
    if len(scores) < 2:
        return {}
    parts = list(scores.values())
    rewards = combined([part.rewards for part in parts])
    too_long, equal = np.any([part.too_long for part in parts], axis=0), np.all([part.equal for part in parts], axis=0)
    return {name: PairScores(found, parts[0].lengths, too_long, equal) for name, found in rewards.items()}


def combined(rewards: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Combine the rewards of several models, arrays of one shape, by each of `ENSEMBLES`; NaN where one has none."""
    stacked = np.stack(rewards, axis=-1)
    flat_NM = np.where(np.isfinite(stacked), stacked, np.nan).reshape(-1, len(rewards))
    return {
        f"ensemble {how}": combine_rewards(flat_NM, how, weight).reshape(stacked.shape[:-1])
        for how, weight in ENSEMBLES.items()
    }


def summarize(
    scores: PairScores, pairs: Pairs, *, reference: PairScores | None = None, num_bins: int = 10, **bootstrap: Any
) -> Row:
    """Sum up what one model says of the pairs; numbers that nothing supports are `None`.

    Args:
        scores ([`PairScores`]): the model's.
        pairs ([`Pairs`]): the same pairs.
        reference ([`PairScores`], *optional*): another model's, to compare the accuracy with, pair by pair.
        num_bins (`int`, *optional*, defaults to 10): bins of the calibration.
        **bootstrap: `confidence`, `num_resamples` and `seed` of the intervals; see
            [`~metatune.eval.pair_statistics.clustered_mean`].
    """
    margins_N, correct_N = scores.margins, correctness(scores.margins)
    every_N = np.ones(len(pairs), dtype=bool)

    def accuracy(members: np.ndarray) -> Row:
        return _accuracy(correct_N, members, pairs.groups, bootstrap)

    scored_rewards = scores.rewards[scores.scored]
    summary = {
        **accuracy(every_N),
        "num_too_long": int(scores.too_long.any(axis=1).sum()),
        "num_not_finite": int((~scores.scored & ~scores.too_long.any(axis=1)).sum()),
        "num_ties": int((margins_N == 0).sum()),
        "num_equal": int((scores.equal & scores.scored).sum()),
        "mean_margin": _mean(margins_N[scores.scored]),
        "score_std": float(scored_rewards.std()) if scored_rewards.size else None,
        "calibration": calibration(margins_N[scores.scored], num_bins),
        "length": _length(scores, pairs, accuracy),
    }
    if pairs.strength is not None:
        summary["by_strength"] = [
            {**_range(pairs.strength[bin_]), **accuracy(_mask(bin_, len(pairs)))}
            for bin_ in strength_bins(pairs.strength)
        ]
    if pairs.subsets is not None:
        names_N = np.asarray(pairs.subsets)
        summary["subsets"] = {name: accuracy(names_N == name) for name in dict.fromkeys(pairs.subsets)}
        summary |= _reward_bench(correct_N, pairs.groups, pairs.subsets, bootstrap)
    if reference is not None:
        summary["against_first"] = _difference(correct_N, correctness(reference.margins), pairs.groups, bootstrap)
    return summary


def calibration(margins: np.ndarray, num_bins: int = 10) -> Row | None:
    """Return error, loss and bins of the margins as chances, and the temperature that fits them best."""
    if not len(margins):
        return None
    temperature = fit_temperature(margins)
    fitted = 0 < temperature < math.inf
    notes = {0.0: "no scored pair is wrong: any lower temperature fits better", math.inf: "no better than a coin"}
    return {
        "error": expected_calibration_error(margins, num_bins),
        "loss": pair_loss(margins),
        "temperature": temperature if fitted else None,
        "error_at_temperature": expected_calibration_error(margins, num_bins, temperature) if fitted else None,
        "loss_at_temperature": pair_loss(margins, temperature) if fitted else None,
        "note": notes.get(temperature),
        "bins": reliability(margins, num_bins),
    }


def strength_bins(strength: np.ndarray) -> list[np.ndarray]:
    """Sort pairs by their strength into tenths of about equal number; fewer of them for fewer than ten pairs."""
    order = np.argsort(strength, kind="stable")
    return np.array_split(order, min(STRENGTH_BINS, len(order)))


def _length(scores: PairScores, pairs: Pairs, accuracy: Any) -> Row:
    """How scores and accuracy go with length."""
    rewards, lengths, groups = _distinct_responses(scores, pairs.groups)
    within, num_prompts = correlation_within(rewards, lengths, groups)
    chosen_N, rejected_N = scores.lengths.T
    longer = correctness(chosen_N - rejected_N)[scores.scored]
    return {
        "correlation": rank_correlation(rewards, lengths),
        "correlation_within_prompts": within,
        "num_prompts_within": num_prompts,
        "accuracy_of_longer": _mean(longer),
        "chosen_shorter": accuracy(chosen_N < rejected_N),
        "chosen_longer": accuracy(chosen_N > rejected_N),
        "same_length": accuracy(chosen_N == rejected_N),
    }


def _distinct_responses(scores: PairScores, groups: Sequence[Hashable]) -> tuple[list[float], list[float], list]:
    """Return rewards, lengths and prompts of the responses of scored pairs; a prompt's alike responses once."""
    rows = zip(scores.rewards.tolist(), scores.lengths.tolist(), groups, scores.scored, strict=True)
    distinct = dict.fromkeys(
        (group, *response)
        for rewards, lengths, group, scored in rows
        if scored
        for response in zip(rewards, lengths, strict=True)
    )
    return [r for _, r, _ in distinct], [length for *_, length in distinct], [group for group, *_ in distinct]


def _reward_bench(correct: np.ndarray, groups: Sequence[Hashable], subsets: Sequence[str], bootstrap: Row) -> Row:
    """Sections, and with all their subsets there the score; nothing for subsets that are not RewardBench's."""
    scored_N = ~np.isnan(correct)
    weight_N = np.zeros(len(subsets))
    weight_N[scored_N] = section_weights([name for name, there in zip(subsets, scored_N, strict=True) if there])
    section_N = np.array([SECTION_OF.get(subset, "") for subset in subsets])
    present = {name for name, weight in zip(subsets, weight_N, strict=True) if weight}
    sections = {}
    for section, needed in SECTIONS.items():
        members_N = (section_N == section) & scored_N
        if members_N.any():
            prompts = [group for group, member in zip(groups, members_N, strict=True) if member]
            found = clustered_mean(correct[members_N], prompts, weight_N[members_N], **bootstrap)
            missing = [subset for subset in needed if subset not in present]
            sections[section] = {**_named(found), "num_pairs": int(members_N.sum()), "missing": missing}
    if not sections:
        return {}
    whole = len(sections) == len(SECTIONS) and not any(row["missing"] for row in sections.values())
    score = float(np.mean([row["accuracy"] for row in sections.values()])) if whole else None
    return {"sections": sections, "reward_bench": score}


def _accuracy(correct: np.ndarray, members: np.ndarray, groups: Sequence[Hashable], bootstrap: Row) -> Row:
    """Accuracy over those members that were scored, with its interval and their number."""
    chosen = np.flatnonzero(members & ~np.isnan(correct))
    if not len(chosen):
        return {"accuracy": None, "ci_low": None, "ci_high": None, "num_pairs": 0, "num_prompts": 0}
    prompts = [groups[index] for index in chosen]
    found = clustered_mean(correct[chosen], prompts, **bootstrap)
    return {**_named(found), "num_pairs": len(chosen), "num_prompts": len(set(prompts))}


def _difference(correct: np.ndarray, reference: np.ndarray, groups: Sequence[Hashable], bootstrap: Row) -> Row | None:
    """The change of the accuracy, over the pairs that both have scored."""
    both = np.flatnonzero(~np.isnan(correct) & ~np.isnan(reference))
    if not len(both):
        return None
    prompts = [groups[index] for index in both]
    found = clustered_mean((correct - reference)[both], prompts, bounds=(-1.0, 1.0), **bootstrap)
    return {"difference": found.value, "ci_low": found.low, "ci_high": found.high, "num_pairs": len(both)}


def _named(interval: Any) -> Row:
    return dict(zip(("accuracy", "ci_low", "ci_high"), interval, strict=True))


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _range(strength: np.ndarray) -> Row:
    return {"low": float(strength.min()), "high": float(strength.max()), "strength": float(strength.mean())}


def _mask(members: np.ndarray, number: int) -> np.ndarray:
    mask_N = np.zeros(number, dtype=bool)
    mask_N[members] = True
    return mask_N


def _prompt_lengths(
    tokenizer: Any, prompts: Sequence[str | Messages], rows: Sequence[Mapping[str, Any]] | None
) -> list[int]:
    """Return the number of tokens of every prompt, without an opened turn."""
    rendering = Rendering(tokenizer)
    return [
        len(
            rendering.response_ids([], prompt, row)
            if isinstance(prompt, list) and prompt
            else rendering.prompt_ids(prompt if isinstance(prompt, str) else "")
        )
        for prompt, row in zip(prompts, rows or [{}] * len(prompts), strict=True)
    ]


def _shared_beginnings(sides: Sequence[Sequence[list[int]]], groups: Sequence[Hashable]) -> list[int]:
    """Return, for each pair, how many tokens all responses of its prompt begin with."""
    first: dict[Hashable, list[int]] = {}
    shared: dict[Hashable, int] = defaultdict(int)
    for side in sides:
        for group, ids in zip(groups, side, strict=True):
            if group not in first:
                first[group], shared[group] = ids, len(ids)
            same = takewhile(lambda pair: pair[0] == pair[1], zip(first[group][: shared[group]], ids, strict=False))
            shared[group] = sum(1 for _ in same)
    return [shared[group] for group in groups]
