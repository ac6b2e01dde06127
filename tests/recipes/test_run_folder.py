"""What a process of several must not free before it ends."""

import gc
import weakref

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from metatune.recipes import run_folder


class Trained:
    """A trainer, as far as it holds a model."""

    def __init__(self):
        self.model = DistributedDataParallel(torch.nn.Linear(2, 2))


def test_a_trainer_of_several_processes_outlives_its_group(monkeypatch):
    """Seen in one of about twenty runs with DDP: the trainer was freed, which waited for gloo for ever."""
    monkeypatch.setattr(run_folder, "_HELD", [])
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        trainer = Trained()
        seen = weakref.ref(trainer)
        run_folder.hold_until_exit(trainer)
    finally:
        dist.destroy_process_group()
    del trainer
    gc.collect()
    assert seen() is not None


def test_a_trainer_of_one_process_is_freed():
    trainer = torch.nn.Linear(2, 2)
    seen = weakref.ref(trainer)
    run_folder.hold_until_exit(trainer)
    del trainer
    assert seen() is None
