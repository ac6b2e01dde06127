"""Evaluation: benchmarks, engines, accuracy with intervals, before against after, pictures and the report.

All but the saved evaluations is loaded when used: an engine brings torch and transformers, a picture matplotlib.
"""

from typing import TYPE_CHECKING, Any

from .evaluation import Completion, Evaluation, compare

if TYPE_CHECKING:
    from .benchmarks import load_benchmark, load_held_out
    from .best_of_n import best_of_n_curve
    from .budget_comparison import compare_at_budgets, write_comparison
    from .budget_evaluation import BudgetEvaluation
    from .engines import CompactEngine, Engine, Sampling, load_engine
    from .report import write_report
    from .scoring import evaluate
    from .statistics import Interval, bootstrap_mean, majority_at_k, paired_bootstrap_difference, pass_at_k
    from .test_time import MeasuredTraces, evaluate_at_budgets

_LAZY = {
    "BudgetEvaluation": "budget_evaluation",
    "CompactEngine": "engines",
    "Engine": "engines",
    "Interval": "statistics",
    "MeasuredTraces": "test_time",
    "Sampling": "engines",
    "best_of_n_curve": "best_of_n",
    "bootstrap_mean": "statistics",
    "compare_at_budgets": "budget_comparison",
    "evaluate": "scoring",
    "evaluate_at_budgets": "test_time",
    "load_benchmark": "benchmarks",
    "load_engine": "engines",
    "load_held_out": "benchmarks",
    "majority_at_k": "statistics",
    "paired_bootstrap_difference": "statistics",
    "pass_at_k": "statistics",
    "write_comparison": "budget_comparison",
    "write_report": "report",
}
__all__ = [
    "BudgetEvaluation",
    "CompactEngine",
    "Completion",
    "Engine",
    "Evaluation",
    "Interval",
    "MeasuredTraces",
    "Sampling",
    "best_of_n_curve",
    "bootstrap_mean",
    "compare",
    "compare_at_budgets",
    "evaluate",
    "evaluate_at_budgets",
    "load_benchmark",
    "load_engine",
    "load_held_out",
    "majority_at_k",
    "paired_bootstrap_difference",
    "pass_at_k",
    "write_comparison",
    "write_report",
]

if not TYPE_CHECKING:  # a type checker would take any name for one of ours

    def __getattr__(name: str) -> Any:
        from importlib import import_module

        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
