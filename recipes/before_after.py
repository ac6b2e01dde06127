"""The evaluations before and after training in a run's folder, for `metatune eval --into` and the quickstart."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metatune.recipes.config import ConfigError, read_recipe

if TYPE_CHECKING:
    from metatune.recipes.evaluate import EvaluateArguments

MEASURED = {"generated_tokens": "tokens", "seconds": "seconds"}  # costs of both evaluations: `evaluation_…`


def base_of(run: str) -> str:
    """Return the initial model of a run, as specified in its `recipe.yaml`.

    Raises:
        ConfigError: if `run` has no recipe, or its recipe does not set a model.
    """
    path = Path(run) / "recipe.yaml"
    if not path.is_file():
        raise ConfigError(f"into: {path}: no such file; name the output_dir of a run")
    base = read_recipe(str(path)).values.get("model_name_or_path")
    if base is None:
        raise ConfigError(
            f"into: {path} does not set model_name_or_path, the model before training: specify it with --before"
        )
    return str(base)


def evaluate_side(args: "EvaluateArguments", side: str, model: str) -> dict[str, Any]:
    """Evaluate a model into the folder `before` or `after` of the run that `args.into` names; returns the summary."""
    from metatune.recipes.adapters import folder_of
    from metatune.recipes.evaluate import evaluate_items
    from metatune.recipes.rounds import empty_accelerator_cache

    args = copy.copy(args)
    args.model, args.output_dir = folder_of(model), str(Path(str(args.into)) / side)
    summary = evaluate_items(args)
    empty_accelerator_cache()
    return summary


def write_comparison(folder: Path, **facts: Any) -> dict[str, Any]:
    """Compare `before/` and `after/` of a run, and write `summary.json` beside them.

    Args:
        folder (`Path`): the run's.
        facts: additional values for the file, such as the cost of training.

    Returns:
        `dict`: the content of the file.
    """
    from metatune.eval.evaluation import Evaluation, compare
    from metatune.eval.files import write_json

    summary = compare(*(Evaluation.load(folder / side) for side in ("before", "after")))
    summary |= {f"evaluation_{what}": summary.pop(key) for key, what in MEASURED.items()}
    summary |= facts
    write_json(folder / "summary.json", summary)
    return summary


def in_one_line(summary: dict[str, Any]) -> str:
    """Describe how the held-out accuracy changed."""
    return (
        f"Held-out accuracy {summary['accuracy_before']:.3f} -> {summary['accuracy_after']:.3f} "
        f"({summary['difference']:+.3f}, 95 % interval [{summary['ci_low']:.3f}, {summary['ci_high']:.3f}])"
    )


def evaluate_into(args: "EvaluateArguments") -> None:
    """Evaluate before and after training, print both tables and the difference, and save all in the run's folder."""
    from metatune.recipes.evaluate import show_summary

    for side, model in (("before", str(args.before)), ("after", str(args.model))):
        print(f"{side.capitalize()} training: {model}")
        show_summary(evaluate_side(args, side, model))
    print(f"{in_one_line(write_comparison(Path(str(args.into))))}.")
    print(f"Saved to {args.into}; metatune report {args.into} shows it")
