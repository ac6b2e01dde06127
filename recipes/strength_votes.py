"""The ensemble of `metatune strength`: reward models trained one after the other, each voting on its own fold.

A vote is `votes/model-M-fold-K.json`, written when the model has been trained and has scored its pairs. It depends on
the pairs, the recipe and its own seed alone, so a run that was stopped goes on with the next one, and a larger
ensemble keeps the votes of a smaller one.

With LoRA the base model is loaded once. PEFT takes the adapters out again but leaves the trained head in the base, so
the head is put back: what a model learns about its pairs must not reach the next.
"""

import gc
import json
import random
import time
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PrinterCallback, ProgressCallback
from transformers.trainer_utils import SaveStrategy
from trl import ModelConfig, RewardConfig, RewardTrainer, get_peft_config, get_quantization_config

from ..eval.files import write_atomically
from ..rewards.preference_strength import cross_fitting_folds
from ..rewards.reward_model import score_ids
from ..trainers.finite_training import FiniteTraining, NonFiniteError
from .adapters import refusals_in_one_line
from .config import ConfigError
from .run_folder import model_init_kwargs, model_to_load


class VoterTrainer(FiniteTraining, RewardTrainer):
    """TRL's reward trainer for one model of the ensemble, of which only the votes are kept."""

    def _what_is_kept(self) -> str:
        return "Start again in another output_dir with a lower learning_rate"


