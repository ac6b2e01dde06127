import dataclasses

import pytest

from metatune.eval import paired_bootstrap_difference
from metatune.eval.report import Run
from metatune.eval.run_comparison import (
    MIN_SEEDS,
    compare_runs,
    differing_options,
    flat_recipe,
    last_tenth,
    log_ends,
)

from .run_folder import make_evaluation


def a_run(folder, name, recipe="seed: 0", accuracy=None, rows=10, tokens=100, **more):
    """A run that logged `rows` lines of `tokens` rollout tokens each, and ended."""
    metrics = [{"step": n, "reward": n / rows, "rollout_tokens": n * tokens} for n in range(1, rows + 1)]
    if accuracy is not None:
        metrics.append({"step": rows, "rollout_tokens": rows * tokens, "eval_accuracy": accuracy})
    metrics.append({"step": rows, "train_runtime": 12.5})
    return Run(folder / name, metrics=metrics, recipe=recipe, **more)


def warnings_of(groups):
    return {run.name: " ".join(run.warnings) for group in groups for run in group.runs}


# Groups


def test_runs_that_differ_by_seed_alone_are_one_group(tmp_path):
    recipes = {
        "dump-0": "curriculum: dump\nseed: 0\noutput_dir: a",
        "stock": "curriculum: uniform\nseed: 0",
        "dump-1": "seed: 1\noutput_dir: b\ncurriculum: dump\nrun_name: mine",
        "unread": None,
        "unread-2": None,
    }
    groups = compare_runs([a_run(tmp_path, name, recipe) for name, recipe in recipes.items()])
    assert [(group.letter, [run.name for run in group.runs]) for group in groups] == [
        ("A", ["dump-0", "dump-1"]),
        ("B", ["stock"]),
        ("C", ["unread"]),
        ("D", ["unread-2"]),
    ]
    assert groups[0].name == "A: dump-0 + 1" and groups[1].name == "B: stock"
    assert "what it did differently is not known" in warnings_of(groups)["unread"]


def test_names_are_as_short_as_tells_runs_apart(tmp_path):
    runs = [a_run(tmp_path, name) for name in ("a/seed-0", "b/seed-0", "b/seed-1")]
    assert [run.name for run in compare_runs(runs)[0].runs] == ["a/seed-0", "b/seed-0", "b/seed-1"]
    assert [run.name for run in compare_runs(runs[1:])[0].runs] == ["seed-0", "seed-1"]


def test_a_run_that_is_named_twice_is_an_error(tmp_path):
    (tmp_path / "runs" / "a").mkdir(parents=True)
    runs = [a_run(tmp_path, name) for name in ("runs/a", "runs/b", "runs/../runs/a")]
    with pytest.raises(ValueError, match="a: named twice; a run is not compared with itself"):
        compare_runs(runs)


def test_every_seed_of_both_groups_is_paired_and_repeats_of_a_seed_are_averaged(tmp_path):
    stock = {0: [0.30, 0.34], 1: [0.40], 2: [0.50]}
    ours = {1: [0.46], 0: [0.40], 9: [0.90]}
    runs = [
        a_run(tmp_path, f"{name}-{seed}-{n}", f"curriculum: {name}\nseed: {seed}", accuracy)
        for name, seeds in (("stock", stock), ("ours", ours))
        for seed, accuracies in seeds.items()
        for n, accuracy in enumerate(accuracies)
    ]
    first, second = compare_runs(runs)
    assert second.num_paired == 2
    assert second.difference == pytest.approx(((0.40 - 0.32) + (0.46 - 0.40)) / 2)
    assert second.interval is None, "two seeds are too few"
    assert first.difference is None
    assert (first.accuracy.least, first.accuracy.greatest) == (0.30, 0.50)
    assert first.accuracy.mean == pytest.approx(0.385)


def test_an_unfinished_run_is_no_part_of_the_numbers_over_seeds(tmp_path):
    runs = [
        a_run(tmp_path, f"{name}-{seed}", f"curriculum: {name}\nseed: {seed}", 0.3 + 0.1 * seed)
        for name in ("stock", "ours")
        for seed in (0, 1)
    ]
    del runs[-1].metrics[-1]
    first, second = compare_runs(runs)
    assert (second.accuracy.mean, second.accuracy.greatest, second.num_paired) == (0.3, 0.3, 1)
    assert first.accuracy.mean == pytest.approx(0.35)
    assert [run.name for run in second.finished] == ["ours-0"]
    assert first.tokens == (1000, 1000, 1000)


