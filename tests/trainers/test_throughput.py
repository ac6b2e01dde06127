import json
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl

from metatune.curricula import build_tokenizer
from metatune.trainers import DUMPTrainer
from metatune.trainers.throughput import (
    StepTimes,
    Throughput,
    hit_rate,
    prefix_cache_counters,
    prefix_cache_counters_of_server,
    summarize,
)

from .dump_setup import config, digits, rows, tiny_model

PARTS = ("time/generate", "time/score", "time/forward_backward")


class Clock:
    """A clock that stands still but for `pass_`."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


# ---- dividing the time ----


def test_an_inner_phase_is_not_counted_as_the_outer_one(clock):
    times = StepTimes(clock)
    times.start()
    clock.pass_(1)
    with times.phase("generate"):
        clock.pass_(2)
        with times.phase("sync"):
            clock.pass_(4)
        clock.pass_(8)
    clock.pass_(16)
    with times.phase("score"):
        clock.pass_(32)
    times.stop()
    assert times.seconds == {"generate": 10, "sync": 4, "score": 32}
    assert times.total == 63


def test_nothing_counts_outside_of_a_step(clock):
    times = StepTimes(clock)
    with times.phase("generate"):
        clock.pass_(1)
    times.start()
    clock.pass_(2)
    times.stop()
    clock.pass_(4)
    with times.phase("score"):
        clock.pass_(8)
    times.start()
    clock.pass_(16)
    times.stop()
    assert times.total == 18
    assert set(times.seconds.values()) == {0}


def test_a_phase_that_fails_ends_all_the_same(clock):
    times = StepTimes(clock)
    times.start()
    with pytest.raises(ZeroDivisionError), times.phase("generate"):
        clock.pass_(1)
        1 / 0  # noqa: B018
    clock.pass_(2)
    times.stop()
    assert times.seconds["generate"] == 1
    assert times.total == 3


# ---- a log line ----


def test_the_slowest_process_counts_and_tokens_are_added_up():
    #        total, generate, sync, score, generated, trained, GiB
    rows = [[10.0, 4.0, 1.0, 0.5, 600.0, 300.0, 3.0], [10.0, 3.0, 1.0, 1.0, 400.0, 500.0, 5.0]]
    metrics = summarize(rows, steps=2)
    assert metrics == {
        "time/step": 5.0,
        "time/generate": 2.0,
        "time/score": 0.5,
        "time/sync": 0.5,
        "time/forward_backward": 2.0,
        "throughput/rollout_tokens_per_second": 250.0,
        "throughput/trained_tokens_per_second": 200.0,
        "memory/peak_gib": 5.0,
    }


def test_what_did_not_happen_has_no_rate():
    metrics = summarize([[2.0, 0.0, 0.0, 0.0, 0.0, 100.0, 1.0]], steps=1)  # a step on rollouts made before
    assert metrics["time/generate"] == 0
    assert "throughput/rollout_tokens_per_second" not in metrics
    assert "time/sync" not in metrics
    assert metrics["throughput/trained_tokens_per_second"] == 50


def control(**flags) -> TrainerControl:
    return TrainerControl(**flags)


def test_steps_without_a_line_are_part_of_the_next_one_and_evaluations_are_not(clock):
    measured = Throughput(torch.device("cpu"), lambda tensor: tensor, clock)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])

    def step(seconds, **flags):
        measured.on_step_begin(None, None, control())
        with measured.phase("generate"):
            clock.pass_(seconds)
        measured.add_generated([[1, 2, 3], [4]])
        measured.add_trained({"completion_mask": mask, "tool_mask": torch.tensor([[1, 0, 0], [1, 1, 1]])})
        clock.pass_(1)
        measured.on_step_end(None, None, control(**flags))

    step(2)
    step(2, should_evaluate=True)
    with measured.phase("generate"):
        clock.pass_(1000)
    measured.add_generated([[1] * 1000])
    step(2, should_log=True)
    line = measured.take()
    assert line["time/step"] == 3
    assert line["time/generate"] == 2
    assert line["throughput/rollout_tokens_per_second"] == 2
    assert line["throughput/trained_tokens_per_second"] == 2
    assert measured.take() == {}
    step(5, should_log=True)
    assert measured.take()["time/step"] == 6


# ---- vLLM's prefix cache ----


def test_the_hit_rate_is_that_of_the_time_between_two_readings():
    assert hit_rate((100, 50), (300, 200)) == 0.75
    assert hit_rate((100, 50), (100, 50)) is None
    assert hit_rate((100, 50), (80, 20)) == 0.25, "the engine was started anew"


def test_a_line_has_the_hit_rate_since_the_line_before_it(clock):
    measured = Throughput(torch.device("cpu"), lambda tensor: tensor, clock)
    rates = []
    for counters in [(100.0, 0.0), (200.0, 60.0), (200.0, 60.0)]:
        measured.on_step_begin(None, None, control())
        measured.set_prefix_cache(counters)
        measured.on_step_end(None, None, control(should_log=True))
        rates.append(measured.take().get("vllm/prefix_cache_hit_rate"))
    assert rates == [0.0, 0.6, None]


def test_counters_are_read_off_an_engine():
    named = [("vllm:prefix_cache_queries", 7), ("vllm:prefix_cache_hits", 3), ("vllm:prefix_cache_queries", 2)]
    metrics = [SimpleNamespace(name=name, value=value) for name, value in named]
    metrics.append(SimpleNamespace(name="vllm:e2e_request_latency_seconds", count=1))
    assert prefix_cache_counters(metrics) == (9, 3)


def test_counters_are_read_off_a_server():
    text = """\
