"""Evaluation: benchmarks, engines, accuracy with intervals, before against after, pictures and the report."""

from .evaluation import Completion, Evaluation, compare

__all__ = ["Completion", "Evaluation", "compare"]
