"""A real model of some 40,000 parameters, random, built in memory."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from metatune.curricula import build_tokenizer


def tiny_llama(vocab_size: int) -> LlamaForCausalLM:
    """Build the same random model at every call, in float64 so that rounding decides nothing."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.2,  # wide: the likeliest token leads by far, and depends on the whole prompt
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval().double()


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


@pytest.fixture
def model(tokenizer):
    return tiny_llama(len(tokenizer))


@pytest.fixture
def small_vocabulary_model():
    """Eight tokens: few enough to count how often each is sampled."""
    return tiny_llama(8)
