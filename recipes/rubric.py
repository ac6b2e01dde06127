"""The rubrics of a run: what there were, what changed, and going back.

    metatune rubric log RUN
    metatune rubric diff RUN [OLD] [NEW]
    metatune rubric show RUN [VERSION] [--output rubric.json]
    metatune rubric rollback RUN VERSION --reason TEXT [--force]

RUN is the output folder of a run with a `judge:`. `diff` compares the first version with the one in force unless told
otherwise; `show` gives a version as JSON, which `judge: {rubric: …}` reads; `rollback` is for a run that is stopped:
`resume_from_checkpoint: true` then goes on with that version, and says so in the log.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

from metatune.recipes.config import ConfigError, PlainParser
from metatune.recipes.tables import show as show_table
from metatune.rewards import RubricHistory
from metatune.rewards.rubric import Rubric, diff_rubrics
from metatune.rewards.rubric_history import event_name

COLOURS = {"+": "green", "-": "red", "~": "yellow"}  # of a line of a diff, by what it begins with
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # of a terminal; a server's words are in the reasons


def main(args: Sequence[str]) -> int:
    """Do what the command line says; returns the exit code. Raises [`ConfigError`] for what cannot be done."""
    options = make_parser().parse_args(args)
    try:
        history = RubricHistory.read(Path(options.run) / "rubrics")
        options.action(history, options)
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = PlainParser(prog="metatune rubric", description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(required=True, metavar="log|diff|show|rollback")
    log = actions.add_parser("log", help="list the versions")
    log.set_defaults(action=print_log)
    diff = actions.add_parser("diff", help="say what changed")
    diff.set_defaults(action=print_diff)
    show = actions.add_parser("show", help="print a version as JSON")
    show.set_defaults(action=print_version)
    rollback = actions.add_parser("rollback", help="go on with an earlier version when the run is resumed")
    rollback.set_defaults(action=roll_back)
    for action in (log, diff, show, rollback):
        action.add_argument("run", metavar="RUN", help="output folder of a run")
    diff.add_argument("old", type=int, nargs="?", default=0, metavar="OLD", help="version, by default the first")
    diff.add_argument("new", type=int, nargs="?", metavar="NEW", help="version, by default the one in force")
    show.add_argument("version", type=int, nargs="?", metavar="VERSION", help="by default the one in force")
    show.add_argument("--output", type=Path, help="JSON file to write it to, which a recipe can start from")
    rollback.add_argument("version", type=int, metavar="VERSION")
    rollback.add_argument("--reason", required=True, help="what the log will say")
    rollback.add_argument("--force", action="store_true", help="also to a version that was refused")
    return parser


def print_log(history: RubricHistory, options: argparse.Namespace) -> None:
    """Print a table of all events, which version is in force, and a wish to go back that waits."""
    from rich.table import Table
    from rich.text import Text

    table = Table("step", "event", "version", "parent", "items", "points", "reason")
    for event in history.events:
        cells = ["-"] * 4
        if event["version"] is not None:
            version = history.versions[event["version"]]
            rubric = version.rubric
            points = f"{rubric.lowest} to {rubric.highest}"
            parent = "-" if version.parent is None else str(version.parent)
            cells = [str(version.number), parent, str(len(rubric.items)), points]
        reason = Text(CONTROLS.sub("\N{REPLACEMENT CHARACTER}", event["reason"]))  # brackets in it are no markup
        table.add_row(str(event["step"]), event_name(event), *cells, reason)
    show_table(table)
    print(f"In force: version {history.current.number}")
    if (wish := history.wish) is not None:
        print(f"The next resume goes on with version {wish['version']}")


def print_diff(history: RubricHistory, options: argparse.Namespace) -> None:
    """Print what changed between two versions, one line a change."""
    from rich.console import Console
    from rich.text import Text

    new = history.current if options.new is None else history.version(options.new)
    old = history.version(options.old)
    print(f"version {old.number} -> version {new.number}", flush=True)
    console = Console(soft_wrap=True)  # colours and wraps on a terminal alone
    for change in diff_rubrics(old.rubric, new.rubric) or ["no change"]:
        console.print(Text(change, COLOURS.get(change[0], "")))


def print_version(history: RubricHistory, options: argparse.Namespace) -> None:
    """Print a version as JSON, or write it to a file."""
    version = history.current if options.version is None else history.version(options.version)
    text = _as_json(version.rubric)
    if options.output is None:
        print(text, end="")
        return
    options.output.write_text(text, encoding="utf-8")
    print(f"Wrote version {version.number} to {options.output}")


def roll_back(history: RubricHistory, options: argparse.Namespace) -> None:
    """Leave the wish to go back for the next resume."""
    history.request_rollback(options.version, options.reason, options.force)
    print(f"With resume_from_checkpoint: true the run goes on with version {options.version}")


def _as_json(rubric: Rubric) -> str:
    return json.dumps(rubric.to_dict(), indent=2, ensure_ascii=False) + "\n"
