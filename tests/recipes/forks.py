"""Launches whose processes are forked from one that has imported everything, which takes a fifth of the time.

They run what `metatune RECIPE …` runs in its processes, with the variables that it gives them. What the launcher does
by itself is tested elsewhere.
"""

import json
import multiprocessing
import os
import sys
import time
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from metatune.recipes.launch import plan, resolve_accelerate_config

from .launches import environment

LIMIT = 240  # seconds for what is awaited
SHARDINGS = {"one process": 1, "ddp": 2, "zero2": 2, "zero3": 2}  # and its number of processes
HEAVY = ("trl.trainer.grpo_trainer", "trl.trainer.sft_trainer", "deepspeed", "sklearn", "scipy.stats", "peft")
OURS = ("recipes.grpo", "recipes.reward", "recipes.sft", "trainers.meta_trainer", "trainers.meta_reward_trainer")

forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload([*HEAVY, *(f"metatune.{name}" for name in OURS), "metatune.trainers.sft_trainer"])


@cache
def variables(sharding: str) -> dict[str, str]:
    """What accelerate's launcher tells the processes of a sharding."""
    from accelerate.commands.launch import _validate_launch_command
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    if sharding == "one process":
        return environment(ACCELERATE_USE_CPU="true", ACCELERATE_MIXED_PRECISION="no")
    os.environ.update(environment())
    options = resolve_accelerate_config(["--num_processes", "2", "--accelerate_config", sharding])
    args, defaults, _ = _validate_launch_command(plan(options, "recipe", [], use_cpu=True))
    if not args.use_deepspeed:
        return prepare_multi_gpu_env(args)
    args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    return prepare_deepspeed_cmd_env(args)[1]


def train(recipe: str, args: list[str], own: dict[str, str], log: Path) -> None:
    """Be one process of a launch: `python -m metatune.recipes.RECIPE ARGS`."""
    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.clear()
    os.environ.update(own)
    sys.argv = [recipe, *args]
    module = import_module(f"metatune.recipes.{recipe}")
    module.run(module.make_parser, module.main)


class Run:
    """A recipe that is launched, more than once perhaps, into a folder beside its `recipe.yaml`."""

    def __init__(self, recipe: str, sharding: str, folder: Path, *options: str):
        self.recipe, self.sharding, self.folder = recipe, sharding, folder
        self.args = ["--config", str(folder.parent / "recipe.yaml"), "--output_dir", str(folder), *options]
        self.log = folder.with_suffix(".log")

    def start(self, *more: str) -> list:
        """Start the processes and return them by rank."""
        number, own = SHARDINGS[self.sharding], dict(variables(self.sharding))
        # Where they meet is kept by the launcher, here as there: it outlives rank 0.
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.store.port)}
        meeting["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        processes = []
        for rank in range(number):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number}
            if number > 1:
                own = {**own, **meeting, **{name: str(value) for name, value in place.items()}}
            processes.append(forks.Process(target=train, args=(self.recipe, [*self.args, *more], own, self.log)))
            processes[-1].start()
        return processes

    def finish(self, *more: str) -> None:
        """Run to the end, which must be a success."""
        processes, deadline = self.start(*more), time.monotonic() + LIMIT
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        codes = {process.exitcode for process in processes}
        kill(processes)
        assert codes == {0}, self.log.read_text()[-3000:]

    def die(self, file: Path, *more: str, after: float = 0.0) -> None:
        """Run, and kill every process so many seconds after a file or folder is there."""
        processes, deadline = self.start(*more), time.monotonic() + LIMIT
        torn = file.exists()  # of an earlier kill: the run is to delete it and to write another
        while torn or not is_written(file):
            torn = torn and file.exists()
            if time.monotonic() > deadline or not all(process.is_alive() for process in processes):
                kill(processes)
                pytest.fail(f"{file} was never written:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.001)
        time.sleep(after)
        kill(processes)


def is_written(file: Path) -> bool:
    """Tell whether a file or folder is there, a JSON file whole: `Trainer` opens its mark and then writes it."""
    if file.suffix != ".json":
        return file.exists()
    try:
        json.loads(file.read_text())
    except (OSError, ValueError):
        return False
    return True


def kill(processes: list) -> None:
    """Kill processes by SIGKILL, all before any is waited for."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
