"""What holds for every curriculum: allocation, state, refusals, symmetry. New ones are covered by registering."""

import json
import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metatune.curricula.curriculum import CURRICULA, Curriculum, make_curriculum
from metatune.curricula.heuristic import UniformCurriculum
from metatune.curricula.shares import largest_remainder, softmax

ARMS = ["add", "countdown", "logic", "zebra"]
# Options that make the state as rich as it gets: forgetting, small windows, floors.
OPTIONS = {
    "dump": {"window": 3, "discount": 0.9, "floor": 0.02},
    "dump_plus": {"floor": 0.02, "per_token": True},
    "sec": {"floor": 0.02},
    "uniform": {},
    "easy_to_hard": {"total_prompts": 60},
    "pools": {"window": 3},
}
NAMES = sorted(CURRICULA)
every_curriculum = pytest.mark.parametrize("name", NAMES)


def build(name: str, arms=ARMS, **options) -> Curriculum:
    return make_curriculum(name, arms, **{**OPTIONS[name], **options})


def observe(curriculum: Curriculum, arm: str, solved: int, group: int = 4, length: float = 10.0) -> None:
    """Observe a prompt that `solved` of `group` completions solve."""
    rewards = np.array([1.0] * solved + [0.0] * (group - solved))
    advantages = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
    curriculum.observe(arm, advantages, rewards=rewards, tokens=[length] * group)


# A step: draw a number of prompts, observe a prompt of an arm with or without a score, or discount the past.
draw_steps = st.tuples(st.just("draw"), st.integers(1, 20))
scored_steps = st.tuples(st.just("observe"), st.integers(0, 3), st.integers(0, 4), st.sampled_from([5.0, 40.0]))
unscorable_steps = st.tuples(st.just("unscorable"), st.integers(0, 3))
observe_steps = st.one_of(scored_steps, unscorable_steps)
discount_steps = st.tuples(st.just("discount"), st.sampled_from([0.1, 0.8, 1.0]))
runs = st.lists(st.one_of(draw_steps, observe_steps, discount_steps), max_size=30)


def observe_step(curriculum: Curriculum, arm: str, step: tuple) -> None:
    if step[0] == "observe":
        observe(curriculum, arm, step[2], length=step[3])
    else:
        curriculum.observe_unscorable(arm, 4, tokens=[10.0] * 4)


def play(curriculum: Curriculum, steps: list) -> list:
    """Play the steps and return everything that can be seen of the curriculum on the way."""
    seen = []
    for step in steps:
        if step[0] == "draw":
            seen.append(curriculum.draw(step[1]).tolist())
        elif step[0] == "discount":
            curriculum.discount_past(step[1])
        else:
            observe_step(curriculum, curriculum.arms[step[1]], step)
        seen.append(curriculum.metrics())
    return seen


def test_every_registered_curriculum_is_covered_here():
    assert set(OPTIONS) == set(CURRICULA)


# --- allocation ---


@pytest.mark.parametrize(
    ("quotas", "num_prompts", "counts"),
    [
        ([2.6, 1.3, 0.1], 4, [3, 1, 0]),  # whole parts 2, 1, 0; the fourth to the largest fraction, .6
        ([1.5, 1.4, 1.1], 4, [2, 1, 1]),
        ([3.0, 1.0], 4, [3, 1]),
        ([0.4, 0.35, 0.25], 1, [1, 0, 0]),
        ([-0.9, -0.9, 2.8], 1, [0, 0, 1]),  # arms in debt get nothing, never a negative count
    ],
)
def test_largest_remainder_by_hand(quotas, num_prompts, counts):
    assert largest_remainder(np.array(quotas), num_prompts, np.random.default_rng(0)).tolist() == counts


def test_ties_are_broken_by_the_generator_and_fall_on_every_arm():
    quotas = np.full(3, 1 / 3)
    winners = {int(np.argmax(largest_remainder(quotas, 1, np.random.default_rng(seed)))): seed for seed in range(50)}
    assert set(winners) == {0, 1, 2}
    for winner, seed in winners.items():
        assert np.argmax(largest_remainder(quotas, 1, np.random.default_rng(seed))) == winner


def test_quotas_that_do_not_sum_to_the_prompts_are_refused():
    with pytest.raises(ValueError, match=r"sum to 3\.0, not to num_prompts = 4"):
        largest_remainder(np.array([1.0, 2.0]), 4, np.random.default_rng(0))


