"""What `metatune eval` does with `reward_model`: reward models on preference pairs, and their best of n.

    metatune eval --reward_model runs/rm --pairs data/pairs --output_dir runs/rm-eval
    metatune eval --reward_model runs/rm-1 runs/rm-2 runs/rm-3 --pairs reward-bench.parquet
    metatune eval --reward_model runs/rm --best_of_n responses.jsonl

docs/reward_models.md has the definitions.
"""

import gc
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from metatune.recipes.adapters import base_of, is_adapter
from metatune.recipes.config import ConfigError, nearest
from metatune.recipes.tables import names_of, show, show_number, table_of

CONFIDENCE = 0.95


@dataclass
class RewardEvaluationArguments:
    """
    Options of the evaluation of reward models.

    Args:
        reward_model (`list[str]`, *optional*):
            Reward models to evaluate: folders, adapters' folders or hub names. Several are set side by side, the
            first is the reference, and as an ensemble.
        pairs (`str`, *optional*):
            Preference pairs: a JSON, JSONL or Parquet file, a folder, or a hub name.
        pairs_split (`str`, *optional*):
            Split of `pairs`; by default `test` where there is one, else the only one.
        best_of_n (`str`, *optional*):
            File of responses with gold scores, or the folder of an evaluation.
    """

    reward_model: list[str] | None = field(
        default=None, metadata={"help": "Reward models to evaluate; the first is the reference."}
    )
    pairs: str | None = field(default=None, metadata={"help": "Preference pairs for reward_model."})
    pairs_split: str | None = field(default=None, metadata={"help": "Split of pairs; test by default."})
    best_of_n: str | None = field(
        default=None, metadata={"help": "Responses with gold scores for reward_model, or an evaluation's folder."}
    )

    def check_reward_options(self) -> None:
        """Raise `ValueError` for options that go with `reward_model` only, or that it lacks."""
        for name in ("pairs", "best_of_n"):
            if getattr(self, name) and not self.reward_model:
                raise ValueError(f"`{name}` belongs to `reward_model`, and none is given")
        if self.pairs_split and not self.pairs:
            raise ValueError("`pairs_split` belongs to `pairs`, and none are given")
        if self.reward_model and not (self.pairs or self.best_of_n):
            raise ValueError("give what to evaluate the reward model on: `pairs` or `best_of_n`")


def load_pairs(
    name: str, split: str | None, limit: int | None, models: Sequence[str] = ()
) -> tuple[Any, dict[str, Any]]:
    """Load pairs to evaluate `models` on; returns them and what to keep of them in the summary.

    Raises [`ConfigError`] for what cannot be read, a split that is not there, pairs that are not whole, and those that
    a model or its chat template cannot read.
    """
    from metatune.eval.reward_models import Pairs
    from metatune.recipes.chat_template import check_chat, load_processor
    from metatune.recipes.data import load_splits, template_variables
    from metatune.recipes.pairs import check_pairs, unusable_pairs
    from metatune.recipes.strength_pairs import prompt_groups

    splits = load_splits(name, "pairs", "test")
    split = split or ("test" if "test" in splits else next(iter(splits)) if len(splits) == 1 else None)
    if split not in splits:
        what = "say which split by `pairs_split`" if split is None else f"no split '{split}'{nearest(split, splits)}"
        raise ConfigError(f"pairs: {name}: {what} (splits: {', '.join(splits)})")
    dataset, where = splits[split], f"pairs: {name}, split '{split}'"
    if "chosen" not in dataset.column_names and "chosen_ids" in dataset.column_names:
        raise ConfigError(f"{where} is tokenized, for one model: give the texts as `chosen` and `rejected`")
    check_pairs(dataset, where)
    columns = dataset.column_names
    for model in models:
        read = [column for column in ("prompt", "chosen", "rejected") if column in columns]
        check_chat(load_processor(model, None, None), model, dataset, read, where)
    subsets = None
    if "subset" in columns:
        if None in dataset["subset"]:
            row = list(dataset["subset"]).index(None) + 1
            raise ConfigError(f"{where}: row {row} has no `subset`: name one, or remove the column")
        subsets = [str(subset) for subset in dataset["subset"]]
    if limit is not None:
        dataset, subsets = _first(dataset, subsets, limit)
    empty, _ = unusable_pairs(dataset)
    prompts = list(dataset["prompt"]) if "prompt" in columns else None
    pairs = Pairs(
        list(dataset["chosen"]),
        list(dataset["rejected"]),
        prompts,
        prompt_groups(dataset).tolist(),
        strength=_strength(dataset, where) if "strength" in columns else None,
        subsets=subsets,
        turns=subsets is not None,
        template=template_variables(dataset),
    )
    kept = {"split": split, "num_pairs": len(pairs), "num_prompts": len(set(pairs.groups)), "num_empty": len(empty)}
    return pairs, kept


