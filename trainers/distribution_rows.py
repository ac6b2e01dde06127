"""Which rows of a training set belong to which distribution."""

from typing import Any

from accelerate.logging import get_logger
from datasets import IterableDataset

from .dump_config import DUMPConfig

logger = get_logger(__name__)


def rows_by_distribution(dataset: Any, args: DUMPConfig) -> dict[str, list[int]]:
    """Return each distribution's row numbers, in order of first appearance; none of a stream, which has no numbers.

    Without the column all rows are one distribution.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): the training set.
        args ([`DUMPConfig`]): the column and the curriculum.

    Raises:
        ValueError: if the options ask for a choice among distributions that `dataset` does not have or a stream
            cannot give, if a row has no distribution, or if there is no row.
    """
    column, columns = args.distribution_column, dataset.column_names or []
    named = column != DUMPConfig.distribution_column
    if isinstance(dataset, IterableDataset):
        if args.curriculum != "uniform" and (column in columns or asks_for_several(args)):
            raise ValueError(
                f"curriculum: {args.curriculum} draws rows by number, and the training set is a stream: load the "
                "dataset without streaming, or set curriculum: uniform, which takes the rows as they come"
            )
        return {"all": []}
    if column not in columns:
        if named or asks_for_several(args):
            raise ValueError(
                f"the training set has no column {column!r} to tell the distributions apart (columns: "
                f"{', '.join(columns)}): add it, or name another with distribution_column"
            )
        if args.curriculum != "uniform":
            logger.warning(
                f"The training set has no column {column!r}: its {len(dataset)} rows are one distribution, 'all', and "
                "the curriculum has nothing to choose. distribution_column names another column."
            )
        names = ["all"] * len(dataset)
    else:
        names = dataset[column]
    rows: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise ValueError(f"row {number} of the training set has the distribution {name!r}: give it a name")
        rows.setdefault(name, []).append(number)
    if not rows:
        raise ValueError("the training set is empty: no distribution has any item")
    return rows


def asks_for_several(args: DUMPConfig) -> bool:
    """Tell whether the options name a curriculum that one distribution would make pointless."""
    return args.curriculum not in ("uniform", DUMPConfig.curriculum) or bool(args.curriculum_options)
