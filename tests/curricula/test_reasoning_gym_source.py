import builtins
import json
import sys

import pytest

from metatune.curricula.distributions import check_distributions, load_distributions
from metatune.curricula.problem import is_held_out


def entry(**config):
    return {"name": "gym", "source": "reasoning_gym", "config": config, "train_size": 100, "test_size": 20}


def test_without_the_extra_the_error_says_how_to_get_it(monkeypatch):
    def absent(name, *args, **kwargs):
        if name.startswith("reasoning_gym"):
            raise ModuleNotFoundError("No module named 'reasoning_gym'")
        return real_import(name, *args, **kwargs)

    real_import = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=r"\(gym\): .*pip install 'metatune\[reasoning-gym\]'"):
        load_distributions([entry(generator="chain_sum")])


@pytest.mark.needs("reasoning_gym")
def test_a_generator_is_drawn_without_overlap_and_repeatably():
    (first,) = load_distributions([entry(generator="chain_sum", min_terms=2)])
    (again,) = load_distributions([entry(generator="chain_sum", min_terms=2)])
    (other,) = load_distributions([entry(generator="chain_sum", min_terms=2) | {"seed": 1}])
    assert (len(first.train), len(first.test)) == (100, 20)
    assert all(map(is_held_out, first.test["key"])) and not any(map(is_held_out, first.train["key"]))
    assert first.train.to_list() == again.train.to_list()
    assert first.train["key"] != other.train["key"]


@pytest.mark.needs("reasoning_gym")
def test_an_item_carries_what_its_own_scorer_needs():
    import reasoning_gym

    (loaded,) = load_distributions([entry(generator="chain_sum", min_terms=2)])
    row = loaded.train[0]
    info = json.loads(row["info"])
    assert row["verifier"] == "reasoning_gym" and info["config"] == {"min_terms": 2}
    scorer = reasoning_gym.create_dataset(info["generator"], size=1, seed=0, **info["config"])
    assert scorer.score_answer(row["answer"], info["entry"]) == 1.0


@pytest.mark.needs("reasoning_gym")
def test_a_generator_without_a_reference_answer_still_loads():
    (loaded,) = load_distributions([entry(generator="propositional_logic")])
    assert set(loaded.train["answer"]) == {""}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, r"\(gym\): config\.generator None is unknown"),
        ({"generator": "chain_sums"}, r"config\.generator 'chain_sums' is unknown; did you mean 'chain_sum'\?"),
        ({"generator": "chain_sum", "min_term": 2}, r"unknown key config\.min_term; did you mean 'min_terms'\?"),
        ({"generator": "chain_sum", "seed": 2}, r"config\.seed is not for here; set seed, train_size and test_size"),
        ({"generator": "chain_sum", "min_terms": -1}, r"chain_sum refuses config \{'min_terms': -1\}"),
        ({"generator": "arc_agi"}, r"arc_agi cannot be used, it scores its own answer lower after JSON"),
    ],
)
@pytest.mark.needs("reasoning_gym")
def test_a_bad_config_is_named(config, message):
    with pytest.raises(ValueError, match=message):
        load_distributions([entry(**config)])


@pytest.mark.needs("reasoning_gym")
def test_a_generator_that_differs_between_processes_is_refused():
    if not sys.flags.hash_randomization:
        pytest.skip("hashing is fixed in this process")
    with pytest.raises(ValueError, match="ransom_note draws other problems in each process; set PYTHONHASHSEED=0"):
        load_distributions([entry(generator="ransom_note")])


@pytest.mark.needs("reasoning_gym")
def test_a_check_draws_one_problem():
    entry = {"name": "a", "source": "reasoning_gym", "config": {"generator": "chain_sum", "min_terms": 9}}
    with pytest.raises(ValueError, match="chain_sum refuses config"):
        check_distributions([entry])
