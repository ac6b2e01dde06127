"""Generation engines behind one small interface: token ids in, completion ids out.

    engine = load_engine("compact", "runs/quickstart/checkpoint")
    completions = engine.generate(prompt_ids, Sampling(max_new_tokens=96, temperature=0.0))

| name | what | when |
|---|---|---|
| `compact` | [`~metatune.trainers.generation.sample_completions`] | small models; the default |
| `transformers` | `model.generate`, left padded | anything transformers loads |
| `continuous_batching` | `model.generate_batch` | GPUs, lengths that differ widely |
| `vllm` | offline `vllm.LLM`, from a path | GPUs; needs the extra `metatune[vllm]` (or its CPU build) |

Every engine samples with exactly the options of [`Sampling`]: defaults in a checkpoint's `generation_config.json`
(a temperature, a repetition penalty) are not taken over, so that engines can be compared. Sampling never moves the
random state of the process, so an evaluation in the middle of a training leaves that training as it was.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..trainers.generation import sample_completions
from ..trainers.vllm_cpu import engine_options


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How completions are drawn.

    Args:
        max_new_tokens (`int`): largest number of tokens of a completion.
        temperature (`float`, *optional*, defaults to `1.0`): 0 decodes greedily.
        top_p (`float`, *optional*, defaults to `1.0`): nucleus mass.
        top_k (`int`, *optional*, defaults to `0`): number of likeliest tokens kept; 0 keeps all.
        seed (`int`, *optional*, defaults to `0`): seed of the draw.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0 (0 decodes greedily), got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0 (0 keeps all), got {self.top_k}")


class Engine(Protocol):
    """What an evaluation needs of an engine.

    Attributes:
        eos_token_ids (`frozenset[int]`): tokens that end a completion; a completion without one was cut off.
    """

    eos_token_ids: frozenset[int]

    def generate(self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
        """Complete every prompt once; the ending token is part of its completion."""


@dataclass
class LocalEngine:
    """What the engines that run a model of this process share. They differ in `_complete`.

    Args:
        model ([`~transformers.PreTrainedModel`]): causal language model; its training mode is restored afterwards.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): names the ending token and the padding.
        batch_size (`int`, *optional*, defaults to `128`): largest number of completions decoded together.
        batch_tokens (`int`, *optional*, defaults to `262_144`): largest number of tokens, prompts and completions,
            that a batch may grow to; it bounds the cache, so long prompts get smaller batches.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int = 128
    batch_tokens: int = 262_144
    eos_token_ids: frozenset[int] = field(init=False)
    pad_token_id: int = field(init=False)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        self.eos_token_ids = eos_token_ids(self.tokenizer, self.model.generation_config)
        pad = self.tokenizer.pad_token_id
        self.pad_token_id = pad if pad is not None else min(self.eos_token_ids)  # masked: any token will do

    @torch.no_grad()
    def generate(self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
        """Complete every prompt once, in batches of like length; equal calls give equal completions.

        Args:
            prompt_ids (`Sequence[Sequence[int]]` of length N): token ids, none empty.
            sampling ([`Sampling`]): how to draw.

        Returns:
            `list[list[int]]` of length N: the completions' token ids, ending token included.

        Raises:
            ValueError: if a prompt is empty, or a completion could outgrow the model's positions.
        """
        completions: list[list[int]] = [[] for _ in prompt_ids]
        lengths = [len(ids) for ids in prompt_ids]
        self._check_lengths(lengths, sampling.max_new_tokens)
        progress = tqdm(total=len(lengths), desc="generating", unit="completion", leave=False, disable=None)
        with progress, _evaluating(self.model), _own_random_state(self.model.device, sampling.seed):
            for rows in self._batches(lengths, sampling):
                completed = self._complete([list(prompt_ids[row]) for row in rows], sampling)
                for row, ids in zip(rows, completed, strict=True):
                    completions[row] = ids
                progress.update(len(rows))
        return completions

    def _check_lengths(self, lengths: Sequence[int], max_new_tokens: int) -> None:
        if 0 in lengths:
            raise ValueError(f"prompt {lengths.index(0)} is empty: every prompt needs at least one token")
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        longest = max(lengths, default=0)
        if positions is not None and longest + max_new_tokens > positions:  # beyond them a model only babbles
            room = positions - longest
            advice = f"set max_new_tokens to at most {room}" if room > 0 else "the prompt does not fit at all"
            raise ValueError(
                f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the model's {positions} positions;"
                f" {advice}"
            )

    def _batches(self, lengths: Sequence[int], sampling: Sampling) -> Iterator[list[int]]:
        return batches(lengths, sampling.max_new_tokens, self.batch_size, self.batch_tokens)

    def _complete(self, prompt_ids: list[list[int]], sampling: Sampling) -> list[list[int]]:
        raise NotImplementedError

    def _generation_config(self, sampling: Sampling) -> GenerationConfig:
        """Write every option that a checkpoint's own defaults could otherwise set."""
        sampled = sampling.temperature > 0
        return GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=sampled,
            temperature=sampling.temperature if sampled else 1.0,
            top_p=sampling.top_p if sampled else 1.0,
            top_k=sampling.top_k if sampled else 0,
            repetition_penalty=1.0,
            num_beams=1,
            eos_token_id=sorted(self.eos_token_ids),
            pad_token_id=self.pad_token_id,
        )


