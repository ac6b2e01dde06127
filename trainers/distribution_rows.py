"""Map the rows of a training set to distributions."""

from typing import Any

from accelerate.logging import get_logger
from datasets import IterableDataset

from .dump_config import DUMPConfig

logger = get_logger(__name__)


def rows_by_distribution(dataset: Any, args: DUMPConfig) -> dict[str, list[int]]:
    """Return each distribution's row indices, in order of first appearance; empty for a stream, which has no indices.

    Without the column, all rows are one distribution.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): the training set.
        args ([`DUMPConfig`]): the column and the curriculum.

    Raises:
        ValueError: if the options need several distributions and `dataset` has none or is a stream, if a row has no
            distribution, or if there is no row.
    """
    column, columns = args.distribution_column, dataset.column_names or []
    named = column != DUMPConfig.distribution_column
    if isinstance(dataset, IterableDataset):
        if args.curriculum != "uniform" and (column in columns or asks_for_several(args)):
            raise ValueError(
                f"curriculum: {args.curriculum} draws rows by index, and the training set is a stream: load the "
                "dataset without streaming, or set curriculum: uniform, which uses the rows in their order"
            )
        return {"all": []}
    if column not in columns:
        if named or asks_for_several(args):
            raise ValueError(
                f"the training set has no column {column!r} with the distribution of each row (columns: "
                f"{', '.join(columns)}): add it, or set distribution_column"
            )
        if args.curriculum != "uniform":
            logger.warning(
                f"The training set has no column {column!r}: its {len(dataset)} rows are one distribution, 'all', and "
                "the curriculum has no choice. To use another column, set distribution_column."
            )
        names = ["all"] * len(dataset)
    else:
        names = dataset[column]
    rows: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise ValueError(
                f"row {number} of the training set has the distribution {name!r}: set it to a non-empty string"
            )
        rows.setdefault(name, []).append(number)
    if not rows:
        raise ValueError("the training set is empty: no distribution has any item")
    return rows


def asks_for_several(args: DUMPConfig) -> bool:
    """Return whether the options select a curriculum that needs several distributions."""
    return args.curriculum not in ("uniform", DUMPConfig.curriculum) or bool(args.curriculum_options)
