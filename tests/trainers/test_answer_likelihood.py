"""The likelihood of accepted answers: against plain forward passes, against sampling, and its tree of answers."""

import json
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from metatune.curricula import build_tokenizer, load_distributions
from metatune.recipes.adapters import STARTER
from metatune.rewards import Forcing, get_verifier
from metatune.trainers import answer_likelihood
from metatune.trainers.answer_likelihood import (
    AcceptedAnswers,
    AnswerTrie,
    Branch,
    Tree,
    answer_token_ids,
    success_probabilities,
    takes_masks,
)
from metatune.trainers.generation import sample_completions
from metatune.trainers.success import accepted_answers

from .conftest import tiny_llama

EOS = [7]
token = st.integers(0, 7)


def by_hand(
    model, context: list[int], cut: int, suffix: list[int], answers: list[list[int]], eos=EOS, temperature=1.0
) -> float:
    """One plain forward pass for each answer: the product of the chances of its tokens and of an end."""
    total = 0.0
    for answer in {tuple(a) for a in answers}:
        ids = [*context[:cut], *suffix, *answer]
        with torch.no_grad():
            log_probs = (model(torch.tensor([ids])).logits[0] / temperature).log_softmax(-1)
        start = len(ids) - len(answer)
        own = sum(log_probs[i - 1, ids[i]].item() for i in range(start, len(ids)))
        total += math.exp(own) * log_probs[-1, eos].exp().sum().item()
    return total


@st.composite
def forests(draw):
    """Draw 1 to 3 traces with 1 to 3 branches each, whose answers often share their beginnings."""
    trees = []
    for _ in range(draw(st.integers(1, 3))):
        context = draw(st.lists(token, min_size=1, max_size=9))
        branches = [
            (
                draw(st.integers(1, len(context))),
                draw(st.lists(token, min_size=1, max_size=3)),
                draw(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), max_size=4)),
            )
            for _ in range(draw(st.integers(1, 3)))
        ]
        trees.append((context, branches))
    return trees


@given(
    forests(),
    st.sampled_from([8, 64, 10_000]),
    st.sampled_from([2, 128]),
    st.booleans(),
    st.sampled_from([[7], [6, 7], [1, 7]]),
)
@settings(deadline=None, max_examples=40)
def test_trees_sum_what_plain_passes_sum(forest, max_tokens, row_tokens, packed, eos):
    model = tiny_llama(8)
    trees = [
        Tree(list(context), [Branch(cut, AnswerTrie(suffix, answers)) for cut, suffix, answers in branches])
        for context, branches in forest
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answer_likelihood, "takes_masks", lambda model: packed)
        patch.setattr(answer_likelihood, "ROW_TOKENS", row_tokens)
        found = success_probabilities(model, trees, eos, max_tokens=max_tokens)
    expected = [[by_hand(model, context, *branch, eos=eos) for branch in branches] for context, branches in forest]
    assert [len(row) for row in found] == [len(row) for row in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("packed", [True, False])
def test_the_policy_is_the_model_at_its_temperature(monkeypatch, packed):
    monkeypatch.setattr(answer_likelihood, "takes_masks", lambda model: packed)
    model = tiny_llama(8)
    found = success_probabilities(model, TREES, [6, 7], temperature=0.5)
    for mine, tree in zip(found, TREES, strict=True):
        branches = [(b.cut, b.trie.tokens[: b.trie.num_given], b.trie.answers) for b in tree.branches]
        expected = [by_hand(model, tree.context, *branch, eos=[6, 7], temperature=0.5) for branch in branches]
        assert mine == pytest.approx(expected, rel=1e-9)


def test_shared_beginnings_are_computed_once():
    trie = AnswerTrie([9], [[1, 2, 3], [1, 2, 4], [1, 2], [1, 2, 3]])
    assert trie.tokens == [9, 1, 2, 3, 4]
    assert trie.parents == [-1, 0, 1, 2, 2]
    assert trie.leaves == [3, 4, 2]
    assert trie.ancestors[4].tolist() == [True, True, True, False, True]
    assert [chain.tokens for chain in trie.chains] == [[9, 1, 2, 3], [9, 1, 2, 4], [9, 1, 2]]


TREES = [
    Tree([1, 2, 3, 4], [Branch(1, AnswerTrie([5], [[0], [1, 2]])), Branch(4, AnswerTrie([5, 6], [[0, 1], [0]]))]),
    Tree([4, 3], [Branch(2, AnswerTrie([5], [[2, 2, 2]]))]),
]


def other_llama(**options):
    config = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
    sizes = {"vocab_size": 8, "hidden_size": 32, "intermediate_size": 32, "pad_token_id": 0}
    special = {"bos_token_id": None, "eos_token_id": None}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**config, **sizes, **special, **options})).eval()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("options", [{}, {"num_key_value_heads": 1}, {"tie_word_embeddings": True}])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5), (torch.bfloat16, 0.2)])
