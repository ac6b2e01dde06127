"""What `metatune eval` does with `budgets` and `compare`: test-time compute.

Accuracy against token budget by forced answers, normalised regret, extrapolation past the trained length, and two or
more saved evaluations side by side. docs/test_time_compute.md has the definitions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from metatune.recipes.config import ConfigError
from metatune.recipes.tables import names_of, show, show_number, table_of
from metatune.rewards.episodes import EpisodeRule


@dataclass
class TestTimeArguments:
    """
    Options of test-time compute.

    Args:
        budgets (`list[int]` or `str`, *optional*):
            Token budgets at which to cut every trace and force answers, such as `64,128,256`. The largest should be
            the trained length.
        num_answers (`int`, *optional*, defaults to `8`):
            Forced answers of each cut trace.
        answer_tokens (`int`, *optional*, defaults to `32`):
            Largest number of tokens of a forced answer.
        forcing_suffix (`str`, *optional*):
            Text that is appended to a truncated trace to make the model answer. The default ends the thinking as the
            chat template requires, and opens an answer in the form that the item's verifier reads.
        extrapolate (`list[float]` or `str`, *optional*):
            Multiples of the largest budget to make traces go on to, such as `2,4`.
        extend_with (`list[str]`, *optional*):
            Phrases, in turn, that make a trace go on which ended by itself.
        episodes (`dict` or `str`, *optional*):
            Also cut at the end of every episode: options of `metatune.rewards.episodes.EpisodeRule`, such as
            `{by: delimiter}`.
        compare (`list[str]`, *optional*):
            Folders that were written with `budgets`, to set side by side; the first is the reference.
    """

    __test__ = False  # not a test, whatever pytest makes of its name

    budgets: list[int] | str | None = field(
        default=None, metadata={"help": "Token budgets at which answers are forced, such as 64,128,256."}
    )
    num_answers: int = field(default=8, metadata={"help": "Forced answers of each cut trace."})
    answer_tokens: int = field(default=32, metadata={"help": "Largest number of tokens of a forced answer."})
    forcing_suffix: str | None = field(default=None, metadata={"help": "What makes the model answer now."})
    extrapolate: list[float] | str | None = field(
        default=None, metadata={"help": "Multiples of the largest budget to make traces go on to, such as 2,4."}
    )
    extend_with: list[str] | None = field(
        default=None, metadata={"help": "Phrases that make a trace go on which ended by itself."}
    )
    episodes: dict | str | None = field(
        default=None, metadata={"help": "Also cut at the end of every episode: {by: delimiter}, …"}
    )
    compare: list[str] | None = field(
        default=None,
        metadata={"help": "Folders of evaluations with budgets to set side by side, the reference first."},
    )

    def __post_init__(self):
        self.budgets = _numbers("budgets", self.budgets, int)
        self.extrapolate = _numbers("extrapolate", self.extrapolate, float)
        if isinstance(self.episodes, str):
            try:
                self.episodes = yaml.safe_load(self.episodes)
            except yaml.YAMLError:
                self.episodes = None
            if not isinstance(self.episodes, dict):
                raise ValueError("`episodes` is a mapping, such as '{by: delimiter}'")
        if self.episodes is not None:
            EpisodeRule.from_options(self.episodes)
        if not self.budgets:
            of_budgets = {"num_answers": 8, "answer_tokens": 32, "extrapolate": []}
            for name in (*of_budgets, "forcing_suffix", "extend_with", "episodes"):
                if getattr(self, name) != of_budgets.get(name):
                    raise ValueError(f"`{name}` belongs to `budgets`, and none are given")


def evaluate_budgets(
    args: Any, engine: Any, tokenizer: Any, items: Sequence[Mapping], options: dict
) -> dict[str, Any]:
    """Evaluate at token budgets; return the ordinary summary, with `test_time` the summary at budgets.

    Raises:
        ValueError: as [`~metatune.eval.test_time.evaluate_at_budgets`] and the rules of episodes and forcing.
    """
    from metatune.eval.test_time import evaluate_at_budgets
    from metatune.eval.test_time_plots import plot_budgets, plot_episodes
    from metatune.rewards.forcing import Forcing

    measured = evaluate_at_budgets(
        engine,
        tokenizer,
        items,
        forcing=Forcing(tokenizer, args.forcing_suffix, options.get("chat_template_kwargs")),
        budgets=args.budgets,
        num_answers=args.num_answers,
        answer_tokens=args.answer_tokens,
        max_new_tokens=args.max_new_tokens,
        extrapolate=args.extrapolate,
        extend_with=args.extend_with,
        episodes=EpisodeRule.from_options(args.episodes) if args.episodes is not None else None,
        **options,
    )
    at_budgets = measured.budgets.summary()
    if args.output_dir is not None:
        folder = Path(args.output_dir)
        measured.save(folder, args.k)
        plot_budgets({folder.name: at_budgets}, folder / "test_time.png")
        if args.episodes is not None:
            plot_episodes(at_budgets, folder / "episodes.png")
    return measured.evaluation.summary(args.k) | {"test_time": at_budgets}


def compare_saved(folders: Sequence[str], output_dir: str | None) -> dict[str, Any]:
    """Compare evaluations that were saved with budgets, and keep table and picture in `output_dir`."""
    from metatune.eval.budget_comparison import compare_at_budgets, write_comparison
    from metatune.eval.budget_evaluation import BudgetEvaluation

    names = names_of(folders, "compare")
    try:
        runs = {name: BudgetEvaluation.load(folder) for name, folder in zip(names, folders, strict=True)}
        comparison = compare_at_budgets(runs)
    except ValueError as error:
        raise ConfigError(" ".join(str(error).split())) from error
    if output_dir is not None:
        write_comparison(comparison, output_dir)
    return comparison


def show_budgets(summary: Mapping[str, Any] | None) -> None:
    """Print the mixture's numbers at budgets, extended budgets and episodes; nothing without a summary."""
    if summary is None:
        return
    settings = summary["settings"]
    ks = sorted(int(key.removeprefix("maj@")) for key in summary["budgets"][0] if key.startswith("maj@"))
    what = "mixture" if len(summary["distributions"]) > 1 else next(iter(summary["distributions"]))
    suffix = settings["forcing_suffix"]  # by verifier, unless all have the same
    suffixes = dict.fromkeys(suffix.values()) if isinstance(suffix, dict) else [suffix]
    title = f"{what}: {settings['num_answers']} answers a cut, forced by {' or '.join(map(repr, suffixes))}"
    table = table_of(title, ["stopped", "accuracy", "interval", *(f"maj@{k}" for k in ks), "tokens spent", "note"])
    for row in summary["budgets"]:
        note = f"{_percent(row['ended'])} had ended" if row["budget"] else "no trace at all"
        table.add_row(f"at {row['budget']}", *_numbers_of(row, ks), note)
    for row in summary["extended"]:
        note = f"{_percent(row['reached'])} went on so far"
        table.add_row(f"extended to {row['budget']}", *_numbers_of(row, ks), note)
    for row in summary["episodes"]:
        note = f"{_percent(row['going_on'])} go on" if row["episode"] else "no trace at all"
        table.add_row(f"after episode {row['episode']}", *_numbers_of(row, ks), note)
    show(table)
    regrets = ", ".join(f"{show_number(row['regret'])} up to {row['cutoff']}" for row in summary["regret"])
    print(f"normalised regret: {regrets}")
    print(f"{summary['forced_tokens']:,} tokens beside the traces in forced answers and extensions")
    if summary["num_unscorable"]:
        print(f"{summary['num_unscorable']} of {summary['num_traces']} traces had a cut that could not be scored")


