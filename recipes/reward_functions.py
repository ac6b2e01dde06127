"""The rewards of a grpo recipe: `reward_funcs`, `reward_models` and `judge`, found, weighed and checked together."""

import inspect
from typing import Any

from metatune.recipes.config import ConfigError, nearest
from metatune.recipes.data import need_columns
from metatune.recipes.judges import load_judge_reward, read_judge
from metatune.recipes.own_code import import_module
from metatune.recipes.reward_models import load_reward_models, read_entries


def load_reward(name: str):
    """Find a reward function by name or import path."""
    import trl.rewards

    from metatune.rewards import correctness_reward

    if name == "correctness":
        return correctness_reward
    if name in trl.rewards.__all__:
        return getattr(trl.rewards, name)
    module_name, _, function_name = name.rpartition(".")
    if not module_name:
        raise ConfigError(f"reward_funcs: unknown '{name}'{nearest(name, ['correctness', *trl.rewards.__all__])}")
    try:
        return getattr(import_module(module_name, "reward_funcs"), function_name)
    except AttributeError as error:
        raise ConfigError(f"reward_funcs: '{name}' cannot be imported: {error}") from error


def load_rewards(script_args: Any, training_args: Any) -> list:
    """Return the reward functions, `reward_models` and `judge` last; completes `reward_weights` and `gold_reward`."""
    entries = read_entries(script_args.reward_models or [])
    judge = read_judge("judge", script_args.judge)
    names = script_args.reward_funcs or ([] if entries or judge else ["correctness"])
    functions = [load_reward(name) for name in names]
    if training_args.gold_reward is not None:  # the trainer knows a function by its own name
        training_args.gold_reward = functions[names.index(training_args.gold_reward)].__name__
    if entries or judge:
        weights = training_args.reward_weights or [1.0] * len(names)
        scored = [*entries, judge] if judge else entries
        training_args.reward_weights = [*weights, *(entry.weight for entry in scored)]
    return functions + load_reward_models(entries) + ([load_judge_reward(judge)] if judge else [])


def check_reward_columns(functions: list, dataset: Any, where: str) -> None:
    """Raise [`ConfigError`] unless a dataset has every column that a reward function cannot do without."""
    given = {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"}
    for function in functions:
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # nothing is known of it
            continue
        named = [
            p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        ]
        name = getattr(function, "__name__", type(function).__name__)
        need_columns(dataset, [n for n in named if n not in given], where, f"the reward function {name} reads it")


def check_rewards(script_args: Any, training_args: Any) -> None:
    """Raise [`ConfigError`] for rewards that do not go together, or not with the curriculum, progress or data.

    Args:
        script_args (`GRPOScriptArguments`): the rewards and the data.
        training_args ([`MetaConfig`]): weights, curriculum and progress.
    """
    weights, number = training_args.reward_weights, len(script_args.reward_funcs or [])
    scored = [name for name in ("reward_models", "judge") if getattr(script_args, name)]
    listed = " and ".join(scored)
    if scored and weights is not None and len(weights) != number:
        raise ConfigError(
            f"reward_weights has {len(weights)} weights for {number} reward_funcs: those of {listed} are written "
            "beside them, as weight"
        )
    if scored and not number and training_args.progress in ("episode", "anytime", "length_penalty"):
        raise ConfigError(
            f"progress: {training_args.progress} pays by what is right, which {listed} cannot tell: add a verifier to "
            "reward_funcs (correctness), or take prefix or none"
        )
    if scored and not number and training_args.curriculum_reward == "gold":
        raise ConfigError(f"curriculum_reward: gold needs a verifier in reward_funcs (correctness) beside {listed}")
    if training_args.curriculum_reward == "gold" and (unverified := without_verifier(script_args)):
        raise ConfigError(
            f"curriculum_reward: gold says nothing of distributions without a `verifier` ({', '.join(unverified)}), "
            "and what is never observed is drawn the most: give them one, or take total"
        )
    check_reward_scale(script_args, training_args)
    gold, names = training_args.gold_reward, script_args.reward_funcs or ([] if scored else ["correctness"])
    if gold is not None and gold not in names:
        raise ConfigError(f"gold_reward: '{gold}' is none of the reward_funcs{nearest(gold, names)}")
    check_verifiers(script_args)


def check_reward_scale(script_args: Any, training_args: Any) -> None:
    """Raise [`ConfigError`] for a curriculum that needs rewards from 0 to 1 and would be given others."""
    from metatune.curricula import CURRICULA

    curriculum = CURRICULA.get(training_args.curriculum)  # an unknown one is told by the trainer
    if (
        training_args.curriculum_reward == "gold"
        or curriculum is None
        or not curriculum.unit_rewards
        or not (script_args.judge or script_args.reward_models)
    ):
        return
    weights = list(training_args.reward_weights or [1.0] * len(script_args.reward_funcs or []))
    weights += [read_judge("judge", script_args.judge).weight] if script_args.judge else []
    what = "a reward model's may be anything"
    if not script_args.reward_models:
        if min(weights) >= 0 and sum(weights) <= 1 + 1e-9:
            return
        what = f"the weights are {', '.join(f'{weight:g}' for weight in weights)}: none below 0, at most 1 in all"
    raise ConfigError(
        f"curriculum: {training_args.curriculum} needs rewards from 0 to 1, and {what}; or take sec or dump"
        + ("" if not script_args.reward_funcs else ", or curriculum_reward: gold")
    )


def without_verifier(script_args: Any) -> list[str]:
    """Return the names of the distributions of which nothing tells what is right."""
    entries = [entry for entry in script_args.distributions or [] if entry.get("source") == "dataset"]
    return [str(entry.get("name")) for entry in entries if entry.get("verifier") is None]


def check_verifiers(script_args: Any) -> None:
    """Raise [`ConfigError`] for distributions of which no reward function can say anything."""
    if script_args.reward_models or script_args.judge or script_args.reward_funcs not in (None, [], ["correctness"]):
        return
    if unverified := without_verifier(script_args):
        raise ConfigError(
            f"correctness says nothing of distributions without a `verifier` ({', '.join(unverified)}): give them "
            "one, or a `judge`, `reward_models` or other reward_funcs"
        )