@given(
    weights=st.lists(st.lists(st.floats(0, 1), min_size=5, max_size=5), min_size=1, max_size=40),
    num_prompts=st.integers(1, 50),
    seed=st.integers(0, 9),
)
def test_carried_rounding_error_stays_bounded_while_probabilities_jump(weights, num_prompts, seed):
    rng = np.random.default_rng(seed)
    due, given_out, carry = np.zeros(5), np.zeros(5), np.zeros(5)
    for row in weights:
        probabilities = (np.array(row) + 1e-9) / (np.array(row) + 1e-9).sum()
        quotas = num_prompts * probabilities + carry
        counts = largest_remainder(quotas, num_prompts, rng)
        assert counts.sum() == num_prompts
        assert (counts >= 0).all()
        carry = quotas - counts
        due += num_prompts * probabilities
        given_out += counts
        assert (given_out - due < 1 + 1e-6).all()  # never a whole prompt too many
        assert (due - given_out < 4 + 1e-6).all()  # hence at most N - 1 too few


def test_an_arm_due_less_than_half_a_prompt_per_draw_is_not_starved():
    # An eighth of the prompts each, three prompts a draw: 0.375 per draw, so 6 in 16 draws.
    curriculum = make_curriculum("uniform", [str(i) for i in range(8)])
    drawn = np.concatenate([curriculum.draw(3) for _ in range(16)])
    assert np.bincount(drawn, minlength=8).tolist() == [6] * 8


@every_curriculum
@given(steps=runs, num_prompts=st.integers(1, 30))
@settings(max_examples=30)
def test_a_draw_follows_the_probabilities_read_before_it(name, steps, num_prompts):
    curriculum = build(name)
    play(curriculum, steps)
    carry = np.array(curriculum.state_dict()["carry"])
    quotas = num_prompts * curriculum.probabilities() + carry
    drawn = curriculum.draw(num_prompts)
    counts = np.bincount(drawn, minlength=4)
    assert drawn.shape == (num_prompts,)
    assert np.abs(quotas - counts).max() < 3 + 1e-6
    np.testing.assert_allclose(curriculum.state_dict()["carry"], quotas - counts, atol=1e-12)


def test_the_prompts_of_a_draw_are_shuffled_and_seeded():
    first, again, other = (make_curriculum("uniform", ARMS, seed=seed).draw(40).tolist() for seed in (0, 0, 1))
    assert first == again != other
    assert first != sorted(first)


# --- probabilities and metrics ---


@every_curriculum
@given(steps=runs)
@settings(max_examples=30)
def test_probabilities_are_a_distribution_and_metrics_are_finite(name, steps):
    curriculum = build(name)
    play(curriculum, steps)
    probabilities = curriculum.probabilities()
    assert probabilities.dtype == np.float64
    assert probabilities.shape == (4,)
    assert probabilities.min() >= OPTIONS[name].get("floor", 0.0) - 1e-12
    assert probabilities.sum() == pytest.approx(1, abs=1e-12)
    metrics = curriculum.metrics()
    assert all(math.isfinite(value) for value in metrics.values())
    for arm, probability in zip(ARMS, probabilities, strict=True):
        assert metrics[f"probability/{arm}"] == probability
    prompts = [step[1] for step in steps if step[0] in ("observe", "unscorable")]
    assert [metrics[f"count/{arm}"] for arm in ARMS] == [prompts.count(i) for i in range(4)]
    assert all(metrics[f"learnability/{arm}"] == 0 for i, arm in enumerate(ARMS) if i not in prompts)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "easy_to_hard"])
def test_shares_are_equal_before_anything_is_observed(name):
    assert build(name).probabilities().tolist() == pytest.approx([0.25] * 4)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "easy_to_hard"])
@given(steps=st.lists(observe_steps, max_size=20), order=st.permutations(range(4)))
@settings(max_examples=30)
def test_renaming_the_arms_renames_the_probabilities(name, steps, order):
    straight, permuted = build(name), build(name, [ARMS[i] for i in order])
    for curriculum in (straight, permuted):
        for step in steps:
            observe_step(curriculum, ARMS[step[1]], step)
    np.testing.assert_allclose(permuted.probabilities(), straight.probabilities()[list(order)], atol=1e-12)


@given(
    scores=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6),
    temperature=st.sampled_from([0.0, 1e-3, 0.1, 1e3]),
)
def test_softmax_is_stable(scores, temperature):
    floor = 0.1 / len(scores)
    probabilities = softmax(np.array(scores), temperature, floor)
    assert probabilities.sum() == pytest.approx(1)
    assert probabilities.min() >= floor
    assert scores[probabilities.argmax()] >= max(scores) - 1e-6


