"""Sample, score and train with a model that FSDP shards over two processes, and without sharding; print both as JSON.

`torchrun --nproc_per_node 2 -m tests.trainers.fsdp_program FOLDER`

accelerate shards on accelerators only, so its state is set to count the two CPU processes as such.
"""

import faulthandler
import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, gather_object
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from transformers import AutoTokenizer, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from metatune.curricula import load_distributions
from metatune.recipes.adapters import STARTER
from metatune.recipes.failures import leave
from metatune.rewards import correctness_reward
from metatune.trainers import DUMPConfig, DUMPTrainer, MRTConfig, MRTTrainer
from metatune.trainers.answer_likelihood import AnswerTrie, Branch, Tree, success_probabilities
from metatune.trainers.generation import sample_completions

from .conftest import tiny_llama
from .dump_setup import config, digits, rows, tokenizer_with_tools, training_log

LIMIT = 200  # seconds, after which a process that waits for the other one prints its traceback and exits
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


def sharded_models() -> Iterator[tuple[str, PreTrainedModel]]:
    """Yield the same model unsharded, sharded by FSDP2, and sharded by FSDP1 as TRL generates with it."""
    yield "whole", tiny_llama(8)
    model = tiny_llama(8)
    for layer in (*model.model.layers, model):
        fully_shard(layer)
    yield "fsdp2", model
    policy = partial(transformer_auto_wrap_policy, transformer_layer_cls={LlamaDecoderLayer})
    options = {"auto_wrap_policy": policy, "use_orig_params": True, "device_id": torch.device("cpu")}
    wrapped = FullyShardedDataParallel(tiny_llama(8), **options)
    with FullyShardedDataParallel.summon_full_params(wrapped, recurse=False):
        yield "fsdp1", wrapped.module


def run_functions(model: PreTrainedModel, rank: int, synced: bool) -> dict[str, Any]:
    """Sample this process's completions and score its trees; the second process has no trees."""
    torch.manual_seed(rank)
    prompts = [[1, 2], [1, 2], [4, 5, 6 + rank]]
    options = {"max_new_tokens": 40, "eos_token_ids": [2, 3], "pad_token_id": 0, "synced": synced}
    completions = sample_completions(model, prompts, **options)
    trees = [Tree([1, 2, 3], [Branch(cut, AnswerTrie([5], [[6], [7, 1]])) for cut in (1, 3)])] * (1 - rank)
    probabilities = success_probabilities(model, trees, [3], synced=synced)
    return {"completions": completions, "probabilities": probabilities, "next": torch.rand(1).item()}


def train(folder: Path, checkpoint: Path | None = None) -> list[dict[str, float]]:
    """Train the starter for two steps; the success estimator and compact sampling run forward passes of their own."""
    entry = {"name": "search", "source": "countdown", "config": {"numbers": 3}, "train_size": 20, "test_size": 2}
    options = {
        "progress": "episode",
        "episodes": {"by": "delimiter"},
        "success_estimator": "likelihood",
        "compact_generation": True,
        "per_device_train_batch_size": 4,
        "max_completion_length": 48,
        "max_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    trainer = MRTTrainer(
        str(STARTER),
        reward_funcs=correctness_reward,
        args=shardable(config(folder, MRTConfig, **options)),
        train_dataset=load_distributions([entry])[0].train,
        processing_class=AutoTokenizer.from_pretrained(STARTER),
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    assert isinstance(trainer.model_wrapped, FSDPModule) == ("ACCELERATE_USE_FSDP" in os.environ)
    keys = ("loss", "reward", "progress/mean", "completions/mean_length")
    return [{key: float(row[key]) for key in keys} for row in training_log(trainer)]


def refused_tools(folder: Path) -> str:
    """Return the error message for tools."""
    arguments = {"reward_funcs": digits, "train_dataset": rows(), "processing_class": tokenizer_with_tools()}
    try:
        DUMPTrainer(str(STARTER), args=shardable(config(folder)), tools=[count], **arguments)
    except ValueError as error:
        return str(error)
    return ""


def count(by: int) -> int:
    """Count.

    Args:
        by: How far.

    Returns:
        Where the count stands.
    """
    return by


def shardable(args: DUMPConfig) -> DUMPConfig:
    """Let accelerate shard in the trainer that is constructed next, if `FSDP2` is in the environment."""
    if FSDP2.items() <= os.environ.items():
        AcceleratorState._reset_state()
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return args


def main(folder: str) -> None:
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    state = PartialState(cpu=True)
    found: dict[str, dict[str, Any]] = {}
    for name, model in sharded_models():
        functions = gather_object([run_functions(model, state.process_index, synced=name != "whole")])
        found[name] = {"functions": functions}
    for name in ("whole", "fsdp2"):
        if name == "fsdp2":
            os.environ.update(FSDP2)
        run = Path(folder) / name
        found[name] |= {"log": train(run), "resumed": train(run, run / "checkpoint-1")}
    found["fsdp2"]["tools"] = refused_tools(Path(folder))
    if state.is_main_process:
        print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
    leave(0)
