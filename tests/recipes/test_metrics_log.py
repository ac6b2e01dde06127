"""`metrics.jsonl`: one JSON object per log line, with the time of the run over all its launches."""

import json

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from metatune.recipes import callbacks
from metatune.recipes.callbacks import MetricsLog


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets."""
    now = [0.0]
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: now[0])
    return now


def log(callback, args, state, step, **values):
    state.global_step = step
    state.log_history.append({**values, "step": step})
    callback.on_log(args, state, TrainerControl(), logs=values)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_run_counts_its_time_from_its_checkpoint_on(tmp_path, clock):
    args, state = TrainingArguments(output_dir=str(tmp_path), report_to="none"), TrainerState()
    first = MetricsLog()
    first.on_train_begin(args, state, TrainerControl())
    clock[0] = 10.0
    log(first, args, state, 1, loss=1.0)
    saved = [dict(row) for row in state.log_history]  # the checkpoint
    clock[0] = 25.0
    log(first, args, state, 2, loss=0.5)  # lost: the run is killed before it saves again

    clock[0] = 1000.0
    resumed, state = MetricsLog(), TrainerState(log_history=saved)
    resumed.on_train_begin(args, state, TrainerControl())
    clock[0] = 1004.0
    log(resumed, args, state, 2, loss=0.4)
    assert lines(tmp_path) == [
        {"loss": 1.0, "step": 1, "time/run": 10.0},
        {"loss": 0.4, "step": 2, "time/run": 14.0},
    ]
    assert state.log_history == lines(tmp_path), "a later checkpoint has the time too"


def test_an_evaluation_without_a_training_writes_nothing(tmp_path):
    args, state = TrainingArguments(output_dir=str(tmp_path), report_to="none"), TrainerState()
    log(MetricsLog(), args, state, 0, eval_loss=1.0)
    assert not (tmp_path / "metrics.jsonl").exists()
