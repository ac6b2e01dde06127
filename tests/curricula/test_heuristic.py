import numpy as np
import pytest

from metatune.curricula.heuristic import EasyToHardCurriculum, PoolsCurriculum, UniformCurriculum


def observe_rate(curriculum: PoolsCurriculum, arm: str, solved: int, group: int = 10) -> None:
    rewards = [1.0] * solved + [0.0] * (group - solved)
    curriculum.observe(arm, [0.0] * group, rewards=rewards)


def test_uniform_ignores_what_it_observes_but_reports_it():
    curriculum = UniformCurriculum(["a", "b"])
    curriculum.observe("a", [2.0, -1.0])
    assert curriculum.probabilities().tolist() == [0.5, 0.5]
    assert curriculum.metrics()["learnability/a"] == 1.5


def test_easy_to_hard_opens_one_more_arm_per_stage():
    # 30 prompts and three arms: the second opens when 10 are drawn, the third when 20 are.
    curriculum = EasyToHardCurriculum(["easy", "middle", "hard"], total_prompts=30)
    seen = []
    for _ in range(8):
        seen.append(curriculum.probabilities().tolist())
        curriculum.draw(5)
    third = pytest.approx([1 / 3] * 3)
    assert seen == [[1, 0, 0], [1, 0, 0], [0.5, 0.5, 0], [0.5, 0.5, 0], third, third, third, third]


def test_easy_to_hard_never_draws_a_closed_arm():
    curriculum = EasyToHardCurriculum(["easy", "middle", "hard"], total_prompts=3000)
    drawn = np.concatenate([curriculum.draw(7) for _ in range(1000 // 7)])
    assert set(drawn.tolist()) == {0}


def test_easy_to_hard_needs_a_length():
    with pytest.raises(ValueError, match="total_prompts must be at least 1, got 0"):
        EasyToHardCurriculum(["a"], total_prompts=0)


def test_pools_by_hand():
    # solved: a (1.0), unsolved: b (0) and c (.1), learnable: d (.5) and e, never observed.
    curriculum = PoolsCurriculum(["a", "b", "c", "d", "e"])
    for arm, solved in (("a", 10), ("b", 0), ("c", 1), ("d", 5)):
        observe_rate(curriculum, arm, solved)
    np.testing.assert_allclose(curriculum.probabilities(), [0.1, 0.05, 0.05, 0.4, 0.4])
    np.testing.assert_allclose(curriculum.pass_rates(), [1.0, 0.0, 0.1, 0.5, 0.0])


def test_an_empty_pool_leaves_its_share_to_the_others_in_proportion():
    # No solved arm: .8 and .1 become 8/9 and 1/9. All unsolved: equal shares.
    curriculum = PoolsCurriculum(["a", "b"])
    observe_rate(curriculum, "a", 5)
    observe_rate(curriculum, "b", 0)
    np.testing.assert_allclose(curriculum.probabilities(), [8 / 9, 1 / 9])
    for _ in range(64):
        observe_rate(curriculum, "a", 0)
    np.testing.assert_allclose(curriculum.probabilities(), [0.5, 0.5])


def test_the_ends_of_the_band_belong_to_it_and_the_window_forgets():
    curriculum = PoolsCurriculum(["a", "b", "c"], window=1)
    for arm, solved in (("a", 2), ("b", 8), ("c", 9)):
        observe_rate(curriculum, arm, solved)
    np.testing.assert_allclose(curriculum.probabilities(), np.array([0.4, 0.4, 0.1]) / 0.9)
    observe_rate(curriculum, "a", 0)
    np.testing.assert_allclose(curriculum.probabilities(), [0.1, 0.8, 0.1])


def test_an_arm_that_can_hardly_be_scored_is_in_no_pool():
    # a: learnable, .8; b: solved by its scored prompts, .1, although a third has no score; c: a tenth of that, .01.
    curriculum = PoolsCurriculum(["a", "b", "c"])
    observe_rate(curriculum, "a", 5)
    for arm, scored, unscorable in (("b", 2, 1), ("c", 1, 2)):
        for _ in range(scored):
            observe_rate(curriculum, arm, 10)
        for _ in range(unscorable):
            curriculum.observe_unscorable(arm, 10)
    np.testing.assert_allclose(curriculum.probabilities(), np.array([0.8, 0.1, 0.01]) / 0.91)
    np.testing.assert_allclose(curriculum.pass_rates(), [0.5, 1.0, 1.0])
    for _ in range(2):
        observe_rate(curriculum, "c", 5)  # it can be scored again
    np.testing.assert_allclose(curriculum.probabilities(), [0.4 / 0.9, 0.1 / 0.9, 0.4 / 0.9])


def test_the_pass_rates_of_pools_follow_the_newest_prompts_once_the_past_is_discounted():
    # One prompt at .9 of weight .25, one at .4: (.225 + .4) / 1.25
    curriculum = PoolsCurriculum(["a"])
    observe_rate(curriculum, "a", 9)
    curriculum.discount_past(0.25)
    observe_rate(curriculum, "a", 4)
    np.testing.assert_allclose(curriculum.pass_rates(), [0.5])


def test_pools_needs_rewards_between_0_and_1():
    curriculum = PoolsCurriculum(["a"])
    with pytest.raises(ValueError, match="arm 'a': curriculum 'pools' needs the raw rewards: pass `rewards`"):
        curriculum.observe("a", [0.0, 1.0])
    with pytest.raises(ValueError, match=r"arm 'a': curriculum 'pools' needs rewards in \[0, 1\], got \[-1.0, 2.0\]"):
        curriculum.observe("a", [0.0, 1.0], rewards=[-1.0, 2.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"low": 0.9}, "low 0.9 and high 0.8"), ({"share": 1.0}, "strictly between 0 and 1"), ({"window": 0}, "window")],
)
def test_bad_pools_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PoolsCurriculum(["a"], **options)
