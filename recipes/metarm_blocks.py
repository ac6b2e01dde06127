"""The blocks `reward` and `grpo` of `metatune metarm`: what a round makes of them, and whether they would run."""

from importlib import import_module
from pathlib import Path
from typing import Any

from .config import ConfigError, MissingHereError, Recipe
from .launch import as_options, plan, resolve_accelerate_config
from .run_folder import check_output_dir, need_model

SET_BY_LOOP = {
    "reward": {"dataset_name", "meta_dataset_name", "pair_weights"},
    "grpo": {"distributions", "dataset_name", "reward_funcs", "reward_models", "reward_weights"},
}
OF_METARM = {"meta_step_size", "per_device_meta_batch_size"}  # ignored by the other corrections
SET_IN_BOTH = {"model_name_or_path", "output_dir", "seed", "resume_from_checkpoint", "push_to_hub"}


def reward_recipe(args: Any, folder: Path, output_dir: Path, seed: int, resume: bool) -> dict[str, Any]:
    """Return the recipe of a round's `metatune reward`.

    Args:
        args (`MetaRMScriptArguments`): the loop's options; the block `reward` is among them.
        folder (`Path`): the round's.
        output_dir (`Path`): where it trains.
        seed (`int`): its seed.
        resume (`bool`): whether it goes on from a checkpoint.
    """
    metarm = args.correction == "metarm"
    recipe = {
        **({"meta_step": "normalised"} if metarm else {}),
        **{key: value for key, value in args.reward.items() if metarm or key not in OF_METARM},
        "model_name_or_path": args.reward_model_name_or_path or args.model_name_or_path,
        "dataset_name": args.pairs_name,
        "output_dir": str(output_dir),
        "seed": seed,
        "resume_from_checkpoint": resume,
    }
    if metarm:
        recipe["meta_dataset_name"] = str(folder / "responses.jsonl")
    if args.correction == "ocrm":
        written = {"dataset_name": str(folder / "pairs"), "dataset_config": None, "pair_weights": True}
        recipe |= {**written, "dataset_train_split": "train", "dataset_test_split": "test"}
    return recipe


def grpo_recipe(
    args: Any, source: str, reward_model: Path, output_dir: Path, seed: int, resume: bool
) -> dict[str, Any]:
    """Return the recipe of a round's `metatune grpo`.

    Args:
        args (`MetaRMScriptArguments`): the loop's options; the block `grpo` is among them.
        source (`str`): the policy that it begins with.
        reward_model (`Path`): what it is rewarded by.
        output_dir (`Path`): where it trains.
        seed (`int`): its seed.
        resume (`bool`): whether it goes on from a checkpoint.
    """
    prompts = {"distributions": args.distributions} if args.distributions else {"dataset_name": args.prompts_name}
    return {
        **args.grpo,
        "model_name_or_path": source,
        **prompts,
        "reward_models": [{"path": str(reward_model)}],
        "output_dir": str(output_dir),
        "seed": seed,
        "resume_from_checkpoint": resume,
    }


def parse_block(name: str, block: dict[str, Any], recipe: dict[str, Any]) -> tuple[Any, ...]:
    """Parse a block as its command will, and check it as its command does before it is launched.

    Args:
        name (`str`): `reward` or `grpo`.
        block (`dict`): what the user wrote.
        recipe (`dict`): the same with what the loop sets.

    Raises [`ConfigError`] that names block and key.
    """
    for key in block:
        if key in SET_BY_LOOP[name] | SET_IN_BOTH:
            advice = "push the model of the round that you want afterwards" if key == "push_to_hub" else "remove it"
            raise ConfigError(f"block `{name}`: `{key}` is set by the loop; {advice}")
    module = import_module(f".{name}", __package__)
    parser = module.make_parser()
    configs = parser.parse_recipe(Recipe(f"block `{name}`", recipe, {}, {}))
    try:
        plan(resolve_accelerate_config(as_options(parser.launch_values)), module.__name__, [], configs[1].use_cpu)
        module.check(*configs)
    except MissingHereError as error:
        if not str(error).startswith("dataset_name"):  # which the loop may have to make first
            raise ConfigError(f"block `{name}`: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"block `{name}`: {error}") from error
    return configs


def check(args: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Parse both blocks as round 1 will; raises [`ConfigError`] for them, and for what does not go together."""
    from .metarm_policy import sampling_of

    step = args.reward.get("meta_step")
    if (step == "none") if args.correction == "metarm" else (step not in (None, "none")):
        raise ConfigError(f"block `reward`: meta_step: {step} does not go with correction: {args.correction}")
    check_output_dir(args.output_dir)
    for option in ("model_name_or_path", "reward_model_name_or_path"):
        need_model(getattr(args, option), option)
    folder = Path(args.output_dir) / "round-1"
    resume = args.resume_from_checkpoint
    of_reward = reward_recipe(args, folder, folder / "reward_training", args.seed, resume)
    reward = parse_block("reward", args.reward, of_reward)
    of_grpo = grpo_recipe(
        args, args.model_name_or_path, folder / "reward_model", folder / "grpo_training", args.seed, resume
    )
    grpo = parse_block("grpo", args.grpo, of_grpo)
    if args.correction == "metarm" and args.num_prompts is not None:
        wanted = reward[1].per_device_meta_batch_size
        if args.num_prompts < wanted:
            raise ConfigError(
                f"num_prompts is {args.num_prompts}, and one MetaRM step takes {wanted}: raise it, or lower "
                "per_device_meta_batch_size of the block reward"
            )
    if grpo[2].use_peft and args.rounds > 1:
        raise ConfigError("block `grpo`: use_peft makes adapters, and the next round goes on from a whole model")
    if reward[1].use_cpu != grpo[1].use_cpu:
        raise ConfigError("use_cpu differs between the blocks reward and grpo")
    if grpo[1].temperature == 0:
        raise ConfigError("block `grpo`: greedy responses to one prompt are all the same; raise temperature")
    try:
        sampling_of(grpo[1])
    except ValueError as error:
        raise ConfigError(f"block `grpo`: {error}") from error
    return reward, grpo
