"""The reward trainer: stock TRL with everything off, each treatment as its formula says, MetaRM's step, resume."""

import copy
import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from torch.nn.functional import softplus
from transformers import LlamaConfig, LlamaForSequenceClassification, TrainerCallback
from trl import RewardConfig, RewardTrainer

from metatune.trainers import MetaRewardConfig, MetaRewardTrainer
from metatune.trainers.contrastive import simcse_loss
from metatune.trainers.finite_training import NonFiniteError
from metatune.trainers.reward_losses import difference_objective


def reward_model(tokenizer) -> LlamaForSequenceClassification:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_labels=1,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForSequenceClassification(config)


def pairs(number: int = 16, **columns) -> Dataset:
    def message(role, text):
        return [{"role": role, "content": str(text)}]

    rows = [
        {
            "prompt": message("user", f"{i} + {3 * i}"),
            "chosen": message("assistant", 4 * i),
            "rejected": message("assistant", f"{4 * i + 1}, {i}"),
        }
        for i in range(number)
    ]
    dataset = Dataset.from_list(rows)
    for name, values in columns.items():
        dataset = dataset.add_column(name, values)
    return dataset


def meta_set(number: int = 12, k: int = 3) -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"{i} + 1"}],
                "responses": [("1" * (j + 1)) + f" {i}" for j in range(k)],
            }
            for i in range(number)
        ]
    )


def config(folder, kind=MetaRewardConfig, **options):
    defaults = {
        "output_dir": str(folder),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
    }
    return kind(**{**defaults, **options})


def make(folder, tokenizer, kind=MetaRewardTrainer, dataset=None, meta=None, **options):
    more = {} if meta is None else {"meta_dataset": meta}
    return kind(
        reward_model(tokenizer),
        config(folder, MetaRewardConfig if kind is MetaRewardTrainer else RewardConfig, **options),
        train_dataset=pairs() if dataset is None else dataset,
        processing_class=copy.deepcopy(tokenizer),
        **more,
    )


def history(trainer) -> list[dict]:
    # num_tokens: TRL counts those of the process, not of the run
    skipped = ("runtime", "per_second", "flos", "num_tokens", "train_loss")
    return [
        {key: value for key, value in row.items() if not any(word in key for word in skipped)}
        for row in trainer.state.log_history
    ]


class AfterOneStep(TrainerCallback):
    """Does something after the first optimizer step."""

    def __init__(self, act):
        self._act = act

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self._act()