class CompactEngine(LocalEngine):
    """Our own decode loop: reads a repeated prompt once and drops completions as they end."""

    def _complete(self, prompt_ids: list[list[int]], sampling: Sampling) -> list[list[int]]:
        return sample_completions(
            self.model,
            prompt_ids,
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            eos_token_ids=sorted(self.eos_token_ids),
            pad_token_id=self.pad_token_id,
        )


class TransformersEngine(LocalEngine):
    """`model.generate` on left-padded batches."""

    def _complete(self, prompt_ids: list[list[int]], sampling: Sampling) -> list[list[int]]:
        longest = max(map(len, prompt_ids))
        ids_BP = torch.tensor([[self.pad_token_id] * (longest - len(ids)) + ids for ids in prompt_ids])
        mask_BP = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompt_ids])
        output = self.model.generate(
            input_ids=ids_BP.to(self.model.device),
            attention_mask=mask_BP.to(self.model.device),
            generation_config=self._generation_config(sampling),
        )
        return [self._cut(ids) for ids in output[:, longest:].tolist()]

    def _cut(self, ids: list[int]) -> list[int]:
        """Drop the padding after the first ending token."""
        end = next((i + 1 for i, token in enumerate(ids) if token in self.eos_token_ids), len(ids))
        return ids[:end]


