"""The page that sets runs side by side: `comparison.html`, one file that opens offline."""

import base64
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from .comparison_plots import AXES, plot_runs
from .files import write_atomically
from .pages import page_template
from .run_comparison import MIN_SEEDS, Group, differing_options, log_ends

CURVES = {  # what `metrics.jsonl` calls it: what the page does
    "reward": "training reward",
    "accuracy": "training accuracy of pairs",
    "eval_accuracy": "held-out accuracy",
    "completions/mean_length": "completion length in tokens",
    "entropy": "entropy of a token in nats",
}


def write_comparison_page(groups: Sequence[Group], path: str | Path) -> Path:
    """Write the page that sets runs side by side.

    Args:
        groups (`Sequence[Group]`): what [`~metatune.eval.run_comparison.compare_runs`] returned.
        path (`str` or `Path`): the page; links to the runs' own pages are relative to it.

    Returns:
        `Path`: the page.
    """
    path = Path(path)
    page = page_template("comparison.html").render(
        groups=groups,
        runs=[run for group in groups for run in group.runs],
        page_of=lambda run: quote(Path(os.path.relpath(run.folder / "report.html", path.parent)).as_posix()),
        options=differing_options(groups),
        ends=log_ends(groups),
        pictures=_draw_pictures(groups),
        min_seeds=MIN_SEEDS,
    )
    write_atomically(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return path


def _draw_pictures(groups: Sequence[Group]) -> dict[str, list[dict[str, str]]]:
    """Draw every number of [`CURVES`] that a run logged, by title; each is inlined, with its alternative text."""
    names = ", ".join(group.name for group in groups)
    pictures: dict[str, list[dict[str, str]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "picture.png"
        for key, label in CURVES.items():
            title = label[0].upper() + label[1:]
            for place, axis in AXES.items():
                try:
                    plot_runs(groups, key, label, place, file)
                except ValueError:  # no run has it
                    continue
                text = f"{title} by {axis}, of {names}"
                data = base64.b64encode(file.read_bytes()).decode()
                pictures.setdefault(title, []).append({"text": text, "data": data})
    return pictures
