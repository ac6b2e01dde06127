"""Reward modelling: train a model that scores completions, on pairs of a preferred and a rejected one.

    metatune reward --config FILE.yaml
    accelerate launch recipes/reward.py --config FILE.yaml

Data is `dataset_name`: a dataset of the hub, a local folder, or a JSON, JSONL or Parquet file, with the columns
`chosen` and `rejected`, texts or conversations, and optionally `prompt` and `margin`. The model is any checkpoint; a
language model's head is replaced by a new one that gives one number. Everything else is TRL's `RewardConfig` and
`ModelConfig`.

Writes into `output_dir`: the model (its adapter with `use_peft: true`) and its tokenizer, `checkpoint-*`,
`recipe.yaml` (every option that is not a default) and `metrics.jsonl` (one JSON object a log line).
`resume_from_checkpoint: true` goes on from the last checkpoint that was written to its end.
"""

from pathlib import Path

from trl import ModelConfig, RewardConfig, ScriptArguments

from metatune.recipes.adapters import adapter_error, check_adapter_options, record_base
from metatune.recipes.config import ConfigError, StrictParser, check_world_size, nearest, run
from metatune.recipes.run_folder import (
    check_checkpoint,
    checkpoint_to_resume,
    effective_recipe,
    model_init_kwargs,
    model_to_load,
    train_and_save,
)
from metatune.recipes.sharding import shard_small_parameters

FILE_FORMATS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def load_data(script_args: ScriptArguments, with_evaluation: bool):
    """Return the training set and the held-out set (`None` without evaluation).

    Raises [`ConfigError`] for a file that cannot be read, a split that is not there, and pairs that are not whole.
    """
    import datasets

    name = script_args.dataset_name
    try:
        if Path(name).is_file():
            kind = FILE_FORMATS.get(Path(name).suffix)
            if kind is None:
                raise ConfigError(f"dataset_name: {name}: not one of {', '.join(FILE_FORMATS)}")
            if not Path(name).stat().st_size:
                raise ConfigError(f"dataset_name: {name} is empty")
            splits = datasets.load_dataset(kind, data_files={script_args.dataset_train_split: name})
        else:
            splits = datasets.load_dataset(name, name=script_args.dataset_config)
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        if isinstance(error, ConfigError):
            raise
        cause = error.__cause__ or error
        raise ConfigError(f"dataset_name: {name}: {' '.join(str(cause).split())}") from error
    wanted = [script_args.dataset_train_split] + [script_args.dataset_test_split] * with_evaluation
    for split in wanted:
        if split not in splits:
            raise ConfigError(
                f"{name} has no split '{split}' (splits: {', '.join(splits)}){nearest(split, splits)}: name another "
                "with dataset_train_split or dataset_test_split, or give a folder with train.jsonl and test.jsonl"
            )
        check_pairs(splits[split], f"{name}, split '{split}'")
    return splits[wanted[0]], splits[wanted[1]] if with_evaluation else None


def check_pairs(dataset, where: str) -> None:
    """Raise [`ConfigError`] unless every row has both answers of its pair."""
    columns = dataset.column_names
    if not len(dataset):
        raise ConfigError(f"{where} is empty")
    tokenized = "chosen_ids" in columns
    for column in ("chosen_ids", "rejected_ids") if tokenized else ("chosen", "rejected"):
        if column not in columns:
            raise ConfigError(
                f"{where} has no column '{column}'{nearest(column, columns)} (columns: {', '.join(columns)}): a pair "
                "is `chosen` and `rejected`, with or without `prompt`"
            )
        if dataset.data.column(column).null_count:
            row = next(number for number, value in enumerate(dataset[column]) if value is None)
            raise ConfigError(f"{where}: row {row + 1} has no '{column}'")


def check(script_args: ScriptArguments, training_args: RewardConfig, model_args: ModelConfig) -> None:
    """Raise [`ConfigError`] for what can be told before any process is launched."""
    if model_args.model_name_or_path is None:
        raise ConfigError("give `model_name_or_path`: a folder, a hub name, or starter")
    if script_args.dataset_name is None:
        raise ConfigError("give `dataset_name`: a folder, a file of pairs, or a hub name")
    if script_args.dataset_streaming:
        raise ConfigError("dataset_streaming: pairs are checked before training, so set it to false")
    check_adapter_options(model_args)
    check_checkpoint(training_args)
    if Path(script_args.dataset_name).exists():
        load_data(script_args, with_evaluation=training_args.eval_strategy != "no")


def main(script_args: ScriptArguments, training_args: RewardConfig, model_args: ModelConfig) -> None:
    """Train, and save the model and its tokenizer in `training_args.output_dir`."""
    from trl import RewardTrainer, get_peft_config, get_quantization_config

    from metatune.recipes.callbacks import MetricsLog

    check(script_args, training_args, model_args)
    check_world_size()
    recipe = effective_recipe(script_args, training_args, model_args)
    shard_small_parameters(training_args)
    training_args.model_init_kwargs = model_init_kwargs(training_args, model_args)
    model_args.lora_task_type = "SEQ_CLS"  # PEFT then trains and saves the new head beside the adapter
    train_dataset, eval_dataset = load_data(script_args, with_evaluation=training_args.eval_strategy != "no")
    try:
        trainer = RewardTrainer(
            model=model_to_load(model_args),
            args=training_args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=[MetricsLog()],
            quantization_config=get_quantization_config(model_args),
            peft_config=get_peft_config(model_args),
        )
    except ValueError as error:
        raise adapter_error(error) or error from error
    record_base(trainer.model, model_args)
    left_out = len(train_dataset) - len(trainer.train_dataset)
    if not len(trainer.train_dataset):
        raise ConfigError(f"all {left_out} pairs are longer than max_length {training_args.max_length} tokens")
    if left_out:
        trainer.accelerator.print(f"{left_out} pairs are longer than max_length and left out")
    train_and_save(trainer, recipe, checkpoint_to_resume(training_args), script_args.dataset_name)


def make_parser(prog: str | None = None) -> StrictParser:
    """Return the parser of this recipe's options."""
    return StrictParser((ScriptArguments, RewardConfig, ModelConfig), prog=prog)


if __name__ == "__main__":
    run(make_parser, main)