def test_greedy_shares_ties_equally_and_floors_the_rest():
    # 2 of 4 arms tie: floor .05 each, and .8 split between the two.
    np.testing.assert_allclose(softmax(np.array([1.0, 3.0, 3.0, 2.0]), 0, 0.05), [0.05, 0.45, 0.45, 0.05])


# --- prompts that cannot be scored, and changes of the meaning of rewards ---


def share_over_time(curriculum: Curriculum, solved: dict[str, float | None], draws: int, every: int = 0) -> np.ndarray:
    """Return each arm's share of the prompts of every draw, shape (draws, N); 16 prompts of 8 completions a draw.

    `solved` has the chance that a completion of the arm is right, `None` for an arm that cannot be scored. Every
    `every` draws the past is discounted.
    """
    rng, shares = np.random.default_rng(0), []
    for draw in range(1, draws + 1):
        drawn = curriculum.draw(16)
        shares.append(np.bincount(drawn, minlength=len(curriculum.arms)) / 16)
        for arm in (curriculum.arms[index] for index in drawn):
            if solved[arm] is None:
                curriculum.observe_unscorable(arm, 8, tokens=[10.0] * 8)
            else:
                observe(curriculum, arm, int(rng.binomial(8, solved[arm])), group=8)
        if every and draw % every == 0:
            curriculum.discount_past()
    return np.array(shares)


@every_curriculum
@pytest.mark.parametrize("others", [0.02, 0.5, 0.98], ids=["hopeless", "learnable", "mastered"])
def test_an_arm_that_cannot_be_scored_never_takes_over(name, others):
    """Its share falls whatever the other arms are, and finally does not exceed an equal share."""
    curriculum = build(name, **({"total_prompts": 16} if name == "easy_to_hard" else {}))
    shares = share_over_time(curriculum, {**dict.fromkeys(ARMS, others), "logic": None}, draws=150)[:, 2]
    assert shares[50:].mean() <= 0.25 + 0.01
    if curriculum.adaptive and others == 0.5:
        assert shares[-50:].mean() < 0.1
        assert curriculum.probabilities()[2] > 0  # so that a later recovery is detected


@every_curriculum
def test_arms_are_drawn_equally_if_none_can_be_scored(name):
    curriculum = build(name, **({"total_prompts": 16} if name == "easy_to_hard" else {}))
    shares = share_over_time(curriculum, dict.fromkeys(ARMS), draws=60)
    np.testing.assert_allclose(shares[10:].mean(axis=0), 0.25, atol=0.02)


ADAPTIVE = [name for name in NAMES if CURRICULA[name].adaptive]
# Two arms are learnable, "middle" and "even"; after the change, "easy" and "hard" are.
SOLVED = {"easy": 0.98, "easier": 0.98, "middle": 0.4, "even": 0.5, "hard": 0.02, "harder": 0.02}
CHANGED = {"easy": 0.4, "easier": 0.98, "middle": 0.98, "even": 0.98, "hard": 0.5, "harder": 0.02}


def share_of_teaching(curriculum: Curriculum, solved: dict[str, float], draws: int, every: int = 0) -> np.ndarray:
    teaching = [0.2 < solved[arm] < 0.8 for arm in curriculum.arms]
    return share_over_time(curriculum, solved, draws, every)[:, teaching].sum(axis=1)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_rubric_that_changes_every_ten_draws_costs_little_and_a_real_change_is_followed(name):
    undisturbed = share_of_teaching(make_curriculum(name, list(SOLVED)), SOLVED, draws=60).mean()
    curriculum = make_curriculum(name, list(SOLVED))
    discounted = share_of_teaching(curriculum, SOLVED, draws=60, every=10).mean()
    assert discounted > 0.79
    assert discounted > undisturbed - 0.05
    assert share_of_teaching(curriculum, CHANGED, draws=40, every=10)[20:].mean() > undisturbed - 0.1


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_discounted_past_gives_way_to_new_observations_sooner(name):
    shares = []
    for factor in (0.1, 1.0):
        curriculum = make_curriculum(name, list(SOLVED))
        share_of_teaching(curriculum, SOLVED, draws=40)
        curriculum.discount_past(factor)
        shares.append(share_of_teaching(curriculum, CHANGED, draws=15).mean())
    assert shares[0] > shares[1] + 0.02


