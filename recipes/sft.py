"""Supervised fine-tuning: warm-start a model on demonstration traces, or make a small one from nothing.

    metatune sft --config recipes/sft/FILE.yaml
    accelerate launch recipes/sft.py --config recipes/sft/FILE.yaml

Data is either `distributions:` (built-in families, whose imperfect demonstrators write `demonstrations` traces of
training problems; held-out problems never appear) or what `trl sft` takes: `dataset_name`, or a mixture, `datasets`.
The model is either `model_name_or_path` or `init_config:`, the fields of a transformers configuration to initialise at
random. Writes into `output_dir`: the model (safetensors) and its tokenizer, `checkpoint-*`, `recipe.yaml` and
`metrics.jsonl`. `resume_from_checkpoint: true` goes on from the last checkpoint that was written to its end.
"""

import json
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from trl import ModelConfig, SFTConfig

from metatune.recipes.adapters import check_adapter_options, record_base, refusals_in_one_line
from metatune.recipes.chat_template import check_readable, processor_for, record_column
from metatune.recipes.config import ConfigError, StrictParser, check_world_size, nearest, run
from metatune.recipes.data import (
    CONVERSATION,
    TEXT,
    check_ids,
    check_messages,
    check_source,
    check_template_columns,
    check_token_columns,
    distribution_errors,
    need_columns,
    split_of,
)
from metatune.recipes.folder_lock import hold_folder
from metatune.recipes.kept_recipe import KeepsRecipe
from metatune.recipes.mixture import SourceArguments, load_source
from metatune.recipes.overlong import without_overlong_sequences
from metatune.recipes.own_code import HELP, import_own
from metatune.recipes.run_folder import (
    begin_run,
    check_here,
    checkpoint_to_resume,
    dataset_names,
    model_init_kwargs,
    model_to_load,
    train_and_save,
)
from metatune.recipes.sharding import shard_small_parameters


@dataclass
class SFTScriptArguments(KeepsRecipe, SourceArguments):
    """
    What to imitate and what to start from, beside `dataset_name`, `datasets` and their companions.

    Args:
        imports (`list[str]`, *optional*):
            Modules of your own that register tasks, verifiers or curricula; see `metatune.recipes.own_code`.
        distributions (`list[dict]`, *optional*):
            Built-in families, each `{name, source: countdown|arithmetic|logic, config: {…}}`.
        demonstrations (`int`, *optional*, defaults to `10000`):
            Number of traces over all `distributions`, in equal shares.
        demonstration_seed (`int`, *optional*, defaults to `0`):
            Seed of the problems and traces.
        length_buckets (`bool`, *optional*, defaults to `False`):
            Fill each batch with traces of similar length, which saves padding, and shuffle the batches. TRL's
            `group_by_length` leaves neighbouring batches alike, so that a model unlearns one family during the next.
        init_config (`dict`, *optional*):
            Fields of a transformers configuration, `model_type` among them, of a model to initialise at random. The
            size of the vocabulary and the special tokens are the tokenizer's unless given.
        tokenizer (`str`, *optional*):
            Path or name of a tokenizer, or `starter` for the built-in one. Required with `init_config`; else the
            model's own is the default.
    """

    imports: list[str] | None = field(default=None, metadata={"help": HELP})
    distributions: list[dict] | None = field(
        default=None, metadata={"help": "Built-in families: {name, source, config}. YAML only."}
    )
    demonstrations: int = field(default=10_000, metadata={"help": "Number of traces over all distributions."})
    demonstration_seed: int = field(default=0, metadata={"help": "Seed of the problems and traces."})
    length_buckets: bool = field(
        default=False, metadata={"help": "Fill batches with traces of similar length and shuffle the batches."}
    )
    init_config: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Configuration of a model to initialise at random, as a mapping or JSON."}
    )
    tokenizer: str | None = field(default=None, metadata={"help": "Path or name of a tokenizer, or `starter`."})

    @property
    def model_fields(self) -> dict[str, Any] | None:
        """`init_config`, which is a mapping once it has been read."""
        return self.init_config if isinstance(self.init_config, dict) else None

    def __post_init__(self):
        super().__post_init__()
        import_own(self.imports)
        if isinstance(self.init_config, str):
            with suppress(ValueError):  # what stays a text is refused below
                self.init_config = json.loads(self.init_config)
        if not isinstance(self.init_config, dict | type(None)):
            raise ValueError("`init_config` is a mapping of a configuration's fields, or the same as JSON")
        check_source(self)
        for name, default in (("demonstrations", 10_000), ("demonstration_seed", 0)):
            if self.distributions is None and getattr(self, name) != default:
                raise ValueError(f"`{name}` goes with `distributions`, and `dataset_name` is given")
        if self.demonstrations < 1:
            raise ValueError(f"`demonstrations` is {self.demonstrations}; it must be at least 1")
        if self.length_buckets and self.is_stream:
            raise ValueError("`length_buckets` sorts all rows: set dataset_streaming to false")
        if self.init_config is not None and "model_type" not in self.init_config:
            raise ValueError("`init_config` needs a `model_type`, for example llama")
        if self.init_config is not None and self.tokenizer is None:
            raise ValueError("`init_config` needs a `tokenizer`: a path, a name, or starter")


