"""Where the time of a GRPO step goes, how many tokens it moves, and the most memory it holds.

| key | what |
|---|---|
| `time/step` | wall seconds of an optimizer step; logging, evaluation and checkpoints are left out |
| `time/generate` | in it, sampling completions, whatever the engine |
| `time/sync` | sending the weights to vLLM; only with vLLM |
| `time/score` | the reward functions, and waiting for the slowest process's |
| `time/forward_backward` | all the rest: forward (also of old and reference log-probabilities), backward, clipping, the optimizer, drawing and tokenizing prompts, averaging gradients |
| `throughput/rollout_tokens_per_second` | tokens that all processes generated, over the seconds of `time/generate` |
| `throughput/trained_tokens_per_second` | tokens with a loss, of all processes and iterations, over those of `time/forward_backward` |
| `memory/peak_gib` | GPU memory that torch held at most since the last line, or the process's peak resident memory on a CPU |
| `vllm/prefix_cache_hit_rate` | share of the prompt tokens since the last line that vLLM had in its cache |

Times are means over the steps of a log line. Phases never overlap: a sync inside a generation is counted as sync only,
so the four parts add up to `time/step`. Of several processes the slowest counts, phase by phase, because they wait for
each other after generating, syncing and scoring; memory is the largest of them.

The clock is the wall's. Generating ends in token ids on the host and scoring in rewards on the host, so on a GPU too
their ends are real ends. Their beginnings could be early, while the GPU still works on what came before: a phase
therefore waits for the device first, which happens once a generation and where the host has nothing to run ahead to.
The end of a step waits only before a log line, an evaluation or a checkpoint, which wait for the device themselves.
"""  # noqa: E501

import re
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback

PHASES = ("generate", "sync", "score")
GIB = 2**30


class StepTimes:
    """Divides the wall time of steps into phases.

    Args:
        clock (`Callable[[], float]`, *optional*, defaults to `time.perf_counter`): seconds since any fixed moment.

    Time counts from `start` to `stop`, in any number of pieces. Outside of them a phase counts nothing, so an
    evaluation, which generates and scores as well, leaves the times as they are.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._since: float | None = None  # None: not counting
        self._phases: list[str] = []  # the innermost last
        self.reset()

    def reset(self) -> None:
        """Forget what was counted."""
        self.total = 0.0
        self.seconds = dict.fromkeys(PHASES, 0.0)

    @property
    def running(self) -> bool:
        """Whether time counts now."""
        return self._since is not None

    def start(self) -> None:
        """Count from now on, or go on counting."""
        self._book()
        self._since = self._clock() if self._since is None else self._since

    def stop(self) -> None:
        """Count no longer."""
        self._book()
        self._since = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block as `name`, and not as the phase around it."""
        self._book()
        self._phases.append(name)
        try:
            yield
        finally:
            self._book()
            self._phases.pop()

    def _book(self) -> None:
        """Add the time since the last call to the innermost phase."""
        if self._since is None:
            return
        now = self._clock()
        self.total += now - self._since
        if self._phases:
            self.seconds[self._phases[-1]] += now - self._since
        self._since = now


