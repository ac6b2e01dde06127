"""Reward models: tokens and scores are those of TRL's `RewardTrainer`, and nothing else decides a score."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)
from trl import RewardConfig, RewardTrainer

from metatune.curricula import build_tokenizer
from metatune.rewards.responses import response_ids
from metatune.rewards.reward_model import RewardModel


def tiny_model(
    folder: Path, kind=LlamaForSequenceClassification, hidden_size: int = 32, padded_by_end: bool = False, **options
) -> Path:
    """Save a random model with its tokenizer; `padded_by_end`: by the token that ends a text."""
    tokenizer = build_tokenizer()
    if padded_by_end:
        tokenizer.pad_token = tokenizer.eos_token
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("reward-model"), num_labels=1)


@pytest.fixture(scope="module")
def model(folder):
    return RewardModel(folder, device="cpu")


def messages(role: str, text: str) -> list[dict]:
    return [{"role": role, "content": text}]


TEXTS = {
    "prompt": ["1 + 1 = ", "20 + 22 = ", "3 - 1 = "],
    "chosen": ["2", "42, which is right", "2"],
    "rejected": ["3 or so", "44", ""],
}
CONVERSATIONS = {
    column: [messages("user" if column == "prompt" else "assistant", text) for text in texts]
    for column, texts in TEXTS.items()
}


def trainer_on(pairs: dict, folder: Path, output: Path, **options) -> RewardTrainer:
    args = RewardConfig(
        output_dir=str(output),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        max_steps=2,
        save_strategy="no",
        learning_rate=1e-2,
        per_device_train_batch_size=4,
    )
    return RewardTrainer(model=str(folder), args=args, train_dataset=Dataset.from_dict(pairs), **options)


def scores_of(trainer: RewardTrainer) -> tuple[list, np.ndarray]:
    """The ids and scores that a trainer gives its pairs: the chosen, then the rejected."""
    rows = list(trainer.train_dataset)
    batch = trainer.data_collator(rows)
    with torch.no_grad():
        logits = trainer.model.eval()(**batch).logits[:, 0]
    return [row["chosen_ids"] for row in rows] + [row["rejected_ids"] for row in rows], logits.numpy()


@pytest.mark.parametrize("pairs", [TEXTS, CONVERSATIONS], ids=["texts", "conversations"])
@pytest.mark.parametrize("explicit_prompt", [True, False])
def test_ids_and_scores_are_those_of_trls_trainer(model, folder, tmp_path, pairs, explicit_prompt):
    prompts = pairs["prompt"]
    if not explicit_prompt:
        with_prompt = {
            column: [prompt + answer for prompt, answer in zip(prompts, pairs[column], strict=True)]
            for column in ("chosen", "rejected")
        }
        pairs, prompts = with_prompt, None
    ids, scores = scores_of(trainer_on(pairs, folder, tmp_path))
    ours = [response_ids(model.tokenizer, prompts, pairs[column]) for column in ("chosen", "rejected")]
    assert ours[0] + ours[1] == ids
    mine = np.concatenate([model.score(prompts, pairs[column]) for column in ("chosen", "rejected")])
    assert mine == pytest.approx(scores, abs=1e-6)
    assert np.ptp(mine) > 0.1
    margins = model.score_pairs(pairs["chosen"], pairs["rejected"], prompts)
    assert margins == pytest.approx(scores[:3] - scores[3:], abs=1e-6)


def test_batches_and_order_change_nothing(folder, model):
    generator = np.random.default_rng(0)
    prompts = ["1 + 1 = "] * 20
    completions = ["2 and " * int(generator.integers(0, 8)) for _ in prompts]
    scores = model.score(prompts, completions)
    assert np.ptp(scores) > 0.1
    for batch_size in (1, 3, 64):
        again = RewardModel(folder, device="cpu", batch_size=batch_size).score(prompts, completions)
        assert again == pytest.approx(scores, abs=1e-5)
    order = generator.permutation(20)
    assert model.score(prompts, [completions[i] for i in order]) == pytest.approx(scores[order], abs=1e-5)


def test_equal_responses_have_no_margin_and_none_are_none(model):
    assert model.score_pairs(["2", "", "9 9 9"], ["2", "", "9"])[:2].tolist() == [0.0, 0.0]
    assert model.score([], []).shape == (0,)


def test_an_empty_response_is_scored_as_its_prompt_that_ends(model):
    assert model.score(["1 + 1"], [""])[0] == model.score(None, ["1 + 1"])[0]
    assert np.isfinite(model.score([""], [""]))[0]


def test_a_response_that_ends_already_is_not_ended_twice(model):
    assert model.score(["1 + "], ["1" + model.tokenizer.eos_token])[0] == model.score(["1 + "], ["1"])[0]


def test_too_long_responses_have_no_score_and_are_counted(folder):
    model = RewardModel(folder, device="cpu")
    assert model.max_length == 64
    long = "7 " * 40
    scores = model.score(["1", "1", "1"], ["2", long, "3"])
    assert np.isnan(scores).tolist() == [False, True, False] and model.num_too_long == 1
    assert np.isnan(model.score_pairs(["1", "1"], [long, "2"])).tolist() == [True, False] and model.num_too_long == 2
    exact = len(response_ids(model.tokenizer, ["1"], ["2"])[0])
    assert np.isfinite(RewardModel(folder, device="cpu", max_length=exact).score(["1"], ["2"]))[0]
    assert np.isnan(RewardModel(folder, device="cpu", max_length=exact - 1).score(["1"], ["2"]))[0]


def test_scoring_keeps_to_itself(model):
    """It draws no random number, and the precision of whoever calls does not change a score."""
    state = torch.get_rng_state()
    scores = model.score(["1 + 1 = "], ["2"])
    assert torch.equal(torch.get_rng_state(), state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.score(["1 + 1 = "], ["2"]) == scores
    assert not model.model.training and not any(weight.requires_grad for weight in model.model.parameters())


def test_an_adapter_scores_as_the_model_it_was_trained_as(tmp_path):
    base = tiny_model(tmp_path / "base", kind=LlamaForCausalLM)
    lora = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"])
    trainer = trainer_on(TEXTS, base, tmp_path / "adapter", peft_config=lora)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    _, scores = scores_of(trainer)
    model = RewardModel(tmp_path / "adapter", device="cpu")
    assert model.score(TEXTS["prompt"], TEXTS["chosen"]) == pytest.approx(scores[:3], abs=1e-5)

    config = tmp_path / "adapter" / "adapter_config.json"
    recorded = json.loads(config.read_text())
    config.write_text(json.dumps({**recorded, "base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(ValueError, match=r"its base model .*gone cannot be loaded"):
        RewardModel(tmp_path / "adapter", device="cpu")
    moved = RewardModel(tmp_path / "adapter", device="cpu", base=str(base))
    assert moved.score(TEXTS["prompt"], TEXTS["chosen"]) == pytest.approx(scores[:3], abs=1e-5)
    config.write_text(json.dumps({**recorded, "task_type": "CAUSAL_LM"}))
    with pytest.raises(ValueError, match="adapter is one of a language model"):
        RewardModel(tmp_path / "adapter", device="cpu")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"adapter_config.json cannot be loaded: Expecting"),
        ('{"task_type": "SEQ_CLS"}', r"adapter_config.json names no base model"),
        ('{"task_type": "SEQ_CLS", "base_model_name_or_path": null}', r"adapter_config.json names no base model"),
    ],
)
def test_an_adapter_that_names_no_base_is_told_so(tmp_path, text, message):
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        RewardModel(tmp_path, device="cpu")


def test_what_is_no_reward_model_is_refused(tmp_path, folder):
    with pytest.raises(ValueError, match=r"no reward model: it lacks score.weight; .*metatune reward"):
        RewardModel(tiny_model(tmp_path / "language-model", kind=LlamaForCausalLM))
    with pytest.raises(ValueError, match="no reward model: it has 2 labels"):
        RewardModel(tiny_model(tmp_path / "two-labels", num_labels=2))
    with pytest.raises(ValueError, match="cannot be loaded"):
        RewardModel(tmp_path / "nothing")
    pickled = tiny_model(tmp_path / "pickled", num_labels=1)
    state = AutoModelForSequenceClassification.from_pretrained(pickled).state_dict()
    (pickled / "model.safetensors").unlink()
    torch.save(state, pickled / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be loaded"):
        RewardModel(pickled)
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        RewardModel(folder, batch_size=0)
    with pytest.raises(ValueError, match="dtype must be auto or a type of torch such as bfloat16, not 'half-ish'"):
        RewardModel(folder, dtype="half-ish")
    with pytest.raises(ValueError, match="no adapter's folder, so it has no base"):
        RewardModel(folder, base=str(folder))


def test_rows_that_do_not_fit_together_are_refused(model):
    with pytest.raises(ValueError, match="1 prompts for 2 completions"):
        model.score(["1"], ["2", "3"])
    with pytest.raises(ValueError, match="row 1: the prompt is of type list, the completion of type str"):
        model.score(["1", messages("user", "1")], ["2", "2"])
    with pytest.raises(ValueError, match="2 chosen responses for 1 rejected ones"):
        model.score_pairs(["1", "2"], ["1"])


def test_the_grading_process_loads_no_torch():
    """It imports the package, where reward models wait until they are used."""
    program = "import sys, metatune.rewards as r; assert 'torch' not in sys.modules; r.RewardModel, r.RewardServer"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
