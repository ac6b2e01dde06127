r"""The forcing suffix: text that makes a model answer now. It ends the thinking and opens the final answer.

    forcing = Forcing(tokenizer)
    ids = [*prompt_ids, *trace_ids[:end], *forcing.ids_after(text_of_the_cut_trace, "countdown")]

The text that ends the thinking depends on the chat template, and the text that opens the answer on the row's verifier:
`\boxed{` for `math`, a line `answer X` for `countdown`. Your own suffix replaces both; `check_forcing` tests it with
each verifier.

The suffix is encoded on its own, because the ids before it were sampled and must stay as they are. A trace that has
ended its thinking already gets only what opens the answer.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .episodes import token_texts
from .extraction import ANSWER_LINE, ANSWER_TAG, BOX, MARK, VERDICT_TAG, AnswerForm, without_thinking
from .rendering import Rendering
from .verifiers import VERIFIERS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

THINKING_START, THINKING_END = "<think>", "</think>"
OUT_OF_TIME = f"\n\nThat is all the time I have, so I answer now.\n{THINKING_END}"
LEAD = "My final answer: "
THINKING_SUFFIX = f"{OUT_OF_TIME}\n\n{LEAD}{BOX.opening}"
LINE_SUFFIX = f"\n{MARK}"
LINE_TEMPLATE_MARK = "<|assistant|>"  # with the token `answer`, the starter's own
KNOWN_FORMS = (BOX, ANSWER_LINE, ANSWER_TAG, VERDICT_TAG)


class Forcing:
    """Appends the forcing suffix.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the model's, with its chat template.
        suffix (`str`, *optional*): the text, for all verifiers; by default it depends on the chat template and the
            row's verifier.
        chat_template_kwargs (`Mapping`, *optional*): variables of the chat template that the prompts are rendered
            with. If the template then closes the thinking before the trace (`enable_thinking: false`), the suffix
            only opens the answer.

    The methods take the name of the row's verifier, which decides how the answer is opened. For a row without a
    verifier, or whose verifier has no `answer_forms`, the form is a box if the model thinks, and a line `answer X` if
    the model is the starter.

    Raises:
        ValueError: if the suffix is empty, or if the model thinks and the suffix does not end the thinking. The
            methods raise it if no suffix is given and none is known for the chat template and the verifier.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        suffix: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ):
        self.given = suffix
        if suffix is not None and not suffix.strip():
            raise ValueError("forcing_suffix is empty: set the text that ends the thinking and opens the answer")
        rendering = Rendering(tokenizer, chat_template_kwargs or {})
        self._closed = bool(tokenizer.chat_template) and THINKING_END in rendering.open_text()
        self.thinks = _thinks(tokenizer) or opens_thinking(rendering)
        if suffix is not None and self.thinks and not self._closed and THINKING_END not in suffix:
            raise ValueError(
                f"forcing_suffix {suffix!r} does not end the thinking: this tokenizer's model ends it with "
                f"{THINKING_END}. Put {THINKING_END} into the suffix, before the text that opens the answer"
            )
        self._tokenizer = tokenizer
        self._is_starter = not self.thinks and _is_starter(tokenizer)
        self._ids: dict[str, list[int]] = {}

    def suffix_for(self, verifier: str | None = None) -> str:
        """Return the complete suffix for a verifier's rows."""
        if self.given is not None:
            return self.given
        form = self._chosen_form(verifier)
        opening = form.opening if form.on_own_line else LEAD + form.opening
        if self.thinks:
            return f"{OUT_OF_TIME}\n\n{opening}"
        return ("\n" if form.on_own_line else "\n\n") + opening

    def form_after(self, verifier: str | None = None) -> AnswerForm:
        """Return the text that the model must still write around the answer after the suffix.

        After a suffix that ends with an opening, this is the closing. A suffix that ends with a line break, or only
        ends the thinking, opens nothing: the model writes the verifier's complete form.
        """
        if self.given is None:
            return AnswerForm("", self._chosen_form(verifier).closing)
        forms = _forms_of(verifier)
        for form in (*forms, *KNOWN_FORMS):
            if self.given.endswith(form.opening):
                return AnswerForm("", form.closing)
        opens_nothing = self.given.endswith("\n") or not self.given.rpartition(THINKING_END)[2].strip()
        if forms and opens_nothing:
            newline = "\n" if forms[0].on_own_line and not self.given.endswith("\n") else ""
            return AnswerForm(newline + forms[0].opening, forms[0].closing)
        return AnswerForm("", "}" if self.given.endswith("{") else "")

    def text_after(self, prefix_text: str, verifier: str | None = None) -> str:
        """Return the suffix as it follows a cut trace.

        Leading newlines that the text already ends with are left out; so is what closes the thinking, with all before
        it, where the text has closed it already and not opened it again.

        Args:
            prefix_text (`str`): the text before the suffix; an empty text counts as ending with newlines.
            verifier (`str`, *optional*): the name of the row's verifier.
        """
        suffix = self.suffix_for(verifier)
        open_again = without_thinking(prefix_text) is None
        closed = (self._closed or THINKING_END in prefix_text) and THINKING_END in suffix and not open_again
        suffix = suffix.rpartition(THINKING_END)[2] if closed else suffix
        body = suffix.lstrip("\n")
        newlines = len(suffix) - len(body)
        ended = len(prefix_text) - len(prefix_text.rstrip("\n")) if prefix_text else newlines
        return "\n" * max(0, newlines - ended) + body

    def ids_after(self, prefix_text: str, verifier: str | None = None) -> list[int]:
        """Return the token ids of [`Forcing.text_after`]."""
        text = self.text_after(prefix_text, verifier)
        if text not in self._ids:
            self._ids[text] = self._encode(text)
        return list(self._ids[text])

    def _chosen_form(self, verifier: str | None) -> AnswerForm:
        """Return the form in which forced answers to a verifier's rows are opened."""
        forms = _forms_of(verifier)
        if self._is_starter and (not forms or ANSWER_LINE in forms):
            return ANSWER_LINE
        if forms:
            return forms[0]
        if self.thinks:
            return BOX
        raise ValueError(
            "forcing_suffix: none is known for this chat template"
            + (f" and the verifier {verifier!r}" if verifier else "")
            + "; set the text that ends the thinking and opens the answer, for instance "
            f"{LINE_SUFFIX!r} or {THINKING_SUFFIX!r}"
        )

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


def longest_suffix(forcing: Forcing, verifiers: Iterable[str | None]) -> int:
    """Return the length in tokens of the longest forcing suffix over the rows' verifiers; 0 without rows."""
    return max((len(forcing.ids_after(".", verifier)) for verifier in set(verifiers)), default=0)


def _is_starter(tokenizer: "PreTrainedTokenizerBase") -> bool:
    vocabulary = tokenizer.get_vocab()
    return LINE_TEMPLATE_MARK in vocabulary and MARK.strip() in vocabulary


def _forms_of(verifier: str | None) -> tuple[AnswerForm, ...]:
    """Return the forms that a verifier reads, the preferred one first; empty if it does not list them."""
    return tuple(getattr(VERIFIERS.get(verifier or ""), "answer_forms", ()))
