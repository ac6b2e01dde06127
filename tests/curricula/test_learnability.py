import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metatune.curricula.curriculum import Curriculum
from metatune.curricula.heuristic import UniformCurriculum
from metatune.curricula.learnability import LearnabilityCurriculum
from metatune.curricula.ucb import UCBCurriculum


def observe(curriculum: Curriculum, arm: str, solved: int, group: int = 4, length: float | None = None) -> None:
    rewards = [1.0] * solved + [0.0] * (group - solved)
    curriculum.observe(arm, [0.0] * group, rewards=rewards, tokens=None if length is None else [length] * group)


def test_three_arms_by_hand():
    # a: 2 of 4 solved, v = 4 * .25 / 3 = 1/3; V = (1/4 + 1/3) / 2 = .291667
    # b: unsolved, v = 0; V = (1/4) / 2 = .125.  c: never seen, V = .25
    # relative to the best: 1, .428571, .857143; P = softmax over .5: exp(2, .857143, 1.714286)
    # = 7.389056, 2.356418, 5.552707, sum 15.298181
    curriculum = LearnabilityCurriculum(["a", "b", "c"], temperature=0.5)
    observe(curriculum, "a", 2)
    observe(curriculum, "b", 0)
    np.testing.assert_allclose(curriculum.optimistic_values(), [0.291667, 0.125, 0.25], atol=1e-6)
    np.testing.assert_allclose(curriculum.learnability(), [1 / 3, 0, 0])
    np.testing.assert_allclose(curriculum.probabilities(), [0.483002, 0.154033, 0.362965], atol=1e-6)


def test_lengths_by_hand():
    # a: 30 tokens, b: 10, mean 20; T(a) = (20 + 30) / 2 = 25, T(b) = (20 + 10) / 2 = 15, T(c) = 20.
    # V = .125, .125, .25; V / T = .005, .008333, .0125; relative: .4, .666667, 1
    curriculum = LearnabilityCurriculum(["a", "b", "c"], temperature=1.0, per_token=True)
    observe(curriculum, "a", 0, length=30)
    observe(curriculum, "b", 4, length=10)
    np.testing.assert_allclose(curriculum.lengths(), [25, 15, 20])
    weights = np.exp([0.4, 2 / 3, 1.0])
    np.testing.assert_allclose(curriculum.probabilities(), weights / weights.sum())


def test_evidence_fades_and_optimism_comes_back():
    # One unsolved prompt: V = .25 / (1 + n), n = 1, then .5, then .25.
    curriculum = LearnabilityCurriculum(["a", "b"], discount=0.5)
    observe(curriculum, "a", 0)
    values = []
    for _ in range(3):
        values.append(curriculum.optimistic_values()[0])
        curriculum.draw(2)
    assert values == pytest.approx([0.125, 0.25 / 1.5, 0.2])


def test_unscorable_prompts_and_a_discounted_past_by_hand():
    # a: v = 1/3 and 0, so V = (1/4 + 1/3) / 3; b: V = (1/4) / 2. A past of weight .5: (1/4 + 1/6) / 2 and (1/4) / 1.5.
    curriculum = LearnabilityCurriculum(["a", "b"])
    observe(curriculum, "a", 2)
    curriculum.observe_unscorable("a", 4)
    curriculum.observe_unscorable("b", 4)
    np.testing.assert_allclose(curriculum.optimistic_values(), [7 / 36, 1 / 8])
    curriculum.discount_past(0.5)
    np.testing.assert_allclose(curriculum.optimistic_values(), [5 / 24, 1 / 6])


def test_one_success_in_sixteen_scores_a_quarter_of_the_maximum():
    curriculum = LearnabilityCurriculum(["rare", "even"])
    observe(curriculum, "rare", 1, group=16)
    observe(curriculum, "even", 8, group=16)
    rare, even = curriculum.learnability()
    assert rare / even == pytest.approx(15 / 64)


