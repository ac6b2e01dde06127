import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metatune.eval.engines import LOCAL_ENGINES, Sampling, VLLMEngine, batches, eos_token_ids, load_engine

PROMPTS = ["1+1=", "a", "12345678", "1+1=", "what is it?"]


@pytest.fixture
def prompt_ids(tokenizer):
    return [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]


def greedy_by_hand(model, ids, max_new_tokens, eos):
    """The definition: the likeliest token, one at a time, without cache or padding."""
    completion = []
    while len(completion) < max_new_tokens and (not completion or completion[-1] not in eos):
        with torch.no_grad():
            completion.append(int(model(torch.tensor([ids + completion])).logits[0, -1].argmax()))
    return completion


@pytest.mark.parametrize("name", LOCAL_ENGINES)
def test_greedy_is_the_likeliest_token_on_every_engine(name, model, tokenizer, prompt_ids):
    engine = LOCAL_ENGINES[name](model, tokenizer, batch_size=3)
    completions = engine.generate(prompt_ids, Sampling(max_new_tokens=12, temperature=0))
    assert completions == [greedy_by_hand(model, ids, 12, engine.eos_token_ids) for ids in prompt_ids]


@pytest.mark.parametrize("name", LOCAL_ENGINES)
def test_sampling_repeats_with_its_seed_and_varies_without(name, model, tokenizer, prompt_ids):
    engine = LOCAL_ENGINES[name](model, tokenizer)
    first = engine.generate(prompt_ids * 4, Sampling(max_new_tokens=8, seed=1))
    assert first == engine.generate(prompt_ids * 4, Sampling(max_new_tokens=8, seed=1))
    assert first != engine.generate(prompt_ids * 4, Sampling(max_new_tokens=8, seed=2))
    assert first[0] != first[5], "two samples of one prompt must differ"


@pytest.mark.parametrize("name", LOCAL_ENGINES)
def test_generating_leaves_a_training_as_it_was(name, model, tokenizer, prompt_ids):
    model.train()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    LOCAL_ENGINES[name](model, tokenizer).generate(prompt_ids, Sampling(max_new_tokens=4))
    assert torch.equal(torch.rand(3), expected)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", LOCAL_ENGINES)
def test_a_checkpoints_own_sampling_defaults_do_not_leak_in(name, model, tokenizer, prompt_ids):
    plain = LOCAL_ENGINES[name](model, tokenizer).generate(prompt_ids, Sampling(max_new_tokens=8, temperature=0))
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.top_k = 2
    again = LOCAL_ENGINES[name](model, tokenizer).generate(prompt_ids, Sampling(max_new_tokens=8, temperature=0))
    assert again == plain


def test_nothing_follows_the_ending_token(model, tokenizer, prompt_ids):
    for name in ("compact", "transformers"):
        engine = LOCAL_ENGINES[name](model, tokenizer)
        for ids in engine.generate(prompt_ids * 20, Sampling(max_new_tokens=60, temperature=2.0)):
            ends = [i for i, token in enumerate(ids) if token in engine.eos_token_ids]
            assert ends in ([], [len(ids) - 1])
            assert len(ids) == 60 or ends, "a completion ends by its token or by the limit"


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 20), st.integers(1, 8), st.integers(1, 300))
def test_batches_hold_every_row_once_within_the_budget(lengths, max_new_tokens, batch_size, batch_tokens):
    made = list(batches(lengths, max_new_tokens, batch_size, batch_tokens))
    assert sorted(row for rows in made for row in rows) == list(range(len(lengths)))
    for rows in made:
        assert 1 <= len(rows) <= batch_size
        tokens = len(rows) * (max(lengths[row] for row in rows) + max_new_tokens)
        assert tokens <= batch_tokens or len(rows) == 1


def test_equal_prompts_stay_side_by_side_for_the_prefix_cache():
    assert list(batches([5, 9, 5, 9], 1, 2, 1000)) == [[1, 3], [0, 2]]


def test_ending_tokens_come_from_tokenizer_and_checkpoint(model, tokenizer):
    model.generation_config.eos_token_id = [3, 4]
    assert eos_token_ids(tokenizer, model.generation_config) == {3, 4, tokenizer.eos_token_id}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 1, "temperature": -1}, "greedily"),
        ({"max_new_tokens": 1, "top_p": 0}, "top_p"),
        ({"max_new_tokens": 1, "top_k": -1}, "top_k"),
    ],
)
def test_impossible_sampling_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


