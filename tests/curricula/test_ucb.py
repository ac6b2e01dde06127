import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metatune.curricula.ucb import UCBCurriculum


def test_three_arms_by_hand():
    # a: prompts with mean |A| 1 and 0, so L = .5, n = 2.  b: one prompt, L = .5, n = 1.  c: never seen, L = 0, n = 0.
    # 2 ln(3 + 1) = 2.772589; bonuses sqrt(2.772589 / (3, 2, 1)) = .961351, 1.177410, 1.665109
    # UCB = 1.461351, 1.677410, 1.665109; ten times the gap to the best: -2.16059, 0, -.12301
    # exp: .115257, 1, .884256, sum 1.999513
    curriculum = UCBCurriculum(["a", "b", "c"])
    curriculum.observe("a", [1.0, -1.0])
    curriculum.observe("a", [0.0, 0.0])
    curriculum.observe("b", [0.5, -0.5])
    np.testing.assert_allclose(curriculum.bonus(), [0.961351, 1.177410, 1.665109], atol=1e-6)
    np.testing.assert_allclose(curriculum.learnability(), [0.5, 0.5, 0.0])
    np.testing.assert_allclose(curriculum.probabilities(), [0.057643, 0.500122, 0.442236], atol=2e-6)


@pytest.mark.parametrize(
    ("count", "step", "bonus"),
    # Twelve arms, 128 prompts per step, 16 completions per prompt, equal shares:
    # prompts, step 1: sqrt(2 ln 129 / (128 / 12 + 1)) = .913; completions: sqrt(2 ln 2049 / (2048 / 12 + 1)) = .298
    [
        ("completions", 1, 0.298),
        ("prompts", 1, 0.913),
        ("completions", 10, 0.108),
        ("prompts", 10, 0.365),
        ("completions", 50, 0.052),
        ("prompts", 50, 0.181),
    ],
)
def test_bonus_at_the_scale_of_the_paper(count, step, bonus):
    curriculum = UCBCurriculum([str(i) for i in range(12)], count=count)
    for prompt in range(128 * step):
        curriculum.observe(str(prompt % 12), [0.0] * 16)
    assert curriculum.bonus().mean() == pytest.approx(bonus, abs=6e-4)


def test_the_window_counts_prompts_and_a_prompt_counts_once_however_many_completions():
    curriculum = UCBCurriculum(["a"], window=2)
    curriculum.observe("a", [9.0, -9.0])  # leaves the window
    curriculum.observe("a", [1.0, -1.0, 1.0, -1.0])
    curriculum.observe("a", [0.0, 0.0])
    assert curriculum.learnability().tolist() == [0.5]
    assert curriculum.metrics()["count/a"] == 3


def test_floor_by_hand():
    # The case of three arms with floor .1: .1 + .7 * (.057643, .500122, .442236)
    curriculum = UCBCurriculum(["a", "b", "c"], floor=0.1)
    for arm, size in (("a", 1.0), ("a", 0.0), ("b", 0.5)):
        curriculum.observe(arm, [size, -size])
    np.testing.assert_allclose(curriculum.probabilities(), [0.140350, 0.450085, 0.409565], atol=2e-6)


def test_discount_by_hand():
    # Draw 1: a sees mean |A| 1 twice, b 0 once. Draw 2 halves the counts, then a sees 0 once.
    # n(a) = 2 / 2 + 1 = 2, n(b) = .5; L(a) = (.5 + .5 + 1 * 0) / (.5 + .5 + 1) = .5
    # bonus: 2 ln 3.5 = 2.505526; sqrt(2.505526 / 3) = .913879, sqrt(2.505526 / 1.5) = 1.292420
    curriculum = UCBCurriculum(["a", "b"], discount=0.5)
    curriculum.draw(3)
    curriculum.observe("a", [1.0])
    curriculum.observe("a", [-1.0])
    curriculum.observe("b", [0.0])
    curriculum.draw(1)
    curriculum.observe("a", [0.0])
    assert curriculum.learnability().tolist() == [0.5, 0.0]
    np.testing.assert_allclose(curriculum.bonus(), [0.913879, 1.292420], atol=1e-6)


@pytest.mark.parametrize(("count", "drawn"), [("prompts", [2, 1]), ("completions", [6, 4])])
def test_a_prompt_that_cannot_be_scored_counts_as_drawn_with_the_value_0(count, drawn):
    # a: |A| 1 and an unscorable prompt of 4, so L = .5; b: an unscorable prompt of 4 alone, so L = 0.
    curriculum = UCBCurriculum(["a", "b"], count=count)
    curriculum.observe("a", [1.0, -1.0])
    curriculum.observe_unscorable("a", 4)
    curriculum.observe_unscorable("b", 4)
    assert curriculum.learnability().tolist() == [0.5, 0.0]
    a, b = drawn
    expected = [math.sqrt(2 * math.log(a + b + 1) / (n + 1)) for n in drawn]
    np.testing.assert_allclose(curriculum.bonus(), expected)


