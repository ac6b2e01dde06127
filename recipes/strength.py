"""Preference strength: an ensemble of reward models votes on pairs that its members were not trained on.

    metatune strength --config recipes/reward/strength.yaml

Each of `num_models` models splits the pairs into `num_folds` folds of its own, at random, the pairs of a prompt
together (`strength_pairs.prompt_groups` says what a prompt is where there is no such column). For every fold a reward
model is trained on the others and scores it, so that no vote comes from a model that has seen the pair: a model that
has learnt a wrong label by heart would vote for it. The paper (arXiv 2401.06080) lets 10 models that differ in their
seed score what they were trained on; that is `num_folds: 1`.

The cost is `num_models` x `num_folds` trainings, each on 1 - 1/`num_folds` of the pairs: the defaults 10 and 5 are 40
times one training on all pairs. `use_peft: true` loads the base once and trains one adapter and head after the other.
The data options are those of `metatune reward`, everything else is TRL's `RewardConfig` and `ModelConfig`; one process
and one device. Votes of a single model have no deviation.

Writes into `output_dir`: `train.jsonl` or `train.parquet`, the pairs with the columns `strength` (mean margin),
`strength_std` (population deviation) and `strength_votes` (the margins, one a model), for `dataset_name` of
`metatune reward`, and `test.*`, the held-out pairs as they were, where the data has such a split; `strength.json`,
`strength.png`, `recipe.yaml` and `votes/`. Pairs longer than `max_length` are left out, and counted. A killed run goes
on after its last vote with `resume_from_checkpoint: true`; `num_models` may then be larger.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from trl import ModelConfig, RewardConfig, ScriptArguments

from metatune.recipes.adapters import check_adapter_options, refusals_in_one_line
from metatune.recipes.config import ConfigError, StrictParser, run
from metatune.recipes.data import load_splits
from metatune.recipes.kept_recipe import KeepsRecipe
from metatune.recipes.pairs import load_data
from metatune.recipes.run_folder import check_here, settle_folder, settle_max_length

# what a run may go on with otherwise than it began; that the pairs are the same is seen from themselves
MAY_CHANGE = {"num_models", "output_dir", "resume_from_checkpoint", "dataset_name", "per_device_eval_batch_size"}
QUANTILES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass
class StrengthScriptArguments(KeepsRecipe, ScriptArguments):
    """
    Arguments of the strength recipe beside the trainings'.

    Args:
        num_models (`int`, *optional*, defaults to `10`):
            Votes on each pair, every one by models of another seed and another split into folds.
        num_folds (`int`, *optional*, defaults to `5`):
            Parts of the pairs; a model votes on one and is trained on the others. With 1 it votes on what it was
            trained on.
    """

    num_models: int = field(default=10, metadata={"help": "Votes on each pair, by models of different seeds."})
    num_folds: int = field(default=5, metadata={"help": "A model votes on one fold and is trained on the others."})

    def __post_init__(self):
        for name in ("num_models", "num_folds"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be at least 1")


def check(args: StrengthScriptArguments, training_args: RewardConfig, model_args: ModelConfig) -> None:
    """Raise [`ConfigError`] for options that are missing, or that trainings whose models are not kept cannot have."""
    if model_args.model_name_or_path is None:
        raise ConfigError("give `model_name_or_path`: a folder, a hub name, or starter")
    if args.dataset_name is None:
        raise ConfigError("give `dataset_name`: a folder, a file of pairs, or a hub name")
    if args.dataset_streaming:
        raise ConfigError("dataset_streaming: every pair is voted on, so set it to false")
    if training_args.eval_strategy != "no":
        raise ConfigError("eval_strategy: the votes are the evaluation here; set it to 'no'")
    if training_args.save_strategy not in ("no", "steps"):  # steps is the default
        raise ConfigError("save_strategy: no model is kept, a run goes on after its last vote; set it to 'no'")
    if training_args.push_to_hub:
        raise ConfigError("push_to_hub: no model is kept; push the reward model that is trained on these pairs")
    if training_args.report_to:
        raise ConfigError("report_to: every vote would be a run of its own; set it to none and read strength.json")
    if training_args.resume_from_checkpoint not in (None, False, True):
        raise ConfigError("resume_from_checkpoint is true or nothing here: a run goes on after its last vote")
    check_adapter_options(model_args)
    check_here(training_args, model_args, args.dataset_name)


def check_data(
    args: StrengthScriptArguments, training_args: RewardConfig, model_args: ModelConfig, rows: int | None = None
) -> None:
    """Raise [`ConfigError`] for pairs that cannot be voted on; `main` reads all of them before its first training."""
    if rows is None:
        load_pairs(args)


def load_pairs(args: StrengthScriptArguments):
    """Return the pairs to vote on, the number of each pair's prompt, and the held-out pairs (`None` without any).

    Raises [`ConfigError`] as [`~metatune.recipes.reward.load_data`], for pairs that say nothing, and for fewer prompts
    than folds.
    """
    from metatune.recipes.strength_pairs import check_responses, prompt_groups

    splits = load_splits(args.dataset_name, "dataset_name", args.dataset_train_split, args.dataset_config)
    pairs, _ = load_data(args, with_evaluation=False)
    held_out = splits.get(args.dataset_test_split)
    where = f"{args.dataset_name}, split '{args.dataset_train_split}'"
    check_responses(pairs, where)
    groups = prompt_groups(pairs) if args.num_folds > 1 else np.arange(len(pairs))
    if len(set(groups)) < args.num_folds:
        raise ConfigError(
            f"{where}: {len(pairs)} pairs of {len(set(groups))} different prompts are too few for {args.num_folds} "
            "folds; lower num_folds, or give the pairs a column 'prompt'"
        )
    return pairs, groups, held_out


def summarise(ensemble, votes: np.ndarray, strength: np.ndarray, std: np.ndarray) -> dict[str, Any]:
    """Return the content of `strength.json`.

    Args:
        ensemble ([`~metatune.recipes.strength_votes.Ensemble`]): who voted.
        votes (`np.ndarray` of shape (N, M)): margins of the pairs that were voted on.
        strength (`np.ndarray` of shape (N,)): their means.
        std (`np.ndarray` of shape (N,)): their deviations.
    """
    return {
        "num_models": ensemble.num_models,
        "num_folds": ensemble.num_folds,
        "pairs": len(strength),
        "left_out": len(ensemble.dataset) - len(strength),
        "prompts": len(set(ensemble.groups.tolist())),
        "below_0": float((strength < 0).mean()),
        "votes_below_0": float((votes < 0).mean()),
        "mean": float(strength.mean()),
        "mean_std": float(std.mean()),
        "quantiles": {f"{q:g}": float(np.quantile(strength, q)) for q in QUANTILES},
        "seed": ensemble.training_args.seed,
        "seeds": [
            [ensemble.seed(model, fold) for fold in range(1, ensemble.num_folds + 1)]
            for model in range(1, ensemble.num_models + 1)
        ],
    }


def main(args: StrengthScriptArguments, training_args: RewardConfig, model_args: ModelConfig) -> None:
    """Train what has not voted yet, and write the pairs with their strength."""
    check(args, training_args, model_args)
    pairs, groups, held_out = load_pairs(args)
    folder = Path(training_args.output_dir)
    configs, resume = (args, training_args, model_args), bool(training_args.resume_from_checkpoint)
    settle_folder(folder, configs, resume, parts="votes/*.json", may_change=MAY_CHANGE)
    with refusals_in_one_line():
        for line in settle_max_length(training_args, model_args):
            print(line)
    if args.num_folds == 1:
        print(
            "num_folds is 1: every model votes on the pairs it was trained on, wrong labels learnt by heart included"
        )

    from metatune.eval.files import write_atomically
    from metatune.eval.strength_plots import plot_strength
    from metatune.recipes.strength_pairs import fingerprint, is_lines, write_dataset
    from metatune.recipes.strength_votes import Ensemble
    from metatune.rewards.preference_strength import preference_strength

    ensemble = Ensemble(
        folder / "votes", pairs, groups, fingerprint(pairs), args.num_models, args.num_folds, training_args, model_args
    )
    votes_NM = ensemble.votes()
    voted = np.flatnonzero(~np.isnan(votes_NM).all(axis=1))
    if len(voted) < len(pairs):
        print(f"{len(pairs) - len(voted)} pairs are longer than max_length {training_args.max_length} and left out")
    votes_NM = votes_NM[voted]
    strength_N, std_N = preference_strength(votes_NM)
    columns = {"strength": strength_N, "strength_std": std_N, "strength_votes": votes_NM}
    pairs = pairs.select(voted)
    for name, values in columns.items():
        pairs = pairs.add_column(name, values.tolist())
    write_dataset(pairs, folder, "train", is_lines(args.dataset_name))
    if held_out is not None:
        write_dataset(held_out, folder, "test", is_lines(args.dataset_name))
    summary = summarise(ensemble, votes_NM, strength_N, std_N)
    text = json.dumps(summary, indent=2) + "\n"
    write_atomically(folder / "strength.json", lambda path: path.write_text(text))
    plot_strength(strength_N, std_N, folder / "strength.png")
    print(f"{summary['below_0']:.1%} of {len(pairs)} pairs have a negative strength")
    print(f"Saved to {folder}: give it to metatune reward as dataset_name")


def make_parser(prog: str | None = None) -> StrictParser:
    """Return the parser of this recipe's options; each of several processes would train the whole ensemble."""
    alone = "strength runs in one process: start it with metatune strength, not accelerate launch"
    return StrictParser((StrengthScriptArguments, RewardConfig, ModelConfig), alone=alone, prog=prog)


if __name__ == "__main__":
    run(make_parser, main)
