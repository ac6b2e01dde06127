"""The page of a run: pictures, table, sampled completions and settings in one file that opens offline.

    metatune report runs/quickstart
    metatune report runs/first runs/second

Works on the folder of any run; what a run did not write, the page says. Where the run left `traces.jsonl`, a second
page, `traces.html`, shows the traces with their episodes coloured by progress.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

from metatune.recipes.config import ConfigError, StrictParser, run


@dataclass
class ReportArguments:
    """
    Which runs to report on.

    Args:
        run_dir (`list[str]`):
            Folders of runs (the `output_dir` of their recipes).
    """

    run_dir: list[str] = field(metadata={"help": "Folders of runs, the output_dir of their recipes."})


def main(args: ReportArguments) -> None:
    """Write `report.html` into every run's folder."""
    from metatune.eval.report import write_report

    for folder in args.run_dir:
        try:
            print(f"Wrote {write_report(folder)}")
        except ValueError as error:
            raise ConfigError(str(error)) from error


class ReportParser(StrictParser):
    """A [`StrictParser`] that takes folders without `--run_dir` before them."""

    def parse_args_and_config(self, args: Iterable[str] | None = None) -> tuple:
        args = list(sys.argv[1:] if args is None else args)
        if args and not args[0].startswith("-"):
            args.insert(0, "--run_dir")
        return super().parse_args_and_config(args)


def make_parser(prog: str | None = None) -> StrictParser:
    """Return the parser of this recipe's options."""
    return ReportParser(ReportArguments, prog=prog)


if __name__ == "__main__":
    run(make_parser, main)
