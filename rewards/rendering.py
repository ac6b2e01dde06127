"""Tokenize prompts and responses: the only module that applies a chat template outside TRL.

    rendering = Rendering(tokenizer, {"enable_thinking": False})
    rendering.prompt_ids([{"role": "user", "content": "1+1"}])

A prompt has the same token ids as in TRL's `GRPOTrainer` (`_tokenize_prompts`), and a response the same as in TRL's
`RewardTrainer`. Code that samples from a policy or scores responses outside a trainer uses this class with the
`chat_template_kwargs` of the training, so that a model is evaluated on the prompts that it was trained on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Rendering:
    """A tokenizer and the variables of its chat template.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): with its chat template.
        chat_template_kwargs (`Mapping`, *optional*): variables of the template, such as `enable_thinking`.
    """

    tokenizer: Any
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def prompt_ids(self, prompt: str | Messages) -> list[int]:
        """Return a prompt's token ids: a conversation with the assistant's turn open, or a text unchanged.

        Raises:
            ValueError: for a conversation, if the tokenizer has no chat template.
        """
        if isinstance(prompt, str):
            return self.tokenizer(text=prompt)["input_ids"]
        return self._apply(prompt, add_generation_prompt=True)

    def response_ids(
        self, prompt: str | Messages, completion: str | Messages, row: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Return the token ids of a prompt with its completion; a text ends with the end-of-sequence token.

        Args:
            prompt (`str` or `list[dict]`): a text or a conversation; empty where the completion holds it.
            completion (`str` or `list[dict]`): of the prompt's kind.
            row (`Mapping`, *optional*): the row's own variables of the template (`tools` among them), which take
                precedence.
        """
        if isinstance(prompt, str) and isinstance(completion, str):
            end = self.tokenizer.eos_token or ""
            return self.tokenizer(text=prompt + completion + ("" if completion.endswith(end) else end))["input_ids"]
        if isinstance(prompt, str) or isinstance(completion, str):
            raise ValueError(
                f"the prompt is of type {type(prompt).__name__}, the completion of type {type(completion).__name__}: "
                "both must be texts, or both lists of messages"
            )
        return self._apply([*prompt, *completion], **(row or {}))

    def open_text(self) -> str:
        """Return the template's text after the user's turn, such as the assistant tag and an opening `<think>`."""
        probe = [{"role": "user", "content": "1+1"}]
        closed, opened = (
            self.tokenizer.apply_chat_template(
                probe, add_generation_prompt=open_turn, tokenize=False, **self.chat_template_kwargs
            )
            for open_turn in (False, True)
        )
        return opened.removeprefix(closed)

    def _apply(self, messages: Messages, **options: Any) -> list[int]:
        if not self.tokenizer.chat_template:
            raise ValueError(
                f"the tokenizer of {self.tokenizer.name_or_path!r} has no chat template: train with "
                "`chat_template_path: plain` or a template file, or set tokenizer.chat_template and save it with the "
                "model, as `metatune sft` does"
            )
        options = {**self.chat_template_kwargs, **options}
        return self.tokenizer.apply_chat_template(list(messages), tokenize=True, return_dict=True, **options)[
            "input_ids"
        ]