def test_any_model_and_attention_agrees_with_plain_passes(implementation, options, dtype, tolerance):
    model = other_llama(**options).to(dtype)
    model.set_attn_implementation(implementation)
    assert takes_masks(model)
    found = success_probabilities(model, TREES, EOS)
    expected = [
        [by_hand(model, tree.context, b.cut, b.trie.tokens[: b.trie.num_given], b.trie.answers) for b in tree.branches]
        for tree in TREES
    ]
    for mine, theirs in zip(found, expected, strict=True):
        assert all(map(math.isfinite, mine))
        assert mine == pytest.approx(theirs, rel=tolerance)


@pytest.mark.parametrize(("limit", "batches"), [(8 * 8, 1), (8 * 7, 2)])
def test_the_number_of_logits_bounds_a_batch(monkeypatch, limit, batches):
    model, asked = tiny_llama(8), []
    monkeypatch.setattr(answer_likelihood, "MAX_LOGITS", limit)
    model.register_forward_hook(lambda *args: asked.append(args[-1].logits.numel()))
    assert len(success_probabilities(model, [TREES[1], TREES[1]], EOS)) == 2  # 4 branch tokens each, 8 tokens known
    assert len(asked) == batches and max(asked) <= limit


@pytest.mark.parametrize(("max_tokens", "batches"), [(12, 1), (11, 2)])
def test_the_number_of_tokens_bounds_a_batch(max_tokens, batches):
    model, seen = tiny_llama(8), []
    model.register_forward_hook(lambda *args: seen.append(args[-1]))
    success_probabilities(model, [TREES[1], TREES[1]], EOS, max_tokens=max_tokens)  # a context of 2 and 4 more each
    assert len(seen) == batches


def test_an_attention_without_masks_is_known():
    model = tiny_llama(8)
    assert takes_masks(model)
    model.config._attn_implementation = "flash_attention_2"
    assert not takes_masks(model)


HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
HEADS = {f"linear_num_{kind}_heads": 2 for kind in ("key", "value")}
HEADS |= {f"linear_{kind}_head_dim": 16 for kind in ("key", "value")}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("mistral", {"sliding_window": 2}),
        ("gemma3_text", {"sliding_window": 2, "layer_types": ["sliding_attention", "full_attention"]}),
        ("qwen3_5_text", HYBRID | HEADS),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}),
        ("mamba2", {"num_heads": 4, "n_groups": 1, "chunk_size": 8}),
        ("mpt", {"d_model": 64, "n_heads": 2, "n_layers": 2}),
    ],
)
def test_models_that_look_beyond_the_mask_get_plain_rows(kind, options):
    sizes = {"vocab_size": 8, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 32}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.2}
    special = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**sizes, **special, **options})).eval()
    assert not takes_masks(model)
    for mine, tree in zip(success_probabilities(model, TREES, EOS), TREES, strict=True):
        expected = [
            by_hand(model, tree.context, b.cut, b.trie.tokens[: b.trie.num_given], b.trie.answers)
            for b in tree.branches
        ]
        assert mine == pytest.approx(expected, rel=1e-4)


def test_an_impossible_token_spoils_no_other_answer():
    model = tiny_llama(8)

    def forbid(module, args, output):
        output.logits[..., 2] = -torch.inf

    model.register_forward_hook(forbid)
    trees = [Tree([1], [Branch(1, AnswerTrie([5], answers))]) for answers in ([[0]], [[2]], [[0], [2]])]
    (possible,), (impossible,), (both,) = success_probabilities(model, trees, EOS)
    assert impossible == 0 and 0 < both == possible < 1


def test_an_ending_token_named_twice_counts_once():
    model = tiny_llama(8)
    assert success_probabilities(model, TREES, [7, 7, 6]) == success_probabilities(model, TREES, [6, 7])


def test_mode_random_state_and_gradients_are_left_alone():
    model = tiny_llama(8).train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    assert not torch.equal(*(model(torch.tensor([[1, 2, 3]])).logits for _ in range(2))), "dropout is on"
    tree = Tree([1, 2, 3], [Branch(2, AnswerTrie([5], [[0], [1]]))])
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, second = (success_probabilities(model, [tree], EOS) for _ in range(2))
    assert torch.equal(torch.rand(2), expected)
    assert first == second, "dropout would make them differ"
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_branch_without_answers_has_no_chance():
    model = tiny_llama(8)
    trees = [Tree([1, 2], [Branch(2, AnswerTrie([5], [])), Branch(1, AnswerTrie([5], [[0]]))]), Tree([1], [])]
    (none, some), empty = success_probabilities(model, trees, EOS)
    assert none == 0 and some > 0 and empty == []


