"""Whether a part of a command fits the machine that it is meant for."""

from dataclasses import dataclass

from .memory import Estimate, estimate
from .phases import Phase
from .target import Hardware


@dataclass(frozen=True)
class Verdict:
    """An estimate beside what there is, in bytes.

    Args:
        estimate (`Estimate`): of one process.
        needed (`int`): of a GPU, or of the machine's memory by all of its processes.
        available (`int`): what there is of it.
        host_needed (`int`): of the machine's own memory, beside GPUs, by what is offloaded.
        host_available (`int`, *optional*): what there is of it, `None` if nobody said.
    """

    estimate: Estimate
    needed: int
    available: int
    host_needed: int
    host_available: int | None

    @property
    def fits(self) -> bool:
        """Whether there is enough of both memories; what nobody said is not compared."""
        host = self.host_available is None or self.host_needed <= self.host_available
        return self.needed <= self.available and host


def verdict_of(phase: Phase, hardware: Hardware, on_gpu: bool) -> Verdict:
    """Estimate a phase and compare: with one GPU, or with the memory that the processes of a machine share."""
    needs, per_machine = estimate(phase.shape, phase.work), phase.launch.processes_per_machine
    if on_gpu:
        return Verdict(needs, needs.peak, hardware.gpu_memory, needs.host * per_machine, hardware.memory)
    return Verdict(needs, (needs.peak + needs.host) * per_machine, hardware.memory or 0, 0, None)
