"""The breakdown of a run's step time."""

from collections.abc import Mapping, Sequence
from typing import Any

PHASES = ("generate", "sync", "score", "forward_backward")  # `time/…` of a log line; they add up to `time/step`
RATES = {"rollout": "generate", "trained": "forward_backward"}  # tokens per second are counted over this phase


def time_spent(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Summarize the time of the steps by phase, `None` if no line has it.

    Args:
        metrics (`Sequence[Mapping]`): lines of `metrics.jsonl`; see `metatune.trainers.throughput` for their keys.

    Returns:
        `dict`: `step`, seconds per step; `phases`, the same for each phase; `rates`, tokens per second over
        the whole run; `memory`, the peak in GiB; `hit_rate`, the mean of vLLM's prefix cache or `None`.
    """
    lines = [line for line in metrics if line.get("time/step")]
    if not lines:
        return None
    seconds = {phase: sum(line.get(f"time/{phase}", 0.0) for line in lines) for phase in PHASES}
    tokens = {
        name: sum(
            line.get(f"throughput/{name}_tokens_per_second", 0.0) * line.get(f"time/{of}", 0.0) for line in lines
        )
        for name, of in RATES.items()
    }
    hits = [line[key] for line in lines if (key := "vllm/prefix_cache_hit_rate") in line]
    return {
        "step": sum(line["time/step"] for line in lines) / len(lines),
        "phases": {phase: spent / len(lines) for phase, spent in seconds.items() if spent},
        "rates": {name: tokens[name] / seconds[of] for name, of in RATES.items() if seconds[of]},
        "memory": max(line.get("memory/peak_gib", 0.0) for line in lines),
        "hit_rate": sum(hits) / len(hits) if hits else None,
    }
