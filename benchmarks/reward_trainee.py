"""The reward models that `benchmarks/reward.py` compares, each at the same compute: BUDGET passes over the pairs."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from shared import CPU_RUN

BATCH, BUDGET = 16, 4
RESPONSES = 4  # k, of a meta set
META = {"per_device_meta_batch_size": 2 * BATCH // RESPONSES}  # as many responses as a step's pairs have
TREATMENTS = {
    "flip": {"flip": 0.1},
    "margin": {"adaptive_margin": 0.5},
    "soft + margin": {"soft_labels": 0.3, "adaptive_margin": 0.5},
    "posterior": {"posterior_labels": True},
}
CONTRASTIVE = {
    f"{term} {on}": {"contrastive": term, "contrastive_on": on}
    for term in ("simcse", "swav")
    for on in ("pairs", "differences")
}
META_STEPS = {
    "metarm": {"meta_step": "normalised", "meta_step_size": 0.1, **META},
    "metarm plain": {"meta_step": "plain", "meta_step_size": 0.1, **META},
}
COLUMNS = ("strength", "strength_votes", "weight")


@dataclass(frozen=True)
class Trainee:
    """What every reward model of a comparison begins as.

    Args:
        base (`Path`): folder of the language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): its tokenizer.
        ids (`Callable`): makes token ids of a prompt and a response.
        num_pairs (`int`): pairs in a pass, whatever the number of rows.
        learning_rate (`float`, *optional*, defaults to `1e-3`): of all.
    """

    base: Path
    tokenizer: Any
    ids: Callable[[str, str], list[int]]
    num_pairs: int
    learning_rate: float = 1e-3

    def train(self, rows: Sequence[dict], passes: float, seed: int, meta=None, **options):
        """Train a reward model and return it.

        Args:
            rows (`Sequence[dict]`): pairs: `prompt`, `chosen`, `rejected`, and columns for treatments.
            passes (`float`): how long.
            seed (`int`): of the head, the order and dropout.
            meta ([`~datasets.Dataset`], *optional*): the meta set.
            **options: of [`MetaRewardConfig`].
        """
        import torch
        import transformers
        from datasets import Dataset
        from transformers import AutoModelForSequenceClassification

        from metatune.trainers import MetaRewardConfig, MetaRewardTrainer

        transformers.set_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(self.base, num_labels=1, dtype=torch.float32)
        steps = max(1, round(passes * self.num_pairs / BATCH))
        columns = [
            {
                "chosen_ids": self.ids(row["prompt"], row["chosen"]),
                "rejected_ids": self.ids(row["prompt"], row["rejected"]),
                **{name: row[name] for name in COLUMNS if name in row},
            }
            for row in rows
        ]
        with tempfile.TemporaryDirectory() as folder:
            config = MetaRewardConfig(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=BATCH,
                learning_rate=self.learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=steps // 10 + 1,
                logging_steps=steps,
                **CPU_RUN,
                seed=seed,
                **options,
            )
            trainer = MetaRewardTrainer(
                model,
                config,
                train_dataset=Dataset.from_list(columns),
                processing_class=self.tokenizer,
                **({} if meta is None else {"meta_dataset": meta}),
            )
            trainer.train()
        return model.eval()

    def margins(self, model, rows: Sequence[dict]) -> np.ndarray:
        """Return the margins of N pairs, of shape (N,)."""
        from metatune.rewards.reward_model import score_ids

        sides = [[self.ids(row["prompt"], row[side]) for row in rows] for side in ("chosen", "rejected")]
        rewards = score_ids(model, sides[0] + sides[1], self.tokenizer.pad_token_id, 256)
        return rewards[: len(rows)] - rewards[len(rows) :]

    def accuracy(self, models, rows: Sequence[dict]) -> float:
        """Return the share of pairs that the models' mean orders rightly, ties half."""
        margins_N = np.mean([self.margins(model, rows) for model in models], axis=0)
        return float(np.mean((margins_N > 0) + 0.5 * (margins_N == 0)))

    def vote(self, rows: Sequence[dict], seed: int) -> list[dict]:
        """Add the strength that BUDGET - 1 votes give each pair, none of a model that was trained on it."""
        from metatune.rewards.preference_strength import cross_fitting_folds, preference_strength

        votes_NM = np.empty((len(rows), BUDGET - 1))
        for number in range(BUDGET - 1):
            folds = cross_fitting_folds(np.array([row["prompt"] for row in rows]), 2, seed + number)
            for fold in (0, 1):
                learnt = [row for row, own in zip(rows, folds, strict=True) if own != fold]
                judged = np.flatnonzero(folds == fold)
                model = self.train(learnt, 0.5, seed + 10 * number + fold)
                votes_NM[judged, number] = self.margins(model, [rows[index] for index in judged])
        strength_N, _ = preference_strength(votes_NM)
        return [
            {**row, "strength": float(strength), "strength_votes": votes.tolist()}
            for row, strength, votes in zip(rows, strength_N, votes_NM, strict=True)
        ]

    def label_treatments(
        self, rows: Sequence[dict], more: Sequence[dict] | None, seed: int
    ) -> tuple[dict[str, list], list[dict]]:
        """Train the baselines and the treatments of labels.

        Args:
            rows (`Sequence[dict]`): the pairs.
            more (`Sequence[dict]`, *optional*): BUDGET times as many, for the baseline that has more data.
            seed (`int`): of all.

        Returns:
            `tuple`: of each method the models whose mean it is, and the pairs with their votes.
        """
        voted = self.vote(rows, seed + 100)
        models = {"vanilla": [self.train(rows, BUDGET, seed)]}
        if more is not None:
            models["more data"] = [self.train(more, BUDGET, seed)]
        models["ensemble"] = [self.train(rows, 1, seed + 1 + number) for number in range(BUDGET)]
        models["smoothing"] = [self.train(rows, BUDGET, seed, label_smoothing=0.1)]
        models |= {name: [self.train(voted, 1, seed, **options)] for name, options in TREATMENTS.items()}
        return models, voted

    def with_free_votes(self, voted: Sequence[dict], seed: int) -> dict[str, list]:
        """Train the treatments by votes for BUDGET passes, as if the votes had cost nothing."""
        return {name: [self.train(voted, BUDGET, seed, **options)] for name, options in TREATMENTS.items()}

    def contrasted(self, rows: Sequence[dict], seed: int) -> dict[str, list]:
        """Train with contrastive terms, and for comparison with as many passes and none."""
        models = {"vanilla, half": [self.train(rows, BUDGET / 2, seed)]}
        return models | {name: [self.train(rows, BUDGET / 2, seed, **o)] for name, o in CONTRASTIVE.items()}

    def meta_stepped(self, rows: Sequence[dict], meta, seed: int) -> dict[str, list]:
        """Train with MetaRM's steps on a meta set."""
        return {name: [self.train(rows, BUDGET / 2, seed, meta, **options)] for name, options in META_STEPS.items()}
