r"""Where a trace is cut into episodes: token positions of the sampled ids.

    rule = EpisodeRule.from_options({"by": "phrases", "group": 5})
    ends = episode_ends(ids, token_texts(tokenizer, ids), rule)      # the last is len(ids)

| by | an episode |
|---|---|
| `phrases` | opens with a paragraph that begins with a turning phrase, `min_paragraphs` or more after the last |
| `delimiter` | ends with `delimiter`, which belongs to it |
| `regex` | begins at each match of `regex` |
| `tokens` | has `tokens` tokens |

Then everything from episode `max_episodes` on is one, and every `group` episodes are made one. Where `thinking_end`
stands in the trace, an episode ends after it and none later: the answer is one episode, beyond `max_episodes`.

What deviates from the authors' analysis code (the training code is not public), and why:

- It splits decoded text and encodes the parts again; the ids of the parts are then not those that were sampled. Here a
  boundary is a position in the sampled ids; a token that straddles one belongs to the earlier episode.
- It counts the thought alone; here the answer is the last episode, because its tokens are trained too.
- Its limits (49 steps in groups of 5, 45 of 3, 99 of 10) were set by data set; here there are none by default.
"""

import codecs
import difflib
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TURNING_PHRASES = (
    "Wait",
    "But wait",
    "Alternatively",
    "Is there another way to think about this?",
    "But let me double-check",
    "But hold on",
)
KINDS = {  # and the options that are theirs alone
    "phrases": ("phrases", "paragraph", "min_paragraphs"),
    "delimiter": ("delimiter",),
    "regex": ("regex",),
    "tokens": ("tokens",),
}
REPLACEMENT = "\ufffd"  # what bytes that are no character decode to
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")


