"""vLLM returns uninitialised numbers at cached positions; what is returned by the helper never is one of them."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from metatune.trainers.prompt_logprobs import scored_prompt_logprobs


def output(tokens=(5, 6, 7, 8), cached=0, **options):
    logprobs = [None, *({token: SimpleNamespace(logprob=-float(token))} for token in tokens[1:])]
    values = {"prompt_token_ids": list(tokens), "prompt_logprobs": logprobs, "num_cached_tokens": cached}
    return SimpleNamespace(**{**values, **options})


def test_tokens_after_the_cached_ones_are_returned():
    assert scored_prompt_logprobs(output(), 1) == [-6.0, -7.0, -8.0]
    assert scored_prompt_logprobs(output(cached=2), 3) == [-8.0]


@pytest.mark.parametrize("first", [1, 2])
def test_a_token_scored_from_a_cached_position_is_refused(first):
    with pytest.raises(ValueError, match="uninitialised memory: ask from token 3 on"):
        scored_prompt_logprobs(output(cached=2), first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_cached_tokens": None}, "does not say how many tokens were cached"),
        ({"prompt_logprobs": None}, "ask for them"),
    ],
)
def test_an_output_that_does_not_tell_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        scored_prompt_logprobs(output(**options), 3)


def test_token_0_has_no_logprob():
    with pytest.raises(ValueError, match="nothing precedes token 0"):
        scored_prompt_logprobs(output(), 0)


PROGRAM = """
import json

import torch
from transformers import AutoModelForCausalLM
from vllm import LLM, SamplingParams

from metatune.recipes.failures import leave
from metatune.recipes.adapters import STARTER
from metatune.trainers.prompt_logprobs import scored_prompt_logprobs
from metatune.trainers.vllm_cpu import engine_options

prefix = [20 + i % 60 for i in range(100)]
prompts = [prefix + [30 + i, 40 + i, 50] for i in range(4)]
llm = LLM(str(STARTER), max_model_len=256, **engine_options("float32"))
# Even the token ids at cached positions are memory that nobody wrote: detokenizing them can fail.
sampling = SamplingParams(max_tokens=1, prompt_logprobs=0, skip_reading_prefix_cache=False, detokenize=False)
llm.generate([{"prompt_token_ids": prefix}], SamplingParams(max_tokens=1), use_tqdm=False)
outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
model = AutoModelForCausalLM.from_pretrained(STARTER, dtype=torch.float32)
differences, refused = [], []
for ids, output in zip(prompts, outputs, strict=True):
    expected = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    first = output.num_cached_tokens + 1
    found = scored_prompt_logprobs(output, first)
    differences += [abs(value - expected[i - 1, ids[i]].item()) for i, value in enumerate(found, first)]
    for asked in (1, first - 1):
        try:
            scored_prompt_logprobs(output, asked)
        except ValueError:
            refused.append(asked)
cached = [output.num_cached_tokens for output in outputs]
print(json.dumps({"difference": max(differences), "refused": refused, "cached": cached}))
leave(0)
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_a_real_engine_with_a_cached_prefix():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.strip().splitlines()[-1])
    assert found["cached"] == [96] * 4, "whole blocks of 32 tokens come from the cache"
    assert found["refused"] == [1, 96] * 4
    assert found["difference"] < 1e-5
