"""How a run ends that cannot go on: the cause in one line, the last one on stderr.

A process writes its error into the file that torchrun gives it ([`record`]); the launcher reads the errors of all
processes and tells the one that the others followed from ([`cause_of`]). A process without such a launcher tells it
itself ([`tell`]).
"""

import errno
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from .stopping import SIGNALS, STOPPER, finish_and_exit, launcher_reports

STOPPED = {128 + number for number in SIGNALS}  # exit codes of processes that a signal stopped
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FULL_TEXTS = ("os error 28)", "os error 122)", "os error 27)")  # the same errors as safetensors writes them
TORN_TEXTS = ("PytorchStreamWriter failed", "unexpected pos")  # torch.save, for whatever reason it could not write
LOST_PEER_TEXTS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "DistBackendError")


def close_progress_bars() -> None:
    """Close the progress bars, so that the next output starts on a new line."""
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        for bar in list(tqdm._instances):
            bar.close()


def tell(message: str, kind: str = "error: ") -> None:
    """Print the cause that ended the command on stderr, as one line."""
    close_progress_bars()
    print(f"metatune: {kind}{' '.join(message.split())}", file=sys.stderr, flush=True)


class RecordedError(Exception):
    """An error's one line, as torchrun takes it."""


def record(message: str) -> bool:
    """Write this process's error for its launcher, and return whether that is `metatune`, which prints it."""
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return False
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(RecordedError(message))
    return launcher_reports()


def leave(code: int) -> NoReturn:
    """Exit; with several processes, with vLLM, or after a signal, skip the interpreter's teardown.

    DDP keeps gloo's threads alive, also past `destroy_process_group`, and vLLM its own; now and then one of them
    aborts the teardown: a run that had saved its model would end with SIGABRT.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and "vllm" not in sys.modules and STOPPER.signal is None:
        raise SystemExit(code)
    finish_and_exit(code)


def known_cause(error: BaseException, output_dir: str | None, resumes: bool = True) -> str | None:
    """Return one line for an error caused by a lost server, a full disk, a quota, a torn write or a NaN, else `None`.

    Args:
        error (`BaseException`): what ended the run; what it was raised from is looked at as well.
        output_dir (`str`, *optional*): where the run writes; the error itself does not always say.
        resumes (`bool`, *optional*, defaults to `True`): whether it is a run that can be gone on with.
    """
    from metatune.rewards.judge_client import JudgeError
    from metatune.rewards.reward_server import RewardServerError
    from metatune.trainers.finite_training import NonFiniteError
    from metatune.trainers.server_watch import VLLMServerError

    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:  # an error may have been raised from itself
        seen.append(cause)
        text = str(cause)
        if isinstance(cause, (RewardServerError, JudgeError)) and resumes and output_dir is not None:
            return f"{text}. {kept_so_far(output_dir)}"
        if isinstance(cause, (VLLMServerError, RewardServerError, JudgeError, NonFiniteError)):
            return text
        full = (isinstance(cause, OSError) and cause.errno in FULL) or any(part in text for part in FULL_TEXTS)
        if full or any(part in text for part in TORN_TEXTS):
            path = getattr(cause, "filename", None) or output_dir or "."
            above = [Path(path).absolute(), *Path(path).absolute().parents]
            folder = next(parent for parent in above if parent.is_dir())
            free = shutil.disk_usage(folder).free / 2**20
            said = "no space left" if full or free < 1 else "could not be written"
            mend = "make room, then run it again"
            if resumes:
                mend = (
                    "earlier checkpoints are whole; make room or set save_total_limit, then go on with "
                    "--resume_from_checkpoint true"
                )
            return f"{path}: {said} ({free:.0f} MiB free on that disk): {mend}"
        cause = cause.__cause__ or cause.__context__
    return None


def lost_peer(error: BaseException) -> bool:
    """Return whether an error only reports that another process died."""
    return any(part in f"{type(error).__name__} {error}" for part in LOST_PEER_TEXTS)


def kept_so_far(output_dir: str) -> str:
    """Return a sentence with the checkpoint that a run can be resumed from."""
    from metatune.trainers.whole_checkpoints import last_whole_checkpoint

    last = last_whole_checkpoint(Path(output_dir))
    return (
        "There is no checkpoint yet: a resumed run starts from the beginning"
        if last is None
        else f"The last complete checkpoint is {last}"
    )


def cause_of(failures: Mapping[int, Any]) -> tuple[int, Any]:
    """Choose among the processes that failed the one that the others followed from.

    Args:
        failures (`Mapping[int, ProcessFailure]`): torchrun's record of each failed process, by rank.

    Returns:
        `tuple[int, ProcessFailure]`: a process killed by a signal comes before one that failed by itself, then one
        ended by SIGTERM, as torchrun ends the others, and one that only lost its connection to another comes last.
    """

    def order(rank: int) -> tuple:
        failure = failures[rank]
        if any(part in one_line(failure.message) for part in LOST_PEER_TEXTS):
            kind = 3
        elif failure.exitcode == -signal.SIGTERM or failure.exitcode in STOPPED:
            kind = 2
        else:
            kind = 0 if failure.exitcode < 0 else 1
        return kind, failure.timestamp, rank

    rank = min(failures, key=order)
    return rank, failures[rank]


def one_line(message: str | dict) -> str:
    """Return what a process recorded, as one line of at most 800 characters."""
    text = message["message"] if isinstance(message, dict) else message
    return " ".join(text.removeprefix(f"{RecordedError.__name__}: ").split())[:800]


def describe_exit(code: int, message: str | dict, process: str) -> str:
    """Return the line for a process that failed.

    Args:
        code (`int`): its exit code; negative for a signal.
        message (`str` or `dict`): what it recorded.
        process (`str`): what to call it.
    """
    if code < 0:
        name = signal.Signals(-code).name
        likely = ", most likely because memory ran out (see dmesg)" if -code == signal.SIGKILL else ""
        return f"{process} was killed ({name}){likely}; go on from the last checkpoint: --resume_from_checkpoint true"
    return f"{process} failed (exit code {code}): {one_line(message)}"
