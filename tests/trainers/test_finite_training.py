"""A NaN or an infinite number stops every trainer, and the last complete checkpoint is the one before it."""

import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import LlamaForSequenceClassification, TrainerCallback
from trl import RewardConfig, SFTConfig

from metatune.recipes.strength_votes import VoterTrainer
from metatune.trainers import DUMPTrainer, MetaRewardConfig, MetaRewardTrainer
from metatune.trainers.finite_training import FiniteTraining, NonFiniteError
from metatune.trainers.sft_trainer import SFTTrainer
from metatune.trainers.whole_checkpoints import last_whole_checkpoint

from .dump_setup import config, digits, rows, tiny_model

CPU = {"report_to": "none", "disable_tqdm": True, "bf16": False, "gradient_checkpointing": False, "use_cpu": True}
SHORT = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-3}


class Poison(TrainerCallback):
    """Makes the gradient of a weight NaN from the third step on."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 2:
            model.get_input_embeddings().weight.register_hook(lambda gradient: gradient * math.nan)


def pairs(**columns) -> Dataset:
    values = {"chosen_ids": [[5, 6, 7]] * 16, "rejected_ids": [[5, 6, 8]] * 16}
    return Dataset.from_dict(values | {name: [value] * 16 for name, value in columns.items()})


def reward_model():
    model = tiny_model().config
    model.num_labels = 1
    return LlamaForSequenceClassification(model)


def make_grpo(folder, tokenizer, **options):
    args = config(folder, **{"gradient_accumulation_steps": 2, "per_device_train_batch_size": 8} | options)
    return DUMPTrainer(tiny_model(), digits, args, train_dataset=rows(), processing_class=tokenizer)


def make_sft(folder, tokenizer, **options):
    args = SFTConfig(output_dir=str(folder), gradient_accumulation_steps=2, **CPU | options)
    texts = Dataset.from_dict({"text": ["1 + 1 = 2"] * 32})
    return SFTTrainer(tiny_model(), args, train_dataset=texts, processing_class=tokenizer)


def make_reward(folder, tokenizer, trainer=MetaRewardTrainer, margin=None, **options):
    dataset = pairs() if margin is None else pairs(margin=margin)
    config_class = MetaRewardConfig if trainer is MetaRewardTrainer else RewardConfig
    args = config_class(output_dir=str(folder), **CPU | options)
    return trainer(reward_model(), args, train_dataset=dataset, processing_class=tokenizer)


def make_voter(folder, tokenizer, **options):
    return make_reward(folder, tokenizer, VoterTrainer, **options)


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
@pytest.mark.parametrize("make", [make_grpo, make_sft, make_reward, make_voter])
def test_a_nan_stops_training_and_the_checkpoint_before_it_is_the_last(tmp_path, tokenizer, make, max_grad_norm):
    trainer = make(tmp_path, tokenizer, max_grad_norm=max_grad_norm, **SHORT)
    trainer.add_callback(Poison())
    with pytest.raises(NonFiniteError, match=r"^step 3: the loss is finite and the gradient norm is nan\.") as stopped:
        trainer.train()
    kept = last_whole_checkpoint(tmp_path)
    assert kept == tmp_path / "checkpoint-2"
    assert make is make_voter or f"The last complete checkpoint is {kept}." in str(stopped.value)
    assert all(weight.isfinite().all() for weight in load_file(kept / "model.safetensors").values())


def test_an_infinite_loss_stops_training_although_its_gradient_is_finite(tmp_path, tokenizer):
    """A margin that the loss subtracts has no part in the gradient's size: log sigmoid is linear far from 0."""
    trainer = make_reward(tmp_path, tokenizer, margin=math.inf, **SHORT)
    with pytest.raises(NonFiniteError, match=r"^step 1: the loss is inf .* There is no checkpoint yet"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("make", [make_grpo, make_sft, make_reward])
def test_weights_that_an_update_made_infinite_are_not_saved(tmp_path, tokenizer, make):
    options = {"max_steps": 1, "save_strategy": "no", "learning_rate": 1e38, "max_grad_norm": 0.0, "optim": "sgd"}
    trainer = make(tmp_path, tokenizer, **options)
    trainer.model.get_input_embeddings().weight.register_hook(lambda gradient: torch.full_like(gradient, 1e10))
    trainer.train()  # the gradient is finite, the update is not
    with pytest.raises(NonFiniteError, match=r"^step 1: 1 weights are NaN or infinite, such as model.embed_tokens"):
        trainer.save_model(str(tmp_path))
    assert not (tmp_path / "model.safetensors").exists()


def test_nothing_is_sampled_from_weights_that_are_not_finite(tmp_path, tokenizer):
    trainer = make_grpo(tmp_path, tokenizer, **SHORT)
    with torch.no_grad():
        trainer.model.get_input_embeddings().weight[3] = math.inf
    with pytest.raises(NonFiniteError, match=r"^step 0: 1 weights are NaN or infinite"):
        trainer.train()


class Steps:
    """Stands for `Trainer` where gradients are scaled, which needs a GPU."""

    args = SimpleNamespace(logging_nan_inf_filter=True, output_dir="")
    state = SimpleNamespace(global_step=6)

    def __init__(self, loss: float, scale: float | None):
        self._tr_loss = torch.tensor(loss)
        scaler = None if scale is None else SimpleNamespace(get_scale=lambda: scale)
        self.accelerator = SimpleNamespace(distributed_type="NO", scaler=scaler)

    def _get_grad_norm(self, model, grad_norm=None):
        return grad_norm


class FiniteSteps(FiniteTraining, Steps):
    pass


@pytest.mark.parametrize(
    ("loss", "norm", "scale", "stops"),
    [
        (0.5, 1.0, None, False),
        (0.5, None, None, False),  # DeepSpeed may not compute it
        (0.5, math.inf, None, True),
        (0.5, math.inf, 65536.0, False),  # fp16 skips this step and lowers the scale
        (0.5, math.nan, 0.5, True),  # the scale has been lowered to the end
        (math.nan, 1.0, 65536.0, True),
        (math.nan, None, None, True),
    ],
)
def test_an_overflow_of_fp16_gradients_is_left_to_the_scaler(tmp_path, loss, norm, scale, stops):
    steps = FiniteSteps(loss, scale)
    steps.args.output_dir = str(tmp_path)
    assert steps.args.logging_nan_inf_filter is False
    if stops:
        with pytest.raises(NonFiniteError, match=r"^step 7: "):
            steps._get_grad_norm(None, norm)
    else:
        assert steps._get_grad_norm(None, norm) is norm
