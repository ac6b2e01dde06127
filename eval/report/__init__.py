"""The report of a run: read its folder, draw the charts, and write the page."""

from .page import write_report
from .run import Run, read_run
from .times import time_spent

__all__ = ["Run", "read_run", "time_spent", "write_report"]
