"""The items of `metatune eval`, rendered with the chat template options of the model's training.

Items that do not fit the model's context length, and items that the run was trained on, are left out and counted: the
held-out part of another recipe, for instance with a larger `test_size`, may contain training items of the run.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metatune.eval.benchmarks import limited, load_benchmark, load_held_out
from metatune.rewards.rendering import Rendering

from .adapters import STARTER, Base
from .chat_template import Recorded, recipe_of, recorded, set_template
from .config import ConfigError, read_recipe
from .overlong import positions_of, without_overlong

Item = dict[str, Any]


def rendering_of(args: Any, tokenizer: Any) -> Rendering:
    """Return the rendering of the prompts, print the options from a recipe, and set `args.system`.

    The command line takes precedence, then the run that the model's folder belongs to, then the recipe with the tasks.
    A model without a chat template uses the recipe's.

    Args:
        args (`EvaluateArguments`): the model, the tasks, `system` and `chat_template_kwargs` are read.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the model's.
    """
    own = own_recipe(args.into or args.model)  # also for the model before training, so that both get the same prompts
    path = own or args.recipe
    found = Recorded("", {}, None, None) if path is None else recorded(path)
    if not tokenizer.chat_template:
        set_template(tokenizer, found.template)
    said = []
    if args.chat_template_kwargs is None and found.chat_template_kwargs:
        said.append(f"chat_template_kwargs {found.chat_template_kwargs}")
    if args.benchmark is not None and args.system is None and found.system is not None:
        args.system = found.system
        said.append(f"the system message {found.system[:60]!r}")
    if said:
        print(f"Prompts are rendered with {' and '.join(said)}, as in {found.path}", flush=True)
    kwargs = found.chat_template_kwargs if args.chat_template_kwargs is None else args.chat_template_kwargs
    return Rendering(tokenizer, kwargs)


def own_recipe(model: str) -> str | None:
    """Return the recipe of the run that a model's folder belongs to; `None` for the starter."""
    found = None if model == str(STARTER) else recipe_of(model)
    return None if found is None else str(found)


def load_items(args: Any, rendering: Rendering, base: Base, max_new_tokens: int) -> tuple[list[Item], dict[str, int]]:
    """Load the items of the benchmark, or the distributions' held-out items.

    Args:
        args (`EvaluateArguments`): what to evaluate on, and at which budgets.
        rendering ([`Rendering`]): how prompts become tokens.
        base ([`Base`]): the model.
        max_new_tokens (`int`): length of a completion.

    Returns:
        `tuple`: the items, and how many were left out, `num_overlong` and `num_trained`, where any were.

    Raises:
        ValueError: as [`~metatune.eval.load_benchmark`] and [`~metatune.eval.load_held_out`].
        ConfigError: if no item is left.
    """
    if args.distributions is not None:
        items = load_held_out(args.distributions)
    else:
        items = load_benchmark(str(args.benchmark), args.data, instruction=args.instruction, system=args.system)
    known = without_trained(items, args)
    new_tokens, advice = max_new_tokens, "max_new_tokens"
    if args.budgets:
        from metatune.eval.test_time import longest_answered
        from metatune.rewards.forcing import Forcing, opens_thinking
        from metatune.rewards.forcing_check import check_forcing, rows_by_verifier

        forcing = Forcing(rendering.tokenizer, args.forcing_suffix, rendering.chat_template_kwargs)
        check_forcing(forcing, rows_by_verifier(known), opens_thinking(rendering))  # before the model is loaded
        new_tokens = longest_answered(
            forcing,
            (item["verifier"] for item in known),
            args.budgets,
            args.extrapolate,
            args.max_new_tokens,
            args.answer_tokens,
        )
        advice = "the largest budget, with extrapolate, the forcing suffix and answer_tokens,"
    positions = positions_of(base.name, base.revision)
    fitting, lines = without_overlong(known, rendering, positions, new_tokens, "held-out prompts", advice)
    for line in lines:
        print(line, flush=True)
    counts = {"num_overlong": len(known) - len(fitting), "num_trained": len(items) - len(known)}
    return limited(fitting, args.limit), {name: count for name, count in counts.items() if count}


def without_trained(items: Sequence[Item], args: Any) -> Sequence[Item]:
    """Leave out items that the run was trained on, and report how many; raises [`ConfigError`] if none is left."""
    own = own_recipe(args.into or args.model)
    is_own = own is not None and args.recipe is not None and Path(own).resolve() == Path(args.recipe).resolve()
    if own is None or is_own:  # the same load: it never trains on held-out items
        return items
    trained = trained_keys(own)
    kept = [item for item in items if item["key"] not in trained]
    if len(kept) == len(items):
        return items
    line = f"{len(items) - len(kept):,} of {len(items):,} items are problems that this run was trained on ({own})"
    if not kept:
        raise ConfigError(f"{line}: none is left; evaluate the run on its own held-out part (without `recipe`)")
    print(f"{line} and are left out", flush=True)
    return kept


def trained_keys(path: str) -> set[str]:
    """Return the keys of a run's training items; prints a line and returns none if the data no longer exists."""
    from metatune.curricula import load_distributions

    entries = read_recipe(path).values.get("distributions")
    if not isinstance(entries, list) or not any(_is_data(entry) for entry in entries):
        return set()  # generators draw their problems from the part that is never held out
    try:
        loaded = load_distributions(entries)
    except (ValueError, OSError, ImportError) as error:
        print(f"What {path} trained on cannot be read, so no item is left out for it: {' '.join(str(error).split())}")
        return set()
    return {key for distribution in loaded for key in distribution.train["key"]}


def _is_data(entry: Any) -> bool:
    return isinstance(entry, Mapping) and entry.get("source") == "dataset"
