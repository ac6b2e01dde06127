"""What the trainer makes of rewards: missing, absurd, watched only, or of several functions."""

import math

import numpy as np
import pytest
import torch
from transformers import LlamaForSequenceClassification

from metatune.curricula import build_tokenizer
from metatune.rewards import VERIFIERS, RewardModelReward, correctness_reward
from metatune.rewards.guarded_reward import VerifierError
from metatune.trainers import DUMPTrainer

from .dump_setup import DISTRIBUTIONS, config, digits, make, rows, tiny_model, training_log


def test_a_completion_without_a_score_is_left_out_of_what_the_curriculum_learns(tmp_path):
    def sometimes(completions, **kwargs):
        return [None if i % 4 == 0 else (math.nan if i % 4 == 1 else float(i % 2)) for i in range(len(completions))]

    trainer = make(tmp_path, reward=sometimes, max_steps=1)
    sizes = []
    observe = trainer.curriculum.observe
    trainer.curriculum.observe = lambda arm, *group: sizes.append([len(x) for x in group]) or observe(arm, *group)
    trainer.train()
    assert sizes == [[2, 2, 2]] * 4
    assert training_log(trainer)[0]["unscorable"] == 0.5


def test_a_log_line_has_the_mean_of_all_batches_since_the_last(tmp_path):
    """As TRL's own numbers, or what failed in between would not be seen."""
    batches = []

    def failing_first(completions, **kwargs):
        batches.append(completions)
        rewards = [float(i % 2) for i in range(len(completions))]
        return [None] * 4 + rewards[4:] if len(batches) == 1 else rewards

    trainer = make(tmp_path, reward=failing_first, max_steps=2, logging_steps=2)
    trainer.train()
    (line,) = training_log(trainer)
    assert line["unscorable"] == pytest.approx((4 / 16 + 0) / 2)
    assert {value for key, value in line.items() if key.startswith("pass_rate/")} == {0.5}


@pytest.mark.parametrize("curriculum", ["dump", "dump_plus"])
def test_a_group_with_one_score_has_the_value_0(tmp_path, curriculum):
    """Alone it has no advantage and no variance, whatever its distribution has to teach."""

    def failing(completions, **kwargs):
        return [None] * 3 + [float(row % 2) for row in range(3, len(completions))]

    trainer = make(tmp_path, reward=failing, curriculum=curriculum, max_steps=1)
    values = []
    for name in ("observe", "observe_unscorable"):
        method = getattr(trainer.curriculum, name)
        setattr(
            trainer.curriculum,
            name,
            lambda arm, *args, name=name, then=method: values.append(name) or then(arm, *args),
        )
    trainer.train()
    assert values == ["observe_unscorable", "observe", "observe", "observe"]
    metrics = trainer.curriculum.metrics()
    assert sum(metrics[f"count/{arm}"] for arm in trainer.curriculum.arms) == 4


def test_what_a_reward_model_cannot_score_has_no_reward_at_all(tmp_path):
    """TRL would add a 0 for it, which no reward model has said."""

    class FakeModel:
        def score(self, prompts, completions):
            return np.array([math.nan if i % 4 == 0 else 5.0 for i in range(len(completions))])

    def sparing(completions, **kwargs):
        return [None if i % 4 == 1 else 1.0 for i in range(len(completions))]

    trainer = make(tmp_path, reward=[RewardModelReward(FakeModel()), sparing], max_steps=1)
    trainer.train()
    log = training_log(trainer)[0]
    assert log["unscorable"] == 0.5 and log["rewards/sparing/mean"] == 1.0
    assert log["reward"] == 6, "what only one of them scored has none either: its group was scored by both"
    assert trainer.evaluate(rows())["eval_accuracy"] == 1.0  # of what the other function says of the rows it scores

    passed = {log[key] for key in log if key.startswith("pass_rate/")}
    assert passed == {1.0}, "of it as well"

    trainer = make(tmp_path, reward=RewardModelReward(FakeModel()), max_steps=1)
    assert "eval_accuracy" not in trainer.evaluate(rows())
    trainer.train()
    assert not any(key.startswith("pass_rate/") for key in training_log(trainer)[0])


