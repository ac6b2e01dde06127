"""Budget forcing: let traces go on past where they ended by themselves (Muennighoff et al., "s1: Simple test-time
scaling", 2025).

A trace that has ended before the extended budget loses its ending (the ending token, and the answer: what follows
`</think>` where the template thinks, else a last line that begins as the forcing suffix does), a phrase is appended,
and the model goes on; again and again, until the budget is full. A trace that was cut before it ended just goes on.

Where a model adds nothing, because it ends at once or answers again, what it said is dropped and the next phrase is
tried; after `PATIENCE` such tries in a row the trace stands as it is, shorter than the budget.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from ..rewards.episodes import token_texts
from ..rewards.forcing import THINKING_END
from .engines import Engine, Sampling
from .forced import without_end

THINKING_PHRASES = ("\n\nWait", "\n\nBut wait", "\n\nAlternatively", "\n\nBut hold on")
PLAIN_PHRASES = ("\n",)  # the next line of a trace of attempts is another attempt
PATIENCE = 4


@dataclass
class _Extended:
    """A trace on its way: its ids, whether it needs a phrase to go on, and tries that came to nothing."""

    ids: list[int]
    ended: bool
    phrases: int = 0
    fruitless: int = 0


def default_phrases(suffix: str) -> tuple[str, ...]:
    """Choose what makes a model go on: turning words if the forcing suffix closes its thinking, else a new line."""
    return THINKING_PHRASES if THINKING_END in suffix else PLAIN_PHRASES


def extend_traces(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[Sequence[int]],
    traces: Sequence[Sequence[int]],
    budgets: Sequence[int],
    *,
    suffixes: Sequence[str],
    phrases: Sequence[str],
    sampling: Sampling,
) -> list[list[list[int]]]:
    """Extend every trace to every budget.

    Args:
        engine ([`~metatune.eval.engines.Engine`]): what generates.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the engine's.
        prompt_ids (`Sequence[Sequence[int]]` of length N): token ids of the prompts.
        traces (`Sequence[Sequence[int]]` of length N): token ids of the traces; one with an ending token has ended.
        budgets (`Sequence[int]`): tokens of the extended traces, ascending.
        suffixes (`Sequence[str]` of length N): the forcing suffix of each trace, which shows how an answer begins.
        phrases (`Sequence[str]`): appended in turn; newlines that the trace ends with already are not repeated.
        sampling ([`~metatune.eval.engines.Sampling`]): how to draw; its `max_new_tokens` is not used.

    Returns:
        `list[list[list[int]]]`: for each budget the N traces, cut there, without ending token.

    Raises:
        ValueError: if there is no phrase, or the engine refuses a row's length.
    """
    if not phrases:
        raise ValueError("extend_with needs at least one phrase")
    states = []
    for trace, suffix in zip(traces, suffixes, strict=True):
        kept = without_end(trace, engine.eos_token_ids)
        ended = len(kept) < len(trace)
        states.append(_Extended(without_answer(tokenizer, kept, suffix) if ended else kept, ended))
    rounds, extended = 0, []
    for budget in budgets:
        while True:
            rows = [i for i, s in enumerate(states) if len(s.ids) < budget and s.fruitless < PATIENCE]
            if not rows:
                break
            rounds += 1  # with one seed for all, equal prefixes would say the same again
            draw = replace(sampling, seed=sampling.seed + rounds)
            _extend_once(engine, tokenizer, prompt_ids, states, rows, budget, suffixes, phrases, draw)
        extended.append([state.ids[:budget] for state in states])
    return extended


def _extend_once(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[Sequence[int]],
    states: list[_Extended],
    rows: Sequence[int],
    budget: int,
    suffixes: Sequence[str],
    phrases: Sequence[str],
    sampling: Sampling,
) -> None:
    """Let the traces `rows` go on until each ends, or has filled at least half of the room that it has."""
    starts = {}
    for row in rows:
        state = states[row]
        starts[row] = list(state.ids)
        if state.ended:
            starts[row] += _phrase_ids(tokenizer, state.ids, phrases[state.phrases % len(phrases)])
            state.phrases += 1
    rooms = {row: budget - len(start) for row, start in starts.items()}
    said: dict[int, list[int]] = {}
    for asked, shortest in _like_rooms(rooms):
        draw = replace(sampling, max_new_tokens=shortest)
        said |= zip(asked, engine.generate([[*prompt_ids[r], *starts[r]] for r in asked], draw), strict=True)
    for row, start in starts.items():
        state = states[row]
        completion = said.get(row, [])[: max(rooms[row], 0)]
        kept = without_end(completion, engine.eos_token_ids)
        ids = [*start, *kept]
        ended = len(kept) < len(completion)
        if ended:
            ids = without_answer(tokenizer, ids, suffixes[row])
        if row in said and len(ids) <= len(start):
            state.fruitless, state.ended = state.fruitless + 1, True  # as before its phrase; the next is tried
        else:
            state.ids, state.ended, state.fruitless = ids, ended, 0


def _like_rooms(rooms: Mapping[int, int]) -> Iterator[tuple[list[int], int]]:
    """Yield rows with the least room among them, which is at least half of each one's.

    An engine takes one limit for all: with the largest, a long trace would be let grow beyond the model's positions.
    """
    rows = sorted((row for row, room in rooms.items() if room > 0), key=rooms.__getitem__)
    while rows:
        shortest = rooms[rows[0]]
        group = [row for row in rows if rooms[row] <= 2 * shortest]
        yield group, shortest
        rows = rows[len(group) :]


def without_answer(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], suffix: str) -> list[int]:
    """Drop the answer of a finished trace, whole tokens only: one that straddles the place goes with the answer.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the trace's.
        ids (`Sequence[int]`): token ids of the trace, without ending token.
        suffix (`str`): the forcing suffix. If it closes the thinking, the answer starts at the trace's own
            `</think>`; else at a last line that begins with the suffix's last line. Without either nothing is dropped.
    """
    texts = token_texts(tokenizer, list(ids))
    text = "".join(texts)
    place = len(text)
    if THINKING_END in suffix:
        place = text.find(THINKING_END) if THINKING_END in text else place
    else:
        mark = suffix.rstrip().rpartition("\n")[2]
        start = text.rstrip().rfind("\n") + 1
        place = start if mark.strip() and text[start:].startswith(mark) else place
    kept, length = [], 0
    for token, piece in zip(ids, texts, strict=True):
        length += len(piece)
        if length > place:
            break
        kept.append(token)
    return kept


def _phrase_ids(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], phrase: str) -> list[int]:
    text = tokenizer.decode(list(ids), skip_special_tokens=False)
    there = len(text) - len(text.rstrip("\n")) if text else len(phrase)
    wanted = len(phrase) - len(phrase.lstrip("\n"))
    return tokenizer.encode(phrase[min(there, wanted) :], add_special_tokens=False)