def test_accuracies_of_other_origin_are_not_paired_by_seed(tmp_path):
    logged = a_run(tmp_path, "logged", "curriculum: uniform\nseed: 0", 0.4)
    saved = a_run(tmp_path, "saved", "curriculum: dump\nseed: 0", after=make_evaluation(0))
    second = compare_runs([logged, saved])[1]
    assert (second.num_paired, second.difference) == (0, None)
    assert second.accuracy is not None


def test_an_interval_over_seeds_needs_five_of_them(tmp_path):
    stock = [0.30 + 0.01 * n for n in range(MIN_SEEDS)]
    ours = [0.33, 0.36, 0.31, 0.37, 0.36]
    runs = [
        a_run(tmp_path, f"{name}-{seed}", f"curriculum: {name}\nseed: {seed}", accuracy)
        for name, accuracies in (("stock", stock), ("ours", ours))
        for seed, accuracy in enumerate(accuracies)
    ]
    second = compare_runs(runs)[1]
    assert second.num_paired == MIN_SEEDS
    assert second.interval == paired_bootstrap_difference(*(dict(enumerate(side)) for side in (stock, ours)))
    assert compare_runs(runs[1:])[1].interval is None


# Recipes


def test_options_within_options_have_names_of_their_own():
    text = """
        learning_rate: 1.0e-4
        output_dir: runs/mine
        bf16: true
        distributions:
          - {name: countdown, config: {numbers: 3, operators: "+-"}}
          - {name: logic, source: logic}
        reward_weights: [1.0, 0.5]
        curriculum_options: {}
    """
    assert flat_recipe(text) == {
        "learning_rate": "0.0001",
        "bf16": "true",
        "distributions.countdown.config.numbers": "3",
        "distributions.countdown.config.operators": "+-",
        "distributions.logic.source": "logic",
        "reward_weights": "[1.0, 0.5]",
        "curriculum_options": "{}",
    }


@pytest.mark.parametrize("text", [None, "", "a: [", "- a list", "just words"])
def test_a_recipe_that_cannot_be_read_has_no_options(text):
    assert flat_recipe(text) == {}


def test_only_options_that_differ_are_listed_and_never_seeds(tmp_path):
    recipes = ["learning_rate: 1e-4\nbeta: 0\nseed: 0", "beta: 0\nseed: 1\ncurriculum_options: {window: 64}"]
    groups = compare_runs([a_run(tmp_path, str(n), recipe) for n, recipe in enumerate(recipes)])
    assert differing_options(groups) == [
        ("learning_rate", ["1e-4", "default"]),
        ("curriculum_options.window", ["default", "64"]),
    ]


# What came of a run


def test_the_end_of_a_log_is_its_last_tenth():
    rows = [{"reward": float(n)} for n in range(20)] + [
        {"eval_accuracy": 0.5},
        {"reward": float("nan")},
        {"reward": None},
    ]
    assert last_tenth(rows, "reward") == 18.5
    assert last_tenth(rows, "eval_accuracy") == 0.5
    assert last_tenth(rows, "loss") is None


def test_the_log_s_ends_are_means_over_a_group(tmp_path):
    runs = [a_run(tmp_path, name, f"seed: {n}", rows=10 * (n + 1)) for n, name in enumerate("ab")]
    runs[1].metrics[-2]["reward"] = 3.0  # the last of its twenty rewards
    runs[0].metrics[0] |= {"time/step": 1.0, "learning_rate": 1e-4, "frac_reward_zero_std": 0.25}
    assert log_ends(compare_runs(runs)) == [
        ("frac_reward_zero_std", [0.25]),
        ("reward", [pytest.approx((1.0 + (0.95 + 3.0) / 2) / 2)]),
    ]


def test_counts_are_the_run_s_own(tmp_path):
    run = compare_runs([a_run(tmp_path, "a", accuracy=0.5, rows=30)])[0].runs[0]
    assert (run.steps, run.tokens, run.seconds, run.accuracy, run.seed) == (30, 3000, 12.5, 0.5, "0")
    assert run.warnings == []