def test_completions_that_outgrow_the_model_are_refused(model, tokenizer):
    engine = LOCAL_ENGINES["compact"](model, tokenizer)
    with pytest.raises(ValueError, match="512 positions; set max_new_tokens to at most 502"):
        engine.generate([[7] * 10], Sampling(max_new_tokens=503))
    with pytest.raises(ValueError, match="does not fit at all"):
        engine.generate([[7] * 600], Sampling(max_new_tokens=1))
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        engine.generate([[7], []], Sampling(max_new_tokens=1))


def test_a_missing_vllm_names_its_extra(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r"metatune\[vllm\]"):
        VLLMEngine("any", tokenizer)


def test_vllm_gets_every_option_and_a_seed_for_each_completion(tokenizer, monkeypatch, tmp_path):
    class LLM:
        def __init__(self, **options):
            self.options = options

        def generate(self, prompts, requests):
            seen.extend(zip(prompts, requests, strict=True))
            return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=(7, 1))]) for _ in prompts]

    seen = []
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=LLM, SamplingParams=SimpleNamespace))
    engine = load_engine("vllm", str(tmp_path), tokenizer, dtype="float32", revision="a1b2")
    expected = {"model": str(tmp_path), "dtype": "float32", "load_format": "safetensors"}
    expected |= {"revision": "a1b2", "tokenizer_revision": "a1b2"}
    assert expected.items() <= engine._llm.options.items()
    completions = engine.generate([[5], [5]], Sampling(max_new_tokens=3, temperature=0.5, top_p=0.9, seed=4))
    assert completions == [[7, 1], [7, 1]]
    assert [prompt for prompt, _ in seen] == [{"prompt_token_ids": [5]}] * 2
    first, second = (request for _, request in seen)
    assert (first.max_tokens, first.temperature, first.top_p, first.top_k) == (3, 0.5, 0.9, 0)
    assert first.stop_token_ids == [tokenizer.eos_token_id]
    assert first.seed != second.seed


@pytest.mark.slow
@pytest.mark.needs("vllm")
def test_a_real_vllm_completes_greedily_as_transformers_does():
    """In a process of its own: an engine takes over the process it is in."""
    program = """
import json, sys
from transformers import AutoTokenizer
from metatune.curricula import load_distributions
from metatune.eval.engines import Sampling, load_engine
from metatune.recipes.adapters import STARTER
tokenizer = AutoTokenizer.from_pretrained(STARTER)
entry = {"name": "a", "source": "arithmetic", "config": {"terms": 3}, "train_size": 1, "test_size": 16}
prompts = load_distributions([entry])[0].test["prompt"]
ids = [tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=False) for p in prompts]
sampling = Sampling(max_new_tokens=40, temperature=0.0)
completions = [load_engine(name, str(STARTER), tokenizer).generate(ids, sampling) for name in ("compact", "vllm")]
print(json.dumps(completions))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=280, env=environment
    )
    assert result.returncode == 0, result.stderr[-3000:]
    ours, vllm = json.loads(result.stdout.strip().splitlines()[-1])
    assert len(ours) == 16 and all(ours)
    assert vllm == ours


def test_an_unknown_engine_lists_the_known(tokenizer):
    with pytest.raises(ValueError, match="compact, transformers, continuous_batching, vllm"):
        load_engine("vlm", "any", tokenizer)


def test_pickled_weights_are_not_read(tmp_path, model, tokenizer):
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load_engine("compact", str(tmp_path), tokenizer, device="cpu")
    model.save_pretrained(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    torch.save({}, tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"adapter has no adapter_model.safetensors"):
        load_engine("compact", str(tmp_path / "base"), tokenizer, device="cpu", adapter=str(tmp_path / "adapter"))


def test_an_engine_loads_from_a_folder(tmp_path, model, tokenizer, prompt_ids):
    model.save_pretrained(tmp_path)
    engine = load_engine("transformers", str(tmp_path), tokenizer, device="cpu", dtype="float32")
    sampling = Sampling(max_new_tokens=5, temperature=0)
    assert engine.generate(prompt_ids, sampling) == LOCAL_ENGINES["compact"](model, tokenizer).generate(
        prompt_ids, sampling
    )