@every_curriculum
@given(steps=runs)
@settings(max_examples=20)
def test_a_discount_of_1_changes_nothing(name, steps):
    curriculum, twin = build(name), build(name)
    for each in (curriculum, twin):
        play(each, steps)
    twin.discount_past(1.0)
    np.testing.assert_allclose(twin.probabilities(), curriculum.probabilities(), rtol=1e-12)


@every_curriculum
def test_a_discount_outside_0_to_1_is_refused(name):
    for factor in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"the weight of past observations must be in \(0, 1\], got "):
            build(name).discount_past(factor)


# --- state ---


@every_curriculum
@given(before=runs, after=runs)
@settings(max_examples=40)
def test_a_reloaded_curriculum_continues_bit_for_bit(name, before, after):
    original = build(name)
    play(original, before)
    state = json.loads(json.dumps(original.state_dict(), allow_nan=False))
    reloaded = build(name)
    play(reloaded, after)  # whatever it did before must not matter
    reloaded.load_state_dict(state)
    assert reloaded.state_dict() == original.state_dict()
    assert play(reloaded, after) == play(original, after)


@every_curriculum
def test_a_state_is_a_copy(name):
    curriculum = build(name)
    play(curriculum, [("observe", 1, 2, 5.0)])
    state = curriculum.state_dict()
    frozen = json.dumps(state)
    more = [("draw", 9), ("observe", 1, 2, 5.0), ("unscorable", 1), ("discount", 0.5), ("draw", 9)]
    play(curriculum, more)
    assert json.dumps(state) == frozen
    fresh = build(name)
    fresh.load_state_dict(state)
    play(fresh, more)
    assert json.dumps(state) == frozen


FOREIGN = {
    "missing key": (lambda s: s.pop("carry"), r"lacks \['carry'\]"),
    "unknown key": (lambda s: s.update(surprise=1), r"unknown \['surprise'\]"),
    "version": (lambda s: s.update(version=99), "version is 99 in the state and 2 here"),
    "older version": (lambda s: s.update(version=1), "version is 1 in the state and 2 here; resume with the metatune"),
    "name": (lambda s: s.update(name="thompson"), "name is 'thompson' in the state"),
    "other arms": (lambda s: s["arms"].append("sudoku"), r"arms is .*'sudoku'\] in the state and .* here; list the"),
    "arms in another order": (lambda s: s["arms"].reverse(), "in the same order"),
    "other seed": (lambda s: s["options"].update(seed=7), "option seed is 7 in the state and 0 here"),
    "unknown option": (lambda s: s["options"].update(magic=True), r"options lacks \[\] and has unknown \['magic'\]"),
    "unknown statistic": (lambda s: s["statistics"].update(beta=[1]), r"statistics lacks \[\] and has unknown"),
    "short carry": (lambda s: s.update(carry=[0.0]), "carry must hold one finite number per arm"),
    "NaN": (lambda s: s.update(observed=[math.nan] * 4), "observed must hold one finite number per arm"),
    "broken generator": (lambda s: s.update(rng={"bit_generator": "MT19937"}), "rng is not a saved generator"),
    "fractional clock": (lambda s: s.update(draws=1.5), "draws must be a count"),
}


@every_curriculum
@pytest.mark.parametrize("what", FOREIGN)
def test_foreign_states_are_refused_and_change_nothing(name, what):
    damage, message = FOREIGN[what]
    state = json.loads(json.dumps(build(name).state_dict()))
    damage(state)
    curriculum = build(name)
    play(curriculum, [("draw", 7), ("observe", 2, 1, 5.0)])
    before = curriculum.state_dict()
    with pytest.raises(ValueError, match=message):
        curriculum.load_state_dict(state)
    assert curriculum.state_dict() == before


DAMAGES = [None, "abc", [], [[1.0]], [[[math.nan, 0]], [], [], []], [[[1.0]], [], [], []], [[], [1.0], [], []]]


@every_curriculum
def test_a_statistic_of_the_wrong_shape_is_refused_and_changes_nothing(name):
    for statistic, damage in product(build(name).state_dict()["statistics"], DAMAGES):
        state = build(name).state_dict()
        state["statistics"][statistic] = damage
        curriculum = build(name)
        play(curriculum, [("draw", 7), ("observe", 2, 1, 5.0)])
        before = curriculum.state_dict()
        with pytest.raises(ValueError, match=f"{statistic} must"):
            curriculum.load_state_dict(state)
        assert curriculum.state_dict() == before