# HELP vllm:prefix_cache_queries_total Prefix cache queries, in terms of number of queried tokens.
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 1440.0
vllm:prefix_cache_queries_total{engine="1",model_name="m"} 60.0
vllm:prefix_cache_queries_created{engine="0",model_name="m"} 1.7e+09
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 1.28e+03
vllm:external_prefix_cache_hits_total{engine="0",model_name="m"} 5.0
"""
    assert prefix_cache_counters_of_server(text) == (1500, 1280)
    assert prefix_cache_counters_of_server("vllm:prefix_cache_queries_total 5\nvllm:num_requests_running 1\n") == (
        5,
        0,
    )


# ---- in a training ----


def train(folder, **options) -> list[dict]:
    trainer = DUMPTrainer(
        tiny_model(),
        reward_funcs=digits,
        args=config(folder, **options),
        train_dataset=rows(),
        eval_dataset=rows(num_items=4, first=100),
        processing_class=build_tokenizer(),
    )
    trainer.train()
    return trainer.state.log_history


@pytest.mark.parametrize("compact", [True, False])
def test_the_parts_of_every_step_add_up_and_the_tokens_are_right(tmp_path, compact):
    evaluation = {"eval_strategy": "steps", "eval_steps": 2, "num_generations_eval": 1}
    lines = train(tmp_path, compact_generation=compact, save_strategy="steps", save_steps=1, **evaluation)
    training = [line for line in lines if "loss" in line]
    assert len(training) == 6
    for line in training:
        assert all(line[part] > 0 for part in PARTS)
        assert sum(line[part] for part in PARTS) == pytest.approx(line["time/step"], rel=1e-3)
        assert line["time/step"] > line["step_time"], "TRL's own has no optimizer in it"
        tokens = 16 * line["completions/mean_length"]
        rollout = line["throughput/rollout_tokens_per_second"] * line["time/generate"]
        trained = line["throughput/trained_tokens_per_second"] * line["time/forward_backward"]
        assert (rollout, trained) == (pytest.approx(tokens, rel=1e-3), pytest.approx(tokens, rel=1e-3))
        assert 0.05 < line["memory/peak_gib"] < 100
        assert "time/sync" not in line
    others = [line for line in lines if "loss" not in line]
    assert len(others) == 3 + 1
    assert not any(key.startswith(("time/", "throughput/")) for line in others for key in line)
    json.dumps(lines)


def test_a_block_that_is_trained_on_twice_counts_its_tokens_twice(tmp_path):
    blocks = {"per_device_train_batch_size": 8, "steps_per_generation": 2, "num_iterations": 2}
    lines = train(tmp_path, max_steps=8, logging_steps=4, **blocks)
    for line in lines:
        if "loss" in line:
            seconds = {part: 4 * line[part] for part in PARTS}  # a line covers four steps, one block
            generated = line["throughput/rollout_tokens_per_second"] * seconds["time/generate"]
            trained = line["throughput/trained_tokens_per_second"] * seconds["time/forward_backward"]
            assert trained == pytest.approx(2 * generated, rel=1e-3)