def _first(dataset: Any, subsets: Sequence[str] | None, limit: int) -> tuple[Any, list[str] | None]:
    """Keep the first pairs, of every subset where there are some."""
    counts, kept = Counter[str](), []
    for index, subset in enumerate(subsets or [""] * len(dataset)):
        counts[subset] += 1
        if counts[subset] <= limit:
            kept.append(index)
    return dataset.select(kept), None if subsets is None else [subsets[index] for index in kept]


def _strength(dataset: Any, where: str) -> np.ndarray:
    try:
        strength = np.array(list(dataset["strength"]), dtype=float)
    except (TypeError, ValueError):
        strength = np.empty(0)
    if strength.shape != (len(dataset),):
        raise ConfigError(f"{where}: `strength` is one number a pair: mend the column, or remove it")
    if not np.isfinite(strength).all():
        row = int(np.flatnonzero(~np.isfinite(strength))[0]) + 1
        raise ConfigError(f"{where}: row {row} has no finite `strength`: mend it, or remove the column")
    return strength


def evaluate_reward_models(args: Any) -> dict[str, Any]:
    """Evaluate reward models and return the summary; with `output_dir` it is kept there, with a picture."""
    from metatune.eval.files import write_json
    from metatune.eval.response_files import load_responses
    from metatune.eval.reward_plots import plot_reward_models

    started, names = time.perf_counter(), names_of(args.reward_model, "reward_model")
    summary: dict[str, Any] = {}
    pairs = responses = None
    try:
        if args.pairs is not None:
            pairs, summary["pairs"] = load_pairs(args.pairs, args.pairs_split, args.limit, args.reward_model)
        if args.best_of_n is not None:
            responses = load_responses(args.best_of_n).first(args.limit)
        pair_scores, proxies = _score(args, names, pairs, responses)
        bootstrap = {"confidence": CONFIDENCE, "seed": args.seed}
        if pairs is not None:
            summary["models"] = _on_pairs(pair_scores, pairs, bootstrap)
        if responses is not None:
            summary["best_of_n"] = _on_responses(proxies, responses, bootstrap)
    except (ValueError, OSError, ImportError) as error:
        raise ConfigError(" ".join(str(error).split())) from error
    options = ("reward_model", "pairs", "best_of_n", "limit", "dtype", "seed")
    summary["settings"] = {name: getattr(args, name) for name in options}
    summary["confidence"], summary["seconds"] = CONFIDENCE, round(time.perf_counter() - started, 3)
    if args.output_dir is not None:
        folder = Path(args.output_dir)
        write_json(folder / "reward_models.json", summary)
        if _scored_anything(summary):
            plot_reward_models(summary, folder / "reward_models.png")
    return summary


def _score(args: Any, names: Sequence[str], pairs: Any, responses: Any) -> tuple[dict, dict]:
    """Let every model score pairs and responses; one model at a time is in memory."""
    from metatune.eval.response_files import score_responses
    from metatune.eval.reward_models import score_pairs
    from metatune.rewards.reward_model import RewardModel

    pair_scores, proxies = {}, {}
    for name, path in zip(names, args.reward_model, strict=True):
        base = base_of(path).name if is_adapter(path) else None
        model = RewardModel(path, device=args.device, batch_size=args.batch_size, dtype=args.dtype, base=base)
        if pairs is not None:
            pair_scores[name] = score_pairs(model, pairs)
        if responses is not None:
            proxies[name] = score_responses(model, responses)
        del model
        gc.collect()
    return pair_scores, proxies


def _on_pairs(scores: Mapping[str, Any], pairs: Any, bootstrap: Mapping[str, Any]) -> dict[str, Any]:
    from metatune.eval.reward_models import ensembles, summarize

    first = next(iter(scores.values()))
    return {
        name: summarize(part, pairs, reference=None if part is first else first, **bootstrap)
        for name, part in {**scores, **ensembles(scores)}.items()
    }


def _on_responses(proxies: Mapping[str, list], responses: Any, bootstrap: Mapping[str, Any]) -> dict[str, Any]:
    from metatune.eval.best_of_n import best_of_n_curve
    from metatune.eval.reward_models import combined

    gold = responses.gold
    if len(proxies) > 1:
        ends = np.cumsum([len(group) for group in gold])[:-1]
        flat = [np.concatenate(groups) for groups in proxies.values()]
        proxies = {**proxies, **{name: np.split(part, ends) for name, part in combined(flat).items()}}
    known = np.concatenate([np.asarray(group, dtype=float) for group in gold])
    models = {}
    for name, proxy in proxies.items():
        scored = np.isfinite(np.concatenate(proxy))
        if not (scored & np.isfinite(known)).any():
            raise ValueError(
                f"best_of_n: of {len(known)} responses none has both a score of {name} and a gold score "
                f"({int((~scored).sum())} too long or without a finite score, {int((~np.isfinite(known)).sum())} "
                "without a gold score)"
            )
        rows = best_of_n_curve(proxy, gold, responses.distributions, **bootstrap)
        models[name] = {"num_unscored": int((~scored).sum()), "rows": rows}
    return {
        "num_prompts": len(gold),
        "num_responses": len(known),
        "num_without_gold": int((~np.isfinite(known)).sum()),
        "models": models,
    }