def test_unfinished_and_resumed_runs_are_told(tmp_path):
    unfinished = a_run(tmp_path, "unfinished")
    del unfinished.metrics[-1]
    resumed = a_run(tmp_path, "resumed", "seed: 1\nresume_from_checkpoint: 'true'")
    told = warnings_of(compare_runs([unfinished, resumed]))
    assert "not finished" in told["unfinished"] and "not finished" not in told["resumed"]
    assert "its log does not have the time of all launches" in told["resumed"]
    resumed.metrics[-1]["time/run"] = 40.0
    assert "launches" not in warnings_of(compare_runs([unfinished, resumed]))["resumed"]


def test_unequal_work_is_told(tmp_path):
    runs = [a_run(tmp_path, "a", rows=10), a_run(tmp_path, "near", rows=11), a_run(tmp_path, "far", rows=12)]
    told = warnings_of(compare_runs(runs))
    assert told["near"] == ""
    assert "It generated 1,200 rollout tokens, a 1,000" in told["far"]
    for run in runs:  # a reward model has no rollouts
        run.metrics[:] = [{k: v for k, v in row.items() if k != "rollout_tokens"} for row in run.metrics]
    assert "It made 11 steps, a 10." in warnings_of(compare_runs(runs))["near"]


# Accuracies


def run_of(folder, name, evaluation):
    """A run without a log but with an evaluation after training."""
    return Run(folder / name, recipe="seed: 0", after=evaluation)


def second_of(*found):
    return compare_runs(found)[0].runs[1]


def test_evaluations_of_the_same_problems_are_compared_by_problem(tmp_path):
    worse, better = make_evaluation(0), make_evaluation(1)
    run = second_of(run_of(tmp_path, "a", worse), run_of(tmp_path, "b", better))
    assert run.accuracy == pytest.approx(better.summary()["accuracy"])
    assert run.difference.value == pytest.approx(run.accuracy - worse.summary()["accuracy"])
    assert 0 < run.difference.low < run.difference.value < run.difference.high
    assert run.warnings == []


def test_evaluations_of_other_problems_are_not_compared(tmp_path):
    evaluation, other, none = (make_evaluation(0) for _ in range(3))
    other.completions[:] = [dataclasses.replace(c, reference=f"{c.reference} or so") for c in other.completions]
    none.completions[:] = [dataclasses.replace(c, key=f"new {c.key}") for c in none.completions]
    for unlike, told in ((other, "on other problems than a"), (none, "on none of the problems of a")):
        run = second_of(run_of(tmp_path, "a", evaluation), run_of(tmp_path, "b", unlike))
        assert run.difference is None
        assert run.accuracy is not None
        assert told in " ".join(run.warnings)


def test_what_was_evaluated_otherwise_is_told(tmp_path):
    first, second = make_evaluation(0), make_evaluation(1)
    second.settings |= {"temperature": 0.0, "model": "another", "top_p": 0.9}
    for n, completion in enumerate(second.completions):
        if completion.key == "7":
            second.completions[n] = dataclasses.replace(completion, correct=None)
    run = second_of(run_of(tmp_path, "a", first), run_of(tmp_path, "b", second))
    assert "Its evaluation and that of a differ in temperature, top_p." in " ".join(run.warnings)
    assert f"{len(first.distributions)} problems were scored in one of it and a alone" in " ".join(run.warnings)
    assert run.difference is not None


def test_accuracies_of_other_origin_are_told(tmp_path):
    logged = a_run(tmp_path, "logged", accuracy=0.4)
    run = second_of(run_of(tmp_path, "saved", make_evaluation(0)), logged)
    assert run.accuracy == 0.4 and run.difference is None
    assert "Its accuracy comes from the log, that of saved from an evaluation" in " ".join(run.warnings)
    elsewhere = a_run(tmp_path, "elsewhere", accuracy=0.4)
    elsewhere.metrics[-2]["eval_accuracy/logic"] = 0.4
    assert "over other distributions than that of logged" in " ".join(second_of(logged, elsewhere).warnings)


def test_runs_without_anything_to_compare_are_listed_all_the_same(tmp_path):
    (group,) = compare_runs([Run(tmp_path / "a", recipe="seed: 0"), Run(tmp_path / "b", recipe="seed: 0")])
    for run in group.runs:
        assert (run.steps, run.tokens, run.reward, run.accuracy, run.difference) == (None,) * 5
    assert (group.accuracy, group.reward) == (None, None)
