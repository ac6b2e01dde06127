"""The policy of a round of `metatune metarm`: how it responds, and how likely it is to write given responses."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from trl import GRPOConfig, ModelConfig

from ..eval.engines import Sampling
from ..rewards import correctness_reward
from ..rewards.forcing import THINKING_START, opens_thinking
from ..rewards.rendering import Rendering
from .chat_template import set_template
from .config import ConfigError
from .rounds import Row, load_policy


class Policy:
    """A loaded policy that samples as `metatune grpo` samples from it.

    Args:
        model (`str`): its folder or hub name.
        args (`MetaRMScriptArguments`): `engine`, `sampling_batch_size` and `sampling_dtype` are read.
        training_args ([`~trl.GRPOConfig`]): lengths and temperature, and whether it is on the CPU.
        model_args ([`~trl.ModelConfig`]): how it is loaded.
        template (`str`, *optional*): `chat_template_path` of the block `grpo`.

    Raises [`ConfigError`] if it cannot be loaded.
    """

    def __init__(
        self, model: str, args: Any, training_args: GRPOConfig, model_args: ModelConfig, template: str | None = None
    ):
        try:
            self.tokenizer, self.engine = load_policy(model, args, training_args.use_cpu, model_args, template)
        except (ValueError, ImportError) as error:
            raise ConfigError(" ".join(str(error).split())) from error
        self.rendering = Rendering(self.tokenizer, training_args.chat_template_kwargs or {})
        self.training_args = training_args

    def respond(self, prompts: Sequence[Row], count: int, seed: int) -> list[Row]:
        """Sample `count` responses to each prompt and judge them where a verifier is known.

        Args:
            prompts (`Sequence[dict]`): rows with `prompt`, a text or a conversation, and perhaps `distribution`,
                `key`, and what a verifier needs (`verifier`, `answer`, `info`).
            count (`int`): responses to each prompt.
            seed (`int`): of the sampling.

        Returns:
            `list[dict]`: a row a response, those to one prompt together: `problem` (the prompt's number), `sample`,
            `distribution`, `key`, `prompt`, `text`, `tokens`, `truncated`, and `gold`: 1.0 or 0.0, `None` where
            nothing tells.
        """
        ids = [self.rendering.prompt_ids(row["prompt"]) for row in prompts for _ in range(count)]
        try:
            completions = self.engine.generate(ids, sampling_of(self.training_args, seed))
        except ValueError as error:
            raise ConfigError(" ".join(str(error).split())) from error
        texts = self.tokenizer.batch_decode(completions, skip_special_tokens=True)
        opening = THINKING_START if opens_thinking(self.rendering) else ""
        rows = []
        for number, (completion, text) in enumerate(zip(completions, texts, strict=True)):
            problem, sample = divmod(number, count)
            row = prompts[problem]
            rows.append(
                {
                    "problem": problem,
                    "sample": sample,
                    "distribution": row.get("distribution", "all"),
                    "key": row.get("key", str(problem)),
                    "prompt": row["prompt"],
                    "text": text,
                    "tokens": len(completion),
                    "truncated": not completion or completion[-1] not in self.engine.eos_token_ids,
                    "gold": gold(row, text if isinstance(row["prompt"], str) else opening + text),
                }
            )
        return rows


def sampling_of(args: GRPOConfig, seed: int = 0) -> Sampling:
    """Return how `metatune grpo` samples; raises `ValueError` for options that are out of range."""
    shared = {name: getattr(args, name) for name in ("temperature", "top_p", "top_k")}
    return Sampling(max_new_tokens=args.max_completion_length, seed=seed, **shared)


def gold(row: Row, text: str) -> float | None:
    """Return what a prompt's verifier says of a response, `None` where it has none or its grader failed."""
    if not row.get("verifier"):
        return None
    try:
        [reward] = correctness_reward([text], [row["answer"]], [row["verifier"]], [row.get("info") or ""])
    except ValueError as error:
        raise ConfigError(f"the prompt {row.get('key', row['prompt'])!r} cannot be judged: {error}") from error
    return reward


def as_completion(prompt: str | list, text: str) -> str | list:
    """Write a response as what TRL calls a completion: of its prompt's kind."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def log_probabilities(
    model: str,
    training_args: GRPOConfig,
    model_args: ModelConfig,
    prompts: Sequence,
    responses: Sequence,
    template: str | None = None,
) -> np.ndarray:
    """Return the log-probabilities that a policy gives N responses, of shape (N,), by one pass of transformers.

    Raises [`ConfigError`] if the model cannot be loaded, or the responses do not fit its tokenizer.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ..eval.likelihood import response_log_probabilities

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
        set_template(tokenizer, template)
        loaded = AutoModelForCausalLM.from_pretrained(
            model, dtype=model_args.dtype, attn_implementation=model_args.attn_implementation
        )
        on_gpu = torch.cuda.is_available() and not training_args.use_cpu
        loaded = loaded.to("cuda" if on_gpu else "cpu")
        kwargs = training_args.chat_template_kwargs
        return response_log_probabilities(loaded, tokenizer, prompts, responses, kwargs)
    except (OSError, ValueError) as error:
        raise ConfigError(" ".join(str(error).split())) from error
