"""Lock a run's folder, so that a requeued job waits for the process that still writes the last checkpoint."""

import fcntl
import os
import socket
import sys
import time
from pathlib import Path
from typing import IO

from .config import ConfigError
from .stopping import MARGIN, grace, reports

NAME = "_lock"  # the hub takes no file whose name begins with _

_held: dict[Path, IO[str]] = {}


def hold_folder(output_dir: str | None) -> None:
    """Lock a run's folder until this process ends. Of several processes, the first one does.

    If another run holds the lock, wait as long as a stopped run has to end. File systems without locks are ignored.

    Raises:
        ConfigError: if another run holds the lock for longer.
    """
    folder = Path(str(output_dir)).resolve()
    if not reports() or folder in _held:
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / NAME).open("a+")
    deadline = time.monotonic() + grace() + MARGIN
    waits = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            holder = (folder / NAME).read_text().strip()
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"output_dir: {output_dir} is in use by {holder}: stop it, wait until it ends, or set another "
                    "output_dir"
                ) from None
            if not waits:
                print(f"metatune: waiting for {holder}, which still writes to {output_dir}", file=sys.stderr)
            waits = True
            time.sleep(0.2)
        except OSError:
            break
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    _held[folder] = file
