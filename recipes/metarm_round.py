"""One round of `metatune metarm`, phase by phase; what a phase leaves last says that it is finished.

| phase | writes | holds |
|---|---|---|
| respond (`metarm`) | `responses.jsonl` | k responses of the policy before to each prompt: the meta set |
| weigh (`ocrm`) | `pairs/`, then `importance.json` | the original pairs with a column `weight`; what is left of them |
| reward model | `reward.yaml`, then `reward_model/` | the recipe and the model that `metatune reward` made of it |
| policy | `grpo.yaml`, then `policy/` | the recipe and the model that `metatune grpo` made of it |
| sample | `heldout.jsonl` | k responses of the new policy to each held-out prompt |
| sum up | `summary.json` | the round's numbers |

A training that was stopped goes on from its newest whole checkpoint, in `reward_training/` or `grpo_training/`.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from trl import GRPOConfig, ModelConfig

from ..eval.files import read_rows, write_json, write_rows
from ..rewards.importance import effective_sample_size, relative_importance
from ..rewards.reward_model import RewardModel
from . import grpo, reward
from .adapters import base_of, folder_of, is_adapter
from .config import ConfigError
from .metarm_blocks import grpo_recipe, reward_recipe
from .metarm_pairs import prompts_and_answers, weighted
from .metarm_policy import Policy, as_completion, log_probabilities
from .metarm_summary import margin_accuracy, policy_numbers, score_numbers
from .rounds import Row, empty_accelerator_cache, seed_of, train
from .run_folder import last_whole_checkpoint
from .strength_pairs import write_dataset

HELD_OUT = "heldout.jsonl"


@dataclass
class Loop:
    """What all rounds share.

    Args:
        folder (`Path`): the run's.
        args (`MetaRMScriptArguments`): the recipe's own options.
        training_args ([`~trl.GRPOConfig`]): those of the block `grpo`, which say how the policy samples.
        model_args ([`~trl.ModelConfig`]): how the policy is loaded.
        prompts (`list[dict]`): the policy's training prompts.
        heldout (`list[dict]`): prompts that rounds are summed up on.
        template (`str`, *optional*): `chat_template_path` of the block `grpo`.
    """

    folder: Path
    args: Any
    training_args: GRPOConfig
    model_args: ModelConfig
    prompts: list[Row]
    heldout: list[Row]
    template: str | None = None
    pairs: Dataset = field(init=False)  # set once they are loaded or made
    test_pairs: Dataset | None = field(default=None, init=False)

    def seed(self, number: int, what: str) -> int:
        """Return the seed of one part of a round; 0 is before the first."""
        return seed_of(self.args.seed, number, what)

    def policy(self, model: str) -> Policy:
        """Load a policy for sampling."""
        return Policy(folder_of(model), self.args, self.training_args, self.model_args, self.template)

    def sample_heldout(self, folder: Path, policy: Policy) -> None:
        """Let a policy respond to the held-out prompts, every policy with the same seed."""
        rows = policy.respond(self.heldout, self.args.num_responses, self.seed(0, "heldout"))
        write_rows(folder / HELD_OUT, rows)

    def log_likelihoods(self, model: str) -> np.ndarray:
        """Return the log-probabilities that a policy gives both answers of each pair together, of shape (N,)."""
        prompts, chosen, rejected = prompts_and_answers(self.pairs)
        both = (prompts * 2, chosen + rejected)
        values_2N = log_probabilities(folder_of(model), self.training_args, self.model_args, *both, self.template)
        return values_2N[: len(prompts)] + values_2N[len(prompts) :]


@dataclass
class Round:
    """A round and its folder.

    Args:
        number (`int`): from 1.
        loop (`Loop`): what it shares with the others.
        source (`str`): the policy before it: a folder, a hub name, or starter.
        before (`Path`): folder with that policy's responses to the held-out prompts.
    """

    number: int
    loop: Loop
    source: str
    before: Path

    @property
    def folder(self) -> Path:
        """Where its files go."""
        return self.loop.folder / f"round-{self.number}"

    @property
    def policy(self) -> Path:
        """Folder of the new policy; it is there when its training is over."""
        return self.folder / "policy"

    @property
    def reward_model(self) -> Path:
        """Folder of the reward model; without a correction every round would train the first one's again."""
        first = self.loop.args.correction == "none"
        return self.loop.folder / f"round-{1 if first else self.number}" / "reward_model"

    def run(self) -> Row:
        """Run the phases that are not finished and return the round's summary.

        Raises [`ConfigError`] for what does not fit; `SystemExit` with the launcher's code if a training failed, which
        has been told by then.
        """
        summary = self.folder / "summary.json"
        if not summary.exists():
            correction = self.loop.args.correction
            if correction == "metarm" and not (self.folder / "responses.jsonl").exists():
                self._respond()
            if correction == "ocrm" and not (self.folder / "importance.json").exists():
                self._weigh()
            empty_accelerator_cache()  # of what sampled, before another process wants the memory
            if not self.reward_model.exists():
                self._train_reward_model()
            if not self.policy.exists():
                self._train_policy()
            if not (self.folder / HELD_OUT).exists():
                self._tell("sampling the new policy's responses to held-out prompts")
                self.loop.sample_heldout(self.folder, self.loop.policy(str(self.policy)))
            write_json(summary, self._summarise())
        return json.loads(summary.read_text())

    # What corrects the reward model

    def _respond(self) -> None:
        """Sample the meta set; a prompt with an empty response is left out, as there is nothing to score."""
        loop, args = self.loop, self.loop.args
        number = args.num_prompts or len(loop.prompts)
        drawn = random.Random(loop.seed(self.number, "prompts")).sample(loop.prompts, number)
        self._tell(f"sampling {args.num_responses} responses to each of {number} prompts")
        rows = loop.policy(self.source).respond(drawn, args.num_responses, loop.seed(self.number, "responses"))
        groups = [rows[at : at + args.num_responses] for at in range(0, len(rows), args.num_responses)]
        whole = [group for group in groups if all(row["text"].strip() for row in group)]
        if len(whole) < number:
            self._tell(f"{number - len(whole)} prompts had an empty response and are left out of the meta set")
        if not whole:
            raise ConfigError(f"round {self.number}: every prompt had an empty response; there is nothing to score")
        write_rows(
            self.folder / "responses.jsonl",
            [
                {
                    "prompt": group[0]["prompt"],
                    "responses": [row["text"] for row in group],
                    "tokens": [row["tokens"] for row in group],
                    "gold": [row["gold"] for row in group],
                }
                for group in whole
            ],
        )

    def _weigh(self) -> None:
        """Weigh the pairs by how much likelier the policy before this round writes them than the first one."""
        loop, kept = self.loop, self.loop.folder / "start" / "log_likelihoods.json"
        self._tell(f"weighing {len(loop.pairs)} pairs")
        if not kept.exists():
            write_json(kept, loop.log_likelihoods(loop.args.model_name_or_path).tolist())
        first_N = np.array(json.loads(kept.read_text()))
        now_N = first_N if self.number == 1 else loop.log_likelihoods(self.source)
        try:
            alpha, exponent = loop.args.importance_alpha, loop.args.importance_exponent
            weights_N = relative_importance(now_N - first_N, alpha, exponent)
        except ValueError as error:
            raise ConfigError(f"round {self.number}: {error}") from error
        if loop.test_pairs is not None:
            write_dataset(loop.test_pairs, self.folder / "pairs", "test", as_lines=False)
        write_dataset(weighted(loop.pairs, weights_N), self.folder / "pairs", "train", as_lines=False)
        size = {"pairs": len(weights_N), "effective_sample_size": effective_sample_size(weights_N)}
        write_json(self.folder / "importance.json", size)

    # Training

    def _train_reward_model(self) -> None:
        self._tell("training the reward model")
        training = self.folder / "reward_training"
        resume = last_whole_checkpoint(training) is not None
        seed = self.loop.seed(1, "reward")  # in every round: models of two rounds differ by the correction alone
        recipe = reward_recipe(self.loop.args, self.folder, training, seed, resume)
        train(reward, recipe, self.folder / "reward_model")

    def _train_policy(self) -> None:
        self._tell("training the policy")
        training = self.folder / "grpo_training"
        resume = last_whole_checkpoint(training) is not None
        seed = self.loop.seed(self.number, "grpo")
        recipe = grpo_recipe(self.loop.args, self.source, self.reward_model, training, seed, resume)
        train(grpo, recipe, self.policy)

    # The round's numbers

    def _summarise(self) -> Row:
        loop = self.loop
        model = load_reward_model(self.reward_model, loop.training_args.use_cpu)
        rows, before = read_rows(self.folder / HELD_OUT), read_rows(self.before / HELD_OUT)
        old, new = (score_numbers(part, scores(model, part)) for part in (before, rows))
        weighed = self.folder / "importance.json"
        return {
            "round": self.number,
            "correction": loop.args.correction,
            "policy_before": self.source,
            "reward_model": str(self.reward_model),
            "prompts": len(loop.heldout),
            "num_responses": loop.args.num_responses,
            **{f"{name}_before": value for name, value in old.items()},
            **new,
            **policy_numbers(rows),
            "accuracy_on_pairs": self._accuracy_on_pairs(model),
            **(json.loads(weighed.read_text()) if weighed.exists() else {}),
        }

    def _accuracy_on_pairs(self, model: RewardModel) -> float | None:
        pairs = self.loop.test_pairs
        if pairs is None or "chosen" not in pairs.column_names:
            return None
        prompts = list(pairs["prompt"]) if "prompt" in pairs.column_names else None
        return margin_accuracy(model.score_pairs(list(pairs["chosen"]), list(pairs["rejected"]), prompts))

    def _tell(self, what: str) -> None:
        print(f"Round {self.number}: {what}", flush=True)


def load_reward_model(path: Path, use_cpu: bool) -> RewardModel:
    """Load a round's reward model; raises [`ConfigError`] if it cannot be loaded."""
    try:
        base = base_of(path).name if is_adapter(path) else None
        return RewardModel(path, device="cpu" if use_cpu else None, base=base)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def scores(model: RewardModel, rows: Sequence[Row]) -> np.ndarray:
    """Return the scores of N responses, of shape (N,)."""
    prompts = [row["prompt"] for row in rows]
    return model.score(prompts, [as_completion(row["prompt"], row["text"]) for row in rows])
