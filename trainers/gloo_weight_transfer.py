"""A vLLM weight-transfer engine over gloo, for trainers and servers that NCCL cannot connect.

vLLM sends a trainer's weights to a server by NCCL, which needs a GPU on both sides. Over gloo the same two run on
CPUs, or one on a CPU and one on a GPU. vLLM loads this module as a plugin (entry point `vllm.general_plugins`), so a
server is started with `--weight-transfer-config '{"backend": "gloo"}'`, or by `metatune vllm-serve`.

The trainer is rank 0 of the group and the server's workers follow. Each weight is announced by name, type and shape
over HTTP and then broadcast. Every step of it is bounded in time, so a dead peer is an error and never a hang.

vLLM's own helper for such a group hangs under torchrun, whose environment it reads: store and group are built here.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from .vllm_cpu import pack_tied_head

TIMEOUT = timedelta(seconds=90)
ENDS_TOGETHER = "METATUNE_ENDS_TOGETHER"  # the command `metatune` sets it


def register() -> None:
    """Make `gloo` a backend of vLLM's `--weight-transfer-config`; vLLM calls it in each of its processes."""
    if ENDS_TOGETHER in os.environ:
        end_with_parent()
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if "gloo" not in WeightTransferEngineFactory._registry:  # plugins may be loaded more than once
        WeightTransferEngineFactory.register_engine("gloo", GlooWeightTransferEngine)


def end_with_parent() -> None:
    """Make the kernel kill this process when its parent dies, which vLLM's engine does not detect."""
    parent = multiprocessing.parent_process()
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent.pid:
        os._exit(1)


def open_group(address: str, port: int, rank: int, world_size: int) -> torch.distributed.ProcessGroupGloo:
    """Join the group of trainer and workers; rank 0 hosts its store.

    Raises:
        RuntimeError: if the port is taken, or the others do not come within the time allowed.
    """
    store = torch.distributed.TCPStore(address, port, world_size, is_master=rank == 0, timeout=TIMEOUT)
    return torch.distributed.ProcessGroupGloo(store, rank, world_size, TIMEOUT)


def broadcast(group: torch.distributed.ProcessGroupGloo, tensor: torch.Tensor) -> None:
    """Send rank 0's `tensor`, on the CPU and contiguous, to all ranks, and wait for it."""
    options = torch.distributed.BroadcastOptions()
    options.rootRank = 0
    group.broadcast([tensor], options).wait()


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """Where the trainer waits for the workers, and how many there are with it."""

    master_address: str
    master_port: int
    world_size: int


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """The weights about to be broadcast, in their order."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


class GlooWeightTransferEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """Receives a trainer's weights on a vLLM worker."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo
    group = None

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        """Join the trainer's group; a new one replaces it, so a restarted trainer may come back."""
        parallel = self.parallel_config
        rank = 1 + parallel.data_parallel_index * parallel.world_size + parallel.rank
        self.group = open_group(init_info.master_address, init_info.master_port, rank, init_info.world_size)

    def start_weight_update(self) -> None:
        """Let vLLM take weights in their checkpoint form again."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        """Receive and load the announced weights, one after the other."""
        if self.group is None:
            raise RuntimeError("no trainer has opened a weight-transfer group yet")
        for name, dtype, shape in zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True):
            weight = torch.empty(shape, dtype=getattr(torch, dtype), device="cpu")
            broadcast(self.group, weight)
            self.model.load_weights([(name, weight.to(self.device))])

    def finish_weight_update(self) -> None:
        """Finish layers that wait for all of their weights."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        pack_tied_head(self.model)

    def shutdown(self) -> None:
        """Leave the group."""
        self.group = None
