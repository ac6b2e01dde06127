"""`metatune metarm` as users run it: killed and resumed, and over several rounds."""

import os
import signal
import time

import pytest
import torch

from .launches import LIMIT, finish, metatune, start, weights
from .metarm_setup import read, rows, write


@pytest.mark.slow
@pytest.mark.timeout(4 * LIMIT)
def test_killed_within_trainings_a_run_ends_as_if_never_stopped(tmp_path):
    """A round that is killed within the reward model's training and within the policy's, against one that is not."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    complete(metatune("metarm", "--config", write(tmp_path / "whole", rounds=1)))
    command = metatune("metarm", "--config", write(tmp_path / "killed", rounds=1, resume_from_checkpoint=True))
    folder = tmp_path / "killed" / "run"
    for part in ("round-1/reward_training", "round-1/grpo_training"):
        kill_after(folder / part / "checkpoint-2" / "trainer_state.json", start(command))
    output = complete(command)
    assert "training the policy" in output and "training the reward model" not in output

    for name in ("pairs/train.jsonl", "pairs/test.jsonl", "start/heldout.jsonl", "rounds.json"):
        assert (folder / name).read_text().replace("killed/run", "whole/run") == (
            tmp_path / "whole" / "run" / name
        ).read_text()
    mine, theirs = (tmp_path / name / "run" / "round-1" for name in ("killed", "whole"))
    for name in ("responses.jsonl", "heldout.jsonl"):
        assert (mine / name).read_text() == (theirs / name).read_text()
    for name, of_reward in (("reward_model", True), ("policy", False)):
        expected = weights(theirs / name, of_reward)
        assert all(torch.equal(value, expected[key]) for key, value in weights(mine / name, of_reward).items())
    log = [row for row in rows(folder / "round-1" / "reward_model" / "metrics.jsonl") if "loss" in row]
    assert len(log) == 4 and all("meta/difference" in row for row in log)
    code, _, errors = finish(start(metatune("metarm", "--config", tmp_path / "whole" / "metarm.yaml")))
    assert code == 2 and "holds a run already" in errors


def complete(command):
    """Run two rounds, which are four trainings, and return what they print."""
    code, output, errors = finish(start(command), 2 * LIMIT)
    assert code == 0, errors[-3000:]
    return output


def kill_after(path, process):
    """Kill a launch as soon as a file is there."""
    deadline = time.monotonic() + LIMIT
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1][-3000:]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
@pytest.mark.timeout(3 * LIMIT)
def test_two_rounds_of_weighted_pairs(tmp_path):
    complete(
        metatune("metarm", "--config", write(tmp_path, rounds=2, correction="ocrm", grpo={"learning_rate": 1e-3}))
    )
    first, second = (read(tmp_path / "run" / f"round-{number}" / "summary.json") for number in (1, 2))
    assert first["effective_sample_size"] == 16 and second["effective_sample_size"] < 16
    log = rows(tmp_path / "run" / "round-2" / "reward_model" / "metrics.jsonl")
    assert sum("loss" in row for row in log) == 4