class ContinuousBatchingEngine(LocalEngine):
    """`model.generate_batch` of transformers: a paged cache, with rows that join and leave the batch on their own."""

    block_size = 32  # tokens of a page: what the last page of a row may waste

    def _batches(self, lengths: Sequence[int], sampling: Sampling) -> Iterator[list[int]]:
        return iter([list(range(len(lengths)))] if lengths else [])

    def _complete(self, prompt_ids: list[list[int]], sampling: Sampling) -> list[list[int]]:
        longest = max(map(len, prompt_ids))
        row_blocks = -(-(longest + sampling.max_new_tokens) // self.block_size)
        rows = max(1, min(len(prompt_ids), self.batch_size, self.batch_tokens // (row_blocks * self.block_size)))
        config = ContinuousBatchingConfig(
            block_size=self.block_size,
            num_blocks=rows * row_blocks + 1,  # by default it takes 90 % of the free memory, beside a training too
            max_batch_tokens=max(rows, longest),
            max_requests_per_batch=rows,
            seed=sampling.seed,
        )
        outputs = self.model.generate_batch(
            prompt_ids, generation_config=self._generation_config(sampling), continuous_batching_config=config
        )
        if len(outputs) != len(prompt_ids):
            raise RuntimeError(
                f"continuous batching answered {len(outputs)} of {len(prompt_ids)} requests; "
                "its log has the reason, and --engine transformers is the fallback"
            )
        return [outputs[f"req_{i}"].generated_tokens for i in range(len(prompt_ids))]


class VLLMEngine:
    """Offline `vllm.LLM`, which loads the model itself and batches on its own.

    Args:
        model (`str`): folder or hub name of the model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): names the ending token.
        dtype (`str`, *optional*, defaults to `"auto"`): precision of the weights.
        revision (`str`, *optional*): revision of `model` on the hub.

    Raises:
        ImportError: without vLLM; the message names the extra.
    """

    def __init__(
        self, model: str, tokenizer: PreTrainedTokenizerBase, dtype: str = "auto", revision: str | None = None
    ):
        try:
            import vllm
        except ImportError as error:
            raise ImportError(
                "engine vllm needs vLLM: pip install 'metatune[vllm]', or choose --engine transformers"
            ) from error
        self._vllm = vllm
        options: dict[str, object] = {"dtype": dtype}
        if not torch.cuda.is_available():
            own = AutoConfig.from_pretrained(model, revision=revision).dtype if dtype == "auto" else dtype
            options = engine_options(own)
        options |= {"revision": revision, "tokenizer_revision": revision, "load_format": "safetensors"}
        self._llm = vllm.LLM(model=model, **options)
        try:
            generation_config = GenerationConfig.from_pretrained(model, revision=revision)
        except OSError:  # a checkpoint without one: the tokenizer names the ending token
            generation_config = GenerationConfig()
        self.eos_token_ids = eos_token_ids(tokenizer, generation_config)

    def generate(self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
        """Complete every prompt once; see [`LocalEngine.generate`]."""
        requests = [
            self._vllm.SamplingParams(
                max_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                seed=sampling.seed * len(prompt_ids) + row,  # one seed for all would give equal prompts equal samples
                stop_token_ids=sorted(self.eos_token_ids),
                detokenize=False,
            )
            for row in range(len(prompt_ids))
        ]
        outputs = self._llm.generate([{"prompt_token_ids": list(ids)} for ids in prompt_ids], requests)
        return [list(output.outputs[0].token_ids) for output in outputs]


LOCAL_ENGINES: dict[str, type[LocalEngine]] = {
    "compact": CompactEngine,
    "transformers": TransformersEngine,
    "continuous_batching": ContinuousBatchingEngine,
}
ENGINES = (*LOCAL_ENGINES, "vllm")


def load_engine(
    name: str,
    model: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 128,
    dtype: str = "auto",
    device: str | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    adapter: str | None = None,
) -> Engine:
    """Load a model from a folder or the hub into an engine.

    Args:
        name (`str`): one of `ENGINES`.
        model (`str`): folder or hub name of the model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): its tokenizer.
        batch_size (`int`, *optional*, defaults to `128`): as for [`LocalEngine`]; vLLM chooses its own.
        dtype (`str`, *optional*, defaults to `"auto"`): precision; `auto` is the checkpoint's own.
        device (`str`, *optional*): where to run; a GPU where there is one by default. vLLM chooses its own.
        attn_implementation (`str`, *optional*): as for `from_pretrained`; vLLM chooses its own.
        revision (`str`, *optional*): revision of `model` on the hub.
        adapter (`str`, *optional*): folder of a PEFT adapter to put on `model`; unmerged, as it was trained.

    Raises:
        ValueError: for an unknown name, an adapter with `vllm`, or one without safetensors.
        OSError: the model cannot be loaded, or only from other formats than safetensors.
        ImportError: for `vllm` without vLLM.
    """
    if name == "vllm":
        if adapter is not None:
            raise ValueError(f"{adapter} is an adapter: for the engine vllm, merge it first with metatune merge")
        return VLLMEngine(model, tokenizer, dtype, revision)
    if name not in LOCAL_ENGINES:
        raise ValueError(f"unknown engine {name!r}; choose from {', '.join(ENGINES)}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if adapter is not None and not (Path(adapter) / "adapter_model.safetensors").is_file():
        raise ValueError(f"{adapter} has no adapter_model.safetensors, and weights of other formats are not read")
    loaded = AutoModelForCausalLM.from_pretrained(
        model, revision=revision, dtype=dtype, attn_implementation=attn_implementation, use_safetensors=True
    )
    if adapter is not None:
        from peft import PeftModel

        loaded = PeftModel.from_pretrained(loaded, adapter)
    return LOCAL_ENGINES[name](loaded.to(device), tokenizer, batch_size)


def batches(lengths: Sequence[int], max_new_tokens: int, batch_size: int, batch_tokens: int) -> Iterator[list[int]]:
    """Yield the rows of each batch, longest prompts first, so that the first batch needs the most memory.

    Args:
        lengths (`Sequence[int]` of length N): the prompts' lengths in tokens.
        max_new_tokens (`int`): what a completion may add.
        batch_size (`int`): largest number of rows of a batch.
        batch_tokens (`int`): largest number of rows times longest row; a row that exceeds it alone is its own batch.
    """
    rows = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    while rows:
        fitting = batch_tokens // (lengths[rows[0]] + max_new_tokens)
        size = max(1, min(batch_size, fitting))
        yield rows[:size]
        rows = rows[size:]


def eos_token_ids(tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig) -> frozenset[int]:
    """Collect the tokens that end a completion, of the tokenizer and of the checkpoint.

    Raises:
        ValueError: if neither names one.
    """
    ids = generation_config.eos_token_id
    ids = set(ids) if isinstance(ids, list) else {ids}
    ids = (ids | {tokenizer.eos_token_id}) - {None}
    if not ids:
        raise ValueError("neither the tokenizer nor generation_config.json has an eos token: set tokenizer.eos_token")
    return frozenset(ids)


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Switch dropout off, and back to what it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def _own_random_state(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch for the block and put the generators back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
