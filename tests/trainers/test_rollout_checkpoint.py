import math

import pytest
import torch

from metatune.trainers.rollout_checkpoint import read_rollouts, read_state, write_rollouts, write_state

CPU = torch.device("cpu")


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def assert_equal_bit_for_bit(read: list[dict], written: list[dict]) -> None:
    assert len(read) == len(written)
    for mine, theirs in zip(read, written, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            if isinstance(value, torch.Tensor):
                assert (mine[name].dtype, mine[name].shape) == (value.dtype, value.shape), name
                assert bits(mine[name]) == bits(value), name
            else:
                assert type(mine[name]) is type(value), name
                assert mine[name] == value or (math.isnan(mine[name]) and math.isnan(value)), name


def make_batches(seed: int) -> list[dict]:
    """Two micro-batches with every kind of entry that a generation block has, and some harder ones."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(2):
        logps = torch.randn(3, 5, generator=generator)
        batches.append(
            {
                "prompt_ids": torch.randint(0, 100, (3, 4), generator=generator),
                "completion_mask": torch.rand(3, 5, generator=generator) < 0.5,
                "old_per_token_logps": logps,
                "advantages": torch.tensor([math.nan, -0.0, math.inf]),
                "half": logps.to(torch.bfloat16),
                "double": logps.double() / 3,
                "transposed": logps.T,
                "a view": logps[:, 1:3],
                "the same again": logps,
                "empty": torch.zeros(0, 5),
                "num_items_in_batch": torch.tensor(17),
                "ref_per_token_logps": None,
                "a/b": torch.arange(3),
                "scale": 0.1 + 0.2,
                "not a number": math.nan,
                "count": 3,
                "flag": True,
            }
        )
    return batches


# ---- rollouts ----


def test_rollouts_of_two_ranks_come_back_bit_for_bit(tmp_path):
    written = {rank: make_batches(seed=rank) for rank in (0, 1)}
    for rank, batches in written.items():
        write_rollouts(tmp_path / "checkpoint-3", rank, batches)
    for rank, batches in written.items():
        assert_equal_bit_for_bit(read_rollouts(tmp_path / "checkpoint-3", rank, CPU), batches)
    assert bits(written[0][0]["old_per_token_logps"]) != bits(written[1][0]["old_per_token_logps"])


@pytest.mark.parametrize("batches", [[], [{"ref_per_token_logps": None, "count": 3}]])
def test_rollouts_without_tensors_come_back(tmp_path, batches):
    write_rollouts(tmp_path, 0, batches)
    assert read_rollouts(tmp_path, 0, CPU) == batches


def test_rollouts_are_read_without_a_gradient_and_apart_from_what_was_written(tmp_path):
    written = {"logps": torch.ones(2, requires_grad=True)}
    write_rollouts(tmp_path, 0, [written])
    (read,) = read_rollouts(tmp_path, 0, CPU)
    assert not read["logps"].requires_grad
    read["logps"] += 1
    assert written["logps"].tolist() == [1, 1]


def test_writing_again_replaces_the_file_and_leaves_nothing_else(tmp_path):
    write_rollouts(tmp_path, 0, make_batches(0))
    write_rollouts(tmp_path, 0, make_batches(1))
    assert_equal_bit_for_bit(read_rollouts(tmp_path, 0, CPU), make_batches(1))
    assert [path.name for path in tmp_path.iterdir()] == ["rollouts_0.safetensors"]


def test_images_are_refused_by_name_and_with_the_mend(tmp_path):
    batches = [{"advantages": torch.ones(2), "images": [["a picture"], ["another"]]}]
    with pytest.raises(TypeError, match=r"'images' of type list.*set save_steps to a multiple of"):
        write_rollouts(tmp_path, 0, batches)
    assert list(tmp_path.iterdir()) == []


# ---- state ----


def test_the_state_comes_back_and_no_temporary_file_stays(tmp_path):
    state = {"world_size": 2, "curriculum": {"values": [0.1, 1e-300, 2**53]}, "name": "é", "none": None}
    write_state(tmp_path / "new" / "checkpoint-1", {"world_size": 1})
    write_state(tmp_path / "new" / "checkpoint-1", state)
    assert read_state(tmp_path / "new" / "checkpoint-1") == state
    assert [path.name for path in (tmp_path / "new" / "checkpoint-1").iterdir()] == ["metatune_state.json"]


def test_a_state_that_is_not_json_leaves_the_one_before_it(tmp_path):
    write_state(tmp_path, {"value": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_state(tmp_path, {"value": math.nan})
    assert read_state(tmp_path) == {"value": 1}


def test_a_missing_state_names_the_file_and_the_mend(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metatune_state\.json is missing.*model_name_or_path"):
        read_state(tmp_path)
