"""What TRL leaves out of a checkpoint and an exact resume needs.

`GRPOTrainer` restarts its micro-step counter at 0 on resume and does not save the rollouts that are waiting to be
trained on, so a checkpoint taken inside a generation block replays the wrong slices. Here both are kept, beside a JSON
object for whatever else steers the run (the curriculum, the item cycles). Every file is written under a temporary name
and then moved into place.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .whole_checkpoints import MARK

# Processes on a CPU call their device `cpu:0`, `Trainer` loads the optimizer onto it, and torch knows only `cpu`.
torch.serialization.register_package(
    100, lambda storage: None, lambda storage, location: storage if location.startswith("cpu:") else None
)

STATE_NAME = "metatune_state.json"
SCALARS = "scalars"


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Write the run's JSON state into a checkpoint folder, atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{STATE_NAME}.tmp"
    temporary.write_text(json.dumps(state, allow_nan=False))
    temporary.replace(folder / STATE_NAME)


def read_state(folder: Path) -> dict[str, Any]:
    """Read the run's JSON state from a checkpoint folder.

    Raises:
        FileNotFoundError: if the checkpoint was not written by a metatune trainer.
    """
    path = folder / STATE_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: {folder} was not written by a metatune trainer, or not completely. Resume from "
            "another checkpoint, or start a new run from its weights with model_name_or_path"
        )
    return json.loads(path.read_text())


def _buffer_path(folder: Path, rank: int) -> Path:
    return folder / f"rollouts_{rank}.safetensors"


def write_rollouts(folder: Path, rank: int, batches: Sequence[dict[str, Any]]) -> None:
    """Write one rank's waiting rollouts: the list of micro-batches that `GRPOTrainer` keeps between steps.

    Args:
        folder (`Path`): the checkpoint folder.
        rank (`int`): the process index.
        batches (`Sequence[dict]`): per micro-batch, name to tensor, number or `None`.

    Raises:
        TypeError: if a batch holds something else (image inputs), which cannot be resumed inside a generation block.
    """
    tensors: dict[str, torch.Tensor] = {}
    scalars: list[dict[str, int | float | None]] = []
    for index, batch in enumerate(batches):
        scalars.append({})
        for name, value in batch.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}/{name}"] = value.detach().cpu().contiguous().clone()
            elif value is None or isinstance(value, int | float):
                scalars[-1][name] = value
            else:
                raise TypeError(
                    f"rollouts hold {name!r} of type {type(value).__name__}, which a checkpoint inside a generation "
                    "block cannot keep: set save_steps to a multiple of the optimizer steps per generation"
                )
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".rollouts_{rank}.tmp"
    save_file(tensors, temporary, metadata={SCALARS: json.dumps(scalars)})
    temporary.replace(_buffer_path(folder, rank))


def read_rollouts(folder: Path, rank: int, device: torch.device) -> list[dict[str, Any]]:
    """Read what `write_rollouts` wrote for this rank, onto `device`."""
    with safe_open(_buffer_path(folder, rank), framework="pt") as file:
        batches = json.loads(file.metadata()[SCALARS])
        for key in file.keys():  # noqa: SIM118, a safetensors file is no dict
            index, name = key.split("/", 1)
            # safetensors itself does not know `cpu:0`, which is what processes on a CPU call their device
            batches[int(index)][name] = file.get_tensor(key).to(device)
    return batches


def last_complete_checkpoint(output_dir: Path) -> Path | None:
    """Return the newest checkpoint of a run that was written to its end, or `None`.

    A run killed while it saves leaves a folder without the files that are written last; such a folder is passed over.
    """
    folders = {
        int(step): folder
        for folder in output_dir.glob("checkpoint-*")
        if (step := folder.name.removeprefix("checkpoint-")).isdecimal()  # checkpoint-best-9 is no step of the run
    }
    return next((folders[step] for step in sorted(folders, reverse=True) if _is_complete(folders[step])), None)


def _is_complete(folder: Path) -> bool:
    try:
        json.loads((folder / MARK).read_text())
        world_size = read_state(folder)["world_size"]
    except (OSError, ValueError, KeyError):
        return False
    ranks = range(world_size)
    random_states = ["rng_state.pth"] if world_size == 1 else [f"rng_state_{rank}.pth" for rank in ranks]
    return all((folder / name).is_file() for name in random_states)