def check(script_args: SFTScriptArguments, training_args: SFTConfig, model_args: ModelConfig) -> None:
    """Raise [`ConfigError`] for options that contradict each other."""
    if (model_args.model_name_or_path is None) == (script_args.init_config is None):
        raise ConfigError("give either `model_name_or_path` or `init_config`")
    check_adapter_options(model_args)
    if script_args.distributions is not None and training_args.eval_strategy != "no":
        raise ConfigError("`distributions` give no evaluation split; set eval_strategy to 'no' and use metatune eval")
    if script_args.model_fields is not None:
        build_config(script_args.model_fields)
    check_here(training_args, model_args, script_args.dataset_name)


def build_config(fields: dict[str, Any]):
    """Build a transformers configuration, refusing a field that its model type does not have."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    model_type = fields["model_type"]
    if model_type not in CONFIG_MAPPING_NAMES:
        raise ConfigError(f"init_config: unknown model_type '{model_type}'{nearest(model_type, CONFIG_MAPPING_NAMES)}")
    known = AutoConfig.for_model(model_type).to_dict()
    for key in fields:
        if key not in known:
            raise ConfigError(f"init_config: {model_type} has no field '{key}'{nearest(key, known)}")
    return AutoConfig.for_model(**fields)


def load_tokenizer(name: str):
    """Load a tokenizer by path or name; `starter` is the built-in one. Raises [`ConfigError`] if it cannot be."""
    from transformers import AutoTokenizer

    if name != "starter":
        try:
            return AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise ConfigError(f"tokenizer: {name} cannot be loaded: {' '.join(str(error).split())}") from error
    from metatune.curricula.tokenizer import build_tokenizer

    return build_tokenizer()


def init_model(fields: dict[str, Any], tokenizer, dtype: str | None, seed: int):
    """Initialise a causal language model at random, the same one for the same `seed` on every process."""
    from transformers import AutoModelForCausalLM, set_seed

    token_ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    config = build_config({"vocab_size": len(tokenizer), **token_ids, **fields})
    if config.vocab_size < len(tokenizer):
        raise ConfigError(f"init_config: vocab_size {config.vocab_size} < {len(tokenizer)} tokens of the tokenizer")
    set_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=None if dtype == "auto" else dtype)


def length_of(value: Any) -> int:
    """Return the length of what a row holds: characters of a text or a conversation, or the number of token ids."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return sum(len(str(message.get("content", message))) for message in value)
    return len(value)


