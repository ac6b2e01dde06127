"""MRT(STaR): which of a problem's right traces to imitate. Pure functions.

For every problem several traces are sampled; of those that end right the one of most progress is kept, the model is
fine-tuned on what was kept, and the next round begins (arXiv 2503.07572, section 6). With J_j the chance of success
if the trace were stopped after episode j and J_n the outcome, the progress of an episode is J_j - J_(j-1).

"Most progress" cannot mean the largest sum: it telescopes to J_n - J_0, and J_n = 1 for every right trace, J_0 is the
problem's. All right traces of a problem have the same sum. What differs is *when* progress is made, and that is the
paper's cumulative regret (Definition 4.1, with the comparator 1):

    regret = integral of (1 - J) over the trace's tokens = sum_j (J_j - J_(j-1)) * (middle of episode j, in tokens)

where J rises in a line within an episode; the second form is integration by parts, for a trace that ends right. So
the trace of least regret is the one that makes its progress at the fewest tokens, and it is the one kept here.

What deviates from the paper, and why:

- The paper does not say how traces of equal sums are told apart; the regret is ours. It is not divided by the trace's
  own length: the mean of J over it would rise with every token that a finished trace dawdles on.
- Regret is blind to tokens spent where J is 1 already, as progress is; of equal regrets the shorter trace is kept.
- One trace a problem, so that rules of selection are compared on the same problems and numbers of traces.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

SELECT = ("progress", "shortest", "correct")


@dataclass(frozen=True, kw_only=True)
class RightTrace:
    """A trace that ended right, as far as choosing needs it.

    Args:
        ends (`Sequence[int]` of length n): the token position after each episode; the last is the trace's length.
        values (`Sequence[float]` of length n + 1, *optional*): J_0 to J_n; only `progress` reads them.
    """

    ends: Sequence[int]
    values: Sequence[float] | None = None


def regret(ends: Sequence[int], values: Sequence[float]) -> float:
    """Return the area between a trace's J and 1, in tokens: those that an oracle would have been right at, and it not.

    Args:
        ends (`Sequence[int]` of length n): the token position after each episode, strictly increasing.
        values (`Sequence[float]` of length n + 1): J_0 to J_n, each from 0 to 1.

    Raises:
        ValueError: if there is not one value more than there are episodes.
    """
    if len(values) != len(ends) + 1:
        raise ValueError(f"{len(ends)} episodes need {len(ends) + 1} values, J_0 first; got {len(values)}")
    starts = [0, *ends[:-1]]
    return sum(
        (end - start) * (1 - (before + after) / 2)
        for start, end, before, after in zip(starts, ends, values[:-1], values[1:], strict=True)
    )


def choose(traces: Sequence[RightTrace], select: str, rng: random.Random) -> int:
    """Choose one of a problem's right traces.

    Args:
        traces (`Sequence[RightTrace]` of length N): at least one.
        select (`str`): `progress` takes the least [`regret`], and of equal ones the shortest trace; `shortest` looks
            at the length alone, the control for how much of progress is brevity; `correct` draws any.
        rng (`random.Random`): draws for `correct`, and untouched by the others.

    Returns:
        `int`: the position of the chosen one; the first of several that are equal in all that counts.

    Raises:
        ValueError: for an unknown `select`, no trace, or `progress` on a trace without values.
    """
    if select not in SELECT:
        raise ValueError(f"select is one of {', '.join(SELECT)}, not {select!r}")
    if not traces:
        raise ValueError("there is no right trace to choose from")
    if select == "correct":
        return rng.randrange(len(traces))
    if select == "shortest":
        return min(range(len(traces)), key=lambda i: traces[i].ends[-1])
    regrets = []
    for trace in traces:
        if trace.values is None:
            raise ValueError("select: progress needs the values of every trace")
        regrets.append(round(regret(trace.ends, trace.values), 9))  # rounded: equal areas are equal
    return min(range(len(traces)), key=lambda i: (regrets[i], traces[i].ends[-1]))