def test_the_state_of_another_curriculum_is_refused():
    with pytest.raises(ValueError, match="resume with the curriculum of the checkpoint"):
        build("sec").load_state_dict(build("uniform").state_dict())
    with pytest.raises(ValueError, match=r"the state is \[1, 2\], not a mapping"):
        build("sec").load_state_dict([1, 2])


# --- bad input ---


@every_curriculum
@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ([], "at least one arm"),
        (["add", "logic", "add"], r"duplicate arms \['add'\]"),
        (["add", ""], "arm 1 must be a non-empty name, got ''"),
        (["add", None], "arm 1 must be a non-empty name, got None"),
        ("add", "list of names, got the single string 'add'"),
    ],
)
def test_bad_arms_are_refused(name, arms, message):
    with pytest.raises(ValueError, match=message):
        build(name, arms, **({"floor": 0.0} if "floor" in OPTIONS[name] else {}))


@every_curriculum
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (("logick", [1.0], [1.0], [1.0]), r"unknown arm 'logick' \(did you mean 'logic'\?\)"),
        (("logic", [], [], []), "arm 'logic': advantages must be a non-empty list"),
        (("logic", 0.5, [1.0], [1.0]), "arm 'logic': advantages must be a non-empty list"),
        (("logic", [0.1, math.nan], [1.0, 0.0], [1, 1]), r"arm 'logic': advantages of completions \[1\] are NaN"),
        (("logic", [math.inf, 0.1], [1.0, 0.0], [1, 1]), r"arm 'logic': advantages of completions \[0\]"),
        (("logic", [0.1, -0.1], [1.0, None], [1, 1]), r"arm 'logic': rewards of completions \[1\]"),
        (("logic", [0.1, -0.1], [1.0], [1, 1]), "arm 'logic': 1 rewards for 2 completions"),
        (("logic", [0.1, -0.1], [1.0, 0.0], [1, math.nan]), r"arm 'logic': tokens of completions \[1\]"),
    ],
)
def test_bad_observations_are_refused_and_change_nothing(name, call, message):
    curriculum = build(name)
    before = curriculum.state_dict()
    with pytest.raises(ValueError, match=message):
        curriculum.observe(call[0], call[1], rewards=call[2], tokens=call[3])
    assert curriculum.state_dict() == before


@every_curriculum
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (("logick", 4), r"unknown arm 'logick' \(did you mean 'logic'\?\)"),
        (("logic", 0), "arm 'logic': num_completions must be at least 1, got 0"),
        (("logic", 2, [1.0]), "arm 'logic': 1 tokens for 2 completions"),
    ],
)
def test_bad_calls_for_unscorable_prompts_are_refused_and_change_nothing(name, call, message):
    curriculum = build(name)
    before = curriculum.state_dict()
    with pytest.raises(ValueError, match=message):
        curriculum.observe_unscorable(*call)
    assert curriculum.state_dict() == before


@every_curriculum
def test_an_empty_draw_is_refused(name):
    with pytest.raises(ValueError, match="num_prompts must be at least 1, got 0"):
        build(name).draw(0)


def test_unknown_names_and_options_name_the_nearest():
    with pytest.raises(ValueError, match=r"unknown curriculum 'easy_to_hrd' \(did you mean 'easy_to_hard'\?\)"):
        make_curriculum("easy_to_hrd", ARMS)
    with pytest.raises(ValueError, match=r"unknown option 'temprature' .* \(did you mean 'temperature'\?\); valid: "):
        make_curriculum("dump", ARMS, temprature=1)
    with pytest.raises(ValueError, match="'easy_to_hard' needs the option 'total_prompts'"):
        make_curriculum("easy_to_hard", ARMS)


@pytest.mark.parametrize(
    ("option", "value"), [("temperature", "1e-1"), ("temperature", True), ("window", 2.5), ("seed", None)]
)
def test_an_option_of_the_wrong_type_is_named(option, value):
    with pytest.raises(ValueError, match=f"option '{option}' of curriculum 'dump' must be a (float|int), got "):
        make_curriculum("dump", ARMS, **{option: value})


def test_a_subclass_with_a_name_is_registered_once():
    try:

        class Mine(UniformCurriculum, name="mine"):
            pass

        assert make_curriculum("mine", ARMS).state_dict()["name"] == "mine"
        with pytest.raises(ValueError, match="there is already a curriculum 'mine'"):

            class Again(UniformCurriculum, name="mine"):
                pass

    finally:
        CURRICULA.pop("mine", None)