# ---- answers as tokens ----


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE that joins an opening brace with the 1 after it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: index for index, piece in enumerate([*alphabet, "{1"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("{", "1")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_an_answer_that_merges_with_the_suffix_is_encoded_alone():
    tokenizer = merging_tokenizer()
    assert tokenizer.convert_ids_to_tokens(tokenizer("x{12}")["input_ids"]) == ["x", "{1", "2", "}"]
    ids = answer_token_ids(tokenizer, "x{", "12}")
    assert tokenizer.convert_ids_to_tokens(ids) == ["1", "2", "}"]
    assert tokenizer.convert_ids_to_tokens(answer_token_ids(tokenizer, "x{", "22}")) == ["2", "2", "}"]


def test_a_brace_that_the_suffix_opens_is_closed():
    tokenizer = merging_tokenizer()
    branch = AcceptedAnswers(tokenizer, Forcing(tokenizer, "so {"), ["2"]).branch("", 1)
    assert tokenizer.convert_ids_to_tokens(branch.trie.tokens)[-3:] == ["{", "2", "}"]


def test_a_suffix_of_which_nothing_is_left_is_refused():
    tokenizer = merging_tokenizer()
    answers = AcceptedAnswers(tokenizer, Forcing(tokenizer, "\n</think>"), ["2"])
    assert answers.branch("so", 3).cut == 3
    with pytest.raises(ValueError, match="adds no text after a trace that has closed its thinking"):
        answers.branch("so\n</think>", 3)


def test_a_task_without_a_list_of_answers_is_refused_with_the_mend():
    row = {"verifier": "math", "answer": "12", "info": ""}
    with pytest.raises(ValueError, match=r"'math' cannot be listed.*set success_estimator to rollouts"):
        accepted_answers(row)
    with pytest.raises(ValueError, match="needs the columns verifier, answer and info"):
        accepted_answers({"prompt": "?"})


# ---- against sampling ----


@pytest.mark.parametrize(
    ("source", "options"),
    [("countdown", {"numbers": 3, "operators": "+-"}), ("arithmetic", {"terms": 3}), ("logic", {"people": 2})],
)
def test_forced_answers_of_the_starter_are_right_as_often(source, options):
    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    model = AutoModelForCausalLM.from_pretrained(STARTER, dtype=torch.float32)
    forcing, eos = Forcing(tokenizer), [tokenizer.eos_token_id]
    entry = {"name": "a", "source": source, "config": options, "train_size": 1, "test_size": 2}
    answers_each = 2000
    for row in load_distributions([entry])[0].test.select(range(1)):
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        torch.manual_seed(0)
        (trace,) = sample_completions(
            model, [prompt], max_new_tokens=64, eos_token_ids=eos, pad_token_id=tokenizer.pad_token_id
        )
        newline = tokenizer("\n")["input_ids"][0]
        cuts = [0, *(i + 1 for i, token in enumerate(trace) if token == newline)][:3]
        texts = [tokenizer.decode(trace[:cut], skip_special_tokens=True) for cut in cuts]
        answers = AcceptedAnswers(tokenizer, forcing, accepted_answers(row))
        branches = [answers.branch(text, len(prompt) + cut) for cut, text in zip(cuts, texts, strict=True)]
        (exact,) = success_probabilities(model, [Tree([*prompt, *trace], branches)], eos)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(answer_likelihood, "takes_masks", lambda model: False)
            (plain,) = success_probabilities(model, [Tree([*prompt, *trace], branches)], eos)
        suffixes = [forcing.ids_after(text) for text in texts]
        expected = [
            by_hand(model, [*prompt, *trace], b.cut, suffix, b.trie.answers, eos)
            for b, suffix in zip(branches, suffixes, strict=True)
        ]
        assert exact == pytest.approx(expected, rel=1e-5)
        assert plain == pytest.approx(expected, rel=1e-5)
        verifier = get_verifier(row["verifier"])
        for cut, text, value in zip(cuts, texts, exact, strict=True):
            forced = [*prompt, *trace[:cut], *forcing.ids_after(text)]
            sampled = sample_completions(
                model,
                [forced] * answers_each,
                max_new_tokens=16,
                eos_token_ids=eos,
                pad_token_id=tokenizer.pad_token_id,
            )
            counts = Counter(map(tuple, sampled))
            right = sum(
                number
                for ids, number in counts.items()
                if verifier.score(
                    text + forcing.text_after(text) + tokenizer.decode(ids, skip_special_tokens=True),
                    row["answer"],
                    accepted_info(row),
                )
            )
            error = math.sqrt(max(value * (1 - value), 1 / answers_each) / answers_each)
            assert abs(right / answers_each - value) < 4 * error, (cut, right / answers_each, value)


def accepted_info(row) -> dict:
    return json.loads(row["info"]) if row["info"] else {}


def test_the_starters_answers_are_written_as_their_verifiers_read_them():
    tokenizer = build_tokenizer()
    forcing = Forcing(tokenizer)
    for source, options in (("countdown", {"numbers": 4}), ("arithmetic", {"terms": 3}), ("logic", {"people": 3})):
        entry = {"name": "a", "source": source, "config": options, "train_size": 20, "test_size": 1}
        for row in load_distributions([entry])[0].train:
            for answer in accepted_answers(row):
                text = forcing.text_after("") + answer
                assert get_verifier(row["verifier"]).score(text, row["answer"], accepted_info(row))