def in_length_buckets(rows, columns: Sequence[str], batch_size: int, seed: int, batches_per_pool: int = 16):
    """Reorder rows: within each pool of batches, sorted by length, cut into batches, and the batches shuffled.

    Args:
        rows (`datasets.Dataset`): the training set.
        columns (`Sequence[str]`): those of its columns that are trained on.
        batch_size (`int`): rows of an optimizer's micro-batch, over all processes.
        seed (`int`): of the shuffle.
        batches_per_pool (`int`, *optional*, defaults to `16`): batches that are sorted together.
    """
    rng = random.Random(seed)
    lengths = [sum(map(length_of, values)) for values in zip(*(rows[column] for column in columns), strict=True)]
    order = []
    for first in range(0, len(lengths), batch_size * batches_per_pool):
        pool = range(first, min(first + batch_size * batches_per_pool, len(lengths)))
        by_length = sorted(pool, key=lengths.__getitem__)
        batches = [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
        partial = [batches.pop()] if len(batches[-1]) < batch_size else []  # only the last batch of all may be partial
        rng.shuffle(batches)
        order += [row for batch in batches + partial for row in batch]
    return rows.select(order)


def columns_of(dataset, text_column: str) -> list[str]:
    """Return the columns that TRL's SFT trainer reads: the first of its kinds of rows that a dataset could be."""
    kinds = (["conversations"], ["input_ids"], ["prompt", "completion"], ["messages"])
    return next((columns for columns in kinds if columns[0] in dataset.column_names), [text_column])


def check_rows(dataset, where: str, text_column: str) -> None:
    """Raise [`ConfigError`] unless every row has what TRL's SFT trainer reads."""
    if dataset.column_names is None:  # a stream
        return
    columns = columns_of(dataset, text_column)
    if columns == ["conversations"]:  # which TRL itself makes messages of
        return
    if columns == ["input_ids"]:
        check_ids(dataset, "input_ids", where)
        check_token_columns(dataset, where)
        return
    need = "a row is `prompt` and `completion`, or `messages`, or a text (dataset_text_field names its column)"
    need_columns(dataset, columns, where, need)
    kind = CONVERSATION if columns == ["messages"] else TEXT if columns == [text_column] else None
    check_messages(dataset, columns, where, kind)
    check_template_columns(dataset, where)


def load_data(script_args: SFTScriptArguments, training_args: SFTConfig, rows: int | None = None):
    """Return the splits to train on and to evaluate on, by name.

    Args:
        script_args (`SFTScriptArguments`): names the data.
        training_args (`SFTConfig`): whether it is evaluated.
        rows (`int`, *optional*): read only the first rows of each split, or write as many demonstrations; all by
            default.

    Raises [`ConfigError`] for data that cannot be read, and for the first row that cannot be used.
    """
    if script_args.distributions is None:
        splits, name = load_source(script_args, rows)
        for split in wanted_splits(script_args, training_args):
            where = f"{name}, split '{split}'"
            check_rows(split_of(splits, split, name), where, training_args.dataset_text_field)
        return splits
    from metatune.curricula import demonstrations

    number = script_args.demonstrations if rows is None else min(rows, script_args.demonstrations)
    with distribution_errors():
        traces = demonstrations(script_args.distributions, number, script_args.demonstration_seed)
    return {script_args.dataset_train_split: traces}


def wanted_splits(script_args: SFTScriptArguments, training_args: SFTConfig) -> list[str]:
    """Return the names of the splits to train on and to evaluate on."""
    evaluated = [script_args.dataset_test_split] * (training_args.eval_strategy != "no")
    return [script_args.dataset_train_split, *evaluated]


def leave_out_overlong(trainer: Any, data: Any, script_args: SFTScriptArguments) -> None:
    """Leave out rows that exceed the model's positions, and report them and those that TRL left out.

    Args:
        trainer ([`~metatune.trainers.sft_trainer.SFTTrainer`]): with its tokenized rows.
        data (`Mapping[str, datasets.Dataset]`): the rows as they were given.
        script_args (`SFTScriptArguments`): names the splits.

    Raises [`ConfigError`] if none is left.
    """
    args = trainer.args
    positions = getattr(trainer.model.config.get_text_config(), "max_position_embeddings", None)
    fits = positions is None or (args.max_length is not None and args.max_length <= positions)
    if fits and args.packing:
        return
    if not fits and (args.packing or script_args.dataset_streaming):
        why = "packing fills rows of that length" if args.packing else "a stream cannot be counted"
        raise ConfigError(
            f"max_length: {args.max_length} exceeds the model's {positions} positions, and {why}: lower it"
        )
    for name, split in (
        ("train_dataset", script_args.dataset_train_split),
        ("eval_dataset", script_args.dataset_test_split),
    ):
        dataset = getattr(trainer, name)
        if dataset is None:
            continue
        where = f"split '{split}'"
        kept, lines = without_overlong_sequences(dataset, "input_ids", positions, args.max_length, where)
        setattr(trainer, name, kept)
        given = getattr(data[split], "num_rows", None)
        if given is not None and getattr(dataset, "num_rows", given) < given:
            masked = given - dataset.num_rows
            lines.append(
                f"{where}: {masked:,} of {given:,} rows have no token to train on within max_length "
                f"({args.max_length}) and are left out"
            )
        for line in lines:
            trainer.accelerator.print(line)


def check_data(
    script_args: SFTScriptArguments, training_args: SFTConfig, model_args: ModelConfig, rows: int | None = None
) -> None:
    """Raise [`ConfigError`] for data that cannot be trained on; arguments as for [`load_data`]."""
    data = load_data(script_args, training_args, rows)
    name = script_args.dataset_name or "distributions"
    parts = {f"{name}, split '{split}'": data[split] for split in wanted_splits(script_args, training_args)}
    check_readable(parts, training_args.chat_template_path, model_args)


def main(script_args: SFTScriptArguments, training_args: SFTConfig, model_args: ModelConfig) -> None:
    """Train, and save the model and its tokenizer in `training_args.output_dir`."""
    from trl import get_peft_config, get_quantization_config

    from metatune.recipes.callbacks import MetricsLog
    from metatune.trainers.sft_trainer import SFTTrainer

    check(script_args, training_args, model_args)
    check_world_size()
    recipe = begin_run(script_args, training_args, model_args)
    shard_small_parameters(training_args)
    tokenizer = None if script_args.tokenizer is None else load_tokenizer(script_args.tokenizer)
    if script_args.model_fields is not None:
        model = init_model(script_args.model_fields, tokenizer, model_args.dtype, training_args.seed)
    else:
        model = model_to_load(model_args)
        training_args.model_init_kwargs = model_init_kwargs(training_args, model_args)
    data = load_data(script_args, training_args)
    name = script_args.dataset_name or "distributions"
    parts = {f"{name}, split '{split}'": data[split] for split in wanted_splits(script_args, training_args)}
    tokenizer = processor_for(parts, training_args, model_args, tokenizer)
    if script_args.length_buckets:
        split = script_args.dataset_train_split
        batch_size = training_args.train_batch_size * training_args.world_size
        columns = columns_of(data[split], training_args.dataset_text_field)
        data[split] = in_length_buckets(data[split], columns, batch_size, training_args.seed)
        training_args.train_sampling_strategy = "sequential"
    hold_folder(training_args.output_dir)
    with refusals_in_one_line():
        trainer = SFTTrainer(
            model=model,
            args=training_args,
            train_dataset=data[script_args.dataset_train_split],
            eval_dataset=data[script_args.dataset_test_split] if training_args.eval_strategy != "no" else None,
            processing_class=tokenizer,
            callbacks=[MetricsLog()],
            quantization_config=get_quantization_config(model_args),
            peft_config=get_peft_config(model_args),
        )
    record_base(trainer.model, model_args)
    leave_out_overlong(trainer, data, script_args)
    if trainer.is_world_process_zero():
        record_column(data[script_args.dataset_train_split], training_args.output_dir)
    train_and_save(trainer, recipe, checkpoint_to_resume(training_args), dataset_names(script_args))


def make_parser(prog: str | None = None) -> StrictParser:
    """Return the parser of this recipe's options."""
    return StrictParser((SFTScriptArguments, SFTConfig, ModelConfig), prog=prog)


if __name__ == "__main__":
    run(make_parser, main)