def _scored_anything(summary: Mapping[str, Any]) -> bool:
    scored = any(part["accuracy"] is not None for part in summary.get("models", {}).values())
    return scored or "best_of_n" in summary


def show_reward_models(summary: Mapping[str, Any]) -> None:
    """Print an evaluation of reward models as tables: pairs, subsets, strength, best-of-n."""
    if "models" in summary:
        _show_pairs(summary)
        models = summary["models"]
        _show_parts("accuracy by subset", {name: part.get("subsets", {}) for name, part in models.items()})
        sections = {name: dict(part.get("sections", {})) for name, part in models.items()}
        for name, part in models.items():
            if part.get("reward_bench") is not None:
                sections[name]["mean of sections"] = {"accuracy": part["reward_bench"]}
        _show_parts("accuracy by section of RewardBench", sections)
        strength = {
            name: {
                f"{number}. {row['low']:.3g} to {row['high']:.3g}": row
                for number, row in enumerate(part.get("by_strength", []), start=1)
            }
            for name, part in models.items()
        }
        _show_parts("accuracy by preference strength", strength)
    if "best_of_n" in summary:
        _show_best_of_n(summary["best_of_n"], summary["confidence"])


def _show_pairs(summary: Mapping[str, Any]) -> None:
    data = summary["pairs"]
    title = f"{data['num_pairs']} pairs of {data['num_prompts']} prompts, {summary['confidence']:.0%} intervals"
    table = table_of(title, ["accuracy", "all pairs", "against the first", "chosen is shorter", "longer", "left out"])
    for name, part in summary["models"].items():
        by_length = [_accuracy(part["length"][kind]) for kind in ("chosen_shorter", "chosen_longer")]
        change = _change(part.get("against_first"))
        table.add_row(name, _accuracy(part), change, *by_length, str(data["num_pairs"] - part["num_pairs"]))
    show(table)
    columns = ["error", "loss", "temperature", "error then", "loss then", "score and length", "within prompts"]
    table = table_of("calibration of the margins, and correlation with length", ["", *columns])
    for name, part in summary["models"].items():
        fit, length = part["calibration"] or {}, part["length"]
        numbers = [
            fit.get(key) for key in ("error", "loss", "temperature", "error_at_temperature", "loss_at_temperature")
        ]
        numbers += [length["correlation"], length["correlation_within_prompts"]]
        table.add_row(name, *map(show_number, numbers))
    show(table)
    for name, part in summary["models"].items():
        if name.startswith("ensemble "):
            continue
        if part["num_pairs"] < data["num_pairs"]:
            why = f"{part['num_too_long']} too long, {part['num_not_finite']} without a finite score"
            print(f"{name}: pairs left out: {why}")
        if part["num_ties"]:
            print(f"{name}: ties, each half right: {part['num_ties']}, of equal responses: {part['num_equal']}")
    if data["num_empty"]:
        print(f"pairs with an empty response, which is scored like any other: {data['num_empty']}")


def _show_parts(title: str, models: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Print accuracies of parts of the pairs, a column for each model; nothing without any."""
    labels = list(dict.fromkeys(label for parts in models.values() for label in parts))
    if not labels:
        return
    table = table_of(title, ["", "pairs", *models])
    for label in labels:
        rows = [parts.get(label, {}) for parts in models.values()]
        number = rows[0].get("num_pairs")
        cells = [_accuracy(row) for row in rows]
        missing = rows[0].get("missing")
        table.add_row(f"{label} (without {', '.join(missing)})" if missing else label, str(number or ""), *cells)
    show(table)


def _show_best_of_n(found: Mapping[str, Any], confidence: float) -> None:
    title = f"gold score of the best of n: {found['num_prompts']} prompts, {found['num_responses']} responses"
    table = table_of(f"{title}, {confidence:.0%} intervals", ["n", "prompts", "KL", *found["models"], "by the gold"])
    curves = [{row["n"]: row for row in part["rows"]} for part in found["models"].values()]
    for n in sorted({n for curve in curves for n in curve}):
        rows = [curve.get(n, {}) for curve in curves]
        one = next(row for row in rows if row)
        cells = [_accuracy(row, "gold") for row in rows]
        table.add_row(str(n), str(one["num_prompts"]), f"{one['kl']:.3f}", *cells, show_number(one["oracle"]))
    show(table)
    for name, part in found["models"].items():
        if part["num_unscored"]:
            print(f"{name}: responses left out, too long or without a finite score: {part['num_unscored']}")
    if found["num_without_gold"]:
        print(f"responses left out, without a gold score: {found['num_without_gold']}")


def _accuracy(row: Mapping[str, Any], key: str = "accuracy") -> str:
    interval = f" [{row['ci_low']:.3f}, {row['ci_high']:.3f}]" if row.get("ci_low") is not None else ""
    return show_number(row.get(key)) + interval


def _change(row: Mapping[str, Any] | None) -> str:
    return "" if row is None else f"{row['difference']:+.3f} [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"
