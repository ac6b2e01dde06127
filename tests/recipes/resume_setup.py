"""One small recipe for every trainer, and what two of its checkpoints have in common: the tables of the resume matrix.

In each recipe an epoch is four optimizer steps. A generation block is four steps as well, so that a checkpoint of the
second one holds rollouts that wait, and one of the fourth is the end of a block and of an epoch.
"""

import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file

from .launches import GRPO, REWARD

STEPS_AN_EPOCH = 4


def _grpo(folder: Path, processes: int, url: str, **options) -> dict[str, Any]:
    """A block of 16 completions a process, four prompts of four, trained on in eight micro-steps of two."""
    sources = (("sums", {"source": "arithmetic", "config": {"terms": 3}}), ("search", {"source": "countdown"}))
    distributions = [{"name": name, **entry, "train_size": 2 * processes, "test_size": 2} for name, entry in sources]
    distributions[1]["config"] = {"numbers": 3}
    blocks = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "steps_per_generation": 8}
    return {
        **GRPO,
        "distributions": distributions,
        **blocks,
        "max_completion_length": 24,
        "temperature": 1.5,
        **options,
    }


def _judged(folder: Path, processes: int, url: str, **options) -> dict[str, Any]:
    """The same with a judge whose rubric is changed after every generation batch, and one that looks on."""
    rubric = {"task": "Make a number.", "items": [{"name": "short", "criterion": "Is short.", "points": 4}]}
    (folder / "rubric.yaml").write_text(yaml.safe_dump(rubric))
    judge = {"url": url, "rubric": str(folder / "rubric.yaml")}
    judges = {"judge": judge, "meta_judge": {"url": url}, "held_out_judge": judge}
    meta = {"meta_every": 1, "meta_cases": 4, "gate": False, "gate_cases": 4, "held_out_every": 1, "held_out_cases": 4}
    return _grpo(folder, processes, url, **judges, **meta, rollback_window=1, alarm_window=1, **options)


