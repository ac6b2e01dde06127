"""What TRL leaves out of a checkpoint and an exact resume needs.

`GRPOTrainer` restarts its micro-step counter at 0 on resume and does not save the rollouts that are waiting to be
trained on, so a checkpoint taken inside a generation block replays the wrong slices. Here both are kept, beside a JSON
object for whatever else steers the run (the curriculum, the item cycles). Every file is written under a temporary name
and then moved into place. `ExactResume` does it for a trainer, the functions are what it does it with.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .whole_checkpoints import WholeCheckpoints

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


class ExactResume(WholeCheckpoints):
    """Lets a resumed GRPO trainer be the run that was never stopped; mixed in before `GRPOTrainer`.

    Raises:
        ValueError: on a resume with `sync_ref_model`; on one inside a generation block by another number of processes,
            or with another division of the block.
    """

    args: Any
    num_iterations: int
    use_adaptive_entropy: bool
    entropy_coef: float
    _last_world_entropy: float
    _step: int  # micro-batches trained on
    _buffered_inputs: Any  # a generation batch, in micro-batches

    def _save_beside(self, folder):
        super()._save_beside(folder)
        waiting = bool(self._step % (self.args.steps_per_generation * self.num_iterations))
        if waiting:
            write_rollouts(folder, self.accelerator.process_index, self._buffered_inputs)
        if self.args.should_save:
            write_state(folder, self._run_state() | {"rollouts_waiting": waiting})

    def _run_state(self) -> dict[str, Any]:
        """Return what steers the run beside what `Trainer` keeps, as JSON. Called by the main process alone."""
        return {
            "world_size": self.accelerator.num_processes,
            "micro_step": self._step,
            # TRL's own file of these comes after the mark of a whole checkpoint
            "entropy": [self.entropy_coef, self._last_world_entropy] if self.use_adaptive_entropy else None,
        }

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        state = read_state(folder)
        if self.args.sync_ref_model:
            raise ValueError(
                f"{folder} does not hold the reference model that sync_ref_model moves, and the run would go back to "
                "the first: start a new run from its weights with model_name_or_path, or set sync_ref_model to false"
            )
        world_size = self.accelerator.num_processes
        if state["world_size"] != world_size and state["rollouts_waiting"]:
            raise ValueError(
                f"{folder} was saved inside a generation block by {state['world_size']} processes and cannot be "
                f"resumed by {world_size}: launch as many, or resume from a checkpoint at the end of a block"
            )
        self._load_run_state(state, folder)
        parts = self.args.steps_per_generation
        block = parts * self.num_iterations
        if not state["rollouts_waiting"]:  # a block begins, also where accumulation has changed with the processes
            self._step = -(-self._step // block) * block
            return
        self._buffered_inputs = read_rollouts(folder, self.accelerator.process_index, self.accelerator.device)
        if len(self._buffered_inputs) != parts or self._step % block == 0:
            raise ValueError(
                f"{folder} was saved inside a generation block, and its rollouts wait in {len(self._buffered_inputs)} "
                "parts: resume with the steps_per_generation and num_iterations that it was written with"
            )

    def _load_run_state(self, state: dict[str, Any], folder: Path) -> None:
        """Take up what `_run_state` returned when the checkpoint in `folder` was saved. Called by every process."""
        self._step = state["micro_step"]
        if self.use_adaptive_entropy and state.get("entropy"):
            self.entropy_coef, self._last_world_entropy = state["entropy"]