def weights(trainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def same(mine, theirs) -> bool:
    return all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


# ---- off ----


def test_with_everything_off_it_is_trls_trainer_bit_for_bit(tmp_path, tokenizer):
    runs = [make(tmp_path / kind.__name__, tokenizer, kind) for kind in (RewardTrainer, MetaRewardTrainer)]
    for run in runs:
        run.train()
    assert history(runs[0]) == history(runs[1]) and same(weights(runs[0]), weights(runs[1]))


# ---- treatments of the pairs ----


@pytest.mark.parametrize(
    ("options", "target", "margin"),
    [
        ({"label_smoothing": 0.2}, [0.8] * 4, [0.0] * 4),
        ({"flip": 0.25}, [0.0, 1.0, 1.0, 1.0], [0.0] * 4),
        ({"soft_labels": 0.1}, [0.9, 0.9, 1.0, 1.0], [0.0] * 4),
        ({"adaptive_margin": 0.5}, [1.0] * 4, [-1.0, -0.25, 0.5, 1.5]),
        ({"flip": 0.25, "adaptive_margin": 0.5}, [0.0, 1.0, 1.0, 1.0], [-1.0, -0.25, 0.5, 1.5]),
        ({"posterior_labels": True}, [0.044921, 0.335762, 0.801813, 0.994526], [0.0] * 4),
    ],
)
def test_the_loss_of_treated_pairs(tmp_path, tokenizer, options, target, margin):
    strength = [-2.0, -0.5, 1.0, 3.0]
    dataset = pairs(4, strength=strength, strength_votes=[[mean - 1, mean + 1] for mean in strength])
    trainer = make(tmp_path, tokenizer, dataset=dataset, max_steps=1, **options)
    rows = trainer.train_dataset
    if "pair_target" in rows.column_names:
        assert rows["pair_target"] == pytest.approx(target, abs=1e-4)
    batch = trainer.data_collator([rows[i] for i in range(4)])
    loss = trainer.compute_loss(trainer.model, dict(batch)).item()
    scores = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.squeeze(-1)
    z = (scores[:4] - scores[4:]).double() - torch.tensor(margin, dtype=torch.float64)
    t = torch.tensor(target, dtype=torch.float64)
    assert loss == pytest.approx((t * softplus(-z) + (1 - t) * softplus(z)).mean().item(), abs=1e-5)
    trainer.train()  # and it goes through the loader


@pytest.mark.parametrize(
    ("options", "columns", "message"),
    [
        ({"flip": 0.1}, {}, "no column 'strength': vote on them first with `metatune strength`"),
        ({"posterior_labels": True}, {"strength": [0.0] * 16}, "no column 'strength_votes'"),
        (
            {"posterior_labels": True},
            {"strength": [0.5] * 16, "strength_votes": [[0.5]] * 16},
            "pair 1 has one vote .* vote with at least 2 models: `num_models` of `metatune strength`",
        ),
        ({"adaptive_margin": 1.0}, {"strength": [0.0] * 16, "margin": [0.0] * 16}, "would overwrite"),
    ],
)
def test_pairs_without_what_a_treatment_needs(tmp_path, tokenizer, options, columns, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, tokenizer, dataset=pairs(**columns), **options)


# ---- contrastive terms ----


def test_the_simcse_term_is_that_of_the_models_features(tmp_path, tokenizer):
    trainer = make(tmp_path, tokenizer, contrastive="simcse", contrastive_dropout=1e-9, contrastive_temperature=0.2)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, dict(batch)).item()
    captured = []
    handle = trainer.model.score.register_forward_pre_hook(lambda module, inputs: captured.append(inputs[0]))
    scores = trainer.model(**batch).logits.squeeze(-1)
    handle.remove()
    last = batch["attention_mask"].sum(1) - 1
    features = captured[0][torch.arange(8), last]  # with no dropout to speak of, both views are these
    expected = softplus(scores[4:] - scores[:4]).mean() + simcse_loss(features, features, 0.2)
    assert loss == pytest.approx(expected.item(), abs=1e-4)
    trainer.model.eval()
    assert trainer.compute_loss(trainer.model, dict(batch)).item() == pytest.approx(
        softplus(scores[4:] - scores[:4]).mean().item(), abs=1e-5
    )


@pytest.mark.parametrize("on", ["pairs", "differences"])
def test_two_views_differ_and_the_term_falls(tmp_path, tokenizer, on):
    options = {"contrastive": "simcse", "contrastive_on": on, "contrastive_dropout": 0.2, "max_steps": 12}
    trainer = make(tmp_path, tokenizer, **options)
    trainer.train()
    terms = [row["contrastive"] for row in history(trainer) if "contrastive" in row]
    assert len(terms) == 12 and terms[0] > 0.01 and min(terms[-3:]) < terms[0]


@pytest.mark.parametrize("term", ["simcse", "swav"])
def test_a_micro_batch_is_compared_with_past_ones_across_accumulation(tmp_path, tokenizer, term):
    """Eight micro-batches of two pairs, four steps: the queue holds the last 24 of the 32 items, not the last four."""
    options = {"contrastive": term, "contrastive_queue_size": 24, "per_device_train_batch_size": 2, "max_steps": 4}
    trainer = make(tmp_path, tokenizer, gradient_accumulation_steps=2, **options)
    seen = []
    context = trainer._queue.context
    trainer._queue.context = lambda *args: seen.append(context(*args)) or seen[-1]
    trainer.train()
    assert [len(each) for each in seen] == [0, 4, 8, 12, 16, 20, 24, 24]
    assert torch.equal(seen[-1][4:], seen[-2][:20]) and not seen[-1].requires_grad


def test_a_checkpoint_without_past_features_is_refused(tmp_path, tokenizer):
    options = {"contrastive": "simcse", "save_strategy": "steps", "save_steps": 2}
    make(tmp_path, tokenizer, **options).train()
    checkpoint = tmp_path / "checkpoint-2"
    assert load_file(checkpoint / "contrastive_queue.safetensors")["features"].shape == (2 * 8, 32)
    (checkpoint / "contrastive_queue.safetensors").unlink()  # as in older versions
    with pytest.raises(ValueError, match=r"has no contrastive_queue.*Set contrastive_queue_size: 0 to resume it"):
        make(tmp_path, tokenizer, **options).train(resume_from_checkpoint=str(checkpoint))
    make(tmp_path, tokenizer, **options, contrastive_queue_size=0).train(resume_from_checkpoint=str(checkpoint))


