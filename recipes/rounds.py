"""What the loops of `metatune star` and `metatune metarm` share: a policy that samples, and trainings they launch."""

import gc
import random
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from transformers import PreTrainedTokenizerBase
from trl import ModelConfig

from ..eval.engines import Engine, load_engine
from ..eval.files import write_atomically
from .adapters import base_and_adapter
from .chat_template import set_template
from .launch import launch

Row = dict[str, Any]


def load_policy(
    model: str, args, use_cpu: bool, model_args: ModelConfig, template: str | None = None
) -> tuple[PreTrainedTokenizerBase, Engine]:
    """Load a policy for sampling.

    Args:
        model (`str`): its folder or hub name; an adapter is loaded onto its base.
        args: `engine`, `sampling_batch_size` and `sampling_dtype` are read.
        use_cpu (`bool`): whether it runs on the CPU where there is a GPU.
        model_args (`ModelConfig`): `model_revision`, `dtype` and `attn_implementation` are read.
        template (`str`, *optional*): the recipe's `chat_template_path`; the model's own by default.

    Returns:
        `tuple`: its tokenizer and the engine.

    Raises:
        ValueError: if it cannot be loaded.
    """
    from transformers import AutoTokenizer

    base, adapter = base_and_adapter(model)
    revision = None if Path(model).is_dir() else model_args.model_revision
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
        set_template(tokenizer, template)
        engine = load_engine(
            args.engine,
            base.name,
            tokenizer,
            revision=base.revision if adapter else revision,
            adapter=adapter,
            batch_size=args.sampling_batch_size,
            dtype=args.sampling_dtype or model_args.dtype,
            device="cpu" if use_cpu else None,
            attn_implementation=model_args.attn_implementation,
        )
    except OSError as error:
        raise ValueError(str(error)) from error
    return tokenizer, engine


def empty_accelerator_cache() -> None:
    """Give the memory of models that are gone to other processes."""
    import torch

    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def seed_of(seed: int, number: int, what: str) -> int:
    """Return the seed of one part of a round, drawn from the run's."""
    return random.Random(f"{seed}/{number}/{what}").randrange(2**31)


def train(command: ModuleType, recipe: dict[str, Any], result: Path, launch_args: Sequence[str] = ()) -> None:
    """Launch a training of a round; its recipe is kept beside the result, which is there once it is over.

    Args:
        command (`ModuleType`): the recipe's module, such as `metatune.recipes.sft`.
        recipe (`dict`): its YAML; `output_dir` is where it trains.
        result (`Path`): what that folder is called in the end.
        launch_args (`Sequence[str]`, *optional*): options of the launcher.

    Raises `SystemExit` with the launcher's code if the training failed, which has been told by then.
    """
    path = result.with_name(f"{command.__name__.rpartition('.')[2]}.yaml")
    text = yaml.safe_dump(recipe, sort_keys=False)
    write_atomically(path, lambda temporary: temporary.write_text(text))
    code = launch(command, command.make_parser(), ["--config", str(path), *launch_args])
    if code != 0:
        raise SystemExit(code)
    Path(recipe["output_dir"]).rename(result)
