"""The parts of `gpu.py` that start metatune as users do: `resume`, `zero` and `quickstart`."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from gpu_report import PRECISIONS, TASKS, Report, run_part, training_options
from safetensors.torch import load_file
from shared import ROOT

GRACE = 4  # seconds to say what was found
MARK = "trainer_state.json"  # the last file of a checkpoint
# What a clock or the memory said; nothing else may differ between a run and the same run gone on with.
MEASURED = re.compile(r"(.*/)?time(/.*)?|.*_time|.*runtime|.*_per_second|memory/.*|.*seconds.*|total_flos")


class Launch:
    """A command that runs in a session of its own and takes all its processes with it."""

    over = False  # whether the part is being left: then nothing more is started

    def __init__(self, *command: str | Path, log: Path):
        if Launch.over:
            raise RuntimeError("not started: the part has ended")
        self.log, self.started = log, time.perf_counter()
        with log.open("a") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *map(str, command)], stdout=file, stderr=file, start_new_session=True, cwd=ROOT
            )

    def kill(self) -> None:
        """Kill every process of it."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def finish(self, seconds: float) -> float:
        """Wait for its end, which must be a success; returns the seconds since its start."""
        code = self.process.wait(max(1.0, seconds))
        if code:
            text = self.log.read_text(errors="replace").strip()
            print(text[-3000:], flush=True)
            raise RuntimeError(f"exit code {code}: {text.splitlines()[-1] if text else 'no output'}")
        return time.perf_counter() - self.started


@contextmanager
def launches() -> Iterator[list[Launch]]:
    """Launches that are killed when the block is left, however it is left."""
    running: list[Launch] = []
    try:
        yield running
    except SystemExit:
        Launch.over = True
        raise
    finally:
        for launch in running:
            launch.kill()


def recipe(folder: Path, half: bool, on_gpu: bool, **more: Any) -> Path:
    """Write a recipe for the starter, two optimizer steps a generation block."""
    values = training_options(folder, half, on_gpu)
    values |= {
        "model_name_or_path": "starter",
        "dtype": "float32",
        "distributions": [{**task, "train_size": 40, "test_size": 4} for task in TASKS],
        "num_generations": 4,
        "steps_per_generation": 4,
        "max_completion_length": 32,
        "compact_generation": True,
        "length_grouping": True,
        **more,
    }
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(values))
    return path


def grpo(path: Path, *options: str) -> Launch:
    return Launch("metatune.recipes.cli", "grpo", "--config", path, *options, log=path.with_suffix(".log"))


# ---- a run that was killed goes on ----


KINDS = {  # of run: what is killed and gone on with, and options
    "float32": (("whole", "again", "killed at 3"), {}),
    "bf16": (("whole", "again", "killed at 3"), {}),
    "bf16 full_determinism": (("whole", "killed at 2", "killed at 3"), {"full_determinism": True}),
}


def resume(report: Report, folder: Path) -> None:
    """Four steps against two (a generation block) or three (inside one), SIGKILL, and the rest; all side by side."""
    names = [f"{name}, {kind}" for kind, (each, _) in KINDS.items() for name in each]
    if report.quick and not report.on_gpu:
        names = ["whole, bf16 full_determinism", "killed at 3, bf16 full_determinism"]
    with ThreadPoolExecutor(len(names) if report.on_gpu else 1) as pool, launches() as running:
        tasks = {name: pool.submit(one_run, folder / name, report, running) for name in names}
        for name, task in tasks.items():
            with report.case(f"four steps: {name}"):
                task.result()
    for name in names:
        what, _, kind = name.partition(", ")
        if what == "whole":
            continue
        with report.case(f"{what}, against the whole run, {kind}") as say:
            found = differences(contents(folder / name), contents(folder / f"whole, {kind}"))
            other = "a second run" if what == "again" else f"a run {what} and gone on with"
            claim = f"{other} equals the whole one bit for bit, {kind}"
            report.claim(claim, not found, goal="true", met=not found)
            say(f"{len(found)} differences, the first: {found[0]}" if found else "equal bit for bit")


def one_run(run: Path, report: Report, running: list[Launch]) -> None:
    """Run to the end; or kill the run when the checkpoint that its name tells is whole, and go on with it."""
    values = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    kind = run.name.partition(", ")[2]
    path = recipe(run, PRECISIONS[kind.split()[0]], report.on_gpu, **values, **KINDS[kind][1])
    running.append(launch := grpo(path))
    if run.name.startswith("killed"):
        step = int(run.name.partition(", ")[0].split()[-1])
        while not (run / f"checkpoint-{step}" / MARK).exists():
            if launch.process.poll() is not None or report.seconds_left < GRACE:
                launch.finish(1)
                raise RuntimeError(f"no checkpoint-{step}")
            time.sleep(0.005)
        launch.kill()
        for later in run.glob("checkpoint-*"):
            if int(later.name.split("-")[1]) > step:
                shutil.rmtree(later)
        if (run / "model.safetensors").exists():
            raise RuntimeError("the run had ended before it was killed")
        running.append(launch := grpo(path, "--resume_from_checkpoint", "true"))
    launch.finish(report.seconds_left - GRACE)


