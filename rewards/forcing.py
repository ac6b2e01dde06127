r"""The text that makes a model answer now: it ends the thinking and opens the final answer.

    forcing = Forcing(tokenizer)                     # what is known for the chat template
    forcing = Forcing(tokenizer, "\n</think>\n\nSo the answer is \\boxed{")
    ids = [*prompt_ids, *trace_ids[:end], *forcing.ids_after(text_of_the_cut_trace)]

The suffix is encoded on its own, because the ids before it were sampled and must stay as they are. A trace that has
ended its thinking already gets only what opens the answer.

For math the suffix should open a box or a line `answer X`: the last one counts, so marks in the cut trace do not.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .episodes import token_texts
from .extraction import MARK, without_thinking
from .rendering import Rendering

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

THINKING_START, THINKING_END = "<think>", "</think>"
THINKING_SUFFIX = f"\n\nThat is all the time I have, so I answer now.\n{THINKING_END}\n\nMy final answer: \\boxed{{"
LINE_SUFFIX = f"\n{MARK}"
LINE_TEMPLATE_MARK = "<|assistant|>"  # with the token `answer`, the starter's own


class Forcing:
    """Appends the forcing suffix.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the model's, with its chat template.
        suffix (`str`, *optional*): the text; by default what is known for the chat template.
        chat_template_kwargs (`Mapping`, *optional*): variables of the chat template that the prompts are rendered
            with. If the template then closes the thinking before the trace (`enable_thinking: false`), the suffix
            only opens the answer.

    Raises:
        ValueError: none is known and none is given; it is empty; or the model thinks and the suffix does not end that.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        suffix: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ):
        self.suffix = _default_suffix(tokenizer) if suffix is None else suffix
        if not self.suffix.strip():
            raise ValueError("forcing_suffix is empty: give the text that ends the thinking and opens the answer")
        rendering = Rendering(tokenizer, chat_template_kwargs or {})
        self._closed = bool(tokenizer.chat_template) and THINKING_END in rendering.open_text()
        if _thinks(tokenizer) and not self._closed and THINKING_END not in self.suffix:
            raise ValueError(
                f"forcing_suffix {self.suffix!r} does not end the thinking: this tokenizer's model ends it by "
                f"{THINKING_END} and would think on; put {THINKING_END} into the suffix, before what opens the answer"
            )
        self._tokenizer = tokenizer
        self._ids: dict[str, list[int]] = {}

    def text_after(self, prefix_text: str) -> str:
        """Return the suffix as it follows a cut trace.

        Leading newlines that the text ends with already are left out; so is what closes the thinking, with all before
        it, where the text has closed it already and not opened it again.

        Args:
            prefix_text (`str`): what stands before it; an empty text counts as ended by newlines.
        """
        open_again = without_thinking(prefix_text) is None
        closed = (self._closed or THINKING_END in prefix_text) and THINKING_END in self.suffix and not open_again
        suffix = self.suffix.rpartition(THINKING_END)[2] if closed else self.suffix
        body = suffix.lstrip("\n")
        newlines = len(suffix) - len(body)
        ended = len(prefix_text) - len(prefix_text.rstrip("\n")) if prefix_text else newlines
        return "\n" * max(0, newlines - ended) + body

    def ids_after(self, prefix_text: str) -> list[int]:
        """Return the token ids of [`Forcing.text_after`]."""
        text = self.text_after(prefix_text)
        if text not in self._ids:
            self._ids[text] = self._encode(text)
        return list(self._ids[text])

    def _encode(self, text: str) -> list[int]:
        ids, anchor = (self._tokenizer(part, add_special_tokens=False)["input_ids"] for part in (text, "\n"))
        if "".join(token_texts(self._tokenizer, [*anchor, *ids])[len(anchor) :]) != text:
            # the tokenizer begins every text with a space of its own; encoded after something it has none
            after = self._tokenizer("\n" + text, add_special_tokens=False)["input_ids"]
            if after[: len(anchor)] == anchor:
                return after[len(anchor) :]
        return ids


def _thinks(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Tell whether the chat template knows the end of thinking, or the vocabulary where there is no template."""
    template = tokenizer.chat_template
    if not template:
        return THINKING_END in tokenizer.get_vocab()
    return any(THINKING_END in text for text in (template.values() if isinstance(template, dict) else [template]))


def opens_thinking(rendering: Rendering) -> bool:
    """Return whether the chat template opens the thinking, so that a completion starts inside the thinking."""
    return bool(rendering.tokenizer.chat_template) and without_thinking(rendering.open_text()) is None


def _default_suffix(tokenizer: "PreTrainedTokenizerBase") -> str:
    if _thinks(tokenizer):
        return THINKING_SUFFIX
    vocabulary = tokenizer.get_vocab()
    if LINE_TEMPLATE_MARK in vocabulary and MARK.strip() in vocabulary:
        return LINE_SUFFIX
    raise ValueError(
        "forcing_suffix: none is known for this chat template; give the text that ends the thinking and opens the "
        f"answer, for instance {LINE_SUFFIX!r} or {THINKING_SUFFIX!r}"
    )
