"""GRPO with a learned curriculum over task distributions.

    metatune grpo --config recipes/dump/FILE.yaml
    accelerate launch recipes/grpo.py --config recipes/dump/FILE.yaml

Data is either `distributions:` (built-in families, reasoning-gym generators, files or hub datasets) or `dataset_name`,
any dataset that TRL's GRPO trainer takes with one more column, `distribution`. Everything else is TRL's `GRPOConfig`
and `ModelConfig`. `curriculum: uniform` over one distribution is stock `GRPOTrainer`, bit for bit.

Writes into `output_dir`: the trained model and its tokenizer, `checkpoint-*`, `recipe.yaml` (every option that is not
a default), `metrics.jsonl` (one JSON object a log line) and, with `log_completions: true`, `completions/*.parquet`.
`resume_from_checkpoint: true` goes on from the last checkpoint that was written to its end, with the same draws,
rollouts and losses as a run that was never stopped.
"""

import importlib
import json
import sys
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

import yaml
from trl import ModelConfig, ScriptArguments

from metatune.recipes.config import ConfigError, StrictParser, check_world_size, nearest, run
from metatune.trainers import DUMPConfig

STARTER = Path(__file__).parent / "starter"


@dataclass
class GRPOScriptArguments(ScriptArguments):
    """
    What to train on and what to reward, beside TRL's `dataset_name` and its companions.

    Args:
        distributions (`list[dict]`, *optional*):
            Task distributions, the arms of the curriculum; see `metatune.curricula.load_distributions`.
        reward_funcs (`list[str]`, *optional*, defaults to `["correctness"]`):
            Reward functions: `correctness` (each item's own verifier), any function of `trl.rewards`, or an import
            path such as `my_package.rewards.brevity`.
    """

    distributions: list[dict] | None = field(
        default=None, metadata={"help": "Task distributions: {name, source, config, train_size, …}. YAML only."}
    )
    reward_funcs: list[str] | None = field(
        default=None, metadata={"help": "correctness (the default), a function of trl.rewards, or an import path."}
    )

    def __post_init__(self):
        if (self.distributions is None) == (self.dataset_name is None):
            raise ValueError("give either `distributions` or `dataset_name`")


def load_data(script_args: GRPOScriptArguments, with_evaluation: bool):
    """Return the training set and the held-out set (`None` without evaluation), pooled over the distributions."""
    import datasets

    if script_args.distributions is None:
        splits = datasets.load_dataset(script_args.dataset_name, name=script_args.dataset_config)
        held_out = splits[script_args.dataset_test_split] if with_evaluation else None
        return splits[script_args.dataset_train_split], held_out
    from metatune.curricula import load_distributions

    try:
        distributions = load_distributions(script_args.distributions)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    held_out = [distribution.test for distribution in distributions if len(distribution.test)]
    if with_evaluation and not held_out:
        raise ConfigError("no distribution has held-out items: set eval_strategy to 'no', or give them a test part")
    return (
        datasets.concatenate_datasets([distribution.train for distribution in distributions]),
        datasets.concatenate_datasets(held_out) if with_evaluation else None,
    )


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
    sys.path.insert(0, str(Path.cwd()))  # a user's own module stands where the run is started, as with `trl grpo`
    try:
        return getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"reward_funcs: '{name}' cannot be imported: {error}") from error


def checkpoint_to_resume(training_args: DUMPConfig) -> str | None:
    """Resolve `resume_from_checkpoint`: a folder, or true for the run's last complete checkpoint."""
    from metatune.trainers.rollout_checkpoint import last_complete_checkpoint

    asked = training_args.resume_from_checkpoint
    if not asked:
        return None
    if asked is not True:
        return asked
    found = last_complete_checkpoint(Path(training_args.output_dir))
    if found is None:
        print(f"No complete checkpoint in {training_args.output_dir} yet: starting from the beginning.")
    return None if found is None else str(found)


def check(script_args: GRPOScriptArguments, training_args: DUMPConfig, model_args: ModelConfig) -> None:
    """Raise [`ConfigError`] for what can be told before any process is launched."""
    if model_args.model_name_or_path is None:
        raise ConfigError("give `model_name_or_path`: a folder, a hub name, or starter")
    asked = training_args.resume_from_checkpoint
    if asked and asked is not True and not Path(asked).is_dir():
        raise ConfigError(f"resume_from_checkpoint: no such folder: {asked}")


def is_finished(checkpoint: str) -> bool:
    """Tell whether a checkpoint is its run's last; `Trainer` would train one step more from there."""
    state = json.loads((Path(checkpoint) / "trainer_state.json").read_text())
    return state["global_step"] >= state["max_steps"]


def effective_recipe(*configs) -> str:
    """Write the options that differ from their defaults as a recipe, wherever they came from."""
    derived = {"generation_batch_size", "model_init_kwargs", "trust_remote_code"}  # settled from other options
    values = {}
    for config in configs:
        for option in fields(config):
            value = getattr(config, option.name, None)
            default = option.default_factory() if option.default_factory is not MISSING else option.default
            plain = isinstance(value, bool | int | float | str | list | dict)
            if option.init and plain and value != default and option.name not in derived:
                values[option.name] = getattr(value, "value", value)
    return yaml.safe_dump(values, sort_keys=False)


def main(script_args: GRPOScriptArguments, training_args: DUMPConfig, model_args: ModelConfig) -> None:
    """Train, and save the model and its tokenizer in `training_args.output_dir`."""
    from trl import get_peft_config, get_quantization_config

    from metatune.recipes.callbacks import MetricsLog, ProgressLine
    from metatune.trainers import DUMPTrainer

    check(script_args, training_args, model_args)
    check_world_size()
    recipe = effective_recipe(script_args, training_args, model_args)
    starter = model_args.model_name_or_path == "starter"
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    train_dataset, eval_dataset = load_data(script_args, with_evaluation=training_args.eval_strategy != "no")
    trainer = DUMPTrainer(
        model=str(STARTER) if starter else model_args.model_name_or_path,
        reward_funcs=[load_reward(name) for name in script_args.reward_funcs or ["correctness"]],
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        callbacks=[MetricsLog()],
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    ProgressLine.replace_default(trainer)
    if trainer.is_world_process_zero():
        Path(training_args.output_dir).mkdir(parents=True, exist_ok=True)
        (Path(training_args.output_dir) / "recipe.yaml").write_text(recipe)
    checkpoint = checkpoint_to_resume(training_args)
    if checkpoint is not None and is_finished(checkpoint):
        trainer.accelerator.print(f"{checkpoint} is the end of its run: saving its model, training nothing")
        trainer._load_from_checkpoint(checkpoint)
    else:
        trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(training_args.output_dir)
    trainer.accelerator.print(f"Saved to {training_args.output_dir}")
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)


def make_parser(prog: str | None = None) -> StrictParser:
    """Return the parser of this recipe's options."""
    return StrictParser((GRPOScriptArguments, DUMPConfig, ModelConfig), prog=prog)


if __name__ == "__main__":
    run(make_parser, main)
