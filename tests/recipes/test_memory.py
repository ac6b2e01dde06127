"""The memory formulas: worked examples by hand, and a real training step."""

import pytest
import torch
from peft import LoraConfig
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from metatune.recipes.memory import ModelShape, Workload, estimate, shape_of

SHAPE = ModelShape(
    parameters=1000,
    trainable=1000,
    layers=2,
    hidden=8,
    intermediate=16,
    attention_width=8,
    key_value_width=4,
    vocabulary=32,
)
BLOCK = 6 * 8 + 3 * 8 + 2 * 4 + 4 * 16  # 144 elements a token


def llama(**changes):
    fields = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3}
    return AutoConfig.for_model(
        "llama", **{**fields, "num_attention_heads": 4, "tie_word_embeddings": True, **changes}
    )


def test_float32_by_hand():
    result = estimate(SHAPE, Workload(4, 4, batch=2, length=5, loss_positions=3, generated=6, generated_length=7))
    assert result.weights == result.gradients == 4000
    assert result.optimizer == 8000
    assert result.autocast == result.reference == result.recomputed == 0
    assert result.activations == 4 * 2 * 5 * 2 * BLOCK == 11520
    assert result.logits == 12 * 2 * 3 * 32 == 2304
    assert result.kv_cache == 2 * 4 * 6 * 7 * 2 * 4 == 2688
    assert result.peak == 16000 + 11520 + 2304
    assert result.as_dict()["peak"] == result.peak


def test_mixed_precision_keeps_half_copies_of_the_weights():
    result = estimate(SHAPE, Workload(4, 2, batch=1, length=1, loss_positions=1))
    assert (result.weights, result.optimizer, result.autocast) == (4000, 8000, 2000)
    assert result.logits == 8 * 32


def test_checkpointing_keeps_the_inputs_and_one_block():
    result = estimate(SHAPE, Workload(4, 4, batch=2, length=5, loss_positions=3, gradient_checkpointing=True))
    assert result.activations == 4 * 10 * 2 * 8
    assert result.recomputed == 4 * 10 * BLOCK
    assert result.peak == 16000 + result.activations + max(result.logits, result.recomputed)


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer"),
    [(0, 2000, 2000, 12000), (1, 2000, 2000, 3000), (2, 2000, 500, 3000), (3, 500, 500, 3000)],
)
def test_zero_stages_share_among_four(stage, weights, gradients, optimizer):
    work = Workload(2, 2, batch=1, length=1, loss_positions=1, processes=4, deepspeed=True, zero_stage=stage)
    result = estimate(SHAPE, work)
    assert (result.weights, result.gradients, result.optimizer) == (weights, gradients, optimizer)


def test_a_long_generation_sets_the_peak():
    result = estimate(SHAPE, Workload(4, 4, 1, 1, 1, generated=100, generated_length=100, reference_model=True))
    assert result.peak == 4000 * 5 + result.kv_cache


def test_shape_counts_tied_parameters_once_and_adapters_alone_as_trained():
    config = llama(num_key_value_heads=2)
    real = AutoModelForCausalLM.from_config(config)
    shape = shape_of(config)
    assert shape.parameters == shape.trainable == sum(parameter.numel() for parameter in real.parameters())
    assert (shape.attention_width, shape.key_value_width, shape.layers) == (128, 64, 3)
    adapted = shape_of(config, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    assert adapted.trainable == 3 * 4 * ((128 + 128) + (128 + 64))  # A and B of each layer's two projections


def measured_peak(step) -> int:
    """Return the most bytes that `step` holds at one time beyond what was held before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@pytest.mark.parametrize("vocabulary", [128, 4096])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("layers", [3, 6])
def test_estimate_against_a_real_step(vocabulary, checkpointing, layers):
    """One AdamW step of a tiny Llama model: measured over estimated lies in [0.67, 1.1]."""
    config = llama(vocab_size=vocabulary, num_hidden_layers=layers, use_cache=False)
    model = AutoModelForCausalLM.from_config(config).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.zeros(16, 128, dtype=torch.long)

    def step():
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()

    step()  # the optimizer's states exist from here on
    optimizer.zero_grad()
    work = Workload(4, 4, batch=16, length=128, loss_positions=128, gradient_checkpointing=checkpointing)
    result = estimate(shape_of(config), work)
    states = sum(value.nbytes for state in optimizer.state.values() for value in state.values() if value.ndim)
    assert result.optimizer == states
    assert result.weights == sum(parameter.nbytes for parameter in model.parameters())
    expected = result.peak - result.weights - result.optimizer
    assert 0.67 <= measured_peak(step) / expected <= 1.1


def test_kv_cache_against_a_real_one():
    config = llama(num_key_value_heads=2)
    model = AutoModelForCausalLM.from_config(config).eval()
    cache = DynamicCache(config=config)
    with torch.no_grad():
        model(input_ids=torch.zeros(5, 11, dtype=torch.long), past_key_values=cache, use_cache=True)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert estimate(shape_of(config), Workload(4, 4, 1, 1, 1, generated=5, generated_length=11)).kv_cache == held