def test_swavs_prototypes_are_trained_saved_apart_and_loaded(tmp_path, tokenizer):
    options = {"contrastive": "swav", "num_prototypes": 6, "save_strategy": "steps", "save_steps": 2}
    whole = make(tmp_path / "whole", tokenizer, **options)
    first = whole.model.swav_prototypes.weight.detach().clone()
    whole.train()
    assert not torch.equal(first, whole.model.swav_prototypes.weight)
    _, report = LlamaForSequenceClassification.from_pretrained(
        tmp_path / "whole" / "checkpoint-4", output_loading_info=True
    )
    assert not report["unexpected_keys"] and not report["missing_keys"]
    resumed = make(tmp_path / "resumed", tokenizer, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert same(weights(resumed), weights(whole))
    assert history(resumed) == history(whole)


# ---- MetaRM ----


def by_hand(trainer, tokenizer, step_of, learning_rate):
    """One SGD step at moved weights, computed on a copy without the trainer."""
    model = copy.deepcopy(trainer.model).train()
    parameters = list(model.parameters())
    meta = trainer.meta_set.batch(0, 0, 1)
    k = meta.pop("num_responses")
    objective = difference_objective(model(**meta).logits.squeeze(-1).view(-1, k)).mean()
    ascent = torch.autograd.grad(objective, parameters)
    norm = math.sqrt(sum(gradient.square().sum().item() for gradient in ascent))
    before = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter, gradient in zip(parameters, ascent, strict=True):
            parameter += step_of(norm) * gradient
    batch = next(iter(trainer.get_train_dataloader()))
    scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.squeeze(-1)
    chosen, rejected = scores.chunk(2)
    descent = torch.autograd.grad(softplus(rejected - chosen).mean(), parameters)
    return [b - learning_rate * g for b, g in zip(before, descent, strict=True)]


@pytest.mark.parametrize(
    ("meta_step", "size", "step_of"),
    [("plain", 0.5, lambda norm: 0.5), ("normalised", 0.3, lambda norm: 0.3 / norm)],
)
def test_a_step_is_the_one_computed_by_hand(tmp_path, tokenizer, meta_step, size, step_of):
    options = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    options |= {"meta_step": meta_step, "meta_step_size": size, "per_device_meta_batch_size": 4, "max_steps": 1}
    options["dataset"] = pairs(4)  # one batch, in whatever order
    trainer = make(tmp_path, tokenizer, meta=meta_set(), **options)
    expected = by_hand(trainer, tokenizer, step_of, 0.1)
    off = {"meta_step": "none", "meta_step_size": None, "per_device_meta_batch_size": 16}
    plain = make(tmp_path / "plain", tokenizer, **{**options, **off})
    plain.train()
    trainer = make(tmp_path, tokenizer, meta=meta_set(), **options)
    trainer.train()
    for found, wanted in zip(weights(trainer), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)
    moved = max((a - b).abs().max().item() for a, b in zip(weights(trainer), weights(plain), strict=True))
    assert moved > 1e-5  # another step than without the move
    row = history(trainer)[0]
    assert {"meta/difference", "meta/gradient_norm", "meta/reward_std", "meta/length_correlation"} <= set(row)
    norm = row["meta/gradient_norm"]
    assert row["meta/move_length"] == pytest.approx(step_of(norm) * norm, rel=1e-3)
    assert row["meta/move_cosine"] == pytest.approx(1.0, abs=1e-5)


def test_accumulated_micro_batches_share_one_move(tmp_path, tokenizer):
    options = {"meta": meta_set(), "meta_step": "normalised", "meta_step_size": 0.3, "per_device_meta_batch_size": 4}
    once = make(tmp_path / "once", tokenizer, per_device_train_batch_size=8, **options)
    parts = make(tmp_path / "parts", tokenizer, gradient_accumulation_steps=2, **options)
    for trainer in (once, parts):
        trainer.train()
    for mine, theirs in zip(weights(parts), weights(once), strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-4, rtol=1e-3)
    assert [row["meta/gradient_norm"] for row in history(parts)[:4]] == pytest.approx(
        [row["meta/gradient_norm"] for row in history(once)[:4]], rel=1e-3
    )


def test_a_move_leaves_gradient_checkpointing_as_it_was_asked_for(tmp_path, tokenizer):
    options = {"meta": meta_set(), "meta_step": "plain", "per_device_meta_batch_size": 4, "max_steps": 1}
    options |= {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    trainer = make(tmp_path, tokenizer, **options)
    trainer.train()
    for layer in trainer.model.model.layers:
        assert layer.gradient_checkpointing
        assert layer._gradient_checkpointing_func.keywords == {"use_reentrant": True}


def test_a_failure_in_a_step_leaves_the_weights_as_they_were(tmp_path, tokenizer):
    class Failure(MetaRewardTrainer):
        def compute_loss(self, *args, **kwargs):
            assert self._shift.moved
            raise OSError("no more")

    trainer = Failure(
        reward_model(tokenizer),
        config(tmp_path, meta_step="normalised", per_device_meta_batch_size=4),
        train_dataset=pairs(),
        processing_class=tokenizer,
        meta_dataset=meta_set(),
    )
    before = weights(trainer)
    with pytest.raises(OSError, match="no more"):
        trainer.train()
    assert same(weights(trainer), before) and not trainer._shift.moved


def test_a_first_move_that_is_rounded_away_is_an_error(tmp_path, tokenizer):
    options = {"meta_step": "plain", "meta_step_size": 1e-9, "per_device_meta_batch_size": 4}
    trainer = make(tmp_path, tokenizer, meta=meta_set(), **options)
    before = weights(trainer)
    with pytest.raises(ValueError, match=r"rounding turned a move of length .* cosine .* Raise meta_step_size"):
        trainer.train()
    assert same(weights(trainer), before) and not trainer._shift.moved


def test_a_move_that_is_not_a_number_is_reported_as_diverged_training(tmp_path, tokenizer):
    trainer = make(tmp_path, tokenizer, meta=meta_set(), meta_step="normalised", per_device_meta_batch_size=4)
    trainer.model.score.weight.data.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="nan"):
        trainer.train()


def test_a_later_move_that_is_rounded_away_is_a_warning_and_logged(tmp_path, tokenizer, caplog):
    options = {"meta": meta_set(), "meta_step": "plain", "per_device_meta_batch_size": 4, "max_steps": 3}
    options |= {"save_strategy": "steps", "save_steps": 2}
    trainer = make(tmp_path, tokenizer, meta_step_size=0.5, **options)
    trainer.add_callback(AfterOneStep(lambda: setattr(trainer.args, "meta_step_size", 1e-9)))
    trainer.train()
    first, second = (row["meta/move_cosine"] for row in history(trainer)[:2])
    assert first > 0.999 and second < 0.9
    assert "meta_step: rounding distorts the moves of the weights" in caplog.text
    resumed = make(tmp_path, tokenizer, meta_step_size=1e-9, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))  # not an error after a resume either
    assert same(weights(resumed), weights(trainer))


