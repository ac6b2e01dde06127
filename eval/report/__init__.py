"""The page of a run: what its folder holds, read, drawn and written."""

from .page import write_report
from .run import Run, read_run
from .times import time_spent

__all__ = ["Run", "read_run", "time_spent", "write_report"]