def test_a_discounted_past_by_hand():
    # L(a) = (.5 * 1 + 1 * 0) / 1.5, n(a) = .5 + 1; b keeps its mean, at n(b) = .5.
    # bonus: 2 ln 3 = 2.197225; sqrt(2.197225 / 2.5) = .937491, sqrt(2.197225 / 1.5) = 1.210296
    curriculum = UCBCurriculum(["a", "b"])
    curriculum.observe("a", [1.0, -1.0])
    curriculum.observe("b", [1.0, -1.0])
    curriculum.discount_past(0.5)
    curriculum.observe("a", [0.0, 0.0])
    np.testing.assert_allclose(curriculum.learnability(), [1 / 3, 1])
    np.testing.assert_allclose(curriculum.bonus(), [0.937491, 1.210296], atol=1e-6)


def test_estimates_stay_finite_after_a_thousand_discounts():
    curriculum = UCBCurriculum(["a"])
    curriculum.observe("a", [1.0])
    curriculum.observe("a", [0.0])
    for _ in range(1000):  # .1 ** 1000 underflows
        curriculum.discount_past(0.1)
    assert curriculum.learnability().tolist() == [0.5]
    curriculum.observe("a", [2.0])
    assert curriculum.learnability().tolist() == [2.0]


def test_draws_change_nothing_without_discount():
    curriculum = UCBCurriculum(["a", "b"])
    curriculum.observe("a", [1.0])
    before = curriculum.probabilities()
    curriculum.draw(5)
    np.testing.assert_array_equal(curriculum.probabilities(), before)


def test_an_arm_left_alone_for_ever_keeps_a_finite_estimate():
    curriculum = UCBCurriculum(["a", "b"], discount=0.1)
    curriculum.observe("a", [1.0])
    for _ in range(1000):  # .1 ** 1000 underflows
        curriculum.draw(1)
    assert curriculum.learnability().tolist() == [1.0, 0.0]
    np.testing.assert_allclose(curriculum.bonus(), [0.0, 0.0])


def test_greedy_takes_the_best_and_shares_ties():
    curriculum = UCBCurriculum(["a", "b", "c"], temperature=0)
    assert curriculum.probabilities().tolist() == pytest.approx([1 / 3] * 3)
    curriculum.observe("a", [0.0])
    assert curriculum.probabilities().tolist() == [0.0, 0.5, 0.5]


@pytest.mark.parametrize("discount", [1.0, 0.95])
def test_an_arm_that_is_never_solved_loses_its_share_but_not_all_of_it(discount):
    curriculum = UCBCurriculum(["hopeless", "learnable"], discount=discount)
    shares = []
    for _ in range(200):
        shares.append(curriculum.probabilities()[0])
        for index in curriculum.draw(16):
            curriculum.observe(curriculum.arms[index], [0.0, 0.0] if index == 0 else [1.0, -1.0])
    assert shares[0] == 0.5
    assert shares[-1] < 0.1
    assert min(shares) > 0


@given(
    history=st.lists(st.tuples(st.integers(0, 2), st.floats(0, 3)), max_size=30),
    arm=st.integers(0, 2),
    size=st.floats(0, 3),
    more=st.floats(0, 3),
    temperature=st.sampled_from([0.0, 0.1, 1.0]),
    discount=st.sampled_from([1.0, 0.7]),
)
@settings(max_examples=100)
def test_a_larger_advantage_never_lowers_the_probability(history, arm, size, more, temperature, discount):
    small, large = (
        UCBCurriculum(["0", "1", "2"], temperature=temperature, discount=discount, window=4) for _ in range(2)
    )
    for curriculum, magnitude in ((small, size), (large, size + more)):
        for seen, value in history:
            curriculum.observe(str(seen), [value, -value])
            curriculum.draw(1)
        curriculum.observe(str(arm), [magnitude, -magnitude])
    assert large.probabilities()[arm] >= small.probabilities()[arm] - 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature must be 0 .greedy. or a positive number, got -0.1"),
        ({"temperature": math.nan}, "temperature"),
        ({"window": 0}, "window must be at least 1 prompt, got 0"),
        ({"count": "tokens"}, "count must be 'prompts' or 'completions', got 'tokens'"),
        ({"floor": 0.6}, "floor 0.6 times 2 arms is more than 1; the largest possible floor is 0.5"),
        ({"floor": -0.1}, "floor must be a probability"),
        ({"discount": 0.0}, r"discount must be in \(0, 1\], got 0.0"),
        ({"discount": 1.1}, "discount"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        UCBCurriculum(["a", "b"], **options)
