"""Sharded and unsharded models: one launch of two processes trains and samples with both."""

import json
import sys

import pytest
from safetensors.torch import load_file

from ..recipes.launches import succeed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    """Return the output of `fsdp_program` and the folder of its runs."""
    folder = tmp_path_factory.mktemp("fsdp")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    output = succeed([sys.executable, *launch, "-m", "tests.trainers.fsdp_program", str(folder)])
    return json.loads(output.splitlines()[-1]) | {"folder": folder}


@pytest.mark.parametrize("version", ["fsdp1", "fsdp2"])
def test_processes_that_end_at_different_steps_sample_what_they_sample_alone(found, version):
    longest = [max(map(len, process["completions"])) for process in found[version]["functions"]]
    assert longest[0] < longest[1]  # the first process must wait for the second
    for mine, theirs in zip(found[version]["functions"], found["whole"]["functions"], strict=True):
        assert mine["completions"] == theirs["completions"]
        assert mine["next"] == theirs["next"]  # waiting draws no random numbers


@pytest.mark.parametrize("version", ["fsdp1", "fsdp2"])
def test_a_process_without_a_batch_keeps_pace_with_one_that_scores(found, version):
    scored, nothing = (process["probabilities"] for process in found[version]["functions"])
    assert nothing == []
    assert scored == [pytest.approx(values) for values in found["whole"]["functions"][0]["probabilities"]]
    assert min(scored[0]) > 0


def test_a_sharded_run_trains_saves_and_resumes_like_a_whole_one(found):
    assert len(found["whole"]["log"]) == 2
    for mine, theirs in zip(found["fsdp2"]["log"], found["whole"]["log"], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-6)
    assert found["fsdp2"]["resumed"] == found["fsdp2"]["log"]
    assert any(row["loss"] != 0 for row in found["fsdp2"]["log"])
    mine, theirs = (
        load_file(found["folder"] / name / "checkpoint-2" / "model.safetensors") for name in ("fsdp2", "whole")
    )
    tied = mine.pop("lm_head.weight")  # FSDP2 writes a tied head too
    assert tied.equal(mine["model.embed_tokens.weight"])
    assert mine.keys() == theirs.keys()
    assert all(mine[key].sub(theirs[key]).abs().max() < 1e-5 for key in mine)


def test_tools_are_refused_because_processes_call_them_different_numbers_of_times(found):
    assert "leaves the others waiting" in found["fsdp2"]["tools"]
