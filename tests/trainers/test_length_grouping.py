from contextlib import nullcontext

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, PreTrainedModel

from metatune.curricula import build_tokenizer
from metatune.trainers import DUMPTrainer
from metatune.trainers.length_grouping import group_by_length, obstacle_in_model, trim_padding

from . import dump_setup

PROMPT_WIDTH, COMPLETION_WIDTH = 7, 9

# The lengths (prompt, completion) of four micro-batches of three rows, far from sorted.
LENGTHS = [
    [(7, 2), (1, 9), (3, 1)],
    [(2, 2), (6, 8), (1, 1)],
    [(5, 3), (5, 3), (2, 7)],
    [(1, 1), (4, 4), (7, 9)],
]


def make_batches(lengths, completion_width=COMPLETION_WIDTH) -> list[dict]:
    """Build micro-batches as TRL pads them; the entries of a row carry its number, from 1 on."""
    torch.manual_seed(0)
    batches, number = [], 0
    for step, rows in enumerate(lengths):
        batch = {
            "prompt_ids": torch.zeros(len(rows), PROMPT_WIDTH, dtype=torch.long),
            "prompt_mask": torch.zeros(len(rows), PROMPT_WIDTH, dtype=torch.long),
            "completion_ids": torch.zeros(len(rows), completion_width, dtype=torch.long),
            "completion_mask": torch.zeros(len(rows), completion_width, dtype=torch.long),
            "old_per_token_logps": torch.zeros(len(rows), completion_width, dtype=torch.float64),
            "advantages": torch.zeros(len(rows), dtype=torch.float64),
            "ref_per_token_logps": None,
            "num_items_in_batch": torch.tensor(1000 + step),
        }
        for row, (prompt, completion) in enumerate(rows):
            number += 1
            batch["prompt_ids"][row, PROMPT_WIDTH - prompt :] = torch.randint(1, 50, (prompt,))
            batch["prompt_mask"][row, PROMPT_WIDTH - prompt :] = 1
            batch["completion_ids"][row, :completion] = torch.randint(1, 50, (completion,))
            batch["completion_mask"][row, :completion] = 1
            batch["old_per_token_logps"][row, :completion] = torch.rand(completion, dtype=torch.float64) - number
            batch["advantages"][row] = number
        batches.append(batch)
    return batches


def rows_of(batch: dict) -> list[tuple]:
    """Return each row's entries without padding, so that rows of unequal widths compare."""
    found = []
    for row in range(len(batch["advantages"])):
        prompt, completion = batch["prompt_mask"][row].bool(), batch["completion_mask"][row].bool()
        found.append(
            (
                batch["advantages"][row].item(),
                batch["prompt_ids"][row, prompt].tolist(),
                batch["completion_ids"][row, completion].tolist(),
                batch["old_per_token_logps"][row, completion].tolist(),
            )
        )
    return found


def total_lengths(batch: dict) -> list[int]:
    return (batch["prompt_mask"].sum(-1) + batch["completion_mask"].sum(-1)).tolist()


row_lengths = st.tuples(st.integers(1, PROMPT_WIDTH), st.integers(0, COMPLETION_WIDTH))


@st.composite
def blocks(draw):
    """A generation block: micro-batches of one size, a whole number of optimizer steps, some rows without a token."""
    rows, per_step, steps = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    micro_batch = st.lists(row_lengths, min_size=rows, max_size=rows)
    lengths = draw(st.lists(micro_batch, min_size=per_step * steps, max_size=per_step * steps))
    return make_batches(lengths), per_step


