"""The page of a run, and the page that sets several side by side; both open offline.

    metatune report runs/quickstart
    metatune report runs/stock-0 runs/stock-1 runs/dump-0 runs/dump-1 --output dump.html

Every run gets its `report.html`: pictures, table, sampled completions and settings. Several also get one
`comparison.html`: what differs in their recipes, what came of each and over seeds, curves at equal tokens. Works on
the folder of any run; what a run did not write, the page says. Where the run left `traces.jsonl`, a page `traces.html`
shows the traces with their episodes coloured by progress.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from metatune.recipes.config import ConfigError, StrictParser, run


@dataclass
class ReportArguments:
    """
    Which runs to report on.

    Args:
        run_dir (`list[str]`):
            Folders of runs (the `output_dir` of their recipes). With several, the others are compared with the first.
        output (`str`, *optional*):
            The page that compares several runs; `comparison.html` in the folder of the first by default.
    """

    run_dir: list[str] = field(
        metadata={
            "help": "Folders of runs, the output_dir of their recipes; the first is what others are compared with."
        }
    )
    output: str | None = field(
        default=None,
        metadata={
            "help": "The page that compares several runs; comparison.html in the first run's folder by default."
        },
    )


def main(args: ReportArguments) -> None:
    """Write `report.html` into every run's folder, and the comparison of several."""
    if args.output is not None and len(args.run_dir) == 1:
        raise ConfigError("--output names the page that compares runs: name two runs or more, or leave it out")
    from metatune.eval.comparison_page import write_comparison_page
    from metatune.eval.report import read_run, write_report
    from metatune.eval.run_comparison import compare_runs

    try:
        runs = [read_run(Path(folder)) for folder in args.run_dir]
        groups = compare_runs(runs)  # before anything is written: a run may be named twice
        for found in runs:
            print(f"Wrote {write_report(found)}")
        if len(runs) > 1:
            print(f"Wrote {write_comparison_page(groups, args.output or runs[0].folder / 'comparison.html')}")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"{error.filename2 or error.filename}: cannot be written, {error.strerror}") from error


class ReportParser(StrictParser):
    """A [`StrictParser`] that takes folders without `--run_dir` before them."""

    def parse_args_and_config(self, args: Iterable[str] | None = None) -> tuple:
        args = list(sys.argv[1:] if args is None else args)
        if args and not args[0].startswith("-"):
            args.insert(0, "--run_dir")
        if not args:
            raise ConfigError("name the folder of a run: metatune report RUN [RUN …]")
        return super().parse_args_and_config(args)


def make_parser(prog: str | None = None) -> StrictParser:
    """Return the parser of this recipe's options."""
    usage = "%(prog)s [-h] RUN [RUN …] [--output OUTPUT] [--config FILE.yaml]"
    return ReportParser(ReportArguments, prog=prog, usage=usage)


if __name__ == "__main__":
    run(make_parser, main)
