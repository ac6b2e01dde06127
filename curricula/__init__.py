"""Task distributions, and curricula that choose among them.

What brings a library with it (datasets, torch, transformers) is loaded when used: a curriculum needs none of them.
"""

from typing import TYPE_CHECKING, Any

from .curriculum import CURRICULA, Curriculum, make_curriculum
from .entry import MissingDataError
from .families import FAMILIES
from .heuristic import EasyToHardCurriculum, PoolsCurriculum, UniformCurriculum
from .learnability import LearnabilityCurriculum
from .problem import HELD_OUT_FRACTION, Family, Problem, is_held_out
from .sec import SECCurriculum
from .ucb import UCBCurriculum

if TYPE_CHECKING:
    from .distributions import (
        COLUMNS,
        Distribution,
        check_distributions,
        check_verified,
        demonstrations,
        load_distributions,
    )
    from .item_cycle import ItemCycle
    from .tokenizer import build_tokenizer

_LAZY = {
    "COLUMNS": "distributions",
    "Distribution": "distributions",
    "ItemCycle": "item_cycle",
    "build_tokenizer": "tokenizer",
    "check_distributions": "distributions",
    "check_verified": "distributions",
    "demonstrations": "distributions",
    "load_distributions": "distributions",
}
__all__ = [
    "COLUMNS",
    "CURRICULA",
    "FAMILIES",
    "HELD_OUT_FRACTION",
    "Curriculum",
    "Distribution",
    "EasyToHardCurriculum",
    "Family",
    "ItemCycle",
    "LearnabilityCurriculum",
    "MissingDataError",
    "PoolsCurriculum",
    "Problem",
    "SECCurriculum",
    "UCBCurriculum",
    "UniformCurriculum",
    "build_tokenizer",
    "check_distributions",
    "check_verified",
    "demonstrations",
    "is_held_out",
    "load_distributions",
    "make_curriculum",
]

if not TYPE_CHECKING:  # a type checker would take any name for one of ours

    def __getattr__(name: str) -> Any:
        from importlib import import_module

        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
