import math
from collections import Counter

import pytest
import torch

from metatune.trainers import generation
from metatune.trainers.generation import sample_completions

TEXTS = ["make 24 from 3 8 using +", "compute 3+4", "a", "make 24 from 3 8 using +", "zz top says ok", "a", "a"]


@pytest.fixture
def prompts(tokenizer):
    """Ragged prompts, some of them several times and not side by side."""
    return [tokenizer(text)["input_ids"] for text in TEXTS]


def greedy(model, prompts, eos_token_ids=(), max_new_tokens=16):
    return sample_completions(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=0,
        eos_token_ids=eos_token_ids,
        pad_token_id=0,
    )


def greedy_by_transformers(model, prompts, eos_token_ids, max_new_tokens=16):
    """Decode every row of a left-padded batch with `model.generate`, cut after the first ending token."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    output = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=list(eos_token_ids) or None,
        pad_token_id=0,
    )
    return [_until_the_end(row, eos_token_ids) for row in output[:, longest:].tolist()]


def _until_the_end(row, eos_token_ids):
    end = next((i for i, token in enumerate(row) if token in eos_token_ids), len(row) - 1)
    return row[: end + 1]


# ---- greedy decoding ----


def ending_tokens(completions) -> list[int]:
    """Choose tokens so that the completions end at different steps, one of them never."""
    first, second, third, *_ = dict.fromkeys(map(tuple, completions))
    return [first[2], second[6], third[3]]


@pytest.mark.parametrize("fraction", [0, generation.MIN_DROPPED_FRACTION, 1])
def test_greedy_completions_are_those_of_transformers(model, prompts, monkeypatch, fraction):
    monkeypatch.setattr(generation, "MIN_DROPPED_FRACTION", fraction)  # from dropping at every step to never
    eos = ending_tokens(greedy(model, prompts))
    completions = greedy(model, prompts, eos)
    assert completions == greedy_by_transformers(model, prompts, eos)
    lengths = [len(completion) for completion in completions]
    assert len(set(lengths)) >= 4  # or the rows would not end at different steps
    assert max(lengths) == 16


def test_rows_that_have_ended_are_no_longer_computed(model, prompts, monkeypatch):
    eos = ending_tokens(greedy(model, prompts))
    ends = [len(completion) for completion in greedy(model, prompts, eos)]
    sizes = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    monkeypatch.setattr(generation, "MIN_DROPPED_FRACTION", 0)
    greedy(model, prompts, eos)
    assert sizes[0] == len(set(TEXTS))  # each distinct prompt is read once
    assert sizes[1:] == [sum(end > step for end in ends) for step in range(1, max(ends))]


def test_equal_prompts_get_equal_greedy_completions_in_their_own_places(model, prompts):
    completions = greedy(model, prompts)
    alone = {text: greedy(model, [prompt])[0] for text, prompt in zip(TEXTS, prompts, strict=True)}
    assert completions == [alone[text] for text in TEXTS]
    assert len(set(map(tuple, alone.values()))) == 4


def test_without_ending_tokens_every_completion_has_the_full_length(model, prompts):
    assert [len(completion) for completion in greedy(model, prompts, max_new_tokens=5)] == [5] * len(prompts)


def test_decoding_stops_when_every_row_has_ended(model, prompts):
    first_tokens = [completion[0] for completion in greedy(model, prompts)]
    assert greedy(model, prompts, eos_token_ids=first_tokens) == [[token] for token in first_tokens]


# ---- sampling ----


def warped(logits, temperature=1.0, top_p=1.0, top_k=0, min_p=None) -> torch.Tensor:
    """Return the probabilities that the options define, from their definitions."""
    p = (logits / temperature).softmax(-1)
    descending = p.sort(descending=True).values
    if top_k:
        p = p * (p >= descending[top_k - 1])
    if top_p < 1:
        p = p / p.sum()
        likeliest = p.sort(descending=True).values
        needed = int((likeliest.cumsum(0) < top_p).sum())  # tokens before the one that completes the nucleus
        p = p * (p >= likeliest[needed])
    if min_p is not None:
        p = p * (p >= min_p * p.max())
    return p / p.sum()


def assert_drawn_from(expected: dict, drawn: list) -> None:
    """Every outcome's count lies within five standard deviations, and nothing else was drawn."""
    counts, n = Counter(drawn), len(drawn)
    assert set(counts) <= {outcome for outcome, p in expected.items() if p > 0}
    assert math.isclose(sum(expected.values()), 1)
    for outcome, p in expected.items():
        assert abs(counts[outcome] - n * p) <= 5 * math.sqrt(n * p * (1 - p)) + 1, outcome


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 3},
        {"top_p": 0.7},
        {"min_p": 0.4},
        {"temperature": 1.5, "top_k": 6, "top_p": 0.9, "min_p": 0.2},
    ],
    ids=str,
)
def test_the_first_token_is_drawn_from_the_warped_distribution(small_vocabulary_model, options):
    prompts = [[2, 2, 2], [1, 2, 3, 4]]
    torch.manual_seed(0)
    drawn = sample_completions(
        small_vocabulary_model, prompts * 100_000, max_new_tokens=1, eos_token_ids=[], pad_token_id=0, **options
    )
    for i, prompt in enumerate(prompts):
        expected = warped(small_vocabulary_model(torch.tensor([prompt])).logits[0, -1].detach(), **options)
        assert_drawn_from(dict(enumerate(expected.tolist())), [token for (token,) in drawn[i::2]])
        if {"top_k", "top_p", "min_p"} & options.keys():
            assert (expected == 0).any()  # or the options would not be tested