def _vllm(folder: Path, processes: int, url: str) -> dict[str, Any]:
    """The same by a vLLM engine in the training process, whose samples come from the process's own random state."""
    engine = {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": 128, "compact_generation": False}
    return _grpo(folder, processes, url, **engine)


PROGRESS = {"episodes": {"by": "delimiter"}, "forced_answer_tokens": 8}


def _meta(folder: Path, processes: int, url: str) -> dict[str, Any]:
    gold = {"reward_funcs": ["correctness"], "reward_weights": [1.0], "curriculum_reward": "gold"}
    return _judged(folder, processes, url, progress="episode", **PROGRESS, **gold)


def _reward(folder: Path, processes: int, url: str) -> dict[str, Any]:
    """Pairs of known strength, prototypes, dropout and MetaRM's step, which draws from a set of its own, in bf16."""
    pairs = [
        {
            "prompt": f"{i} + {3 * i} = ",
            "chosen": str(4 * i),
            "rejected": str(4 * i + 1 + i % 5),
            "strength": i % 3 - 0.5,
        }
        for i in range(4 * STEPS_AN_EPOCH * processes)
    ]
    responses = [{"prompt": f"{i} + {i} = ", "responses": [str(2 * i), f"{i} {i}", str(i)]} for i in range(10)]
    for name, rows in (("pairs", pairs), ("meta", responses)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"dataset_name": str(folder / "pairs.jsonl"), "meta_dataset_name": str(folder / "meta.jsonl")}
    treatments = {"soft_labels": 0.1, "adaptive_margin": 0.1, "contrastive": "swav"}
    steps = {"meta_step": "normalised", "meta_step_size": 0.1, "per_device_meta_batch_size": 2}
    return {**REWARD, **data, **treatments, **steps, "gradient_accumulation_steps": 2, "bf16": True}


def _sft(folder: Path, processes: int, url: str) -> dict[str, Any]:
    entries = [{"name": "search", "source": "countdown", "config": {"numbers": 3}}]
    number = {"demonstrations": 4 * STEPS_AN_EPOCH * processes, "gradient_accumulation_steps": 2}
    return {**REWARD, "distributions": entries, **number}


TRAINERS = {  # name: the command, and its recipe for a folder, a number of processes and a judge's address
    "DUMP": ("grpo", _grpo),
    "DUMP with vLLM": ("grpo", _vllm),
    "MRT": ("grpo", lambda *run: _grpo(*run, progress="prefix", curriculum="uniform", **PROGRESS)),
    "MPO": ("grpo", _judged),
    "Meta": ("grpo", _meta),
    "MetaReward": ("reward", _reward),
    "SFT": ("sft", _sft),
}


def judge_by_rule(body: dict) -> str:
    """Judge and revise by what is asked alone, so that a run that asks again is told the same."""
    asked = "".join(message["content"] for message in body["messages"])
    if "You improve the rubric" in asked:
        if len(body["messages"]) == 2:
            return f"an analysis of {zlib.crc32(asked.encode())}"
        points = 1 + zlib.crc32(asked.encode()) % 5
        return json.dumps({"items": [{"name": "short", "criterion": f"Is short: {points}.", "points": points}]})
    items = body["response_format"]["json_schema"]["schema"]["properties"]
    scores = {name: item["properties"]["score"]["maximum"] for name, item in items.items()}
    return json.dumps(
        {
            name: {"rationale": "by rule", "score": zlib.crc32(asked.encode()) % (most + 1)}
            for name, most in scores.items()
        }
    )


# ---- what is equal ----

# Seconds, speeds and memory; nothing else may differ between a run and the same run resumed.
MEASURED = re.compile(r"(.*/)?time(/.*)?|.*_time|.*runtime|.*_per_second|memory/.*|.*seconds.*|total_flos")
NOT_STATE = ("training_args.bin", "README.md")  # hold the folder's name


def unmeasured(row: dict[str, Any]) -> dict[str, Any]:
    """A log line without what a clock said."""
    return {key: value for key, value in row.items() if not MEASURED.fullmatch(key)}


def contents(folder: Path) -> dict[str, Any]:
    """Everything that a checkpoint holds, by file."""
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: _read(path) for name, path in files.items() if path.name not in NOT_STATE}


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix in (".pt", ".pth"):
        return torch.load(path, weights_only=False)
    if path.name == "trainer_state.json":
        state = json.loads(path.read_text())
        return unmeasured(state) | {"log_history": [unmeasured(row) for row in state["log_history"]]}
    return json.loads(path.read_text()) if path.suffix == ".json" else path.read_bytes()


def differences(mine: Any, theirs: Any, where: str = "") -> list[str]:
    """Name every place in which two states are not equal bit for bit."""
    if isinstance(theirs, torch.Tensor | np.ndarray) and type(mine) is type(theirs):
        mine, theirs = torch.as_tensor(mine), torch.as_tensor(theirs)
        same = (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape) and _bits(mine) == _bits(theirs)
        return [] if same else [where]
    if isinstance(theirs, dict) and isinstance(mine, dict):
        found = [f"{where}/{key} is in one alone" for key in sorted(map(str, mine.keys() ^ theirs.keys()))]
        return found + [
            each for key in mine if key in theirs for each in differences(mine[key], theirs[key], f"{where}/{key}")
        ]
    if isinstance(theirs, list | tuple) and isinstance(mine, list | tuple) and len(mine) == len(theirs):
        pairs = enumerate(zip(mine, theirs, strict=True))
        return [each for number, pair in pairs for each in differences(*pair, f"{where}/{number}")]
    if hasattr(theirs, "__dict__") and type(mine) is type(theirs) and not callable(theirs):
        return differences(vars(mine), vars(theirs), where)
    same = mine == theirs or repr(mine) == repr(theirs) == "nan"
    return [] if same else [f"{where}: {str(mine)[:80]} is not {str(theirs)[:80]}"]


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