def contents(run: Path) -> dict[str, Any]:
    """Return everything that a run's last checkpoint holds, without what a clock said, and its final weights."""
    found: dict[str, Any] = {"final": load_file(run / "model.safetensors")}
    for path in sorted((run / "checkpoint-4").iterdir()):
        if path.suffix == ".safetensors":
            found[path.name] = load_file(path)
        elif path.suffix in (".pt", ".pth"):
            found[path.name] = torch.load(path, map_location="cpu", weights_only=False)
        elif path.suffix == ".json":
            found[path.name] = json.loads(path.read_text())
    return found


def differences(mine: Any, theirs: Any, where: str = "") -> list[str]:
    """Name every place in which two states are not equal bit for bit, but for what was measured."""
    if isinstance(theirs, torch.Tensor | np.ndarray):
        same = type(mine) is type(theirs) and torch.equal(torch.as_tensor(mine), torch.as_tensor(theirs))
        return [] if same else [where]
    if isinstance(theirs, dict) and isinstance(mine, dict):
        keys = [key for key in {**mine, **theirs} if not MEASURED.fullmatch(str(key))]
        pairs = [(mine.get(key, "absent"), theirs.get(key, "absent"), f"{where}/{key}") for key in keys]
        return [each for pair in pairs for each in differences(*pair)]
    if isinstance(theirs, list | tuple) and isinstance(mine, list | tuple) and len(mine) == len(theirs):
        rows = enumerate(zip(mine, theirs, strict=True))
        return [each for number, row in rows for each in differences(*row, f"{where}/{number}")]
    same = mine is theirs or mine == theirs or repr(mine) == repr(theirs)
    return [] if same else [f"{where}: {str(mine)[:60]} is not {str(theirs)[:60]}"]


# ---- DeepSpeed ----


def zero(report: Report, folder: Path) -> None:
    """Three steps without DeepSpeed and with it, each on one process; side by side on a GPU."""
    kinds: dict[str, tuple[bool, Sequence[str]]] = {"one process": (False, ())}
    for name in ("zero2", "zero3"):
        kinds[name] = (False, ("--accelerate_config", name, "--num_processes", "1"))
    kinds["zero3, bf16"] = (True, kinds["zero3"][1])
    losses: dict[str, np.ndarray] = {}

    def launch(name: str) -> str:
        half, options = kinds[name]
        running.append(one := grpo(recipe(folder / name, half, report.on_gpu), *options))
        seconds = one.finish(report.seconds_left - GRACE)
        rows = log_rows(folder / name)
        losses[name] = np.array([[row["loss"], row["grad_norm"], row.get("reward", 0.0)] for row in rows])
        if len(rows) != 3 or not np.isfinite(losses[name]).all() or not losses[name][:, 1].any():
            raise RuntimeError(f"loss, norm and reward of the steps: {losses[name].tolist()}")
        shards = [line for line in one.log.read_text().splitlines() if line.startswith("ZeRO-3 shards")]
        return "; ".join([f"losses {losses[name][:, 0].tolist()}", *shards, f"launch {seconds:.0f} s"])

    with ThreadPoolExecutor(len(kinds) if report.on_gpu else 1) as pool, launches() as running:
        tasks = {name: pool.submit(launch, name) for name in kinds}
        for name, task in tasks.items():
            with report.case(f"three steps, {name}") as say:
                say(task.result())
    for name in ("zero2", "zero3"):
        with report.case(f"{name} against one process, float32") as say:
            off = np.abs(losses[name] - losses["one process"]).max(0)
            say("losses, norms and rewards differ by up to " + ", ".join(f"{each:.1e}" for each in off))
            claim = f"largest difference of losses, {name} and one process, float32"
            report.claim(claim, float(off[0]), goal="<= 1e-4", met=off[0] <= 1e-4)


def log_rows(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


# ---- the quickstart ----


def quickstart(report: Report, folder: Path) -> None:
    """Train and evaluate the starter as the quickstart does; where time ends, say how far it came."""
    run, options = folder / "quickstart", ["--use_cpu", "false"]
    if not report.on_gpu:
        options = ["--max_steps", "8", "--eval_steps", "4", "--samples", "1"]
    with launches() as running, report.case("quickstart" if report.on_gpu else "quickstart, 8 steps") as say:
        command = ("metatune.recipes.quickstart", "--output_dir", run, *options)
        running.append(launch := Launch(*command, log=folder / "quickstart.log"))
        try:
            launch.finish(report.seconds_left - 2 * GRACE)
        except subprocess.TimeoutExpired:
            launch.kill()
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        times = {
            name: [row[f"time/{name}"] for row in rows if f"time/{name}" in row]
            for name in ("step", "generate", "forward_backward")
        }
        medians = ", ".join(f"{name} {np.median(each):.3f} s" for name, each in times.items())
        say(f"{len(times['step'])} steps; median {medians}")
        report.claim("quickstart: median seconds of a step", float(np.median(times["step"])), steps=len(times["step"]))
        held_out = [(row["step"], round(row["eval_accuracy"], 3)) for row in rows if "eval_accuracy" in row]
        if not (run / "summary.json").exists():
            raise RuntimeError(f"not done in time: {len(times['step'])} steps, held-out accuracy by step {held_out}")
        found = json.loads((run / "summary.json").read_text())
        say(f"accuracy {found['accuracy_before']:.3f} to {found['accuracy_after']:.3f} in {found['seconds']:.0f} s")
        report.claim("quickstart: seconds", found["seconds"])
        report.claim(
            "quickstart: gain of accuracy", found["difference"], ci=[found["ci_low"], found["ci_high"]], seeds=1
        )


if __name__ == "__main__":
    run_part({"resume": resume, "zero": zero, "quickstart": quickstart})
