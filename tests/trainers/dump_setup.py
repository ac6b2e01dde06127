"""A small, fast GRPO set-up for the trainer tests, importable by the processes that the tests launch."""

import random
from importlib.resources import files
from pathlib import Path

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM
from trl import GRPOConfig

from metatune.curricula import build_tokenizer
from metatune.trainers import DUMPConfig, DUMPTrainer

DISTRIBUTIONS = ("alpha", "beta", "gamma")


def tiny_model(seed: int = 0, tied: bool = True) -> LlamaForCausalLM:
    """A random model whose completions end after some ten tokens."""
    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def tokenizer_with_tools():
    """The tokenizer with a chat template that can render and parse tool calls."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (files("trl") / "chat_templates" / "qwen3.jinja").read_text()
    return tokenizer


def rows(num_items: int = 12, distributions: tuple[str, ...] = DISTRIBUTIONS, first: int = 0) -> Dataset:
    """Prompts whose reward, see `digits`, differs by distribution and by completion."""
    rng = random.Random(0)
    return Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": f"make {rng.randint(10, 99)} {item}"}], "distribution": name}
            for name in distributions
            for item in range(first, first + num_items)
        ]
    )


def digits(completions, distribution, **kwargs) -> list[float]:
    """Reward 1 for a completion with a digit in it; `gamma` is never solved."""
    texts = [completion[0]["content"] for completion in completions]
    return [
        float(any(c.isdigit() for c in text) and name != "gamma")
        for text, name in zip(texts, distribution, strict=True)
    ]


def config(output_dir: Path | str, config_class: type[GRPOConfig] = DUMPConfig, **options) -> GRPOConfig:
    """Four prompts of four completions a batch, on the CPU in fp32."""
    defaults = {
        "output_dir": str(output_dir),
        "max_steps": 6,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 1,
        "num_generations": 4,
        "max_completion_length": 12,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
    }
    return config_class(**{**defaults, **options})


def make(output_dir, reward=digits, train_dataset=None, **options) -> DUMPTrainer:
    """A trainer of the tiny model, as `config` has it."""
    return DUMPTrainer(
        tiny_model(),
        reward_funcs=reward,
        args=config(output_dir, **options),
        train_dataset=rows() if train_dataset is None else train_dataset,
        processing_class=build_tokenizer(),
    )


def training_log(trainer) -> list[dict]:
    """The log lines of optimizer steps."""
    return [row for row in trainer.state.log_history if "loss" in row]
