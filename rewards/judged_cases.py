"""Which judged completions a meta judge is shown: those that say most about the rubric.

The paper (MPO, arXiv 2504.20157) draws them at random from all rollouts since the last change, and shows one number
each. Here they are chosen, after what later work found to be the better evidence (contrasting responses to one prompt,
arXiv 2510.07284), in three parts of equal size:

- contradictions: pairs of completions of one prompt that the judge orders otherwise than the gold score, largest
  first, both of them; without gold there are none;
- inflated: a high total that little speaks for, which is where a rubric is being exploited: a gold score below its
  mean, or judgements of the same completion that disagree;
- strata: as many from the low, the middle and the high third of all totals, so that what is right is seen too.

A part that has too few leaves its room to the strata.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

PARTS = ("contradiction", "inflated", "stratum")
PER_PROMPT = 4  # completions of a prompt in the test of a rubric
MOST_HELD_OUT = 3 / 4  # of the prompts; the others are shown to the meta judge


@dataclass(frozen=True)
class JudgedCase:
    """A completion as it was judged.

    Args:
        prompt (`str`): what was asked; completions with equal prompts are compared.
        completion (`str`): the answer.
        total (`float`): the judge's normalised score, 0 to 1.
        scores (`dict[str, int]`): of the rubric's items.
        rationales (`dict[str, str]`): the judge's reasons.
        gold (`float`, *optional*): what a verifier says of it.
        agreement (`float`, *optional*): of repeated judgements of this completion, 0 to 1.
        reference (`str`, *optional*): the known answer.
        step (`int`, *optional*, defaults to 0): optimizer steps before it was written.
    """

    prompt: str
    completion: str
    total: float
    scores: dict[str, int]
    rationales: dict[str, str]
    gold: float | None = None
    agreement: float | None = None
    reference: str | None = None
    step: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def select_cases(cases: Sequence[JudgedCase], number: int, seed: int) -> list[tuple[JudgedCase, str]]:
    """Choose the most telling cases.

    Args:
        cases (`Sequence[JudgedCase]`): all of them, whose totals are of one rubric.
        number (`int`): how many are wanted.
        seed (`int`): of the draws among equals.

    Returns:
        `list[tuple[JudgedCase, str]]`: at most `number` different ones, each with its part: `contradiction`,
        `inflated` or `stratum`.
    """
    rng = np.random.default_rng(seed)
    chosen: dict[int, str] = {}
    share = number // 3
    for pair in contradictions(cases):
        room = share - len(chosen)
        if room >= 2:
            chosen |= dict.fromkeys(pair, "contradiction")
    left = share
    for index in inflated(cases):
        if left and index not in chosen:
            chosen[index] = "inflated"
            left -= 1
    rest = [index for index in range(len(cases)) if index not in chosen]
    for index in stratified([cases[index].total for index in rest], number - len(chosen), rng):
        chosen[rest[index]] = "stratum"
    return [(cases[index], part) for index, part in chosen.items()]


def contradictions(cases: Sequence[JudgedCase]) -> list[tuple[int, int]]:
    """Return the pairs of completions of a prompt that judge and gold order differently, the starkest first.

    A pair is (better by gold, better by the judge); each completion is in one pair at most. The starkest has the
    greatest product of both differences.
    """
    groups: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for index, case in enumerate(cases):
        if case.gold is not None:
            groups[case.prompt].append((index, case.gold))
    found = []
    for group in groups.values():
        for (one, gold_of_one), (other, gold_of_other) in combinations(group, 2):
            gold = gold_of_one - gold_of_other
            product = gold * (cases[one].total - cases[other].total)
            if product < 0:
                found.append((product, (one, other) if gold > 0 else (other, one)))
    pairs: list[tuple[int, int]] = []
    used: set[int] = set()
    for _, pair in sorted(found):
        if not used & set(pair):
            pairs.append(pair)
            used |= set(pair)
    return pairs


def inflated(cases: Sequence[JudgedCase]) -> list[int]:
    """Return the cases whose total is high and little speaks for it, the most doubtful first.

    High is a total in the upper third. Doubt is how far the gold score is below the mean of all, in their standard
    deviations, plus what repeated judgements disagree; without either a case is no candidate.
    """
    if not cases:
        return []
    totals = np.array([case.total for case in cases])
    golds = np.array([np.nan if case.gold is None else case.gold for case in cases])
    known = ~np.isnan(golds)
    doubts = np.zeros(len(cases))
    if known.any() and np.ptp(golds[known]) > 0:
        standard = (golds[known] - golds[known].mean()) / golds[known].std()
        doubts[known] = np.maximum(-standard, 0)
    doubts += np.array([0.0 if case.agreement is None else 1 - case.agreement for case in cases])
    high = totals >= np.quantile(totals, 2 / 3)
    candidates = np.flatnonzero(high & (doubts > 0))
    return sorted(candidates.tolist(), key=lambda index: (-doubts[index], -totals[index]))


def stratified(totals: Sequence[float], number: int, rng: np.random.Generator) -> list[int]:
    """Draw indices of totals evenly from their thirds by rank, without repetition."""
    order = np.argsort(np.asarray(totals), kind="stable")
    strata = [rng.permutation(part).tolist() for part in np.array_split(order, 3)]
    drawn: list[int] = []
    while len(drawn) < min(number, len(totals)):
        for stratum in strata:
            if stratum and len(drawn) < number:
                drawn.append(stratum.pop())
    return drawn


def split_by_prompt(
    cases: Sequence[JudgedCase], held_out: int, seed: int
) -> tuple[list[JudgedCase], list[JudgedCase]]:
    """Split cases into those to be shown and about `held_out` (whole prompts) to try a rubric on.

    A prompt's completions stay together: what a rubric is tried on was not shown in any form. At most half of the
    prompts are held out.
    """
    prompts = list(dict.fromkeys(case.prompt for case in cases))
    order = np.random.default_rng(seed).permutation(len(prompts))
    sizes = Counter(case.prompt for case in cases)
    kept: set[str] = set()
    count = 0
    for index in order[: len(prompts) // 2]:
        if count >= held_out:
            break
        kept.add(prompts[index])
        count += sizes[prompts[index]]
    return [case for case in cases if case.prompt not in kept], [case for case in cases if case.prompt in kept]


def split_for_trial(
    cases: Sequence[JudgedCase], number: int, measurements: int, seed: int
) -> tuple[list[JudgedCase], list[list[JudgedCase]]]:
    """Split cases into those that a meta judge may see and those that test a new rubric.

    Args:
        cases (`Sequence[JudgedCase]`): all of them.
        number (`int`): completions of a measurement; its last prompt may add up to 3.
        measurements (`int`): maximum number of measurements; each has other prompts.
        seed (`int`): seed of the draws.

    Returns:
        `tuple`: the cases for the meta judge, and the measurements. No prompt is in both. A prompt is in a measurement
        only if two of its completions differ in gold or, if no case has gold, if it has two completions. At most three
        quarters of the prompts are held out.
    """
    groups = defaultdict(list)
    for case in cases:
        groups[case.prompt].append(case)
    against_gold = any(case.gold is not None for case in cases)
    rng = np.random.default_rng(seed)
    held_out: dict[str, list[JudgedCase]] = {}
    rounds: list[list[JudgedCase]] = [[]]
    for prompt in rng.permutation(np.array([*groups], dtype=object)):
        if len(held_out) + 1 > MOST_HELD_OUT * len(groups):
            break
        if len(rounds[-1]) >= number:
            if len(rounds) == measurements:
                break
            rounds.append([])
        if chosen := _spread_over_gold(groups[prompt], against_gold, rng):
            held_out[prompt] = chosen
            rounds[-1] += chosen
    shown = [case for case in cases if case.prompt not in held_out]
    return shown, [cases_of_round for cases_of_round in rounds if cases_of_round]


def _spread_over_gold(group: Sequence[JudgedCase], against_gold: bool, rng: np.random.Generator) -> list[JudgedCase]:
    """Return `PER_PROMPT` of a prompt's cases, from lowest to highest gold; none if they cannot be compared."""
    known = [case for case in group if case.gold is not None or not against_gold]
    if len(known) < 2 or (against_gold and len({case.gold for case in known}) < 2):
        return []
    known = [known[index] for index in rng.permutation(len(known))]
    known.sort(key=lambda case: case.gold or 0.0)
    places = np.linspace(0, len(known) - 1, min(PER_PROMPT, len(known))).round().astype(int)
    return [known[place] for place in places]