def test_a_reward_that_is_only_watched_is_no_score(tmp_path):
    """TRL would make a reward of 0 of a watched gold score where what is paid says nothing."""

    def sparing(completions, **kwargs):
        return [None if i % 4 == 1 else 1.0 for i in range(len(completions))]

    trainer = make(tmp_path, reward=[sparing, digits], max_steps=1, reward_weights=[1.0, 0.0])
    trainer.train()
    log = training_log(trainer)[0]
    assert log["unscorable"] == 0.25 and log["reward"] == 1.0


def test_a_function_may_be_silent_on_a_whole_distribution(tmp_path):
    """Its groups are compared by the other functions alone, and none of them is paid less for it."""

    def only_alpha(completions, distribution, **kwargs):
        return [1.0 if name == "alpha" else None for name in distribution]

    def paid(completions, **kwargs):
        return [0.5] * len(completions)

    trainer = make(tmp_path, reward=[only_alpha, paid], max_steps=2)
    trainer.train()
    log = training_log(trainer)[-1]
    assert log["unscorable"] == 0 and {log[f"reward/{name}"] for name in ("beta", "gamma") if f"reward/{name}" in log}
    assert all(log.get(f"reward/{name}", 0.5) == 0.5 for name in ("beta", "gamma"))
    assert log.get("reward/alpha", 1.5) == 1.5


def test_gold_is_correctness_or_the_first_function_that_is_no_opinion_or_the_one_that_is_named(tmp_path):
    def ones(completions, **kwargs):
        return [1.0] * len(completions)

    def zeros(completions, **kwargs):
        return [0.0] * len(completions)

    class FakeModel:
        def score(self, prompts, completions):
            return np.ones(len(completions))

    functions = [RewardModelReward(FakeModel()), zeros, ones]
    for options, accuracy in (({}, 0), ({"gold_reward": "ones"}, 1), ({"gold_reward": "zeros"}, 0)):
        trainer = make(tmp_path, reward=functions, reward_weights=[1.0, 0.5, 0.5], **options)
        assert trainer.evaluate(rows())["eval_accuracy"] == accuracy, "whatever its weight"
    with pytest.raises(
        ValueError, match=r"gold_reward: no reward function 'one' \(there are reward_model, zeros, ones"
    ):
        make(tmp_path, reward=functions, gold_reward="one")
    with pytest.raises(ValueError, match="curriculum_reward: gold needs"):
        make(tmp_path, reward=functions[0], curriculum_reward="gold")


@pytest.mark.parametrize("opening", ["", "<think>"])
def test_correctness_learns_that_the_template_opens_the_thinking(tmp_path, monkeypatch, opening):
    graded = []

    class Recording:
        needs_answer = False

        def score(self, completion, answer, info):
            graded.append(completion)
            return False

    monkeypatch.setitem(VERIFIERS, "recording", Recording())
    columns = {"answer": "1", "verifier": "recording", "info": ""}
    trainer = make(tmp_path, reward=correctness_reward, train_dataset=rows().map(lambda row: columns), max_steps=1)
    trainer._tokenizer.chat_template += opening
    trainer.train()
    assert graded
    assert all(text.startswith("<think>") == bool(opening) for text in graded)


def test_a_reward_model_as_trl_takes_it_is_no_gold_either(tmp_path):
    tokenizer = build_tokenizer()
    model = LlamaForSequenceClassification(tiny_model().config)
    model.config.num_labels = 1
    model.score = torch.nn.Linear(model.config.hidden_size, 1)
    trainer = DUMPTrainer(
        tiny_model(),
        reward_funcs=model,
        args=config(tmp_path, max_steps=1),
        train_dataset=rows(),
        processing_class=tokenizer,
        reward_processing_classes=tokenizer,
    )
    trainer.train()
    assert not any(key.startswith("pass_rate/") for key in training_log(trainer)[0])
    assert "eval_accuracy" not in trainer.evaluate(rows())