@dataclass(frozen=True, kw_only=True)
class EpisodeRule:
    r"""
    How a trace is cut.

    Args:
        by (`str`, *optional*, defaults to `"phrases"`): `phrases`, `delimiter`, `regex` or `tokens`.
        phrases (`Sequence[str]`, *optional*): what a paragraph that opens an episode begins with.
        paragraph (`str`, *optional*, defaults to two newlines): what separates paragraphs.
        min_paragraphs (`int`, *optional*, defaults to `3`): fewest paragraphs of an episode of `phrases`.
        delimiter (`str`, *optional*, defaults to a newline): what ends an episode of `delimiter`.
        regex (`str`, *optional*): what begins an episode of `regex`; `^` and `$` match at lines.
        tokens (`int`, *optional*): length of an episode of `tokens`.
        max_episodes (`int`, *optional*): largest number of episodes before they are grouped, the answer not counted.
        group (`int`, *optional*, defaults to `1`): how many episodes are made one.
        thinking_end (`str`, *optional*, defaults to `"</think>"`): what ends the thinking; `None` for nothing.

    Raises:
        ValueError: an option is out of its range, or the one that `by` needs is missing.
    """

    by: str = "phrases"
    phrases: Sequence[str] = TURNING_PHRASES
    paragraph: str = "\n\n"
    min_paragraphs: int = 3
    delimiter: str = "\n"
    regex: str | None = None
    tokens: int | None = None
    max_episodes: int | None = None
    group: int = 1
    thinking_end: str | None = "</think>"

    def __post_init__(self) -> None:
        if not isinstance(self.by, str) or self.by not in KINDS:
            raise ValueError(f"episodes: by is one of {', '.join(KINDS)}, not {self.by!r}")
        phrases = [self.phrases] if isinstance(self.phrases, str) else self.phrases
        if not isinstance(phrases, list | tuple) or not phrases or not all(isinstance(p, str) and p for p in phrases):
            raise ValueError(f"episodes: phrases is a list of texts, at least one and none empty, got {phrases!r}")
        object.__setattr__(self, "phrases", tuple(phrases))
        for name in ("min_paragraphs", "group", "max_episodes", "tokens"):
            value = getattr(self, name)
            absent = value is None and name in ("max_episodes", "tokens")
            if not absent and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"episodes: {name} must be a whole number above 0, got {value!r}")
        for name in ("paragraph", "delimiter"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ValueError(f"episodes: {name} must be a text that is not empty, got {getattr(self, name)!r}")
        for name in ("regex", "thinking_end"):
            if not isinstance(getattr(self, name), str | None):
                raise ValueError(f"episodes: {name} must be a text, got {getattr(self, name)!r}")
        if self.by == "tokens" and self.tokens is None:
            raise ValueError("episodes: {by: tokens} needs tokens, the length of an episode")
        if self.by == "regex":
            if not self.regex:
                raise ValueError("episodes: {by: regex} needs regex, what an episode begins with")
            try:
                re.compile(self.regex)
            except re.error as error:
                raise ValueError(f"episodes: regex {self.regex!r} is none: {error}") from error

    @classmethod
    def from_options(cls, options: Mapping[str, Any] | None) -> "EpisodeRule":
        """Make a rule from a recipe's options; `None` is the default rule.

        Raises:
            ValueError: an option is unknown or belongs to another `by` than the one given; or as above.
        """
        if not isinstance(options, Mapping | None):
            raise ValueError(f"episodes: give options, such as {{by: delimiter}}, not {options!r}")
        known = [field.name for field in fields(cls)]
        for name in options or {}:
            if name not in known:
                close = difflib.get_close_matches(str(name), known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"
                raise ValueError(f"episodes: unknown option {name!r}{hint}")
        rule = cls(**(options or {}))
        for kind, own in KINDS.items():
            for name in own:
                if kind != rule.by and name in (options or {}):
                    raise ValueError(f"episodes: {name} does nothing with {{by: {rule.by}}}; it is for {{by: {kind}}}")
        return rule


def token_texts(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> list[str]:
    """Return the text that each token completes; joined, the decoded ids with their special tokens.

    A token that ends inside a character gets the empty text, and the one that completes it the whole character. Bytes
    that never become a character are replacement characters. `DecodeStream` of tokenizers raises on some of these and
    takes quadratic time on others, and a policy may sample them.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): a fast tokenizer.
        ids (`Sequence[int]` of length T): sampled token ids; one that the tokenizer does not know has no text.

    Returns:
        `list[str]` of length T.

    Raises:
        ValueError: the tokenizer is not a fast one.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"episodes: {type(tokenizer).__name__} is not a fast tokenizer; load one with tokenizer.json")

    def decode(part: Sequence[int]) -> str:
        return backend.decode(list(part), skip_special_tokens=False)

    tokens = {token: backend.id_to_token(token) for token in set(ids)}
    known = [place for place, token in enumerate(ids) if tokens[token] is not None]
    alone = {token: decode([token]) for token in tokens}
    # some decoders drop a leading space of the first token, so the text of any other is what it adds to itself
    later = {token: decode([token, token])[len(alone[token]) :] for token in tokens}
    texts = [""] * len(ids)
    run: list[int] = []  # places of tokens that may be parts of characters
    for order, place in enumerate(known):
        token = ids[place]
        if REPLACEMENT in alone[token] or (_BYTE_TOKEN.fullmatch(tokens[token]) and alone[token] != tokens[token]):
            run.append(place)
            continue
        _put_characters(texts, run, [tokens[ids[at]] for at in run])
        run = []
        texts[place] = later[token] if order else alone[token]
    _put_characters(texts, run, [tokens[ids[at]] for at in run])
    whole = decode(ids)
    return texts if "".join(texts) == whole else _texts_of_prefixes(decode, ids, whole)


@cache
def _byte_of() -> dict[str, int]:
    """Return the byte that each character of a byte-level tokenizer's tokens stands for."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode  # heavy, and graders import this package

    return {character: byte for byte, character in bytes_to_unicode().items()}


def _put_characters(texts: list[str], places: Sequence[int], tokens: Sequence[str]) -> None:
    """Write the characters that a run of byte tokens makes to the places of those that complete them."""
    fallback = [match for token in tokens if (match := _BYTE_TOKEN.fullmatch(token))]
    if len(fallback) == len(tokens):
        parts = [bytes([int(match[1], 16)]) for match in fallback]
        try:
            b"".join(parts).decode()
        except UnicodeDecodeError:  # such tokenizers then decode none of the run
            parts = [REPLACEMENT.encode()] * len(parts)
    else:
        byte_of = _byte_of()
        parts = [
            bytes(byte_of[c] for c in token) if all(c in byte_of for c in token) else token.encode()
            for token in tokens
        ]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for number, (place, part) in enumerate(zip(places, parts, strict=True), 1):
        texts[place] = decoder.decode(part, final=number == len(places))


def _texts_of_prefixes(decode: Callable[[Sequence[int]], str], ids: Sequence[int], whole: str) -> list[str]:
    """Return the tokens' texts by decoding every prefix, for decoders of other kinds: exact, in quadratic time."""
    texts, done = [], 0
    for end in range(1, len(ids)):
        settled = decode(ids[:end]).rstrip(REPLACEMENT)
        while not whole.startswith(settled):
            settled = settled[:-1]
        texts.append(whole[done : len(settled)])
        done = max(done, len(settled))
    return [*texts, whole[done:]] if ids else []


def episode_ends(ids: Sequence[int], texts: Sequence[str], rule: EpisodeRule) -> list[int]:
    """Return the position after each episode's last token.

    Args:
        ids (`Sequence[int]` of length T): token ids of a completion.
        texts (`Sequence[str]` of length T): what [`token_texts`] returned for them.
        rule ([`EpisodeRule`]): how to cut.

    Returns:
        `list[int]`: increasing strictly, the last is T; empty for an empty completion. A trace without any boundary is
        one episode, and so is what follows the last boundary of one that was truncated.
    """
    if not len(ids):
        return []
    reached = list(accumulate(map(len, texts)))  # characters complete after each token
    text = "".join(texts)
    thought = len(text)
    if rule.thinking_end and (found := text.find(rule.thinking_end)) >= 0:
        thought = found + len(rule.thinking_end)

    if rule.by == "tokens" and rule.tokens:
        thought_tokens = _token_after(reached, thought) if thought < len(text) else len(ids)
        ends = list(range(rule.tokens, thought_tokens, rule.tokens))
    else:
        ends = [_token_after(reached, start) for start in _starts(text[:thought], rule) if start > 0]
    ends = sorted({end for end in ends if 0 < end < len(ids)})
    if rule.max_episodes is not None:
        ends = ends[: rule.max_episodes - 1]
    ends = ends[rule.group - 1 :: rule.group]
    if thought < len(text) and (after := _token_after(reached, thought)) < len(ids):
        ends = [*(end for end in ends if end < after), after]
    return [*ends, len(ids)]


def _starts(text: str, rule: EpisodeRule) -> list[int]:
    """Return the characters at which episodes after the first begin."""
    if rule.by == "delimiter":
        return [match.end() for match in re.finditer(re.escape(rule.delimiter), text)]
    if rule.by == "regex" and rule.regex:
        return [match.start() for match in re.finditer(rule.regex, text, re.MULTILINE)]
    starts, position, since = [], 0, 0
    for number, paragraph in enumerate(text.split(rule.paragraph)):
        opens = paragraph.lstrip().startswith(tuple(rule.phrases))
        if number and opens and since >= rule.min_paragraphs:
            starts.append(position)
            since = 0
        since += 1
        position += len(paragraph) + len(rule.paragraph)
    return starts


def _token_after(reached: Sequence[int], character: int) -> int:
    """Return the first token position at which `character` characters are complete."""
    return bisect_left(reached, character) + 1
