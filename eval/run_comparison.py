"""Runs side by side: what differs in their recipes, what came of each, and whether that can be compared. Pure.

Runs whose recipes differ by nothing but the seed belong to one group. The others are compared with the first run, and
with its group: run by run where both have an evaluation of the same problems (paired by problem), group by group where
both have the same seeds (paired by seed).
"""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from .evaluation import Evaluation, compare
from .report.charts import is_number
from .report.facts import sample_size
from .report.run import Run
from .statistics import Interval, paired_bootstrap_difference

# Options that say where a run goes, or how it went on, but not what it does.
PLACES = ("output_dir", "run_name", "logging_dir", "hub_model_id", "resume_from_checkpoint")
SEEDS = ("seed", "data_seed")
DEFAULT = "default"  # recipe.yaml holds what is not a default
LOGGED = re.compile(  # what is shown of the log's end: no speed, no memory, no learning rate
    r"reward(/.*)?|reward_std|rewards/.*/mean|frac_reward_zero_std|loss|accuracy|margin|entropy|kl|"
    r"eval_(accuracy(/.*)?|reward|loss|margin)|pass_rate/.*|curriculum/(count|probability)/.*|"
    r"rubric/.*|judge/.*|held_out_judge/score|progress/.*|unscorable|completions/(mean_length|clipped_ratio)"
)
MAX_BUDGET_GAP = 0.1  # of the first run's rollout tokens; beyond it, the runs did other work
MIN_SEEDS = 5  # for an interval: a bootstrap over fewer is much too narrow


@dataclass
class ComparedRun:
    """One run of several.

    Args:
        name (`str`): what the page calls it, another than every other run's.
        folder (`Path`): where it is.
        recipe (`dict[str, str]`): its options, those within options by dotted names; see [`flat_recipe`].
        metrics (`list[dict]`): lines of its `metrics.jsonl`.
        evaluation ([`Evaluation`], *optional*): the one after training.
        sample_size (`str`): problems and samples of each that the accuracy is taken of, where that is known.
        steps (`int`, *optional*): optimizer steps made.
        tokens (`int`, *optional*): rollout tokens generated.
        seconds (`float`, *optional*): of training, of all launches together.
        reward (`float`, *optional*): mean training reward over the last tenth of the log.
        accuracy (`float`, *optional*): held-out accuracy after training, else the last in the log.
        difference (`Interval`, *optional*): this accuracy minus the first run's, where both have an evaluation of the
            same problems.
        finished (`bool`): whether its log has the end of training.
        warnings (`list[str]`): why its numbers may not be what they seem.
    """

    name: str
    folder: Path
    recipe: dict[str, str]
    metrics: list[dict[str, Any]]
    evaluation: Evaluation | None = None
    sample_size: str = "\N{EN DASH}"
    steps: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    reward: float | None = None
    accuracy: float | None = None
    difference: Interval | None = None
    finished: bool = True
    warnings: list[str] = field(default_factory=list)

    @property
    def seed(self) -> str:
        """The seed of its recipe, as text."""
        return self.recipe.get("seed", DEFAULT)


class Spread(NamedTuple):
    """Mean, least and greatest of a number over runs."""

    mean: float
    least: float
    greatest: float


@dataclass
class Group:
    """Runs that differ by seed alone.

    Args:
        letter (`str`): A for the first run's group, then B and so on.
        runs (`list[ComparedRun]`): at least one.
        accuracy (`Spread`, *optional*): of the finished runs.
        reward (`Spread`, *optional*): of the finished runs.
        tokens (`Spread`, *optional*): rollout tokens that each of them generated.
        difference (`float`, *optional*): mean accuracy minus the first group's, paired by seed.
        interval (`Interval`, *optional*): the same with its bootstrap interval over seeds, from [`MIN_SEEDS`] of them.
        num_paired (`int`): seeds that this group shares with the first.
    """

    letter: str
    runs: list[ComparedRun]
    accuracy: Spread | None = None
    reward: Spread | None = None
    tokens: Spread | None = None
    difference: float | None = None
    interval: Interval | None = None
    num_paired: int = 0

    @property
    def name(self) -> str:
        """Its letter, its first run and how many more there are."""
        more = f" + {len(self.runs) - 1}" if len(self.runs) > 1 else ""
        return f"{self.letter}: {self.runs[0].name}{more}"

    @property
    def finished(self) -> list[ComparedRun]:
        """Its runs whose log has the end of training: the others' last numbers are of another time."""
        return [run for run in self.runs if run.finished]