@dataclass
class Ensemble:
    """Models that vote on pairs.

    Args:
        folder (`Path`): where the votes go.
        dataset (`Dataset`): N pairs.
        groups (`np.ndarray` of shape (N,)): number of each pair's prompt.
        fingerprint (`str`): of the pairs.
        num_models (`int`): M.
        num_folds (`int`): K; 1 makes every model vote on the pairs that it was trained on.
        training_args ([`~trl.RewardConfig`]): options of every training but its seed.
        model_args ([`~trl.ModelConfig`]): the model's options.
    """

    folder: Path
    dataset: Dataset
    groups: np.ndarray
    fingerprint: str
    num_models: int
    num_folds: int
    training_args: RewardConfig
    model_args: ModelConfig
    _trunk: Any = field(default=None, init=False)
    _head: dict[str, torch.Tensor] = field(default_factory=dict, init=False)
    _tokenizer: Any = field(default=None, init=False)

    def seed(self, model: int, fold: int | None = None) -> int:
        """Return the seed of a training, or without `fold` that of the model's split into folds; both from 1."""
        what = "folds" if fold is None else fold
        return random.Random(f"{self.training_args.seed}/{model}/{what}").randrange(2**31)

    def votes(self) -> np.ndarray:
        """Return the margins, of shape (N, M); NaN for pairs that are longer than `max_length`.

        Raises [`ConfigError`] for options that TRL or PEFT refuse, a training that diverges, pairs that are all too
        long, and votes of other pairs in the folder.
        """
        votes_NM = np.full((len(self.dataset), self.num_models), np.nan)
        for model in range(1, self.num_models + 1):
            folds_N = cross_fitting_folds(self.groups, self.num_folds, self.seed(model))
            for fold in range(1, self.num_folds + 1):
                path = self.folder / f"model-{model}-fold-{fold}.json"
                if not path.exists():
                    self._vote(path, model, fold, folds_N == fold - 1)
                rows, margins = self._read(path)
                votes_NM[rows, model - 1] = margins
        return votes_NM

    def _read(self, path: Path) -> tuple[list[int], list[float]]:
        vote = json.loads(path.read_text())
        if vote["pairs"] != self.fingerprint:
            raise ConfigError(
                f"{path} holds votes on other pairs: give the pairs it began with, or another output_dir"
            )
        return vote["rows"], vote["margins"]

    def _vote(self, path: Path, model: int, fold: int, in_fold: np.ndarray) -> None:
        """Train one model on the other folds, score its fold, and write the votes."""
        started = time.perf_counter()
        tokenized, fits_N = self._tokenized
        voted = np.flatnonzero(fits_N & in_fold)
        trained = np.flatnonzero(fits_N & ~in_fold) if self.num_folds > 1 else voted
        name = f"model {model} of {self.num_models}, fold {fold} of {self.num_folds}"
        if not len(trained):
            raise ConfigError(f"{name}: no pair to train on fits max_length {self.training_args.max_length}; raise it")
        trainer = self._trainer(tokenized.select(trained), self.seed(model, fold))
        try:
            trainer.train()
        except NonFiniteError as error:
            raise NonFiniteError(f"{name}: {error}") from error
        margins = _margins(trainer, tokenized.select(voted))
        self._release(trainer)
        if not np.isfinite(margins).all():
            raise ConfigError(f"{name}: its margins are not numbers, so its training diverged; lower learning_rate")
        vote = {
            "pairs": self.fingerprint,
            "seed": self.seed(model, fold),
            "trained_on": len(trained),
            "rows": voted.tolist(),
            "margins": margins.tolist(),
        }
        write_atomically(path, lambda temporary: temporary.write_text(json.dumps(vote) + "\n"))
        agrees = f"agrees with {(margins > 0).mean():.1%} of the labels it votes on" if len(voted) else "has no pairs"
        seconds = time.perf_counter() - started
        print(f"{name[0].upper()}{name[1:]}: trained on {len(trained)} pairs, {agrees} ({seconds:.0f} s)", flush=True)

    @cached_property
    def _tokenized(self) -> tuple[Dataset, np.ndarray]:
        """The pairs as TRL tokenizes them, and which are no longer than `max_length`; also loads the LoRA's base."""
        trainer = self._trainer(self.dataset, self.training_args.seed)
        columns = ["chosen_ids", "rejected_ids", *(["margin"] if "margin" in self.dataset.column_names else [])]
        tokenized = trainer.train_dataset.select_columns(columns)
        self._release(trainer)
        longest = self.training_args.max_length
        fits_N = np.full(len(tokenized), True) if longest is None else _lengths(tokenized) <= longest
        if not fits_N.any():
            raise ConfigError(f"all {len(fits_N)} pairs are longer than max_length {longest} tokens")
        return tokenized, fits_N

    def _trainer(self, dataset: Dataset, seed: int) -> RewardTrainer:
        args = copy(self.training_args)
        args.seed, args.save_strategy = seed, SaveStrategy.NO
        args.max_length = None  # the pairs that are too long are left out before
        shared = self._trunk is not None
        args.model_init_kwargs = None if shared else model_init_kwargs(args, self.model_args)
        with refusals_in_one_line():
            trainer = VoterTrainer(
                model=self._trunk if shared else model_to_load(self.model_args),
                args=args,
                train_dataset=dataset,
                processing_class=self._tokenizer,
                quantization_config=None if shared else get_quantization_config(self.model_args),
                peft_config=self._peft_config,
            )
        for callback in (PrinterCallback, ProgressCallback):  # a line a model is enough
            trainer.remove_callback(callback)
        return trainer

    @cached_property
    def _peft_config(self) -> Any:
        self.model_args.lora_task_type = "SEQ_CLS"  # PEFT then trains the new head beside the adapter
        return get_peft_config(self.model_args)

    def _release(self, trainer: RewardTrainer) -> None:
        """Free what a training holds; with LoRA keep its base, as it was before any training."""
        if self._peft_config is not None:
            trunk = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False).unload()
            if self._trunk is None:
                prefix = f"{trunk.base_model_prefix}."
                state = trunk.state_dict()
                self._head = {name: state[name].clone() for name in state if not name.startswith(prefix)}
                self._trunk, self._tokenizer = trunk, trainer.processing_class
            trunk.load_state_dict(self._head, strict=False)
        del trainer
        gc.collect()
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()


def _lengths(tokenized: Dataset) -> np.ndarray:
    """Return the number of tokens of the longer response of every pair."""
    pairs = zip(tokenized["chosen_ids"], tokenized["rejected_ids"], strict=True)
    return np.array([max(len(chosen), len(rejected)) for chosen, rejected in pairs], dtype=int)


def _margins(trainer: RewardTrainer, pairs: Dataset) -> np.ndarray:
    """Return the margins that a trained model gives pairs."""
    responses = [*pairs["chosen_ids"], *pairs["rejected_ids"]]
    batch_size = 2 * trainer.args.per_device_eval_batch_size  # of responses
    with trainer.compute_loss_context_manager():
        rewards = score_ids(trainer.model.eval(), responses, trainer.processing_class.pad_token_id, batch_size)
    return rewards[: len(pairs)] - rewards[len(pairs) :]
