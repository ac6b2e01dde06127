"""Options of a grpo recipe that its trainer would refuse late, when data and model are there: told before a launch."""

from collections.abc import Mapping, Sequence
from typing import Any

from trl import ModelConfig

from metatune.recipes.chat_template import check_chat, load_processor, need_template
from metatune.recipes.config import ConfigError, nearest
from metatune.recipes.conform import choose
from metatune.recipes.overlong import positions_of, without_overlong
from metatune.recipes.run_folder import model_to_load
from metatune.rewards import EpisodeRule
from metatune.trainers.distribution_rows import asks_for_several
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


def check_stream(training_args: MetaConfig) -> None:
    """Raise [`ConfigError`] for options that need the number of rows, which a stream does not have."""
    if asks_for_several(training_args):
        raise ConfigError(
            f"curriculum: {training_args.curriculum} draws from all rows, and the data is a stream: set "
            "dataset_streaming to false, or curriculum to uniform"
        )
    if training_args.max_steps < 1:
        raise ConfigError("max_steps: required, because the number of rows of a stream is unknown")


def check_episodes(training_args: MetaConfig) -> None:
    """Raise [`ConfigError`] for episodes that cannot be cut so."""
    options: Any = training_args.episodes
    try:
        EpisodeRule.from_options(options)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def fitting_prompts(
    dataset: Any, script_args: Any, training_args: MetaConfig, model_args: ModelConfig, where: str
) -> Any:
    """Return the rows whose prompts the model can read; the main process reports those that are too long.

    Args:
        dataset (`datasets.Dataset` or `list[dict]`): rows with `prompt`.
        script_args (`GRPOScriptArguments`): names the chat template.
        training_args ([`MetaConfig`]): its variables, and the length of a completion.
        model_args ([`~trl.ModelConfig`]): the model.
        where (`str`): the name of the rows in errors.

    Raises [`ConfigError`] for images and parts that a text model cannot read, for conversations without a chat
    template, and if no prompt fits the model's context length.
    """
    from transformers import ProcessorMixin

    from metatune.rewards.rendering import Rendering

    model, revision = model_to_load(model_args), model_args.model_revision
    processor = load_processor(model, revision, script_args.chat_template_path)
    kwargs: Any = training_args.chat_template_kwargs or {}  # transformers has read a text as JSON
    if hasattr(dataset, "column_names"):
        check_chat(processor, str(model_args.model_name_or_path), dataset, ["prompt"], where)
        check_row_variables(dataset, kwargs, where)
    elif dataset and not isinstance(dataset[0]["prompt"], str):
        need_template(processor, str(model_args.model_name_or_path))
    if isinstance(processor, ProcessorMixin):  # its prompts have images, and TRL renders them
        return dataset
    positions = positions_of(model, revision)
    if training_args.use_vllm and training_args.vllm_max_model_length:
        positions = min(positions or training_args.vllm_max_model_length, training_args.vllm_max_model_length)
    new_tokens, advice = training_args.max_completion_length, "max_completion_length"
    kept, lines = without_overlong(dataset, Rendering(processor, kwargs), positions, new_tokens, where, advice)
    for line in lines if training_args.process_index == 0 else ():
        print(line, flush=True)
    return kept


def check_row_variables(dataset: Any, kwargs: Mapping[str, Any], where: str) -> None:
    """Raise [`ConfigError`] for a row's own `chat_template_kwargs`, which TRL's GRPO trainer does not read."""
    if "chat_template_kwargs" not in dataset.column_names:
        return
    for row, value in enumerate(dataset["chat_template_kwargs"][:], start=1):
        if value != kwargs:
            raise ConfigError(
                f"{where}: row {row}: 'chat_template_kwargs' is {value}, and GRPO renders all prompts with "
                f"{dict(kwargs) or 'none'}: set chat_template_kwargs in the recipe and remove the column"
            )


def templated_processor(script_args: Any, model_args: ModelConfig) -> Any:
    """Return the model's tokenizer with the recipe's chat template; `None` lets TRL load it with its own."""
    if script_args.chat_template_path is None:
        return None
    sides = {"truncation_side": "left", "padding_side": "left"}  # as TRL's GRPO trainer loads it
    return load_processor(
        model_to_load(model_args), model_args.model_revision, script_args.chat_template_path, **sides
    )
