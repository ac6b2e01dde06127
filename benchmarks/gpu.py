"""Does metatune run on a GPU as it does on a CPU, and what does it take there in seconds and memory?

    python benchmarks/gpu.py [--parts trainings resume …] [--quick] [--limit 480] [--logs DIR]

| part | what it tells | limit in seconds |
|---|---|---|
| `trainings` | every trainer takes three steps, in float32 and as bf16 autocast with gradient checkpointing; all off against stock TRL, bit for bit or not; what is computed on both against the CPU | 200 |
| `resume` | four steps against some, SIGKILL, and the rest, through the command line; twice the whole run as the control; also with `full_determinism` | 110 |
| `zero` | three steps by ZeRO-2 and ZeRO-3 on one process against a launch without DeepSpeed | 110 |
| `quickstart` | the quickstart recipe with `--use_cpu false` | 190 |
| `rollouts` | tokens a second of TRL's generation and of `compact_generation`, which drops rows early, late or never | 90 |
| `step` | seconds of a step: stock `GRPOTrainer`, `MetaTrainer` with all off, and with curriculum, progress by likelihood, compact generation and grouping, in turns | 170 |
| `memory` | peak memory of training steps against doctor's estimate | 90 |

Each part is a process with a limit of its own; what it has found until it fails or is ended is kept. On a GPU the
first four run side by side, since most of their time is Python's, and the last three alone. Without a GPU (or with
`--device cpu`) all run one after another on tiny models, as a test of this script; nothing is claimed then.
`--quick` takes the fewest repeats everywhere.
"""  # noqa: E501

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from shared import ROOT, print_claims


@dataclass
class Part:
    """A part of the benchmark and, once it has been started, its process."""

    name: str
    script: str
    limit: float
    alone: bool
    found: Path  # its rows, JSONL
    process: subprocess.Popen | None = None
    started: float = 0.0
    seen: int = 0
    rows: list[dict] = field(default_factory=list)


PARTS = {
    part[0]: part
    for part in (
        ("trainings", "gpu_trainings.py", 200, False),
        ("resume", "gpu_launches.py", 110, False),
        ("zero", "gpu_launches.py", 110, False),
        ("quickstart", "gpu_launches.py", 190, False),
        ("rollouts", "gpu_steps.py", 90, True),
        ("step", "gpu_steps.py", 170, True),
        ("memory", "gpu_steps.py", 90, True),
    )
}
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
    "TQDM_DISABLE": "1",
}
GRACE = 5  # seconds that a part has to end its own processes


def start(part: Part, logs: Path, quick: bool, on_gpu: bool, limit: float) -> None:
    """Start a part; it writes its rows into a file that is read while it runs."""
    part.limit, part.started = limit, time.perf_counter()
    command = [sys.executable, str(Path(__file__).with_name(part.script)), part.name, str(part.found)]
    command += [str(int(limit))] + ["--quick"] * quick
    own = {} if on_gpu else {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    with (logs / f"{part.name}.log").open("w") as log:
        part.process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ENVIRONMENT, **own},
            start_new_session=True,
        )


def read(part: Part) -> None:
    """Print what a part has found since the last look."""
    lines = part.found.read_text().split("\n")[:-1] if part.found.exists() else []  # the last may not be whole yet
    for line in lines[part.seen :]:
        row = json.loads(line)
        part.rows.append(row)
        if "name" in row:
            print(f"{part.name:11}{'ok  ' if row['ok'] else 'FAIL'}  {row['name']:66}{row['said']}", flush=True)
    part.seen = len(lines)


def end(part: Part, logs: Path) -> bool:
    """Tell whether a part has ended, by itself or because its time is over; a failure is a row of its own."""
    assert part.process is not None
    seconds, code = time.perf_counter() - part.started, part.process.poll()
    late = code is None and seconds > part.limit
    if late:
        part.process.terminate()
        try:
            part.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(part.process.pid, signal.SIGKILL)
            part.process.wait()
    read(part)
    if code is None and not late:
        return False
    said = f"in {seconds:.0f} s" if code == 0 else f"ended after {seconds:.0f} s, its limit"
    if code not in (0, None):
        text = (logs / f"{part.name}.log").read_text(errors="replace").strip().splitlines() or ["no output"]
        said = f"exit code {code}: {text[-1][:300]}"
    part.rows.append({"name": "the whole part", "ok": code == 0, "said": said})
    print(f"{part.name:11}{'ok  ' if code == 0 else 'FAIL'}  {'the whole part':66}{said}", flush=True)
    return True


def run(parts: list[Part], logs: Path, quick: bool, on_gpu: bool, deadline: float) -> None:
    """Run parts side by side until all have ended; one that no time is left for is not started."""
    running = []
    for part in parts:
        left = deadline - time.perf_counter() - GRACE
        if left < 15:
            print(f"{part.name:11}FAIL  not started: {max(0.0, left):.0f} s are left", flush=True)
            part.rows.append({"name": "the whole part", "ok": False, "said": "not started"})
            continue
        start(part, logs, quick, on_gpu, min(part.limit, left) if on_gpu else left)
        running.append(part)
    try:
        while running:
            for part in running:
                read(part)
            running = [part for part in running if not end(part, logs)]
            time.sleep(0.2)
    finally:
        for part in running:  # an interrupt
            part.process.terminate()


def describe_device(device: str) -> tuple[bool, str]:
    """Return whether there is a GPU to be used, and what everything runs on."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: torch finds no GPU")
    if device == "cpu" or not torch.cuda.is_available():
        return False, f"no GPU: tiny sizes on the CPU, a test of this script; torch {torch.__version__}"
    found = torch.cuda.get_device_properties(0)
    return True, f"{found.name}, {found.total_memory / 2**30:.0f} GiB, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="the fewest repeats, about four minutes on a GPU")
    parser.add_argument("--limit", type=float, default=480, help="seconds for all; on a CPU give more")
    parser.add_argument("--logs", type=Path, help="where the parts' logs are kept (default: a new folder)")
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto")
    args = parser.parse_args()
    deadline = time.perf_counter() + args.limit
    on_gpu, what = describe_device(args.device)
    logs = args.logs or Path(tempfile.mkdtemp(prefix="gpu-"))
    logs.mkdir(parents=True, exist_ok=True)
    print(f"on {what}; logs in {logs}", flush=True)
    found = Path(tempfile.mkdtemp(prefix="gpu-"))
    parts = [Part(*PARTS[name], found / f"{name}.jsonl") for name in PARTS if name in args.parts]
    beside = [part for part in parts if not part.alone] if on_gpu else []
    for group in ([beside] if beside else []) + [[part] for part in parts if part not in beside]:
        run(group, logs, args.quick, on_gpu, deadline)
    failed = [row["name"] for part in parts for row in part.rows if not row.get("ok", True)]
    print(f"{len(failed)} rows FAIL" if failed else "every row is ok")
    claims = [{**row["claim"], "part": part.name} for part in parts for row in part.rows if "claim" in row]
    total = sum("name" in row for part in parts for row in part.rows)
    summary = {"claim": "rows that are ok", "value": total - len(failed), "of": total, "device": what}
    print_claims("gpu", [summary, *(claims if on_gpu else [])])


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
