import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trl.trainer.utils import RepeatSampler

from metatune.curricula import ItemCycle

sizes = st.integers(1, 12)
seeds = st.integers(0, 2**31 - 1)


def take(cycle: ItemCycle, count: int) -> list[int]:
    return [cycle.take() for _ in range(count)]


@given(num_items=sizes, seed=seeds, shuffle=st.booleans(), passes=st.integers(1, 4))
def test_every_pass_visits_every_item_once(num_items, seed, shuffle, passes):
    cycle = ItemCycle(num_items, seed, shuffle)
    for _ in range(passes):
        assert sorted(take(cycle, num_items)) == list(range(num_items))


def test_passes_are_shuffled_anew():
    cycle = ItemCycle(20, seed=0)
    passes = [tuple(take(cycle, 20)) for _ in range(5)]
    assert len(set(passes)) == 5
    assert tuple(range(20)) not in passes


@given(num_items=sizes, seed=seeds, shuffle=st.booleans())
def test_the_passes_are_those_of_trls_sampler(num_items, seed, shuffle):
    sampler = RepeatSampler(range(num_items), mini_repeat_count=1, shuffle=shuffle, seed=seed)
    cycle = ItemCycle(num_items, seed, shuffle)
    for _ in range(3):  # the sampler goes through its data once each time it is iterated
        assert take(cycle, num_items) == list(sampler)


def test_without_shuffling_the_items_keep_their_order():
    assert take(ItemCycle(3, seed=7, shuffle=False), 7) == [0, 1, 2, 0, 1, 2, 0]


@given(num_items=sizes, seed=seeds, shuffle=st.booleans(), before=st.integers(0, 30), elsewhere=st.integers(0, 30))
def test_a_restored_cycle_goes_on_as_the_saved_one(num_items, seed, shuffle, before, elsewhere):
    saved = ItemCycle(num_items, seed, shuffle)
    take(saved, before)
    restored = ItemCycle(num_items, seed, shuffle)
    take(restored, elsewhere)  # where the restored cycle stood must not matter
    restored.load_state_dict(json.loads(json.dumps(saved.state_dict())))
    assert restored.state_dict() == saved.state_dict()
    assert take(restored, 2 * num_items + 1) == take(saved, 2 * num_items + 1)


@pytest.mark.parametrize("before", [0, 4, 5, 6, 10])
def test_a_restored_cycle_goes_on_at_a_pass_boundary(before):
    whole = take(ItemCycle(5, seed=3), 20)
    cycle = ItemCycle(5, seed=3)
    take(cycle, before)
    restored = ItemCycle(5, seed=3)
    restored.load_state_dict(cycle.state_dict())
    assert take(restored, 20 - before) == whole[before:]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (ItemCycle(6, seed=1), "num_items was 6 in the checkpoint and is 5 now"),
        (ItemCycle(5, seed=2), "seed was 2 in the checkpoint and is 1 now"),
        (ItemCycle(5, seed=1, shuffle=False), "shuffle was False in the checkpoint and is True now"),
    ],
)
def test_the_state_of_other_items_is_refused_and_changes_nothing(other, message):
    cycle = ItemCycle(5, seed=1)
    take(cycle, 2)
    before = cycle.state_dict()
    with pytest.raises(ValueError, match=message):
        cycle.load_state_dict(other.state_dict())
    assert cycle.state_dict() == before


@pytest.mark.parametrize("state", [{}, {"taken": 3}, {**ItemCycle(5, seed=1).state_dict(), "epoch": 1}])
def test_a_state_with_other_keys_is_refused(state):
    with pytest.raises(ValueError, match=r"has the keys \['num_items', 'seed', 'shuffle', 'taken'\]"):
        ItemCycle(5, seed=1).load_state_dict(state)


@pytest.mark.parametrize("num_items", [0, -1])
def test_a_cycle_needs_an_item(num_items):
    with pytest.raises(ValueError, match=f"at least one item, got {num_items}"):
        ItemCycle(num_items, seed=0)
