"""Reward modelling: train a model that scores completions, on pairs of a preferred and a rejected one.

    metatune reward --config FILE.yaml
    accelerate launch recipes/reward.py --config FILE.yaml

Data is `dataset_name`: a dataset of the hub, a local folder, or a JSON, JSONL or Parquet file, with the columns
`chosen` and `rejected`, texts or conversations, and optionally `prompt` and `margin`; or `datasets`, a mixture of
datasets, as in TRL. The model is any checkpoint; a language model's head is replaced by a new one that gives one
number. Options of [`MetaRewardConfig`] treat noisy pairs (`flip`, `adaptive_margin`, … by the preference strength that
`metatune strength` measured), add contrastive terms, and take MetaRM's step (`meta_step`) with `meta_dataset_name`:
responses of the policy that is to be judged, columns `prompt` and `responses`. Pairs with an empty response or two
equal ones, and those longer than `max_length`, are left out and counted. Everything else is TRL's `RewardConfig` and
`ModelConfig`.

Writes into `output_dir`: the model (its adapter with `use_peft: true`) and its tokenizer, `checkpoint-*`,
`recipe.yaml` (the recipe with what the command line changed) and `metrics.jsonl` (one JSON object a log line).
`resume_from_checkpoint: true` goes on from the last checkpoint that was written to its end.
"""

from dataclasses import dataclass, field

from trl import ModelConfig

from metatune.recipes.adapters import check_adapter_options, record_base, refusals_in_one_line
from metatune.recipes.chat_template import check_readable, processor_for
from metatune.recipes.config import ConfigError, StrictParser, check_world_size, run
from metatune.recipes.data import check_numbers, load_splits
from metatune.recipes.folder_lock import hold_folder
from metatune.recipes.kept_recipe import KeepsRecipe
from metatune.recipes.mixture import SourceArguments, source_name
from metatune.recipes.pairs import load_data, usable
from metatune.recipes.run_folder import (
    begin_run,
    check_here,
    checkpoint_to_resume,
    dataset_names,
    model_init_kwargs,
    model_to_load,
    settle_max_length,
    train_and_save,
)
from metatune.recipes.sharding import shard_small_parameters
from metatune.trainers import MetaRewardConfig

# what an evaluation measures, beside its own speed
METRICS = ("eval_loss", "eval_accuracy", "eval_margin", "eval_min_reward", "eval_mean_reward", "eval_max_reward")


@dataclass
class RewardScriptArguments(KeepsRecipe, SourceArguments):
    """
    Arguments of the reward recipe beside the trainer's.

    Args:
        meta_dataset_name (`str`, *optional*):
            Responses of the policy that the reward model is to judge, for `meta_step`: a dataset of the hub, a local
            folder (its training split counts), or a JSON, JSONL or Parquet file.
    """

    meta_dataset_name: str | None = field(
        default=None, metadata={"help": "The policy's responses, columns prompt and responses, for meta_step."}
    )


def load_meta_set(script_args: RewardScriptArguments, rows: int | None = None):
    """Return the meta set, or its first `rows` rows; `None` without one.

    Raises [`ConfigError`] for a file that cannot be read, a split that is not there, and rows that MetaRM cannot use.
    """
    from metatune.trainers.meta_set import number_of_responses

    if script_args.meta_dataset_name is None:
        return None
    split = script_args.dataset_train_split
    name = script_args.meta_dataset_name
    splits = load_splits(name, "meta_dataset_name", split, rows=rows)
    if split not in splits:
        raise ConfigError(f"meta_dataset_name: {name} has no split '{split}'")
    try:
        number_of_responses(splits[split])
    except ValueError as error:
        raise ConfigError(f"meta_dataset_name: {name}: {error}") from error
    return splits[split]


def check_treatment(script_args: RewardScriptArguments, training_args: MetaRewardConfig, pairs) -> None:
    """Raise [`ConfigError`] for pairs that cannot be treated as asked."""
    from metatune.trainers.meta_reward_trainer import treated

    used = ["weight"] * training_args.pair_weights + ["strength"] * training_args.uses_strength
    check_numbers(pairs, used, f"{source_name(script_args)}, split '{script_args.dataset_train_split}'")
    try:
        treated(pairs, training_args)
    except ValueError as error:
        raise ConfigError(f"{source_name(script_args)}: {error}") from error


def load_usable_data(script_args: RewardScriptArguments, training_args: MetaRewardConfig):
    """Return the training set, the held-out set (`None` without evaluation), and what was left out of them.

    Raises [`ConfigError`] for a file that cannot be read, as [`~metatune.recipes.pairs.load_data`], for pairs that
    cannot be treated as asked, and if no pair is left.
    """
    name = source_name(script_args)
    train_dataset, eval_dataset = load_data(script_args, with_evaluation=training_args.eval_strategy != "no")
    check_treatment(script_args, training_args, train_dataset)  # before any pair is left out: rows are the file's
    train_dataset, notes = usable(train_dataset, f"{name}, split '{script_args.dataset_train_split}'")
    if eval_dataset is not None:
        eval_dataset, more = usable(eval_dataset, f"{name}, split '{script_args.dataset_test_split}'")
        notes += more
    return train_dataset, eval_dataset, notes


