"""A trained reward model that scores responses as it was trained to.

A checkpoint is read as safetensors, without remote code, and whole on every process, also under ZeRO-3. An adapter is
merged into its base in float32, so that it costs nothing per token.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from .responses import ResponseScorer, padding_token


class RewardModel(ResponseScorer):
    """A reward model: a checkpoint for sequence classification with one label.

    Args:
        path (`str` or `Path`): a folder or hub name of the model, or the folder of a PEFT adapter of such a model.
        device (`str`, *optional*): where it computes; by default this process's accelerator, else the CPU.
        batch_size (`int`, *optional*, defaults to 16): responses in a forward pass, of about one length.
        max_length (`int`, *optional*): tokens of prompt and response together beyond which a response has no score;
            by default as many as the model has positions.
        dtype (`str`, *optional*, defaults to `"auto"`): `float32`, `bfloat16`, …, or the checkpoint's own.
        base (`str`, *optional*): an adapter's base, where the one that its adapter_config.json names is not there.

    Attributes:
        num_too_long (`int`): responses without a score so far because they were too long.

    Raises:
        ValueError: the path holds no model that can be loaded, one without a trained head, or with several labels.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str | None = None,
        batch_size: int = 16,
        max_length: int | None = None,
        dtype: str = "auto",
        base: str | None = None,
    ):
        for name, value in (("batch_size", batch_size), ("max_length", max_length)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self.path = str(path)
        self.batch_size = batch_size
        if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ValueError(f"dtype must be auto or a type of torch such as bfloat16, not {dtype!r}")
        adapter = (Path(path) / "adapter_config.json").is_file() and not (Path(path) / "config.json").is_file()
        model, self.tokenizer = (_load_adapter if adapter else _load_model)(self.path, dtype, base)
        self.model = model.to(device or _own_device()).eval().requires_grad_(False)
        self.pad_token_id = padding_token(self.tokenizer, model.config)
        if self.pad_token_id is None:
            raise ValueError(f"{path}: neither its tokenizer nor its config.json names a padding token")
        text_config = model.config.get_text_config()
        text_config.pad_token_id = self.pad_token_id  # the model finds the last token of a response by it
        model.config.use_cache = False
        self.max_length = max_length or getattr(text_config, "max_position_embeddings", None)

    def _rewards(self, responses: list[list[int]]) -> np.ndarray:
        with torch.autocast(self.model.device.type, enabled=False):  # in its own precision, not in the trainer's
            return score_ids(self.model, responses, self.pad_token_id, self.batch_size)


@torch.no_grad()
def score_ids(model: Any, responses: Sequence[Sequence[int]], pad_token_id: int, batch_size: int) -> np.ndarray:
    """Return the rewards that a model gives N tokenized responses, of shape (N,), by batches of about one length.

    The model computes on its own device, in the mode and precision that it is in. Equal responses are scored once.
    """
    distinct = sorted({tuple(ids) for ids in responses}, key=len)
    rewards: dict[tuple[int, ...], float] = {}
    for start in range(0, len(distinct), batch_size):
        batch = distinct[start : start + batch_size]
        rows = [torch.tensor(ids) for ids in batch]
        input_ids_BT = pad_sequence(rows, batch_first=True, padding_value=pad_token_id)
        mask_BT = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        logits_B1 = model(input_ids=input_ids_BT.to(model.device), attention_mask=mask_BT.to(model.device)).logits
        rewards.update(zip(batch, logits_B1[:, 0].float().tolist(), strict=True))
    return np.array([rewards[tuple(ids)] for ids in responses], dtype=float)


def _load_model(path: str, dtype: str, base: str | None) -> tuple[Any, Any]:
    """Load a whole model and its tokenizer."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if base is not None:
        raise ValueError(f"{path} is no adapter's folder, so it has no base")
    with _whole(), _readable(path):
        model, report = AutoModelForSequenceClassification.from_pretrained(
            path, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ValueError(
            f"{path} is no reward model: it lacks {missing}; a language model becomes one by `metatune reward`"
        )
    if model.config.num_labels != 1:
        raise ValueError(f"{path} is no reward model: it has {model.config.num_labels} labels in place of one")
    return model, tokenizer


def _load_adapter(path: str, dtype: str, base: str | None) -> tuple[Any, Any]:
    """Load an adapter's base and tokenizer, and merge the adapter into the base."""
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    file = Path(path) / "adapter_config.json"
    with _readable(str(file)):
        config = json.loads(file.read_text(encoding="utf-8"))
    base = base or config.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{file} names no base model: write its folder or hub name there as base_model_name_or_path")
    if config.get("task_type") != "SEQ_CLS":
        raise ValueError(f"{path} is no reward model: its adapter is one of a language model, without a head")
    if not (Path(path) / "adapter_model.safetensors").is_file():
        raise ValueError(f"{path} has no adapter_model.safetensors, and weights of other formats are not read")
    options = {"revision": config.get("revision"), "trust_remote_code": False}
    with _whole(), _readable(base, f"{path}: its base model "):
        own_dtype = AutoConfig.from_pretrained(base, **options).dtype or torch.float32
        model = AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=1, dtype=torch.float32, use_safetensors=True, **options
        )
        own_tokenizer = (Path(path) / "tokenizer_config.json").is_file()
        tokenizer = AutoTokenizer.from_pretrained(path if own_tokenizer else base, trust_remote_code=False)
        merged = PeftModel.from_pretrained(model, path).merge_and_unload(safe_merge=True)
    return merged.to(own_dtype if dtype == "auto" else getattr(torch, dtype)), tokenizer


@contextmanager
def _readable(path: str, what: str = "") -> Iterator[None]:
    """Tell in one line that a model cannot be loaded."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(f"{what}{path} cannot be loaded: {' '.join(str(error).split())}") from error


@contextmanager
def _whole() -> Iterator[None]:
    """Load all weights on this process: under ZeRO-3 transformers would shard a model that DeepSpeed never runs."""
    from transformers.integrations import deepspeed

    config = deepspeed.deepspeed_config() and deepspeed._hf_deepspeed_config_weak_ref()
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config:
            deepspeed.set_hf_deepspeed_config(config)


def _own_device() -> torch.device:
    """Return the device of this process among those that train together."""
    from accelerate import PartialState

    return PartialState().device
