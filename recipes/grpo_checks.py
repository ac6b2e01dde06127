"""Options of a grpo recipe that its trainer would refuse late, when data and model are there: told before a launch."""

from collections.abc import Mapping, Sequence
from typing import Any

from metatune.recipes.config import ConfigError, nearest
from metatune.recipes.conform import choose
from metatune.rewards import EpisodeRule
from metatune.trainers.meta_config import MetaConfig

WORDS = {  # TRL looks at these when it has generated a batch; what it knows, a test sees to
    "loss_type": ("grpo", "dr_grpo", "bnpo", "dapo", "cispo", "sapo", "vespo", "luspo"),
    "scale_rewards": ("group", "batch", "none"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_mode": ("server", "colocate"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
}


def check_words(training_args: MetaConfig) -> None:
    """Raise [`ConfigError`] for the first of `WORDS` that TRL does not know."""
    for name, known in WORDS.items():
        try:
            choose(getattr(training_args, name), known)
        except ValueError as error:
            raise ConfigError(f"`{name}`: {error}") from error


def check_curriculum(entries: Sequence[Mapping[str, Any]], training_args: MetaConfig) -> None:
    """Raise [`ConfigError`] for a curriculum that is not there, or whose options are wrong.

    Args:
        entries (`Sequence[Mapping]`): the recipe's `distributions`, none where `dataset_name` is given.
        training_args ([`MetaConfig`]): the curriculum, its options and the seed.
    """
    from metatune.curricula import CURRICULA, make_curriculum

    name = training_args.curriculum
    if name not in CURRICULA:
        known = f"; there are {', '.join(CURRICULA)}, and what a module in `imports` registers"
        raise ConfigError(f"curriculum: unknown '{name}'{nearest(name, CURRICULA) or known}")
    arms = list(dict.fromkeys(str(entry.get("name")) for entry in entries))
    named = len(arms) == len(entries) > 0 and not any(entry.get("split_by") for entry in entries)
    if not named and not CURRICULA[name].__module__.startswith("metatune."):
        return  # it may ask for the arms' names, which the data tells
    options: Any = training_args.curriculum_options or {}  # transformers has read a text as JSON
    try:
        make_curriculum(name, arms if named else ["all"], **{"seed": training_args.seed, **options})
    except (ValueError, TypeError) as error:  # TypeError: a key that is no text
        raise ConfigError(f"curriculum_options: {error}") from error


def check_episodes(training_args: MetaConfig) -> None:
    """Raise [`ConfigError`] for episodes that cannot be cut so."""
    options: Any = training_args.episodes
    try:
        EpisodeRule.from_options(options)
    except ValueError as error:
        raise ConfigError(str(error)) from error
