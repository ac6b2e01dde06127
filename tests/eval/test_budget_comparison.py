import json
from dataclasses import replace

import pytest
from matplotlib.figure import Figure

from metatune.eval import test_time_plots as module
from metatune.eval.budget_comparison import compare_at_budgets, write_comparison
from metatune.eval.budget_evaluation import BudgetEvaluation, Cuts, TraceMeasurement
from metatune.eval.test_time_plots import plot_budgets, plot_episodes

NOTHING = Cuts(success=[], spent=[], answer=[], majority={})
PNG = b"\x89PNG\r\n\x1a\n"


def trace(key, success, spent, **options):
    """A trace of 100 tokens that was cut at 20 and 80; `success` and `spent` also have the empty prefix."""
    row = {"distribution": "d", "key": key, "sample": 0, "tokens": 100, "ended": False, "correct": False}
    answer = [spent[0]] * len(spent)
    cuts = Cuts(success=success, spent=spent, answer=answer, majority={2: success})
    empty = {"extended": NOTHING, "episodes": NOTHING, "episode_ends": []}
    return TraceMeasurement(**row | empty | {"budgets": cuts} | options)


def evaluation(factor=1.0, problems=10, budgets=(20, 80)):
    """Half of the problems are solved at the larger budget, all at a cost times `factor`."""
    spent = [5 * factor, 30 * factor, 90 * factor]
    traces = [trace(str(i), [0.0, 0.0, float(i % 2)], spent) for i in range(problems)]
    return BudgetEvaluation(list(budgets), [], traces, {"num_answers": 2}, seconds=1.0)


@pytest.fixture
def drawn(monkeypatch):
    figures = []
    make = module.new_figure
    monkeypatch.setattr(module, "new_figure", lambda *size: figures.append(make(*size)) or figures[-1])
    return lambda: figures[-1]


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_every_problem_counts_alike():
    known, unknown = [1.0] * 3, [0.0] * 3
    traces = [trace("a", known, [1.0] * 3, sample=sample) for sample in range(3)] + [trace("b", unknown, [1.0] * 3)]
    summary = BudgetEvaluation([20, 80], [], traces).summary()
    assert [row["regret"] for row in summary["regret"]] == [0.5, 0.5]
    assert summary["budgets"][-1]["accuracy"] == 0.5


def test_the_first_run_is_the_reference_of_all_others(tmp_path, drawn):
    comparison = compare_at_budgets({"a": evaluation(), "half": evaluation(0.5), "twice": evaluation(2.0)})
    assert comparison["reference"] == "a"
    assert "against_reference" not in comparison["runs"]["a"]
    half, twice = (comparison["runs"][name]["against_reference"] for name in ("half", "twice"))
    ratio = half["tokens"]["ratio"]
    assert ratio["value"] == pytest.approx(2) and ratio["low"] < 2 < ratio["high"], (
        "ten problems that agree say little"
    )
    assert (half["tokens"]["level"], half["tokens"]["reference"], half["tokens"]["other"]) == (0.5, 90, 45)
    assert twice["tokens"]["ratio"]["value"] == pytest.approx(0.5)
    last, unseen = half["accuracy"][-1], 1 - 0.025 ** (1 / 10)
    assert (last["budget"], last["difference"]) == (80, 0)
    assert (last["ci_low"], last["ci_high"]) == pytest.approx((-unseen, unseen))
    assert (half["regret"]["cutoff"], half["regret"]["difference"]) == (80, 0)
    assert (half["num_problems"], half["num_unpaired"]) == (10, 0)

    write_comparison(comparison, tmp_path)
    assert json.loads((tmp_path / "comparison.json").read_text()) == comparison
    assert (tmp_path / "comparison.png").read_bytes().startswith(PNG)
    assert titles(drawn())[0] == "half needs 2.00x fewer tokens [1.38, 2.89]"


def test_budgets_may_differ_and_are_compared_where_they_do_not():
    other = evaluation(budgets=(40, 80))
    change = compare_at_budgets({"a": evaluation(), "b": other})["runs"]["b"]["against_reference"]
    assert [row["budget"] for row in change["accuracy"]] == [0, 80]
    none = compare_at_budgets({"a": evaluation(), "b": evaluation(budgets=(40, 60))})["runs"]["b"]
    assert none["against_reference"]["regret"] is None
    assert none["against_reference"]["tokens"]["ratio"]["value"] == pytest.approx(1)


def test_what_only_one_side_scored_is_not_compared():
    other = evaluation(problems=12)
    unscored = replace(other.traces[0].budgets, success=[None] * 3)
    other.traces[0] = replace(other.traces[0], budgets=unscored)
    change = compare_at_budgets({"a": evaluation(), "b": other})["runs"]["b"]["against_reference"]
    assert (change["num_problems"], change["num_unpaired"]) == (9, 3)


def test_runs_that_share_nothing_are_refused():
    other = evaluation()
    other.traces = [replace(t, key=f"other {t.key}") for t in other.traces]
    with pytest.raises(ValueError, match="b cannot be compared with a: no problem was scored by both"):
        compare_at_budgets({"a": evaluation(), "b": other})
    with pytest.raises(ValueError, match="at least two"):
        compare_at_budgets({"a": evaluation()})


def test_pictures_of_one_run(tmp_path, drawn):
    episodes = Cuts(success=[0.0, 0.5, 1.0], spent=[5, 20, 30], answer=[5, 5, 0], majority={2: [0.0, 0.5, 1.0]})
    extended = Cuts(success=[1.0], spent=[165.0], answer=[5.0], majority={2: [1.0]})
    run = evaluation()
    run.factors = [2]
    run.traces = [replace(t, episodes=episodes, episode_ends=[15, 30], extended=extended) for t in run.traces]
    summary = run.summary()
    plot_budgets({"a": summary}, tmp_path / "test_time.png")
    assert titles(drawn()) == ["Accuracy 0.00 at once, 0.50 at 80 tokens", "Regret 0.81"]
    assert [line.get_xdata()[-1] for line in drawn().axes[0].get_lines()][:1] == [90]
    plot_episodes(summary, tmp_path / "episodes.png")
    assert titles(drawn()) == ["Episode 1 earns 50% of the progress"]
    assert (tmp_path / "episodes.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("success", "told"),
    [
        ([0.0, None, 1.0], "Episode 2 earns 100% of the progress"),
        ([0.5, None, None], "Progress could not be measured"),
    ],
)
def test_an_episode_at_which_nothing_was_scored_is_passed_over(tmp_path, drawn, success, told):
    run = evaluation()
    episodes = Cuts(success=success, spent=[5, 20, 30], answer=[5, 5, 0], majority={2: success})
    run.traces = [replace(t, episodes=episodes, episode_ends=[15, 30]) for t in run.traces]
    plot_episodes(run.summary(), tmp_path / "episodes.png")
    assert titles(drawn()) == [told]


def test_nothing_to_draw_is_said(tmp_path):
    run = evaluation()
    with pytest.raises(ValueError, match="no episode was scored"):
        plot_episodes(run.summary(), tmp_path / "episodes.png")
    unscored = replace(run.traces[0].budgets, success=[None] * 3)
    run.traces = [replace(t, budgets=unscored) for t in run.traces]
    with pytest.raises(ValueError, match="no run has a scored budget"):
        plot_budgets({"a": run.summary()}, tmp_path / "test_time.png")
    assert not list(tmp_path.iterdir())