@pytest.mark.parametrize("fraction", [0, 1])
def test_later_tokens_are_drawn_given_the_row_s_own_past(small_vocabulary_model, monkeypatch, fraction):
    monkeypatch.setattr(generation, "MIN_DROPPED_FRACTION", fraction)
    prompts, eos = [[2, 2, 2], [5, 1, 2, 3, 4]], 6
    torch.manual_seed(1)
    drawn = sample_completions(
        small_vocabulary_model, prompts * 8000, max_new_tokens=2, temperature=1.5, eos_token_ids=[eos], pad_token_id=0
    )
    for i, prompt in enumerate(prompts):
        expected = {}
        first = warped(small_vocabulary_model(torch.tensor([prompt])).logits[0, -1].detach(), 1.5).tolist()
        for token, p in enumerate(first):
            if token == eos:
                expected[(eos,)] = p
                continue
            second = warped(small_vocabulary_model(torch.tensor([[*prompt, token]])).logits[0, -1].detach(), 1.5)
            expected |= {(token, after): p * q for after, q in enumerate(second.tolist())}
        assert_drawn_from(expected, [tuple(completion) for completion in drawn[i::2]])


def test_a_completion_ends_in_an_ending_token_or_at_the_limit(small_vocabulary_model):
    torch.manual_seed(0)
    completions = sample_completions(
        small_vocabulary_model, [[2, 2, 2], [1]] * 50, max_new_tokens=6, eos_token_ids=[0, 5], pad_token_id=0
    )
    for completion in completions:
        assert not {0, 5} & set(completion[:-1])
        assert completion[-1] in (0, 5) or len(completion) == 6
    lengths = Counter(map(len, completions))
    assert min(lengths) == 1
    assert max(lengths) == 6


def test_a_seed_decides_every_sample(small_vocabulary_model):
    def sampled(seed):
        torch.manual_seed(seed)
        return sample_completions(
            small_vocabulary_model, [[2, 2, 2], [1]] * 8, max_new_tokens=8, eos_token_ids=[5], pad_token_id=0
        )

    assert sampled(0) == sampled(0)
    assert sampled(0) != sampled(1)


# ---- mistakes, and what is left behind ----


def test_a_length_of_nothing_is_refused(model, prompts):
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        greedy(model, prompts, max_new_tokens=0)


def test_an_empty_prompt_is_refused(model, prompts):
    with pytest.raises(ValueError, match="a prompt is empty"):
        greedy(model, [*prompts, []])


def test_no_gradient_is_kept(model, prompts):
    greedy(model, prompts)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()