class Throughput(TrainerCallback):
    """Measures the steps of a trainer: one of its callbacks, told what happens inside a step, and asked by its `log`.

    Args:
        device (`torch.device`): what the process trains on.
        gather (`Callable`): collects a tensor of shape (1, K) of every process into (processes, K), for instance
            `accelerator.gather`. Called once a log line, at the end of a step, which all processes reach.
        clock (`Callable[[], float]`, *optional*, defaults to `time.perf_counter`): as for [`StepTimes`].
    """

    def __init__(
        self,
        device: torch.device,
        gather: Callable[[torch.Tensor], torch.Tensor],
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.times = StepTimes(clock)
        self._device = device
        self._gather = gather
        self._line: dict[str, float] = {}
        self._cache: tuple[float, float] | None = None  # counters of the prefix cache, as they are now
        self._cache_before = (0.0, 0.0)  # as they were at the last line
        self._reset()

    def _reset(self) -> None:
        self.times.reset()
        self._steps = 0
        self._generated = 0
        self._trained: int | torch.Tensor = 0  # on the device, and read at a line
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def on_step_begin(self, args, state, control, **kwargs):
        self.times.start()

    def on_step_end(self, args, state, control, **kwargs):
        self._steps += 1
        if control.should_log or control.should_evaluate or control.should_save:
            self._stop()  # else the device may still be at this step when the next one begins: time goes on
        if control.should_log:
            self._line = self._measure()

    def on_epoch_end(self, args, state, control, **kwargs):
        self._stop()

    def on_train_end(self, args, state, control, **kwargs):
        self._stop()

    def _stop(self) -> None:
        self._wait_for_device()
        self.times.stop()

    def _wait_for_device(self) -> None:
        if self.times.running and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block as `generate`, `sync` or `score`, if a step is being measured."""
        self._wait_for_device()
        with self.times.phase(name):
            yield

    def timed(self, name: str, function: Callable) -> Callable:
        """Return `function`, counted as the phase `name` at every call."""

        def call(*args, **kwargs):
            with self.phase(name):
                return function(*args, **kwargs)

        return call

    def add_generated(self, completion_ids: Iterable[Sequence[int]]) -> None:
        """Count the tokens that this process generated, if a step is being measured."""
        if self.times.running:
            self._generated += sum(map(len, completion_ids))

    def add_trained(self, inputs: dict[str, Any]) -> None:
        """Count the tokens of a micro-batch that have a loss.

        Args:
            inputs (`dict`): its `completion_mask` and, where there are tools, `tool_mask`, both of shape (B, T).
        """
        mask = inputs["completion_mask"]
        if "tool_mask" in inputs:
            mask = mask * inputs["tool_mask"]
        self._trained = self._trained + mask.sum()

    def set_prefix_cache(self, counters: tuple[float, float]) -> None:
        """Take the counters of the prefix cache of this process's vLLM: tokens asked for and found since its start."""
        self._cache = counters

    def take(self) -> dict[str, float]:
        """Return the metrics of the log line that is due, and nothing when asked again."""
        line, self._line = self._line, {}
        return line

    def _measure(self) -> dict[str, float]:
        """Combine the steps since the last line over all processes, and begin anew."""
        counts = [float(self._generated), float(self._trained), peak_memory(self._device) / GIB]
        own = [self.times.total, *self.times.seconds.values(), *counts]
        metrics = summarize(self._gather(torch.tensor([own], device=self._device)).tolist(), self._steps)
        if self._cache is not None:
            rate = hit_rate(self._cache_before, self._cache)
            metrics |= {} if rate is None else {"vllm/prefix_cache_hit_rate": rate}
            self._cache_before = self._cache
        self._reset()
        return metrics


def summarize(rows: Sequence[Sequence[float]], steps: int) -> dict[str, float]:
    """Combine what the processes measured into the metrics of a log line.

    Args:
        rows (`Sequence[Sequence[float]]`): of every process the seconds in all, in generation, in sync and in
            scoring, the tokens generated and trained, and the peak memory in GiB.
        steps (`int`): optimizer steps that were measured.

    Returns:
        `dict[str, float]`: the metrics; a rate is left out where its phase did not occur, as is `time/sync`.
    """
    total, generate, sync, score, generated, trained, memory = zip(*rows, strict=True)
    total, generate, sync, score = (max(seconds) for seconds in (total, generate, sync, score))
    rest = total - generate - sync - score
    metrics = {"time/step": total / steps, "time/generate": generate / steps, "time/score": score / steps}
    if sync > 0:
        metrics["time/sync"] = sync / steps
    metrics["time/forward_backward"] = rest / steps
    if generate > 0:
        metrics["throughput/rollout_tokens_per_second"] = sum(generated) / generate
    if rest > 0:
        metrics["throughput/trained_tokens_per_second"] = sum(trained) / rest
    return {**metrics, "memory/peak_gib": max(memory)}


def peak_memory(device: torch.device) -> int:
    """Return bytes: what torch held at most on a GPU since its peak was reset, else the process's peak resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# ---- vLLM's prefix cache ----

CACHE_COUNTERS = ("vllm:prefix_cache_queries", "vllm:prefix_cache_hits")


def hit_rate(before: tuple[float, float], now: tuple[float, float]) -> float | None:
    """Return the share of tokens found in the cache between two readings of its counters, `None` if none was asked.

    Counters that fell mean that the engine was started anew: then it is the share since that start.
    """
    if now[0] < before[0]:
        before = (0.0, 0.0)
    asked, found = (later - earlier for later, earlier in zip(now, before, strict=True))
    return found / asked if asked > 0 else None


def prefix_cache_counters(metrics: Iterable[Any]) -> tuple[float, float]:
    """Read the counters off `llm.get_metrics()`, summed over engines; vLLM counts with `disable_log_stats=False` only.

    Args:
        metrics (`Iterable`): objects with a `name`, counters among them with a `value`.
    """
    totals: dict[str, float] = defaultdict(float)
    for metric in metrics:
        if metric.name in CACHE_COUNTERS:
            totals[metric.name] += metric.value
    return totals[CACHE_COUNTERS[0]], totals[CACHE_COUNTERS[1]]


def prefix_cache_counters_of_server(text: str) -> tuple[float, float]:
    """Read the counters off what a vLLM server answers at `/metrics`, in Prometheus' text format."""
    totals: dict[str, float] = defaultdict(float)
    for name, value in re.findall(r"^(vllm:prefix_cache_\w+?)(?:_total)?(?:\{.*\})? (\S+)", text, re.MULTILINE):
        totals[name] += float(value)
    return totals[CACHE_COUNTERS[0]], totals[CACHE_COUNTERS[1]]
