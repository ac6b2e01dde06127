"""Task distributions, and curricula that choose among them."""

from .curriculum import CURRICULA, Curriculum, make_curriculum
from .distributions import COLUMNS, Distribution, check_verified, demonstrations, load_distributions
from .families import FAMILIES
from .heuristic import EasyToHardCurriculum, PoolsCurriculum, UniformCurriculum
from .item_cycle import ItemCycle
from .learnability import LearnabilityCurriculum
from .problem import HELD_OUT_FRACTION, Family, Problem, is_held_out
from .sec import SECCurriculum
from .tokenizer import build_tokenizer
from .ucb import UCBCurriculum

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
    "PoolsCurriculum",
    "Problem",
    "SECCurriculum",
    "UCBCurriculum",
    "UniformCurriculum",
    "build_tokenizer",
    "check_verified",
    "demonstrations",
    "is_held_out",
    "load_distributions",
    "make_curriculum",
]
