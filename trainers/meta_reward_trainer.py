"""Reward modelling with treatments of noisy pairs, contrastive terms, and MetaRM's step; each an independent option.

A reward model trained once on noisy pairs meets a policy that walks away from its data. Its loss on a pair is

    L = -t log sigmoid(z) - (1 - t) log sigmoid(-z),   z = r_c - r_r - m      (Secrets of RLHF II, arXiv 2401.06080)

with target t and margin m from the pair's preference strength, plus a weighted contrastive term on features; and
MetaRM (arXiv 2405.00438) takes its gradient at weights that hold the responses of the shifted policy further apart:

    theta' = theta + eta * grad J(X_s),   theta <- theta - alpha * grad L(theta'; X_t)

What deviates from the papers, and why:

- Eq. 6 of the first prints the margin outside of the logarithm, where it has no gradient; here it is inside.
- Llama-shaped models have no dropout but in attention, so two views differ by dropout on the input embeddings.
- `normalised` moves by a given length, as SAM does: plain steps of 5e-6 vanish in rounding and depend on the scale.
- With gradient accumulation the move is made once an optimizer step, from one meta batch. The logged loss is the one
  at the moved weights.
- The moved weights are float32, also under DeepSpeed with `bf16: true` (`weight_precision.py`): in bfloat16, rounding
  removes most of the move. The actual move is measured, and the run ends if rounding distorts the first one.
- Contrastive terms also compare the items of a micro-batch with those of the other processes and with past items,
  which get no gradient (`contrastive_queue_size`).
- J rewards any spread and does not use labels: the log has the correlation of score and length.

The math is in `reward_losses.py`, `contrastive.py` and `rewards/preference_strength.py`, the move in
`meta_step.py`.
"""

import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from safetensors.torch import load_file, save_file
from torch.nn.functional import dropout
from transformers import DataCollator, EvalPrediction, PreTrainedTokenizerBase, TrainerCallback
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from ..rewards.preference_strength import pair_targets, stack_votes
from . import rollout_checkpoint  # noqa: F401 (lets torch load an optimizer onto a process's `cpu:0`)
from .config_conversion import config_for
from .contrastive import FeatureQueue, Prototypes, items_of, simcse_loss, swav_loss
from .finite_training import FiniteTraining
from .meta_reward_config import MetaRewardConfig
from .meta_set import MetaSet
from .meta_step import Move, WeightShift, norm_of, objective_gradients
from .model_card import Method, NamedModelCard
from .reward_losses import difference_objective, treatment_term
from .weight_precision import autocast_of, low_precision_type, with_float32_weights
from .whole_checkpoints import CountedTokens

logger = get_logger(__name__)

MIN_COSINE = 0.9  # between the actual move and the intended one
PROTOTYPES = "prototypes.safetensors"
QUEUE = "contrastive_queue.safetensors"
# Columns beside TRL's `margin`, under names that no data set has for another purpose, and what the loss calls them.
TREATMENTS = {"pair_target": "target", "pair_weight": "weight"}
TREATMENT_OPTIONS = ("flip", "soft_labels", "adaptive_margin", "posterior_labels", "label_smoothing", "pair_weights")

# The paper of the treatments and the contrastive terms; the trainer's own is MetaRM's.
SECRETS = {
    "title": "Secrets of RLHF in Large Language Models Part II: Reward Modeling",
    "id": "2401.06080",
    "citation": textwrap.dedent("""\
        @article{wang2024secrets,
            title        = {{Secrets of RLHF in Large Language Models Part II: Reward Modeling}},
            author       = {Binghai Wang and Rui Zheng and Lu Chen and Yan Liu and Shihan Dou and Caishuang Huang and
                            Wei Shen and Senjie Jin and Enyu Zhou and Chenyu Shi and others},
            year         = 2024,
            eprint       = {arXiv:2401.06080},
        }"""),
}