def check(script_args: RewardScriptArguments, training_args: MetaRewardConfig, model_args: ModelConfig) -> None:
    """Raise [`ConfigError`] for what can be told before any process is launched."""
    if model_args.model_name_or_path is None:
        raise ConfigError("give `model_name_or_path`: a folder, a hub name, or starter")
    if (script_args.dataset_name is None) == (not script_args.datasets):
        raise ConfigError("give `dataset_name`: a folder, a file of pairs, or a hub name; or `datasets`, a mixture")
    if script_args.is_stream:
        raise ConfigError("dataset_streaming: pairs are checked before training, so set it to false")
    if (training_args.meta_step == "none") != (script_args.meta_dataset_name is None):
        raise ConfigError("meta_step and meta_dataset_name must be set together: set both or neither")
    if training_args.meta_step != "none" and model_args.dtype in ("bfloat16", "float16"):
        raise ConfigError(
            f"dtype: {model_args.dtype} has too little precision for the small moves of meta_step: set dtype: float32 "
            "(bf16: true still computes in bfloat16)"
        )
    if training_args.meta_step != "none" and (model_args.load_in_4bit or model_args.load_in_8bit):
        raise ConfigError(
            "meta_step moves float32 weights, and TRL keeps the adapters of a quantized model in bfloat16: remove "
            "load_in_4bit and load_in_8bit"
        )
    metric = training_args.metric_for_best_model
    if metric is not None and f"eval_{metric.removeprefix('eval_')}" not in METRICS:
        raise ConfigError(f"metric_for_best_model: '{metric}' is none of {', '.join(METRICS)}")
    check_adapter_options(model_args)
    check_here(training_args, model_args, script_args.dataset_name)


def check_data(
    script_args: RewardScriptArguments,
    training_args: MetaRewardConfig,
    model_args: ModelConfig,
    rows: int | None = None,
) -> None:
    """Raise [`ConfigError`] for pairs or a meta set that cannot be trained on.

    Args:
        script_args (`RewardScriptArguments`): names the data.
        training_args ([`MetaRewardConfig`]): how pairs are treated, and whether the model is evaluated.
        model_args (`ModelConfig`): the model, whose chat template must read the pairs.
        rows (`int`, *optional*): rows of each split to read; all by default.
    """
    if rows is None:
        pairs, _, _ = load_usable_data(script_args, training_args)
    else:
        pairs, _ = load_data(script_args, training_args.eval_strategy != "no", rows)
        check_treatment(script_args, training_args, pairs)
    where = f"{script_args.dataset_name}, split '{script_args.dataset_train_split}'"
    check_readable({where: pairs}, training_args.chat_template_path, model_args)
    load_meta_set(script_args, rows)


def main(script_args: RewardScriptArguments, training_args: MetaRewardConfig, model_args: ModelConfig) -> None:
    """Train, and save the model and its tokenizer in `training_args.output_dir`."""
    from trl import get_peft_config, get_quantization_config

    from metatune.recipes.callbacks import MetricsLog
    from metatune.trainers import MetaRewardTrainer

    check(script_args, training_args, model_args)
    check_world_size()
    recipe = begin_run(script_args, training_args, model_args)
    shard_small_parameters(training_args)
    training_args.model_init_kwargs = model_init_kwargs(training_args, model_args)
    model_args.lora_task_type = "SEQ_CLS"  # PEFT then trains and saves the new head beside the adapter
    train_dataset, eval_dataset, notes = load_usable_data(script_args, training_args)
    meta_dataset = load_meta_set(script_args)
    parts = {"training pairs": train_dataset} | ({"held-out pairs": eval_dataset} if eval_dataset is not None else {})
    processor = processor_for(parts, training_args, model_args)
    hold_folder(training_args.output_dir)
    with refusals_in_one_line():
        notes += settle_max_length(training_args, model_args)
        trainer = MetaRewardTrainer(
            model=model_to_load(model_args),
            args=training_args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            meta_dataset=meta_dataset,
            processing_class=processor,
            callbacks=[MetricsLog()],
            quantization_config=get_quantization_config(model_args),
            peft_config=get_peft_config(model_args),
        )
    record_base(trainer.model, model_args)
    for line in notes:
        trainer.accelerator.print(line)
    for part, given, kept in (
        ("", train_dataset, trainer.train_dataset),
        ("held-out ", eval_dataset, trainer.eval_dataset),
    ):
        left_out = 0 if given is None else len(given) - len(kept)
        if left_out and not len(kept):
            raise ConfigError(
                f"all {left_out} {part}pairs are longer than max_length {training_args.max_length} tokens"
            )
        if left_out:
            counted = f"{left_out} {part}pairs are longer than max_length and left out"
            trainer.accelerator.print(f"{counted}: of {len(given)}, more than {training_args.max_length} tokens each")
    if trainer.meta_set is not None and trainer.meta_set.num_too_long:
        number = trainer.meta_set.num_too_long
        trainer.accelerator.print(f"{number} prompts of the meta set are longer than max_length and left out")
    train_and_save(trainer, recipe, checkpoint_to_resume(training_args), dataset_names(script_args))


def make_parser(prog: str | None = None) -> StrictParser:
    """Return the parser of this recipe's options."""
    return StrictParser((RewardScriptArguments, MetaRewardConfig, ModelConfig), prog=prog)


if __name__ == "__main__":
    run(make_parser, main)
