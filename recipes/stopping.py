"""How a command ends when it is asked to stop by SIGTERM, SIGINT or SIGHUP, or when its launcher dies.

A signal raises [`Stopped`] in the main thread. While something is unfinished that a checkpoint would keep (a training
step, a save), it is only remembered, and whoever finishes that raises it ([`Stopper.finish_first`]). Either way the
process ends within [`grace`] seconds, and at once on a second SIGINT. No process that it started outlives it.
"""

import atexit
import ctypes
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import psutil

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LAUNCHED = "METATUNE_LAUNCHED"  # the launcher's process id, set by `metatune` for the processes it starts
GRACE = "METATUNE_GRACE_SECONDS"
DEFAULT_GRACE = 25.0  # with MARGIN the 30 s after which torchrun and Slurm (KillWait) send SIGKILL
MARGIN = 5.0  # seconds that a launcher waits longer than the processes it started
LOOPS = ("star", "metarm", "strength")  # they keep finished parts in place of checkpoints
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


class Stopped(BaseException):
    """The process was asked to stop. Not an `Exception`, so that code that handles errors lets it pass."""

    def __init__(self, number: int):
        super().__init__(number)
        self.signal = signal.Signals(number)

    @property
    def code(self) -> int:
        """The exit code of a process that this signal ended."""
        return 128 + self.signal


def grace() -> float:
    """Return the seconds that a process has to finish a step and its checkpoint."""
    try:
        return max(0.0, float(os.environ[GRACE]))
    except (KeyError, ValueError):
        return DEFAULT_GRACE


class Stopper:
    """What this process knows about being asked to stop; there is one, as there is one handler for a signal.

    Attributes:
        signal (`signal.Signals`, *optional*): the signal that asked, if any.
        finish_first (`bool`): whether something is unfinished that must not be cut off.
        limit (`float`, *optional*): seconds until the process ends whatever it does; [`grace`] by default.
        command (`list[str]`): the command line after `metatune`, as far as this process has it.
        output_dir (`str`, *optional*): where the run writes.
        resumes (`bool`): whether the command takes `resume_from_checkpoint`.
        launcher (`int`, *optional*): the process id of the launcher, with which this process ends.
    """

    def __init__(self):
        self.signal: signal.Signals | None = None
        self.finish_first = False
        self.limit: float | None = None
        self.command: list[str] = []
        self.output_dir: str | None = None
        self.resumes = False
        self.launcher: int | None = None

    def listen(self) -> None:
        """Take the signals from here on, except those that are ignored, as under `nohup`."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._take)
        os.register_at_fork(after_in_child=restore_signals)

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Finish the block before a signal takes effect.

        Raises:
            Stopped: at the end of the block, if a signal has come.
        """
        self.finish_first = True
        try:
            yield
        finally:
            self.finish_first = False
        self.check()

    def check(self) -> None:
        """Raise [`Stopped`] if a signal has come."""
        if self.signal is not None:
            raise Stopped(self.signal)

    def describe(self) -> str:
        """Return the last line of a stopped command: the last complete checkpoint, and how to resume."""
        died = self.launcher is not None and os.getppid() != self.launcher
        name = (self.signal or signal.SIGTERM).name
        line = f"stopped, because its launcher (process {self.launcher}) died" if died else f"stopped by {name}"
        if not self.resumes or self.output_dir is None:
            return line
        from ..trainers.whole_checkpoints import last_whole_checkpoint

        last = last_whole_checkpoint(Path(self.output_dir))
        if self.command[:1] and self.command[0] in LOOPS:
            line += f"; {self.output_dir} keeps what was finished"
        else:
            line += f"; last complete checkpoint: {last}" if last else f"; no complete checkpoint in {self.output_dir}"
        return f"{line}; resume: {resume_command(self.command)}"

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            if number == signal.SIGINT:  # a second Ctrl-C
                self._end()
            return
        self.signal = signal.Signals(number)
        limit = grace() if self.limit is None else self.limit
        timer = threading.Timer(limit, self._end)
        timer.daemon = True
        timer.start()
        if not self.finish_first:
            raise Stopped(number)
        if reports():
            name = self.signal.name
            _write(f"\nmetatune: {name}: stopping after this step and its checkpoint, within {limit:.0f} s")

    def _end(self) -> NoReturn:
        """End the process from any thread, whatever it does."""
        end_children(0)
        if reports() and not launcher_reports():
            _write(f"metatune: {self.describe()}")
        os._exit(128 + (self.signal or signal.SIGTERM))


STOPPER = Stopper()


def resume_command(command: Sequence[str]) -> str:
    """Return the command line that resumes what `metatune COMMAND …` has begun."""
    option = "--resume_from_checkpoint"
    if not command:
        return f"the same command with {option} true"
    kept, skip = [], False
    for word in command:
        if not skip and not word.startswith(f"{option}="):
            skip = word == option
            kept += [] if skip else [word]
        else:
            skip = False
    return shlex.join(["metatune", *kept, option, "true"])


def restore_signals() -> None:
    """Give a forked process, such as a worker of a data loader, the signals' usual effect."""
    STOPPER.signal, STOPPER.finish_first = None, False
    for number in SIGNALS:
        if signal.getsignal(number) == STOPPER._take:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies, so that [`end_children`] finds it."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def follow_launcher() -> None:
    """Get a SIGTERM when the launcher dies: `metatune`, `accelerate launch` or torchrun.

    A process that was started by anything else, such as a shell, does not end with it.

    Raises:
        Stopped: if `metatune` is dead already.
    """
    ours = os.environ.get(LAUNCHED)
    if ours is None and not {"TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"} & os.environ.keys():
        return
    STOPPER.launcher = os.getppid() if ours is None else int(ours)
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != STOPPER.launcher:
        STOPPER.signal = signal.SIGTERM
        raise Stopped(signal.SIGTERM)


def reports() -> bool:
    """Return whether this process is the one of several that prints what concerns them all."""
    return os.environ.get("RANK", "0") == "0"


def launcher_reports() -> bool:
    """Return whether `metatune` has started this process, lives, and prints how it ended."""
    return os.environ.get(LAUNCHED) == str(os.getppid())


def children() -> set["psutil.Process"]:
    """Return every process that descends from this one, except those that end by themselves once it has ended."""
    import psutil

    found = set()
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            # multiprocessing's tracker removes what the others leave in shared memory
            if not any("multiprocessing.resource_tracker" in word for word in child.cmdline()):
                found.add(child)
    return found


def end_children(seconds: float = 3.0, keep: "set[psutil.Process] | None" = None) -> None:
    """End every process that descends from this one: by SIGTERM, and after `seconds` by SIGKILL.

    Args:
        seconds (`float`, *optional*, defaults to `3.0`): how long to wait; 0 sends SIGKILL at once.
        keep (`set[psutil.Process]`, *optional*): those to leave alone.
    """
    import psutil

    pending = list(children() - (keep or set()))
    for send in [psutil.Process.terminate] * (seconds > 0) + [psutil.Process.kill]:
        for child in pending:
            with suppress(psutil.Error):
                send(child)
        _, pending = psutil.wait_procs(pending, timeout=seconds or 1)


def finish_and_exit(code: int) -> NoReturn:
    """Run what was registered to run at exit, end what this process started, and exit without a teardown."""
    atexit._run_exitfuncs()  # of loggers and trackers
    if STOPPER.signal is not None:
        end_children()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _write(line: str) -> None:
    """Write a line to stderr past Python's buffers, which the interrupted code may be writing to."""
    with suppress(OSError):
        os.write(2, f"{line}\n".encode())