@dataclass
class _Collator(DataCollatorForPreference):
    """TRL's, which knows margins, with targets and weights."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        output = super().torch_call(examples)
        for name in TREATMENTS:
            if name in examples[0]:
                output[name] = torch.tensor([example[name] for example in examples], dtype=torch.float)
        return output


class MetaRewardTrainer(NamedModelCard, CountedTokens, FiniteTraining, RewardTrainer):
    """
    Trainer for reward models with noisy preferences and a shifting policy.

    Has the arguments of [`~trl.RewardTrainer`], in the same order, and the meta set. `args` is a [`MetaRewardConfig`],
    or TRL's `RewardConfig`, which enables no treatment.

    Args:
        meta_dataset ([`~datasets.Dataset`], *optional*): responses of the policy that the reward model is to judge,
            for `meta_step`: the columns `prompt` (text or messages) and `responses` (a list of k texts, or of k lists
            of messages; the same k everywhere, at least 2). No labels.

    Raises:
        ValueError: if a treatment needs a column that the pairs do not have, if a meta step has no meta set or one
            smaller than a batch, or as [`~metatune.rewards.preference_strength.pair_targets`].
    """

    _tag_names = ["trl", "reward-trainer", "meta-reward", "metatune"]
    _name = "MetaReward"
    _paper = {
        "title": "Alleviating Shifted Distribution in Human Preference Alignment through Meta-Learning",
        "id": "2405.00438",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @inproceedings{dou2025metarm,
                title        = {{Alleviating Shifted Distribution in Human Preference Alignment through
                                Meta-Learning}},
                author       = {Shihan Dou and Yan Liu and Enyu Zhou and Songyang Gao and Tianlong Li and
                                Limao Xiong and Xin Zhao and Haoxiang Jia and Junjie Ye and Rui Zheng and Tao Gui and
                                Qi Zhang and Xuanjing Huang},
                year         = 2025,
                booktitle    = {AAAI Conference on Artificial Intelligence},
                eprint       = {arXiv:2405.00438},
            }"""),
    }

    data_collator: Any  # transformers'
    _own_files = ("swav_prototypes.weight",)

    def __init__(
        self,
        model: str | torch.nn.Module,
        args: RewardConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        quantization_config: Any = None,
        peft_config: Any = None,
        *,
        meta_dataset: Dataset | None = None,
    ):
        args = config_for(MetaRewardConfig, args, model, type(self).__name__)
        if (args.meta_step == "none") != (meta_dataset is None):
            raise ValueError("meta_step needs a meta_dataset, and a meta_dataset needs meta_step: plain or normalised")
        if args.meta_step != "none":
            args = with_float32_weights(args)
        super().__init__(
            model,
            args,
            data_collator,
            treated(train_dataset, args),
            eval_dataset,
            processing_class,
            compute_metrics,
            callbacks,
            optimizers,
            optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics,
            quantization_config,
            peft_config,
        )
        if data_collator is None:
            collator = self.data_collator
            self.data_collator = _Collator(collator.pad_token_id, collator.pad_to_multiple_of)
        self._shift = WeightShift()
        self.meta_set: MetaSet | None = None
        if meta_dataset is not None:
            self._check_weights_can_move()
            self.meta_set = MetaSet(
                meta_dataset,
                self.processing_class,
                batch_size=args.per_device_meta_batch_size,
                seed=args.seed,
                max_length=args.max_length,
            )
            self.meta_set.check(self.accelerator.num_processes)
        if args.contrastive != "none":
            hidden_size = self.model.config.get_text_config().hidden_size
            self._queue = FeatureQueue(args.contrastive_queue_size, hidden_size)
        if args.num_prototypes is not None:  # swav's
            prototypes = Prototypes(hidden_size, args.num_prototypes, args.seed)  # the same on every process
            self.model.swav_prototypes = prototypes.to(self.model.device)

    def _check_weights_can_move(self) -> None:
        """Raise `ValueError` for sharding and weight types with which MetaRM's move would be wrong or rounded away."""
        if self.is_fsdp_enabled:
            raise ValueError(
                "meta_step does not work with FSDP, which shards the weights that it moves: use DDP or DeepSpeed "
                "(accelerate_config: ddp, zero1, zero2 or zero3)"
            )
        if getattr(self.model, "is_loaded_in_4bit", False) or getattr(self.model, "is_loaded_in_8bit", False):
            raise ValueError(
                "meta_step does not work with a quantized model, whose adapters TRL keeps in bfloat16: remove "
                "load_in_4bit and load_in_8bit (use_peft: true works with dtype: float32)"
            )
        if (dtype := low_precision_type(p for p in self.model.parameters() if p.requires_grad)) is not None:
            raise ValueError(
                f"meta_step moves the weights by less than {dtype} can resolve: load them in float32 (dtype: float32; "
                "bf16: true still computes in bfloat16)"
            )

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        self._signature_columns += [name for name in TREATMENTS if name not in self._signature_columns]

    # ---- the loss ----

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Return TRL's loss with what the treatments add, and the outputs if they are asked for."""
        treatments = {name: inputs.pop(column) for column, name in TREATMENTS.items() if column in inputs}
        contrasted = self.args.contrastive != "none" and self.model.training
        if contrasted:
            inputs, treatments = _two_views(inputs, treatments)
            inputs["output_hidden_states"] = True
        with self._contrasting() if contrasted else nullcontext():
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if treatments:
            chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
            logits = chosen - rejected - inputs.get("margin", 0.0)
            loss = loss + treatment_term(logits, **treatments).mean()
        if contrasted:
            term = outputs.loss
            self._metrics["train"]["contrastive"].append(self._mean(term.detach()))
            loss = loss + self.args.contrastive_weight * term
        return (loss, outputs) if return_outputs else loss

    @contextmanager
    def _contrasting(self) -> Iterator[None]:
        """Inside the block, a forward pass drops out parts of the embeddings and returns the term as `loss`.

        It belongs to the pass, because DDP refuses parameters, as the prototypes, that are used outside of it.
        """

        def drop_out(module, inputs, output):
            return dropout(output, self.args.contrastive_dropout)

        def add_term(module, inputs, named_inputs, output):
            # in a field of its own DDP could not rebuild the output, and without labels this one is empty
            output.loss = self._contrastive_term(output.hidden_states[-1], named_inputs["attention_mask"])
            return output

        model = self.accelerator.unwrap_model(self.model)
        handles = [
            model.get_input_embeddings().register_forward_hook(drop_out),
            model.register_forward_hook(add_term, with_kwargs=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _contrastive_term(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        last_B = attention_mask.sum(1) - 1  # padded on the right
        features_BD = hidden_states[torch.arange(len(hidden_states), device=hidden_states.device), last_B].float()
        chosen, chosen_other, rejected, rejected_other = features_BD.chunk(4)
        view = items_of(chosen, rejected, self.args.contrastive_on)
        other = items_of(chosen_other, rejected_other, self.args.contrastive_on)
        gathered = self.accelerator.gather(other.detach())
        context = self._queue.context(gathered, self.accelerator.process_index, self.accelerator.num_processes)
        self._queue.push(gathered)
        if self.args.contrastive == "simcse":
            return simcse_loss(view, other, self.args.contrastive_temperature, context)
        prototypes = self.accelerator.unwrap_model(self.model).swav_prototypes
        scores, scores_other, more = prototypes(torch.cat([view, other, context])).split(
            [len(view), len(other), len(context)]
        )
        return swav_loss(scores, scores_other, self.args.contrastive_temperature, more)

    # ---- MetaRM's step ----

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Take a micro-batch's gradients, with MetaRM's move of the weights around them."""
        if self.meta_set is None:
            return super().training_step(model, inputs, num_items_in_batch)
        if not self._shift.moved:
            self._move(model, self.meta_set)
        put_back = True
        try:
            with self._shift.undone_before_step(self.model_wrapped if self.is_deepspeed_enabled else None):
                loss = super().training_step(model, inputs, num_items_in_batch)
            put_back = self.accelerator.sync_gradients
        finally:
            if put_back:
                self._shift.undo()
        return loss

    def _move(self, model, meta_set: MetaSet) -> None:
        """Move the weights along the gradient of the difference objective on this step's part of the meta set."""
        batch = meta_set.batch(self.state.global_step, self.accelerator.process_index, self.accelerator.num_processes)
        batch = self._prepare_inputs(batch)
        k = batch.pop("num_responses")
        spread = {}

        def objective(unwrapped):
            with self.compute_loss_context_manager(), autocast_of(model):
                rewards_PK = unwrapped(**batch, use_cache=False).logits.squeeze(-1).view(-1, k).float()
            spread["lengths"] = batch["attention_mask"].sum(1).view(-1, k).float()
            spread["rewards"] = rewards_PK.detach()
            return difference_objective(rewards_PK).mean()

        model.train()
        value, gradients = objective_gradients(
            model, self.accelerator, objective, self.args.gradient_checkpointing_kwargs
        )
        norm = norm_of(gradients)
        step = self.args.meta_step_size
        if self.args.meta_step == "normalised":
            step = step / norm if norm > 0 else 0.0
        move = self._shift.along(gradients, step)
        self._check_move(move, step * norm)
        metrics = self._metrics["train"]
        metrics["meta/move_length"].append(move.length)
        metrics["meta/move_cosine"].append(move.cosine)
        metrics["meta/difference"].append(value)
        metrics["meta/gradient_norm"].append(norm)
        metrics["meta/reward_std"].append(self._mean(spread["rewards"].std(1).mean()))
        metrics["meta/length_correlation"].append(self._mean(_correlation(spread["rewards"], spread["lengths"])))

    def _check_move(self, move: Move, intended: float) -> None:
        """Raise and restore the weights if rounding distorts a run's first move; warn once about a later move."""
        if move.cosine >= MIN_COSINE or not np.isfinite(intended):  # the loss is then not finite, and reported
            return
        fix = "Raise meta_step_size, or set meta_step: normalised"
        if self.state.global_step > 0:  # counts the steps before a resume too, so a resumed run does not stop either
            logger.warning_once(f"meta_step: rounding distorts the moves of the weights, see meta/move_cosine. {fix}")
            return
        self._shift.undo()
        raise ValueError(
            f"meta_step: rounding turned a move of length {intended:.2g} into one of {move.length:.2g}, whose cosine "
            f"with the intended one is {move.cosine:.2f}. {fix}"
        )

    def _mean(self, value: torch.Tensor) -> float:
        return self.accelerator.reduce(value, reduction="mean").item()

    # ---- the model card ----

    def _methods(self) -> list[Method]:
        methods = [Method("Reward modeling", RewardTrainer._paper)]
        treated_pairs = any(getattr(self.args, name) for name in TREATMENT_OPTIONS)
        if treated_pairs or self.args.contrastive != "none":
            methods.append(Method("Treatments of noisy preferences", SECRETS))
        if self.args.meta_step != "none":
            methods.append(Method("MetaRM", self._paper))
        return methods

    # ---- what a checkpoint has in addition to the model: past features and prototypes ----

    @property
    def _keeps_features(self) -> bool:
        return self.args.contrastive != "none" and self.args.contrastive_queue_size > 0

    def _save_beside(self, folder):
        super()._save_beside(folder)
        if self._keeps_features and self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            save_file({"features": self._queue.features.contiguous()}, folder / QUEUE)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not self._keeps_features:
            return
        file = Path(checkpoint) / QUEUE
        if not file.is_file():
            raise ValueError(
                f"{checkpoint} has no {QUEUE}: it was written by a run without a queue of past features. Set "
                "contrastive_queue_size: 0 to resume it, or start a new run from its weights with model_name_or_path"
            )
        self._queue.load(load_file(file)["features"])

    def _save(self, output_dir=None, state_dict=None):
        if self.args.contrastive != "swav":
            return super()._save(output_dir, state_dict)
        state_dict = dict(self.model.state_dict() if state_dict is None else state_dict)
        name = next(name for name in state_dict if name.endswith("swav_prototypes.weight"))
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"weight": state_dict.pop(name).contiguous()}, folder / PROTOTYPES)
        return super()._save(output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_prototypes(resume_from_checkpoint)

    def _load_best_model(self):
        super()._load_best_model()
        if not self.is_deepspeed_enabled:  # which has loaded them with the model
            self._load_prototypes(self.state.best_model_checkpoint)

    def _load_prototypes(self, checkpoint: str | Path) -> None:
        file = Path(checkpoint) / PROTOTYPES
        if self.args.contrastive == "swav" and file.is_file():
            self.model.swav_prototypes.load_state_dict(load_file(file))


def treated(dataset: Dataset | IterableDataset | None, args: MetaRewardConfig) -> Dataset | IterableDataset | None:
    """Return the pairs with the target and the margin that the treatments give them.

    Raises:
        ValueError: if the preference strength that a treatment needs is missing, if a margin would be overwritten, or
            if the pairs are a stream.
    """
    names = [name for name in TREATMENT_OPTIONS if getattr(args, name)]
    if dataset is None or not names:
        return dataset
    if not isinstance(dataset, Dataset):
        raise ValueError(f"{names[0]} adds a column to all pairs: load the pairs without streaming")
    if args.pair_weights:
        _check_weights(dataset)
        dataset = dataset.add_column("pair_weight", [float(weight) for weight in dataset["weight"]])
    if not (args.uses_strength or args.label_smoothing):
        return dataset
    for column in ["strength"] * args.uses_strength + ["strength_votes"] * args.posterior_labels:
        if column not in dataset.column_names:
            raise ValueError(
                f"the pairs have no column '{column}': vote on them first with `metatune strength`, or remove flip, "
                "soft_labels, adaptive_margin and posterior_labels"
            )
    if args.adaptive_margin and "margin" in dataset.column_names:
        raise ValueError("adaptive_margin would overwrite the pairs' own column 'margin': remove one of the two")
    strength = np.asarray(dataset["strength"] if args.uses_strength else np.zeros(len(dataset)), dtype=float)
    votes = stack_votes(dataset["strength_votes"][:]) if args.posterior_labels else None
    pairs = pair_targets(
        strength,
        votes,
        flip=args.flip,
        label_smoothing=args.label_smoothing,
        soft_labels=args.soft_labels,
        adaptive_margin=args.adaptive_margin,
        posterior_labels=args.posterior_labels,
    )
    dataset = dataset.add_column("pair_target", [float(target) for target in pairs.target])
    if args.adaptive_margin:
        dataset = dataset.add_column("margin", [float(margin) for margin in pairs.margin])
    return dataset


def _check_weights(dataset: Dataset) -> None:
    if "weight" not in dataset.column_names:
        raise ValueError("pair_weights: the pairs have no column 'weight'; add one, or remove pair_weights")
    weights = np.asarray(dataset["weight"], dtype=float)
    if (wrong := np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))).size:
        raise ValueError(
            f"pair_weights: row {wrong[0] + 1} has the weight {weights[wrong[0]]}: give numbers from 0 on"
        )


def _two_views(
    inputs: Mapping[str, Any], treatments: Mapping[str, torch.Tensor]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Repeat chosen and rejected rows, so that every text is read twice: [c, c, r, r]."""
    doubled = dict(inputs)
    for name in ("input_ids", "attention_mask"):
        chosen, rejected = inputs[name].chunk(2)
        doubled[name] = torch.cat([chosen, chosen, rejected, rejected])
    if "margin" in inputs:
        doubled["margin"] = inputs["margin"].repeat(2)
    return doubled, {name: value.repeat(2) for name, value in treatments.items()}


def _correlation(rewards: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return Pearson's correlation within prompts, of tensors of shape (P, k); 0 where one of them does not vary."""
    rewards_PK = rewards - rewards.mean(1, keepdim=True)
    lengths_PK = lengths - lengths.mean(1, keepdim=True)
    scale = (rewards_PK.square().sum() * lengths_PK.square().sum()).sqrt()
    return (rewards_PK * lengths_PK).sum() / scale if scale > 0 else scale
