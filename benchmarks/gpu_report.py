"""What the parts of `gpu.py` share: rows that are written as soon as they are known, tasks, options of a run."""

import argparse
import json
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PRECISIONS = {"float32": False, "bf16": True}  # bf16: autocast of float32 weights, with gradient checkpointing
TASKS = [
    {"name": "search", "source": "countdown", "config": {"numbers": 3, "operators": "+-"}},
    {"name": "sums", "source": "arithmetic", "config": {"terms": 3}},
]


class Report:
    """Writes the rows of a part.

    Args:
        path (`Path`): JSONL; a row is `{name, ok, said}` or `{claim}`.
        seconds (`float`): what the part may take.
        quick (`bool`): whether the fewest repeats are wanted.
    """

    def __init__(self, path: Path, seconds: float, quick: bool):
        import torch

        self.path, self.quick, self.on_gpu = path, quick, torch.cuda.is_available()
        self._deadline = time.perf_counter() + seconds

    @property
    def seconds_left(self) -> float:
        return self._deadline - time.perf_counter()

    def row(self, name: str, said: str, ok: bool = True) -> None:
        self._write({"name": name, "ok": ok, "said": said})

    def claim(self, claim: str, value: Any, **more: Any) -> None:
        self._write({"claim": {"claim": claim, "value": value, **more}})

    @contextmanager
    def case(self, name: str) -> Iterator[Callable[[str], None]]:
        """A row that is ok unless the block raises; what the block says of it stands beside its seconds."""
        started, said = time.perf_counter(), []
        print(f"==== {name}", flush=True)
        try:
            yield said.append
        except Exception as error:
            traceback.print_exc()
            text = (str(error).strip().splitlines() or [""])[-1]
            self.row(name, f"{type(error).__name__}: {text[:300]}", ok=False)
        else:
            self.row(name, "; ".join([*said, f"{time.perf_counter() - started:.1f} s"]))

    def _write(self, row: dict) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row, default=lambda number: number.item()) + "\n")  # of numpy


def run_part(parts: dict[str, Callable[[Report, Path], None]]) -> None:
    """Run the part that the command line names, in a folder that is thrown away; SIGTERM ends it as an error does."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=parts)
    parser.add_argument("rows", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        parts[args.part](Report(args.rows, args.seconds, args.quick), Path(folder))


def training_options(folder: Path, half: bool, on_gpu: bool, **more: Any) -> dict[str, Any]:
    """Options of any trainer: three steps in float32, or as bf16 autocast with gradient checkpointing."""
    return {
        "output_dir": str(folder),
        "max_steps": 3,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": half,
        "gradient_checkpointing": half,
        "use_cpu": not on_gpu,
        **more,
    }


def pooled(train_size: int = 40, names: tuple[str, ...] = ("search", "sums")):
    """Return the training sets of the tasks as one, and the held-out ones as another."""
    from datasets import concatenate_datasets

    from metatune.curricula import load_distributions

    wanted = [{**task, "train_size": train_size, "test_size": 8} for task in TASKS if task["name"] in names]
    found = load_distributions(wanted)
    return concatenate_datasets([each.train for each in found]), concatenate_datasets([each.test for each in found])
