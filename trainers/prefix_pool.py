"""Stale traces to start from: one for each training row, as it was last sampled.

MRT's RL form continues from prefixes of traces of an earlier policy. Each visit of a row leaves one of its new traces
here for the next visit. All processes hold the same pool, because a group may lie on two of them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

FILE_NAME = "prefix_pool.safetensors"


class PrefixPool:
    """Token ids of one trace for each row that has been visited."""

    def __init__(self) -> None:
        self._traces: dict[int, torch.Tensor] = {}

    def __contains__(self, row: int) -> bool:
        return row in self._traces

    def put(self, traces: Mapping[int, Sequence[int]]) -> None:
        """Keep the trace of each row in place of its earlier one; empty traces are not kept."""
        for row, ids in traces.items():
            if len(ids):
                self._traces[row] = torch.tensor(ids, dtype=torch.int32)

    def get(self, row: int) -> list[int]:
        """Return the row's trace; empty if there is none."""
        return self._traces[row].tolist() if row in self._traces else []

    def longest(self) -> int:
        """Return the number of tokens of the longest trace; 0 if there are no traces."""
        return max(map(len, self._traces.values()), default=0)

    def save(self, folder: Path) -> None:
        """Write the pool into a checkpoint folder, atomically."""
        rows = list(self._traces)
        tensors = {
            "rows": torch.tensor(rows, dtype=torch.int64),
            "lengths": torch.tensor([len(self._traces[row]) for row in rows], dtype=torch.int64),
            "tokens": torch.cat([torch.zeros(0, dtype=torch.int32), *self._traces.values()]),
        }
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{FILE_NAME}.tmp"
        save_file(tensors, temporary)
        temporary.replace(folder / FILE_NAME)

    def load(self, folder: Path) -> None:
        """Read the pool from a checkpoint folder.

        Raises:
            FileNotFoundError: if the checkpoint was written without one.
        """
        path = folder / FILE_NAME
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: the checkpoint was not written with progress: prefix. Resume with the progress "
                "it was written with, or start a new run from its weights with model_name_or_path"
            )
        tensors = load_file(path)
        traces = tensors["tokens"].split(tensors["lengths"].tolist())
        self._traces = dict(zip(tensors["rows"].tolist(), (trace.clone() for trace in traces), strict=True))
