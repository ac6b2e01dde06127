"""The built-in procedural families by name."""

from .arithmetic import Arithmetic
from .countdown import Countdown
from .logic import Logic
from .problem import Family

FAMILIES: dict[str, type[Family]] = {"arithmetic": Arithmetic, "countdown": Countdown, "logic": Logic}