def test_meta_steps_reject_16_bit_weights(tmp_path, tokenizer):
    options = {"meta_step": "plain", "per_device_meta_batch_size": 4}
    adapters = LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])
    for dtype, peft_config in ((torch.bfloat16, None), (torch.float16, None), (torch.bfloat16, adapters)):
        model = reward_model(tokenizer).to(dtype)
        arguments = {"train_dataset": pairs(), "processing_class": tokenizer, "meta_dataset": meta_set()}
        with pytest.raises(ValueError, match=rf"less than {dtype} can resolve: load them in float32 \(dtype: float32"):
            MetaRewardTrainer(model, config(tmp_path, **options), peft_config=peft_config, **arguments)
    quantized = reward_model(tokenizer)
    quantized.is_loaded_in_4bit = True  # TRL then keeps adapters in bfloat16, whatever `dtype` says
    with pytest.raises(ValueError, match=r"does not work with a quantized model.*remove load_in_4bit"):
        MetaRewardTrainer(quantized, config(tmp_path, **options), peft_config=adapters, **arguments)


def test_fsdp_is_refused(tmp_path, tokenizer):
    class Sharded(MetaRewardTrainer):
        """A trainer that reports FSDP, which would need several processes."""

        def create_accelerator_and_postprocess(self):
            super().create_accelerator_and_postprocess()
            self.is_fsdp_enabled = True

    arguments = {"train_dataset": pairs(), "processing_class": tokenizer}
    Sharded(reward_model(tokenizer), config(tmp_path), **arguments)
    with pytest.raises(ValueError, match="meta_step does not work with FSDP"):
        Sharded(reward_model(tokenizer), config(tmp_path, meta_step="plain"), meta_dataset=meta_set(), **arguments)


