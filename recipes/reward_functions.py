"""The rewards of a grpo recipe: `reward_funcs`, `reward_models` and `judge`, found, weighed and checked together."""

import inspect
from collections.abc import Callable
from typing import Any

from metatune.recipes.config import ConfigError, nearest
from metatune.recipes.conform import describe
from metatune.recipes.data import check_numbers, need_columns
from metatune.recipes.judges import load_judge_reward, read_judge
from metatune.recipes.own_code import import_module
from metatune.recipes.reward_models import load_reward_models, read_entries

OVERLONG = "get_soft_overlong_punishment"


def accept_reward_model(script_args: Any, training_args: Any) -> None:
    """Write TRL's `reward_model_name_or_path` as the first of `reward_models`, with its part of `reward_weights`."""
    path, weights = script_args.reward_model_name_or_path, training_args.reward_weights
    if path is None:
        return
    entry: dict[str, Any] = {"path": path}
    if weights is not None and len(weights) == 1 + len(script_args.reward_funcs or []):
        entry["weight"], *rest = weights
        training_args.reward_weights = rest or None
    script_args.reward_models = [entry, *(script_args.reward_models or [])]
    script_args.reward_model_name_or_path = None


def load_reward(name: str) -> Callable:
    """Find a reward function by name or import path; raises [`ConfigError`] for what is none."""
    import trl.rewards

    from metatune.rewards import correctness_reward

    if name == "correctness":
        return correctness_reward
    # its list also has modules, and functions `get_…` that make a reward function of options
    of_trl = [each for each in trl.rewards.__all__ if each.endswith("_reward") and not each.startswith("get_")]
    if name == OVERLONG:  # `trl grpo` takes this one by name, with these options
        return trl.rewards.get_soft_overlong_punishment(max_completion_len=1280, soft_punish_cache=256)
    if name in of_trl:
        return getattr(trl.rewards, name)
    module_name, _, function_name = name.rpartition(".")
    if not module_name:
        known = ["correctness", *of_trl, OVERLONG]
        advice = nearest(name, known) or f"; there are {', '.join(known)}, or import paths of functions of your own"
        raise ConfigError(f"reward_funcs: unknown '{name}'{advice}")
    module = import_module(module_name, "reward_funcs")
    function = getattr(module, function_name, None)
    if function is None:
        raise ConfigError(f"reward_funcs: {module_name} has no '{function_name}'{nearest(function_name, dir(module))}")
    if not callable(function) or not hasattr(function, "__name__"):  # TRL calls it by that name
        raise ConfigError(f"reward_funcs: '{name}' is no function: it is {describe(function)[:60]}")
    return function


def load_rewards(script_args: Any, training_args: Any) -> list:
    """Return the reward functions, `reward_models` and `judge` last; completes `reward_weights` and `gold_reward`."""
    entries = read_entries(script_args.reward_models or [])
    judge = read_judge("judge", script_args.judge)
    names = reward_names(script_args)
    functions = [load_reward(name) for name in names]
    if training_args.gold_reward is not None:  # the trainer knows a function by its own name
        training_args.gold_reward = functions[names.index(training_args.gold_reward)].__name__
    if entries or judge:
        weights = training_args.reward_weights or [1.0] * len(names)
        scored = [*entries, judge] if judge else entries
        training_args.reward_weights = [*weights, *(entry.weight for entry in scored)]
    return functions + load_reward_models(entries) + ([load_judge_reward(judge)] if judge else [])


def reward_names(script_args: Any) -> list[str]:
    """Return the names of the reward functions: those given, or `correctness` where nothing else scores."""
    scored = script_args.reward_models or script_args.judge
    return script_args.reward_funcs or ([] if scored else ["correctness"])


def check_columns_of_rewards(script_args: Any, data: Any, where: str) -> None:
    """Raise [`ConfigError`] unless data has the columns that the reward functions and the judge read.

    Args:
        script_args (`GRPOScriptArguments`): the rewards.
        data (`datasets.Dataset`): rows, or no row, with the columns.
        where (`str`): what errors call the data.
    """
    check_reward_columns([load_reward(name) for name in reward_names(script_args)], data, where)
    judge = read_judge("judge", script_args.judge)
    if judge is not None and judge.reference_column is not None:
        need_columns(data, [judge.reference_column], where, "the judge reads it (reference_column)")


def check_reward_columns(functions: list, dataset: Any, where: str) -> None:
    """Raise [`ConfigError`] unless a dataset has every column that a reward function cannot do without.

    A number in such a column must be finite. Null is allowed: a data set of several tasks has it where a column
    belongs to another task.
    """
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
        columns = [n for n in named if n not in given]
        why = f"the reward function {name} reads it; rename a column, or choose others in reward_funcs"
        need_columns(dataset, columns, where, why)
        numeric = [n for n in columns if str(getattr(dataset.features[n], "dtype", "")).startswith("float")]
        check_numbers(dataset, numeric, where, may_be_null=True)


def check_rewards(script_args: Any, training_args: Any) -> None:
    """Raise [`ConfigError`] for rewards that do not go together, or not with the curriculum, progress or data.

    Args:
        script_args (`GRPOScriptArguments`): the rewards and the data.
        training_args ([`MetaConfig`]): weights, curriculum and progress.
    """
    weights, progress = training_args.reward_weights, training_args.progress
    by_right = progress in ("episode", "anytime", "length_penalty") or bool(training_args.terminating_generations)
    scored = [name for name in ("reward_models", "judge") if getattr(script_args, name)]
    listed = " and ".join(scored)
    names = reward_names(script_args)
    for name in names:
        load_reward(name)
    if weights is not None and len(weights) != len(names):
        beside = f": those of {listed} are written beside them, as weight" if scored else ""
        raise ConfigError(f"reward_weights has {len(weights)} weights for {len(names)} reward_funcs{beside}")
    if by_right and not names:
        raise ConfigError(
            f"progress: {progress} needs a gold reward, which {listed} cannot be: add a verifier to reward_funcs "
            "(correctness), or set progress: none"
        )
    if not names and training_args.curriculum_reward == "gold":
        raise ConfigError(f"curriculum_reward: gold needs a verifier in reward_funcs (correctness) beside {listed}")
    if training_args.curriculum_reward == "gold" and (unverified := without_verifier(script_args)):
        raise ConfigError(
            f"curriculum_reward: gold hardly draws distributions without a `verifier` ({', '.join(unverified)}): set "
            "their `verifier`, or set curriculum_reward: total"
        )
    check_reward_scale(script_args, training_args)
    gold = training_args.gold_reward
    if gold is not None and gold not in names:
        raise ConfigError(f"gold_reward: '{gold}' is none of the reward_funcs{nearest(gold, names)}")
    if by_right and weights is not None:
        teller = gold or ("correctness" if "correctness" in names else names[0])
        if not weights[names.index(teller)]:
            raise ConfigError(
                f"progress: {progress} needs a gold reward, and the weight of {teller!r} is 0: raise it in "
                "reward_weights, or set gold_reward to another function"
            )
    check_verifiers(script_args)


def check_reward_scale(script_args: Any, training_args: Any) -> None:
    """Raise [`ConfigError`] for a curriculum that needs rewards from 0 to 1 and would be given others."""
    from metatune.curricula import CURRICULA

    unit_rewards = CURRICULA[training_args.curriculum].unit_rewards
    scored = script_args.judge or script_args.reward_models
    if training_args.curriculum_reward == "gold" or not unit_rewards or not scored:
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