def compare_runs(found: Sequence[Run]) -> list[Group]:
    """Set runs side by side; the first is what the others are compared with.

    Args:
        found (`Sequence[Run]`): what [`~metatune.eval.report.read_run`] found in their folders.

    Returns:
        `list[Group]`: every run in one of them, in the order of the runs.

    Raises:
        ValueError: if a folder is named twice, or there is none.
    """
    folders = [run.folder.resolve() for run in found]
    twice = next((run.folder for n, run in enumerate(found) if folders[n] in folders[:n]), None)
    if twice is not None or not found:
        raise ValueError(f"{twice}: named twice; a run is not compared with itself" if found else "there are no runs")
    names = _shortest_names([folder.parts for folder in folders])
    runs = [_compared_run(name, run) for name, run in zip(names, found, strict=True)]
    for run in runs[1:]:
        _compare_with(runs[0], run)
    members: dict[tuple, list[ComparedRun]] = {}
    for number, run in enumerate(runs):  # a run without a recipe is like no other
        alike = tuple(sorted(item for item in run.recipe.items() if item[0] not in SEEDS))
        members.setdefault(alike if run.recipe else (number,), []).append(run)
    groups = [Group(_letter(number), group) for number, group in enumerate(members.values())]
    for group in groups:
        group.accuracy = _spread([run.accuracy for run in group.finished])
        group.reward = _spread([run.reward for run in group.finished])
        group.tokens = _spread([run.tokens for run in group.finished])
        if group is not groups[0]:
            _pair_by_seed(groups[0], group)
    return groups


def flat_recipe(text: str | None) -> dict[str, str]:
    """Read `recipe.yaml` as text by option, without what only says where the run goes; empty where it cannot be read.

    Options within an option have dotted names, and the items of a list that have a `name` stand by it:
    `distributions.countdown-3.config.numbers`.
    """
    try:
        recipe = yaml.safe_load(text or "")
    except yaml.YAMLError:
        return {}
    recipe = recipe if isinstance(recipe, dict) else {}
    return _flat({key: value for key, value in recipe.items() if key not in PLACES})