def test_a_resumed_run_is_the_whole_run_bit_for_bit(tmp_path, tokenizer):
    options = {"meta": meta_set(), "meta_step": "normalised", "per_device_meta_batch_size": 4}
    options |= {"contrastive": "simcse", "label_smoothing": 0.1, "save_strategy": "steps", "save_steps": 1}
    whole = make(tmp_path / "whole", tokenizer, **options)
    whole.train()
    resumed = make(tmp_path / "resumed", tokenizer, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert same(weights(resumed), weights(whole)) and history(resumed) == history(whole)


def test_the_meta_set_is_tokenized_as_the_pairs_are(tmp_path, tokenizer):
    texts = [{"prompt": "1 + 2 = ", "chosen": f"{i}", "rejected": f"{i} {i}"} for i in range(4)]
    for dataset in (pairs(4), Dataset.from_list(texts)):
        responses = [[row["chosen"], row["rejected"]] for row in dataset]
        meta = Dataset.from_list(
            [{"prompt": p, "responses": r} for p, r in zip(dataset["prompt"], responses, strict=True)]
        )
        options = {"meta_step": "plain", "per_device_meta_batch_size": 4}
        trainer = make(tmp_path, tokenizer, dataset=dataset, meta=meta, **options)
        batch = trainer.meta_set.batch(0, 0, 1)
        found = [
            tuple(ids[m.bool()].tolist()) for ids, m in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        expected = [tuple(ids) for name in ("chosen_ids", "rejected_ids") for ids in trainer.train_dataset[name]]
        assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(
    ("options", "meta", "message"),
    [
        ({"meta_step": "plain"}, None, "needs a meta_dataset"),
        ({}, meta_set(), "needs meta_step"),
        ({"meta_step": "plain"}, meta_set(8), "has 8 prompts, and one step takes 16"),
    ],
)
def test_a_meta_step_and_a_meta_set_belong_together(tmp_path, tokenizer, options, meta, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, tokenizer, meta=meta, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contrastive": "moco"}, "contrastive is one of none, simcse, swav"),
        ({"contrastive": "simcse", "contrastive_queue_size": -1}, "must not be negative, got -1"),
        ({"contrastive": "simcse", "contrastive_dropout": 0.0}, "between 0 and 1, not 0.0"),
        ({"meta_step": "sam"}, "meta_step is one of"),
        ({"meta_step": "plain", "fp16": True}, "meta_step does not work with fp16"),
        ({"meta_step": "plain", "meta_step_size": 0.0}, "must be positive"),
    ],
)
def test_options_that_contradict(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **options)


def test_a_pair_of_weight_0_teaches_nothing_and_one_of_weight_2_is_worth_two(tmp_path, tokenizer):
    # one batch, one step: pairs 0 and 1 twice each are pairs 0 to 3 with weights 2, 2, 0, 0
    one_step = {"max_steps": 1, "optim": "sgd"}  # Adam makes much of tiny gradients that differ in rounding
    twice = make(tmp_path / "twice", tokenizer, dataset=pairs(4).select([0, 1, 0, 1]), **one_step)
    rows = pairs(4, weight=[2, 2, 0, 0])
    weighted = make(tmp_path / "weighted", tokenizer, dataset=rows, pair_weights=True, **one_step)
    twice.train()
    weighted.train()
    assert weighted.state.log_history[0]["loss"] == pytest.approx(twice.state.log_history[0]["loss"], abs=1e-6)
    for mine, theirs in zip(weights(weighted), weights(twice), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("columns", "message"),
    [({}, "no column 'weight'"), ({"weight": [1, 1, -2, 1]}, "row 3"), ({"weight": [1.0, float("nan")] * 2}, "row 2")],
)
def test_weights_that_are_none_are_refused(tmp_path, tokenizer, columns, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, tokenizer, dataset=pairs(4, **columns), pair_weights=True)


def test_a_column_weight_is_nothing_without_the_option(tmp_path, tokenizer):
    """Nor is `target`, which may be anything in a user's data."""
    plain, other = (
        make(tmp_path / str(n), tokenizer, dataset=pairs(**columns), max_steps=2)
        for n, columns in enumerate(({}, {"weight": [0.5] * len(pairs()), "target": ["text"] * len(pairs())}))
    )
    plain.train()
    other.train()
    assert history(plain) == history(other)
