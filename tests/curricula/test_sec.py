import numpy as np
import pytest

from metatune.curricula.sec import SECCurriculum


def test_two_batches_by_hand():
    # Batch 1: a has prompts with mean |A| 1 and .5, r = .75, Q = 0 + .5 * .75 = .375; b has 0; c is not in it.
    # P = softmax(1.875, 0, 0) = 6.520819 / 8.520819 = .765281, and .117360 twice
    curriculum = SECCurriculum(["a", "b", "c"])
    curriculum.draw(3)
    curriculum.observe("a", [1.0, -1.0])
    curriculum.observe("a", [0.5, -0.5])
    curriculum.observe("b", [0.0, 0.0])
    np.testing.assert_allclose(curriculum.learnability(), [0.375, 0.0, 0.0])
    np.testing.assert_allclose(curriculum.probabilities(), [0.765281, 0.117360, 0.117360], atol=1e-6)
    # Batch 2: a has 0, Q = .375 - .5 * .375 = .1875; b is not in it and keeps 0; c has 1, Q = .5.
    curriculum.draw(2)
    curriculum.observe("a", [0.0, 0.0])
    curriculum.observe("c", [1.0, -1.0])
    np.testing.assert_allclose(curriculum.learnability(), [0.1875, 0.0, 0.5])


def test_the_prompts_of_a_batch_count_as_one_update_in_any_order():
    forward, backward = SECCurriculum(["a", "b"]), SECCurriculum(["a", "b"])
    prompts = [("a", 1.0), ("a", 0.25), ("b", 0.5), ("a", 0.0)]
    for curriculum, order in ((forward, prompts), (backward, prompts[::-1])):
        for arm, size in order:
            curriculum.observe(arm, [size, -size])
        curriculum.draw(4)
    np.testing.assert_array_equal(forward.probabilities(), backward.probabilities())


def test_a_draw_without_observations_changes_no_value():
    curriculum = SECCurriculum(["a", "b"])
    curriculum.observe("a", [1.0])
    before = curriculum.probabilities()
    curriculum.draw(1)
    curriculum.draw(1)
    np.testing.assert_array_equal(curriculum.probabilities(), before)


def test_a_value_follows_an_arm_that_becomes_learnable():
    curriculum = SECCurriculum(["late", "steady"])
    for step in range(20):
        curriculum.observe("late", [1.0, -1.0] if step >= 15 else [0.0, 0.0])
        curriculum.observe("steady", [0.4, -0.4])
        curriculum.draw(2)
        if step == 14:
            assert curriculum.probabilities()[0] < 0.15
    assert curriculum.probabilities()[0] > 0.9


@pytest.mark.parametrize("learning_rate", [0.0, 1.5])
def test_bad_learning_rates_are_refused(learning_rate):
    with pytest.raises(ValueError, match=r"learning_rate must be in \(0, 1\]"):
        SECCurriculum(["a"], learning_rate=learning_rate)


def test_unscorable_prompts_and_a_discounted_past_by_hand():
    # r(a) = (1 + 0) / 2, so Q(a) = .25, which .8 makes .2; then r(a) = 1, so Q(a) = .2 + .5 * .8.
    curriculum = SECCurriculum(["a", "b"])
    curriculum.observe("a", [1.0, -1.0])
    curriculum.observe_unscorable("a", 2)
    assert curriculum.learnability().tolist() == [0.25, 0.0]
    curriculum.discount_past(0.8)
    assert curriculum.learnability().tolist() == pytest.approx([0.2, 0.0])
    curriculum.observe("a", [1.0, -1.0])
    assert curriculum.learnability().tolist() == pytest.approx([0.6, 0.0])