def differing_options(groups: Sequence[Group]) -> list[tuple[str, list[str]]]:
    """List the options that the groups do not all have alike, with each group's value; seeds are left out."""
    recipes = [group.runs[0].recipe for group in groups]
    keys = [key for key in dict.fromkeys(key for recipe in recipes for key in recipe) if key not in SEEDS]
    rows = [(key, [recipe.get(key, DEFAULT) for recipe in recipes]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def log_ends(groups: Sequence[Group]) -> list[tuple[str, list[float | None]]]:
    """List the logged numbers with the mean over the last tenth of every group's logs; `None` where it is not."""
    keys = dict.fromkeys(
        key for group in groups for run in group.runs for row in run.metrics for key in row if LOGGED.fullmatch(key)
    )
    rows = []
    for key in sorted(keys):
        ends = [[last_tenth(run.metrics, key) for run in group.runs] for group in groups]
        means = [spread.mean if (spread := _spread(values)) else None for values in ends]
        if any(mean is not None for mean in means):
            rows.append((key, means))
    return rows


def last_tenth(metrics: Sequence[dict[str, Any]], key: str) -> float | None:
    """Return the mean of a number over the last tenth of the lines that have it, at least one; `None` without any."""
    values = [float(row[key]) for row in metrics if is_number(row.get(key))]
    return float(np.mean(values[-max(1, len(values) // 10) :])) if values else None


def _compared_run(name: str, found: Run) -> ComparedRun:
    """Read the numbers of a run, and warn of what they lack."""
    run = ComparedRun(name, found.folder, flat_recipe(found.recipe), found.metrics, found.after)
    run.warnings += found.log_faults
    if not run.recipe:
        run.warnings.append("It has no recipe.yaml that can be read: what it did differently is not known.")
    run.steps = _greatest(row for row in found.metrics if {"loss", "reward", "train_runtime"} & row.keys())
    run.tokens = _greatest(found.metrics, "rollout_tokens")
    run.reward = last_tenth(found.metrics, "reward")
    run.seconds = found.seconds
    run.finished = found.finished or found.after is not None
    if not run.finished:
        run.warnings.append("It is not finished: metrics.jsonl has no line of the end of training.")
    if "resume_from_checkpoint" in (found.recipe or "") and run.seconds is None and found.finished:
        run.warnings.append("It was resumed from a checkpoint, and its log does not have the time of all launches.")
    logged = [row["eval_accuracy"] for row in found.metrics if is_number(row.get("eval_accuracy"))]
    run.accuracy = logged[-1] if logged else None
    if found.after is not None:
        summary = found.after.summary()
        run.accuracy, run.sample_size = summary["accuracy"], sample_size(summary)
    return run


def _compare_with(first: ComparedRun, run: ComparedRun) -> None:
    """Fill in the difference of a run's accuracy to the first one's, and warn of what makes the two unlike."""
    run.warnings += _unequal_work(first, run)
    if first.evaluation is not None and run.evaluation is not None:
        run.difference, warnings = _compare_evaluations(first.name, first.evaluation, run.evaluation)
        run.warnings += warnings
    elif first.accuracy is not None and run.accuracy is not None:
        run.warnings += _unlike_accuracies(first, run)


def _unequal_work(first: ComparedRun, run: ComparedRun) -> list[str]:
    if first.tokens and run.tokens:
        if abs(run.tokens - first.tokens) <= MAX_BUDGET_GAP * first.tokens:
            return []
        return [
            f"It generated {run.tokens:,} rollout tokens, {first.name} {first.tokens:,}: compare them at equal "
            "tokens, in the pictures."
        ]
    if first.steps and run.steps and run.steps != first.steps:
        return [f"It made {run.steps:,} steps, {first.name} {first.steps:,}."]
    return []


def _compare_evaluations(name: str, first: Evaluation, other: Evaluation) -> tuple[Interval | None, list[str]]:
    """Return the difference in accuracy, paired by problem, where it can be taken, and what to know of it."""
    ours, theirs = ({(c.distribution, c.key): c.reference for c in side.completions} for side in (first, other))
    if any(ours[problem] != theirs[problem] for problem in ours.keys() & theirs.keys()):
        return None, [f"It was evaluated on other problems than {name}: accuracies are not compared."]
    try:
        found = compare(first, other)
    except ValueError:
        return None, [f"It was evaluated on none of the problems of {name}: accuracies are not compared."]
    warnings = []
    if found["num_unpaired"]:
        warnings.append(f"{found['num_unpaired']} problems were scored in one of it and {name} alone.")
    keys = [key for key in dict.fromkeys([*first.settings, *other.settings]) if key != "model"]
    unlike = [key for key in keys if first.settings.get(key) != other.settings.get(key)]
    if unlike:
        warnings.append(f"Its evaluation and that of {name} differ in {', '.join(unlike)}.")
    return Interval(found["difference"], found["ci_low"], found["ci_high"]), warnings


def _unlike_accuracies(first: ComparedRun, run: ComparedRun) -> list[str]:
    if (first.evaluation is None) != (run.evaluation is None):
        mine, its = ("the log" if r.evaluation is None else "an evaluation after training" for r in (run, first))
        return [f"Its accuracy comes from {mine}, that of {first.name} from {its}: they may be of other problems."]
    measured = ({key for row in r.metrics for key in row if key.startswith("eval_accuracy/")} for r in (first, run))
    if len(set(map(frozenset, measured))) > 1:
        return [f"Its accuracy is over other distributions than that of {first.name}."]
    return []


def _pair_by_seed(first: Group, group: Group) -> None:
    """Fill in the difference of a group's accuracy to the first one's, over the seeds that both have.

    A seed that a group has more than once counts once, with its mean; accuracies of other origin are not paired.
    """
    sides = []
    for side in (first, group):
        by_seed = defaultdict(list)
        for run in side.finished:
            if run.accuracy is not None:
                by_seed[run.seed, run.evaluation is None].append(run.accuracy)
        sides.append({seed: float(np.mean(accuracies)) for seed, accuracies in by_seed.items()})
    seeds = [seed for seed in sides[0] if seed in sides[1]]
    group.num_paired = len(seeds)
    if seeds:
        paired = paired_bootstrap_difference(*({seed: side[seed] for seed in seeds} for side in sides))
        group.difference, group.interval = paired.value, paired if len(seeds) >= MIN_SEEDS else None


def _spread(values: Sequence[float | None]) -> Spread | None:
    """Return mean, least and greatest of the values that there are."""
    there = [value for value in values if value is not None]
    return Spread(float(np.mean(there)), min(there), max(there)) if there else None


def _greatest(rows: Any, key: str = "step") -> int | None:
    return max((int(row[key]) for row in rows if is_number(row.get(key))), default=None)


def _shortest_names(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """Name folders by as few of their last parts as tell them apart."""
    for depth in range(1, max(map(len, paths)) + 1):
        names = ["/".join(path[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _letter(number: int) -> str:
    """A to Z, then AA, as a spreadsheet's columns."""
    return (_letter(number // 26 - 1) if number >= 26 else "") + chr(ord("A") + number % 26)


def _flat(value: Any, name: str = "") -> dict[str, str]:
    if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        value = {item["name"]: {k: v for k, v in item.items() if k != "name"} for item in value}
    if isinstance(value, dict) and (value or not name):
        parts = [_flat(part, f"{name}.{key}" if name else str(key)) for key, part in value.items()]
        return {key: text for part in parts for key, text in part.items()}
    return {name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)}