@given(p=st.floats(0, 1), group=st.integers(2, 6))
def test_the_value_of_a_prompt_is_unbiased(p, group):
    # Expectation over all numbers of successes, by the binomial distribution.
    expectation = 0.0
    for solved in range(group + 1):
        curriculum = LearnabilityCurriculum(["a"])
        observe(curriculum, "a", solved, group)
        ways = np.prod([(group - i) / (i + 1) for i in range(solved)])
        expectation += ways * p**solved * (1 - p) ** (group - solved) * curriculum.learnability()[0]
    assert expectation == pytest.approx(p * (1 - p), abs=1e-9)


def test_what_it_needs_is_asked_for():
    curriculum = LearnabilityCurriculum(["a"], per_token=True)
    with pytest.raises(ValueError, match="'dump_plus' needs the raw rewards: pass `rewards` to `observe`"):
        curriculum.observe("a", [0.0, 0.0])
    with pytest.raises(ValueError, match=r"needs the length of every completion.*or leave per_token off"):
        observe(curriculum, "a", 1)
    with pytest.raises(ValueError, match="needs at least 2 completions per prompt, got 1"):
        observe(curriculum, "a", 1, group=1, length=3)
    with pytest.raises(ValueError, match="optimism must be above 0, got 0"):
        LearnabilityCurriculum(["a"], optimism=0)
    with pytest.raises(ValueError, match=r"discount must be in \(0, 1\]"):
        LearnabilityCurriculum(["a"], discount=0)


def simulate(curriculum: Curriculum, logits: dict[str, float], wakes: int = 10**9, steps: int = 60) -> np.ndarray:
    """Train a toy learner: each arm solves a prompt with probability sigmoid(logit), and GRPO moves the logits.

    At step `wakes` the arm "late" becomes solvable. Returns the number of prompts per step and arm.
    """
    rng = np.random.default_rng(17)
    logits = dict(logits)
    counts = np.zeros((steps, len(curriculum.arms)))
    for step in range(steps):
        if step == wakes:
            logits["late"] = -1.5
        gains = dict.fromkeys(logits, 0.0)
        for index in curriculum.draw(16):
            arm = curriculum.arms[index]
            rewards = (rng.random(8) < 1 / (1 + np.exp(-logits[arm]))).astype(float)
            advantages = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
            curriculum.observe(arm, advantages, rewards=rewards)
            gains[arm] += (advantages * rewards).mean() / 16
            counts[step, index] += 1
        for arm, gain in gains.items():
            logits[arm] += gain
    return counts


LOGITS = {
    "mastered 1": 6.0,
    "mastered 2": 6.0,
    "learnable 1": -1.5,
    "learnable 2": -2.0,
    "late": -30.0,
    "hopeless": -30.0,
}
METHODS = {"uniform": UniformCurriculum, "dump": UCBCurriculum, "dump_plus": LearnabilityCurriculum}


def test_effort_goes_to_learnable_arms_more_than_under_uniform_and_the_papers_ucb():
    share = {}
    for name, method in METHODS.items():
        counts = np.mean([simulate(method(list(LOGITS), seed=seed), LOGITS) for seed in range(3)], axis=0)
        share[name] = counts[:, 2:4].sum() / counts.sum()
    assert share["uniform"] == pytest.approx(1 / 3, abs=0.01)
    assert share["dump_plus"] > 2 * share["uniform"]
    assert share["dump_plus"] > 1.25 * share["dump"]


def test_it_returns_to_an_arm_that_becomes_learnable_later():
    counts = np.mean(
        [simulate(LearnabilityCurriculum(list(LOGITS), seed=seed), LOGITS, wakes=40, steps=60) for seed in range(3)],
        axis=0,
    )
    late = counts[:, 4] / counts.sum(axis=1)
    assert late[20:40].mean() < 0.05
    assert late[45:60].mean() > 0.5
