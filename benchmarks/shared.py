"""What the benchmarks share: options of small CPU runs, jobs whose results are kept, intervals, and the last line."""

import contextlib
import io
import json
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
# Of every trainer: on the CPU, in full precision, nothing kept, nothing shown.
CPU_RUN = {
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
}
Job = tuple[Any, ...]
Row = dict[str, Any]


def quiet() -> contextlib.AbstractContextManager:
    """Keep a trainer's log lines off the screen."""
    return contextlib.redirect_stdout(io.StringIO())


def run_jobs(
    run: Callable[..., Row], wanted: Sequence[Job], kept: Path, names: Sequence[str], workers: int
) -> dict[Job, Row]:
    """Run what has not been run yet, in processes of one thread each, and return the results of all.

    An interrupted benchmark goes on where it stopped: each result is a line of `kept`, and its job is read from there.

    Args:
        run (`Callable`): does one job; a function of its script, since the processes start afresh.
        wanted (`Sequence[tuple]`): the jobs, in their order.
        kept (`Path`): JSONL of the results.
        names (`Sequence[str]`): what a result calls the parts of its job.
        workers (`int`): number of processes.

    Raises `SystemExit` if a job has failed, with its number.
    """
    kept.parent.mkdir(exist_ok=True)
    done = _finished(kept, names)
    context = multiprocessing.get_context("spawn")
    jobs = context.Queue()
    for job in [*(job for job in wanted if job not in done), *[None] * workers]:
        jobs.put(job)
    processes = [context.Process(target=_work, args=(run, jobs, kept)) for _ in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    done = _finished(kept, names)
    if missing := [job for job in wanted if job not in done]:
        sys.exit(f"{len(missing)} jobs failed, the first is {missing[0]}; run again to go on")
    return done


def _work(run: Callable[..., Row], jobs: Any, kept: Path) -> None:
    while (job := jobs.get()) is not None:
        with quiet():
            result = run(*job)
        with kept.open("a") as file:
            file.write(json.dumps(result) + "\n")


def _finished(kept: Path, names: Sequence[str]) -> dict[Job, Row]:
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    return {tuple(row[name] for name in names): row for row in rows}


def bootstrap(statistic: Callable[..., float], *samples, resamples: int = 2_000) -> tuple[float, list[float]]:
    """Return a statistic of per-seed samples and its 95 % percentile interval; all are resampled by the same seeds."""
    rng = np.random.default_rng(0)
    arrays = [np.asarray(sample, dtype=float) for sample in samples]
    draws = rng.integers(0, len(arrays[0]), (resamples, len(arrays[0])))
    values = [statistic(*(array[draw] for array in arrays)) for draw in draws]
    return float(statistic(*arrays)), percentile_interval(values)


def percentile_interval(resampled: Sequence[float]) -> list[float]:
    """Return the 95 % interval of resampled values; NaN at both ends where they agree, for they say nothing then."""
    low, high = np.percentile(resampled, [2.5, 97.5])
    return [float(low), float(high)] if high > low else [math.nan, math.nan]


def print_claims(benchmark: str, claims: Sequence[Row]) -> None:
    """Print the last line of a benchmark, one JSON object; the variable COMMIT names the commit where git is not."""
    commit = os.environ.get("COMMIT", "")
    if not commit and shutil.which("git"):
        command = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    known = [claim | {"ci": None} if claim.get("ci") and math.isnan(claim["ci"][0]) else claim for claim in claims]
    print(json.dumps({"benchmark": benchmark, "commit": commit, "claims": known}))
