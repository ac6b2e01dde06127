"""Merge a LoRA adapter into its base model: a whole checkpoint, for any tool that knows nothing of adapters.

    metatune merge --model runs/lora --output_dir runs/lora-merged
    metatune merge --model runs/lora/checkpoint-200 --output_dir merged --dtype bfloat16

An adapter of a language model becomes a language model, one of `metatune reward` a reward model. The weights are
merged in float32 and rounded once, at the end. If the base already has the precision of the result, rounding may
remove the changes of a small adapter; the command then prints a warning. The folder gets the model (safetensors), the
tokenizer with its chat template, and the generation configuration.
"""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metatune.recipes.adapters import base_of
from metatune.recipes.config import ConfigError, StrictParser, run

MIN_SHARE = 0.95  # smallest share of an adapter's change that rounding may leave without a warning


@dataclass
class MergeArguments:
    """
    What to merge, and where to.

    Args:
        model (`str`):
            Folder of the adapter: the `output_dir` of a run with `use_peft: true`, or a checkpoint of it.
        output_dir (`str`):
            Folder of the merged model; new or empty.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Precision of the merged weights; `auto` is the base model's own.
    """

    model: str = field(metadata={"help": "Folder of a LoRA run, or of a checkpoint of it."})
    output_dir: str = field(metadata={"help": "Folder of the merged model; new or empty."})
    dtype: str = field(
        default="auto",
        metadata={"help": "Precision of the weights.", "choices": ["auto", "bfloat16", "float16", "float32"]},
    )


def merge(adapter: str, dtype: str = "auto"):
    """Load an adapter onto its base and merge it.

    Args:
        adapter (`str`): folder of the adapter.
        dtype (`str`, *optional*, defaults to `"auto"`): precision of the result; `auto` is the base's own.

    Returns:
        `tuple[PreTrainedModel, PreTrainedTokenizerBase]`: the merged model, on the CPU, and its tokenizer.

    Raises [`ConfigError`] if the folder holds no adapter, or its base cannot be loaded.
    """
    import torch
    from peft import PeftConfig
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    base = base_of(adapter)
    auto_class, options = AutoModelForCausalLM, {"revision": base.revision, "dtype": torch.float32}
    if PeftConfig.from_pretrained(adapter).task_type == "SEQ_CLS":  # a reward model: the adapter holds its head
        auto_class, options = AutoModelForSequenceClassification, {**options, "num_labels": 1}
    try:
        config = AutoConfig.from_pretrained(base.name, revision=base.revision)
        model = auto_class.from_pretrained(base.name, **options)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{adapter}: its base model {base.name} cannot be loaded: {reason}") from error
    own_tokenizer = (Path(adapter) / "tokenizer_config.json").is_file()
    tokenizer = AutoTokenizer.from_pretrained(adapter if own_tokenizer else base.name)
    target = (config.dtype or torch.float32) if dtype == "auto" else getattr(torch, dtype)
    before = {}
    if config.dtype == target != torch.float32:  # a base of higher precision loses nothing on average
        before = {name: parameter.detach().to(target) for name, parameter in model.named_parameters()}
    merged = merge_weights(model, adapter)
    if before and (share := share_after_rounding(before, merged)) < MIN_SHARE:
        rounded = f"Rounding to {str(target).removeprefix('torch.')} keeps {share:.0%} of what the adapter changes"
        print(f"{rounded}. Merge with --dtype float32 to keep all of it")
    if merged.config.pad_token_id is None:  # a reward model finds the end of a text by it
        merged.config.pad_token_id = tokenizer.pad_token_id
    return merged.to(target), tokenizer


def share_after_rounding(before: dict[str, Any], merged: Any) -> float:
    """Return the share of a change of weights, along its own direction, that remains after rounding.

    Args:
        before (`dict[str, torch.Tensor]`): the weights before the change, in the data type of the result.
        merged ([`~transformers.PreTrainedModel`]): the model after it, in float32.
    """
    kept = intended = 0.0
    for name, parameter in merged.named_parameters():
        # an embedding that the merge unties is not in `before`, and a reward model's head is not the base's
        if name in before and not name.startswith("score."):
            weight = before[name]
            change = parameter.detach() - weight.float()
            rounded = parameter.detach().to(weight.dtype).float() - weight.float()
            kept += (rounded * change).sum().item()
            intended += change.square().sum().item()
    return kept / intended if intended else 1.0


def merge_weights(model: Any, adapter: str) -> Any:
    """Merge an adapter into its base, whose input and output embeddings may be one weight.

    PEFT merges each adapter into the weight of its own module. If two modules share a weight, the merge of one would
    change the other, or would apply twice. So each gets a copy. If both copies are equal after the merge, they are
    tied again; otherwise the configuration is set to untied embeddings.

    Args:
        model ([`~transformers.PreTrainedModel`]): the base.
        adapter (`str`): folder of the adapter.
    """
    import torch
    from peft import PeftModel

    text_config, embeddings = model.config.get_text_config(), model.get_input_embeddings()
    tied = text_config.tie_word_embeddings
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=r"(?s).*tie_word_embeddings"
        )  # PEFT warns about the case that is handled here
        adapted = PeftModel.from_pretrained(model, adapter)  # before the copies: adapters may be tied as well
        for module in model.modules():
            if module is not embeddings and module._parameters.get("weight") is embeddings.weight:
                module.weight = torch.nn.Parameter(module.weight.detach().clone())
        merged = adapted.merge_and_unload(safe_merge=True)
    output = merged.get_output_embeddings()
    if tied and output is not None:
        tied = torch.equal(output.weight, merged.get_input_embeddings().weight)
        merged.config.tie_word_embeddings = text_config.tie_word_embeddings = tied
        merged.tie_weights()
    return merged


def main(args: MergeArguments) -> None:
    """Merge, and save the result."""
    folder = Path(args.output_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"output_dir: {folder} is not empty; name a new folder")
    model, tokenizer = merge(args.model, args.dtype)
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except OSError as error:
        raise ConfigError(f"output_dir: {folder} cannot be written: {error}") from error
    print(f"Saved to {folder}")


def make_parser(prog: str | None = None) -> StrictParser:
    """Return the parser of this recipe's options."""
    return StrictParser(MergeArguments, prog=prog)


if __name__ == "__main__":
    run(make_parser, main)