def show_comparison(comparison: Mapping[str, Any]) -> None:
    """Print runs side by side: accuracy at each budget, regret, and tokens at equal accuracy with the reference."""
    runs = comparison["runs"]
    budgets = sorted({row["budget"] for run in runs.values() for row in run["budgets"]})
    extended = sorted({row["budget"] for run in runs.values() for row in run["extended"]})
    table = table_of(f"against {comparison['reference']}, {comparison['confidence']:.0%} intervals", ["", *runs])
    for kind, places in (("budgets", budgets), ("extended", extended)):
        for place in places:
            rows = [next((row for row in run[kind] if row["budget"] == place), None) for run in runs.values()]
            label = f"accuracy at {place}" if kind == "budgets" else f"extended to {place}"
            table.add_row(label, *(_with_interval(row, "accuracy") for row in rows))
    table.add_section()
    last = [run["regret"][-1] for run in runs.values()]
    table.add_row("normalised regret", *(_with_interval(row, "regret") for row in last))
    table.add_row("tokens of a trace", *(f"{run['mean_tokens']:.1f}" for run in runs.values()))
    changes = [run.get("against_reference") for run in runs.values()]
    table.add_section()
    table.add_row("problems in common", *("" if c is None else str(c["num_problems"]) for c in changes))
    table.add_row("accuracy, change", *("" if c is None else _with_interval(c["accuracy"][-1]) for c in changes))
    table.add_row("regret, change", *("" if c is None else _with_interval(c["regret"]) for c in changes))
    table.add_row("times fewer tokens", *("" if c is None else _fewer(c["tokens"]) for c in changes))
    show(table)


def _numbers_of(row: Mapping[str, Any], ks: Sequence[int]) -> list[str]:
    interval = "–" if row["accuracy"] is None else f"{row['ci_low']:.3f} – {row['ci_high']:.3f}"  # noqa: RUF001
    votes = [show_number(row[f"maj@{k}"]) for k in ks]
    return [show_number(row["accuracy"]), interval, *votes, "" if row["spent"] is None else f"{row['spent']:.1f}"]


def _with_interval(row: Mapping[str, Any] | None, value: str = "difference") -> str:
    if not row or row.get(value) is None:
        return "–"  # noqa: RUF001
    sign = "+" if value == "difference" else ""
    return f"{row[value]:{sign}.3f} [{row['ci_low']:{sign}.3f}, {row['ci_high']:{sign}.3f}]"


def _fewer(tokens: Mapping[str, Any]) -> str:
    ratio = tokens["ratio"]
    if ratio is None:
        return f"not both reach {tokens['level']:.3f}"
    return f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] at {tokens['level']:.3f}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"  # noqa: RUF001


def _numbers(name: str, value: Any, kind: type) -> list:
    """Read `64,128` as the command line gives it; a list stays one."""
    try:
        parts = [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value or []
        return [kind(part) for part in parts]
    except ValueError:
        example = "64,128,256" if kind is int else "2,4"
        raise ValueError(f"`{name}` are numbers separated by commas, such as {example}, not {value!r}") from None