def test_the_curriculum_can_see_gold_alone(tmp_path):
    """What another function pays neither makes a distribution look learnable nor hides that it is."""
    seen = {}
    for name, reward in (("alone", digits), ("beside", [digits, noise])):
        trainer = make(tmp_path, reward=reward, max_steps=1, curriculum_reward="gold")
        observed, observe = [], trainer.curriculum.observe
        trainer.curriculum.observe = lambda arm, *group, to=observed, then=observe: (
            to.append(group) or then(arm, *group)
        )
        trainer.train()
        seen[name] = observed
        plain = make(tmp_path, reward=reward, max_steps=1)
        plain.train()
        same = training_log(plain)[0]["loss"] == training_log(trainer)[0]["loss"]
        assert same, "what trains the policy is the total"
    for one, other in zip(seen["alone"], seen["beside"], strict=True):
        assert one[0] == pytest.approx(other[0], abs=1e-6) and one[1:] == other[1:]


@pytest.mark.parametrize("curriculum", ["dump", "pools"])
def test_a_distribution_that_cannot_be_scored_counts_as_drawn_and_loses_its_share(tmp_path, curriculum):
    def no_gamma(completions, distribution, **kwargs):
        """Half of each group is correct, but `gamma` cannot be scored."""
        return [None if name == "gamma" else float(row % 2) for row, name in enumerate(distribution)]

    trainer = make(tmp_path, reward=no_gamma, curriculum=curriculum, max_steps=8)
    drawn, draw = [], trainer.curriculum.draw
    trainer.curriculum.draw = lambda number: drawn.extend(arms := draw(number)) or arms
    trainer.train()
    last = training_log(trainer)[-1]
    assert [last[f"curriculum/count/{name}"] for name in DISTRIBUTIONS] == [drawn.count(arm) for arm in range(3)]
    assert last["curriculum/learnability/gamma"] == 0
    assert last["curriculum/probability/gamma"] < 0.2 < last["curriculum/probability/alpha"]


def noise(completions, **kwargs):
    return [float(len(completion) % 7) + 0.1 * row for row, completion in enumerate(completions)]


def test_a_batch_that_nothing_could_score_stops_the_run_and_names_the_reward(tmp_path):
    def broken_grader(completions, **kwargs):
        return [None] * len(completions)

    with pytest.raises(ValueError, match=r"none of the 16 completions .*broken_grader.*resumed"):
        make(tmp_path, reward=broken_grader).train()


def test_a_verifier_that_worked_is_not_blamed_for_a_reward_model_that_did_not(tmp_path):
    class Silent:
        def score(self, prompts, completions):
            return np.full(len(completions), math.nan)

    with pytest.raises(
        ValueError, match=r"has a reward: reward_model returned none for 16 of them\. The run"
    ) as error:
        make(tmp_path, reward=[digits, RewardModelReward(Silent())]).train()
    assert "digits" not in str(error.value)


def test_a_completion_that_a_reward_function_raises_on_has_no_reward_and_the_run_goes_on(tmp_path):
    def fragile(completions, **kwargs):
        fragile.calls += 1
        if fragile.calls == 1 or (fragile.calls == 4 and len(completions) == 1):
            raise KeyError("the third of the first batch")
        return [float(row % 2) for row in range(len(completions))]

    fragile.calls = 0
    trainer = make(tmp_path, reward=fragile, max_steps=2, max_verifier_failures=0.5)
    trainer.train()
    first, second = training_log(trainer)
    assert first["fragile/raised"] == first["unscorable"] == 1 / 16
    assert second["fragile/raised"] == second["unscorable"] == 0


def test_a_reward_function_that_always_raises_ends_the_run_with_its_traceback(tmp_path):
    def broken(completions, **kwargs):
        raise KeyError("no such key")

    with pytest.raises(VerifierError, match=r"'broken' raised KeyError: .* each of its first 16 ") as error:
        make(tmp_path, reward=broken).train()
    assert isinstance(error.value.__cause__, KeyError)


def test_an_infinite_reward_stops_the_run_and_names_the_reward(tmp_path):
    def overflowing(completions, **kwargs):
        return [math.inf] * len(completions)

    with pytest.raises(ValueError, match="'overflowing' returned an infinite reward"):
        make(tmp_path, reward=overflowing).train()
