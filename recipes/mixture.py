"""`datasets:` in a recipe: a mixture of datasets, as in TRL's commands."""

from dataclasses import dataclass, field
from typing import Any

from trl import DatasetMixtureConfig, ScriptArguments
from trl.scripts.utils import DatasetConfig

from .config import ConfigError
from .conform import conform
from .data import load_splits

SPLIT_SEED = 0  # fixed, so that every process and every run holds out the same rows


@dataclass
class SourceArguments(ScriptArguments):
    """
    The source of the rows: TRL's `dataset_name` and related options, or a mixture.

    Args:
        datasets (`list[dict]`, *optional*):
            Datasets to concatenate, each `{path, name, data_dir, data_files, split, columns, fraction}`.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether to stream `datasets`.
        test_split_size (`float`, *optional*):
            Share or number of the rows of `datasets` that become the split `test`.
    """

    datasets: list[dict] | None = field(
        default=None, metadata={"help": "Datasets to concatenate: {path, name, split, columns, …}. YAML only."}
    )
    streaming: bool = field(default=False, metadata={"help": "Stream `datasets`."})
    test_split_size: float | None = field(
        default=None, metadata={"help": "Share or number of the rows of `datasets` to hold out as the split test."}
    )

    def __post_init__(self):
        for number, entry in enumerate(self.datasets or []):
            try:
                DatasetConfig(**conform(entry, DatasetConfig))
            except (ValueError, TypeError) as error:  # TypeError: no path
                raise ValueError(
                    f"datasets[{number}]: {str(error).removeprefix('DatasetConfig.__init__() ')}"
                ) from None
        for name in ("streaming", "test_split_size"):
            if getattr(self, name) and not self.datasets:
                hint = "; for dataset_name, set dataset_streaming" if name == "streaming" else ""
                raise ValueError(f"`{name}` requires `datasets`{hint}")

    @property
    def is_stream(self) -> bool:
        """Whether rows are read during training."""
        return self.streaming or self.dataset_streaming


def source_name(script_args: ScriptArguments) -> str:
    """Return the name of the rows in errors."""
    return script_args.dataset_name or "datasets"


def load_source(script_args: ScriptArguments, rows: int | None = None) -> tuple[Any, str]:
    """Return the splits of `dataset_name` or `datasets`, and their name in errors.

    Args:
        script_args ([`~trl.ScriptArguments`]): without a field `datasets` for a command that has no mixtures.
        rows (`int`, *optional*): read only the first rows of each split of `dataset_name`.

    Raises [`ConfigError`] for what cannot be read.
    """
    name = source_name(script_args)
    if not isinstance(script_args, SourceArguments) or not script_args.datasets:
        split, config = script_args.dataset_train_split, script_args.dataset_config
        return load_splits(name, "dataset_name", split, config, script_args.dataset_streaming, rows), name
    import datasets
    from trl import get_dataset

    entries = [DatasetConfig(**entry) for entry in script_args.datasets]
    try:
        splits = get_dataset(DatasetMixtureConfig(entries, streaming=script_args.streaming))
        if script_args.test_split_size is not None:
            size = script_args.test_split_size
            splits = splits["train"].train_test_split(int(size) if size >= 1 else size, seed=SPLIT_SEED)
    except (OSError, ValueError, AttributeError, datasets.exceptions.DatasetGenerationError) as error:
        cause = error.__cause__ or error
        raise ConfigError(f"datasets: {' '.join(str(cause).split())}") from error
    return splits, name