@given(blocks())
def test_every_row_stays_in_its_step_with_all_of_its_entries(block):
    batches, per_step = block
    grouped = group_by_length(batches, per_step)
    assert len(grouped) == len(batches)
    for first in range(0, len(batches), per_step):
        step = slice(first, first + per_step)
        before = [row for batch in batches[step] for row in rows_of(batch)]
        after = [row for batch in grouped[step] for row in rows_of(batch)]
        assert sorted(before) == sorted(after)
        assert [len(batch["advantages"]) for batch in grouped[step]] == [len(before) // per_step] * per_step


@given(blocks())
def test_rows_are_sorted_within_a_step_and_no_column_is_padding_alone(block):
    batches, per_step = block
    grouped = group_by_length(batches, per_step)
    for first in range(0, len(grouped), per_step):
        lengths = [length for batch in grouped[first : first + per_step] for length in total_lengths(batch)]
        assert lengths == sorted(lengths)
    for batch in grouped:
        assert batch["prompt_mask"][:, 0].any()
        assert batch["completion_mask"][:, -1].any() or batch["completion_mask"].shape[1] == 1
        assert batch["prompt_ids"].shape == batch["prompt_mask"].shape
        completion_shape = batch["completion_mask"].shape
        assert batch["completion_ids"].shape == batch["old_per_token_logps"].shape == completion_shape


@given(blocks())
def test_the_batches_given_are_left_as_they_are(block):
    batches, per_step = block
    before = [[rows_of(batch), batch["completion_ids"].shape] for batch in batches]
    group_by_length(batches, per_step)
    assert [[rows_of(batch), batch["completion_ids"].shape] for batch in batches] == before


def test_a_worked_example():
    # One step of two micro-batches; total lengths 9, 10, 4 | 4, 14, 2, so the rows go 6, 3, 4 | 1, 2, 5.
    first, second = group_by_length(make_batches(LENGTHS[:2]), 2)
    assert first["advantages"].tolist() == [6, 3, 4]
    assert second["advantages"].tolist() == [1, 2, 5]
    assert (first["prompt_ids"].shape, first["completion_ids"].shape) == ((3, 3), (3, 2))
    assert (second["prompt_ids"].shape, second["completion_ids"].shape) == ((3, 7), (3, 9))


def test_entries_without_rows_stay_with_their_micro_batch():
    grouped = group_by_length(make_batches(LENGTHS), 2)
    assert [int(batch["num_items_in_batch"]) for batch in grouped] == [1000, 1001, 1002, 1003]
    assert all(batch["ref_per_token_logps"] is None for batch in grouped)
    batches = [{**batch, "beta": 0.1 * i} for i, batch in enumerate(make_batches(LENGTHS))]
    assert [batch["beta"] for batch in group_by_length(batches, 2)] == [0.1 * i for i in range(4)]


def test_one_number_per_row_is_not_taken_for_a_column():
    batches = [{**batch, "importance_sampling_ratio": batch["advantages"][:, None]} for batch in make_batches(LENGTHS)]
    for batch in group_by_length(batches, 4):
        assert batch["importance_sampling_ratio"].tolist() == batch["advantages"][:, None].tolist()


def test_images_whose_rows_cannot_be_told_apart_are_refused():
    images = {"pixel_values": torch.zeros(12, 5), "num_images": [1, 1, 1]}
    batches = [{**batch, **images} for batch in make_batches(LENGTHS)]
    with pytest.raises(ValueError, match="length_grouping is for text only: set it to false"):
        group_by_length(batches, 2)


def test_a_completion_that_must_not_be_trained_on_survives():
    batches = make_batches(LENGTHS[:2])
    batches[0]["completion_mask"][1] = 0  # the second row, of 1 + 9 tokens: it counts as the shortest now
    first, second = group_by_length(batches, 2)
    assert first["advantages"].tolist() == [2, 6, 3]
    assert second["advantages"].tolist() == [4, 1, 5]
    assert first["completion_mask"].tolist() == [[0], [1], [1]]


def test_a_batch_without_any_token_to_train_on_keeps_one_column():
    (batch,) = make_batches([[(2, 0), (3, 0)]])
    trimmed = trim_padding(batch)
    assert trimmed["prompt_ids"].shape == (2, 3)
    assert trimmed["completion_ids"].shape == trimmed["completion_mask"].shape == (2, 1)
    assert trimmed["advantages"].tolist() == [1, 2]


def test_a_hole_in_a_mask_is_kept():
    (batch,) = make_batches([[(1, 5), (1, 2)]])
    batch["completion_mask"][:, 1:3] = 0  # tokens of a tool's answer, say
    trimmed = trim_padding(batch)
    assert trimmed["completion_mask"].tolist() == [[1, 0, 0, 1, 1], [1, 0, 0, 0, 0]]
    assert trimmed["completion_ids"].tolist() == batch["completion_ids"][:, :5].tolist()


# ---- the point of it: the same step ----


def step_loss_and_gradients(model, batches) -> tuple[float, list[torch.Tensor]]:
    """Sum -exp(logp - old logp) * advantage over a step's tokens, and accumulate its gradient."""
    model.zero_grad()
    total = 0.0
    for batch in batches:
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        width = batch["completion_ids"].shape[1]
        logits = model(input_ids=ids, attention_mask=mask).logits[:, -width - 1 : -1]
        logps = logits.log_softmax(-1).gather(-1, batch["completion_ids"][..., None]).squeeze(-1)
        ratio = (logps - logps.detach() + 0.01 * batch["old_per_token_logps"]).exp()
        loss = -(ratio * batch["advantages"][:, None] * batch["completion_mask"]).sum() / 100
        loss.backward()
        total += loss.item()
    return total, [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("masked_row", [False, True])
@pytest.mark.parametrize("micro_batches_per_step", [1, 2, 4])
def test_the_loss_and_the_gradient_of_a_step_are_unchanged(model, micro_batches_per_step, masked_row):
    batches = make_batches(LENGTHS)
    if masked_row:
        batches[3]["completion_mask"][2] = 0
    grouped = group_by_length(batches, micro_batches_per_step)
    size = sum(batch["completion_ids"].numel() + batch["prompt_ids"].numel() for batch in grouped)
    assert size < sum(batch["completion_ids"].numel() + batch["prompt_ids"].numel() for batch in batches)
    for first in range(0, len(batches), micro_batches_per_step):
        step = slice(first, first + micro_batches_per_step)
        loss, gradients = step_loss_and_gradients(model, batches[step])
        grouped_loss, grouped_gradients = step_loss_and_gradients(model, grouped[step])
        assert grouped_loss == pytest.approx(loss, rel=1e-6)
        assert max(gradient.abs().max() for gradient in gradients) > 0.01
        for mine, theirs in zip(grouped_gradients, gradients, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


# ---- supported models ----

SIZES = {
    "vocab_size": 50,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 12,  # below the width of a batch with all of its padding
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
GPT2 = {"vocab_size": 50, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 64, "pad_token_id": 0}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 16,
    "long_factor": [3.0] * 16,
}
LINEAR = {"layer_types": ["linear_attention", "full_attention"], "shared_expert_intermediate_size": 32} | {
    f"linear_{name}": size
    for name, size in {"num_value_heads": 2, "num_key_heads": 2, "key_head_dim": 32, "value_head_dim": 32}.items()
}


def random_model(kind: str, **options) -> PreTrainedModel:
    """Return a random model with large weights, so that dependencies are visible."""
    torch.manual_seed(0)
    sizes = GPT2 if kind in ("GPT2", "CTRL") else SIZES
    model_config = getattr(transformers, f"{kind}Config")(**{**sizes, **options})
    model = AutoModelForCausalLM.from_config(model_config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@torch.no_grad()
def logps_of_rows(model: PreTrainedModel, batches: list[dict]) -> dict[int, torch.Tensor]:
    """Return the log-probabilities of each row's completion, by the row's number, computed as TRL does."""
    found = {}
    for batch in batches:
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        width = batch["completion_ids"].shape[1]
        logps = model(input_ids=ids, attention_mask=mask).logits[:, -width - 1 : -1].log_softmax(-1)
        logps = logps.gather(-1, batch["completion_ids"][..., None]).squeeze(-1)
        for row, number in enumerate(batch["advantages"].tolist()):
            found[number] = logps[row, batch["completion_mask"][row].bool()]
    return found


def largest_change(model: PreTrainedModel) -> float:
    """Return the largest change of a log-probability that regrouping causes."""
    before = logps_of_rows(model, make_batches(LENGTHS))
    after = logps_of_rows(model, group_by_length(make_batches(LENGTHS), 2))
    return max((before[row] - after[row]).abs().max().item() for row in before)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Llama", {}),
        ("Mistral", {"sliding_window": 4}),
        ("Gemma3Text", {"head_dim": 32, "sliding_window": 4}),  # two kinds of rotary embeddings
        ("Mixtral", {"num_local_experts": 4}),
        ("Qwen3Moe", {"head_dim": 32, **EXPERTS}),
        ("Qwen3Next", {"head_dim": 32, **EXPERTS, **LINEAR}),  # recurrent layers
    ],
)
def test_rotary_models_have_the_same_logprobs_after_grouping(kind, options):
    model = random_model(kind, **options)
    assert obstacle_in_model(model, aux_loss_enabled=False) is None
    assert largest_change(model) < 1e-3


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("GPT2", {}, "without rotary position embeddings"),
        ("CTRL", {"dff": 64}, "without rotary position embeddings"),  # sinusoids: no table of positions
        ("Llama", {"rope_parameters": DYNAMIC}, "rotary embeddings of type 'dynamic'"),
        (
            "Phi3",
            {"rope_parameters": LONGROPE, "original_max_position_embeddings": 12},
            "rotary embeddings of type 'longrope'",
        ),
    ],
)
def test_models_whose_logprobs_grouping_would_change_are_refused(kind, options, message):
    model = random_model(kind, **options)
    assert largest_change(model) > 0.1
    assert message in str(obstacle_in_model(model, aux_loss_enabled=False))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("GPT2", {}, "set length_grouping to false"),
        ("Mixtral", {}, "set router_aux_loss_coef to 0, or length_grouping to false"),
        ("Mixtral", {"router_aux_loss_coef": 0.0}, None),
    ],
)
def test_the_trainer_rejects_these_models_when_it_is_constructed(tmp_path, kind, options, message):
    tokenizer = build_tokenizer()
    model = random_model(kind, vocab_size=len(tokenizer))
    arguments = {"reward_funcs": dump_setup.digits, "train_dataset": dump_setup.rows(), "processing_class": tokenizer}
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        DUMPTrainer(model, args=dump_setup.config(tmp_path, length_grouping=True, **options), **arguments)
