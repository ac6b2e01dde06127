import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from metatune.eval import compare
from metatune.eval import plots as module
from metatune.eval.plots import palette, plot_before_after, plot_learning, plot_probabilities

from .run_folder import DISTRIBUTIONS, make_evaluation, make_metrics

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def drawn(monkeypatch):
    """The figure that was drawn last."""
    figures = []
    make = module.new_figure
    monkeypatch.setattr(module, "new_figure", lambda *size: figures.append(make(*size)) or figures[-1])
    return lambda: figures[-1]


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_learning_says_how_far_accuracy_went(tmp_path, drawn):
    before, after = (make_evaluation(side).summary() for side in (0, 1))
    plot_learning(make_metrics(), tmp_path / "learning.png", before=before, after=after)
    assert (tmp_path / "learning.png").read_bytes().startswith(PNG)
    finding = f"Held-out accuracy rose from {before['accuracy']:.2f} to {after['accuracy']:.2f}"
    assert titles(drawn())[1] == finding
    curve = max(drawn().axes[1].get_lines(), key=lambda line: line.get_linewidth())
    assert len(curve.get_xdata()) == 7, "one point an evaluation"


def test_learning_without_evaluations_has_no_empty_panel(tmp_path, drawn):
    rows = [row for row in make_metrics() if "reward" in row]
    plot_learning(rows, tmp_path / "learning.png")
    assert len(titles(drawn())) == 1 and titles(drawn())[0].startswith("Training reward rose from ")
    with pytest.raises(ValueError, match="nothing was trained"):
        plot_learning([{"loss": 1.0}], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_a_reward_that_is_missing_or_nan_does_not_stop_the_picture(tmp_path):
    rows = make_metrics(12)
    rows[3] = {key: value for key, value in rows[3].items() if key != "reward"}
    rows[4]["reward"] = math.nan
    plot_learning(rows, tmp_path / "learning.png")
    assert (tmp_path / "learning.png").exists()


def test_the_area_is_the_logged_probabilities(tmp_path, drawn):
    rows = make_metrics()
    plot_probabilities(rows, tmp_path / "curriculum.png")
    axes = drawn().axes[0]
    assert len(axes.collections) == len(DISTRIBUTIONS)
    last = [row for row in rows if "reward" in row][-1]
    for name in DISTRIBUTIONS:
        assert f"{name}  {last[f'curriculum/probability/{name}']:.0%}" in texts(drawn())
    assert axes.get_title(loc="left").startswith("Most effort went to ")


def test_a_curriculum_that_never_chose_is_told(tmp_path, drawn):
    rows = [{"step": s, "curriculum/probability/a": 0.5, "curriculum/probability/b": 0.5} for s in (1, 2, 3)]
    plot_probabilities(rows, tmp_path / "curriculum.png")
    assert titles(drawn()) == ["The curriculum drew all 2 distributions alike"]
    plot_probabilities(rows[:1], tmp_path / "one_step.png")
    with pytest.raises(ValueError, match="no curriculum"):
        plot_probabilities([{"step": 1, "loss": 2.0}], tmp_path / "none.png")


def test_labels_of_thin_bands_do_not_overlap(tmp_path, drawn):
    names = [f"countdown-{i}" for i in range(13)]
    rows = [
        {"step": s} | {f"curriculum/probability/{name}": (0.01, 0.88)[i == 0] for i, name in enumerate(names)}
        for s in (1, 2)
    ]
    plot_probabilities(rows, tmp_path / "curriculum.png")
    heights = [text.get_position()[1] for text in drawn().axes[0].texts if text.get_text().startswith("countdown-")]
    assert len(heights) == 13
    assert all(high - low > 0.05 for low, high in itertools.pairwise(heights))
    assert heights[0] >= 0 and heights[-1] <= 1


@given(st.lists(st.floats(0, 1), max_size=30))
def test_spreading_labels_keeps_their_order_and_moves_only_the_crowded(heights):
    heights = sorted(heights)
    placed = module._spread(heights)
    gap = min(0.055, 1 / max(1, len(heights) - 1))
    assert all(high - low >= gap - 1e-9 for low, high in itertools.pairwise(placed))
    assert all(-1e-9 <= height <= 1 + 1e-9 for height in placed)
    if all(high - low >= gap for low, high in itertools.pairwise(heights)):
        assert placed == pytest.approx(heights)


def test_before_after_counts_what_certainly_got_better(tmp_path, drawn):
    before, after = make_evaluation(0), make_evaluation(1)
    comparison = compare(before, after)
    plot_before_after(before.summary(), after.summary(), comparison, tmp_path / "before_after.png")
    better = sum(part["ci_low"] > 0 for part in comparison["distributions"].values())
    assert titles(drawn()) == [
        f"{better} of {len(DISTRIBUTIONS)} distributions got better; mixture {comparison['difference']:+.2f}"
    ]
    labels = [label.get_text() for label in drawn().axes[0].get_yticklabels()]
    assert labels == ["mixture", *reversed(DISTRIBUTIONS)]


def test_before_after_admits_a_loss(tmp_path, drawn):
    before, after = make_evaluation(1), make_evaluation(0)
    plot_before_after(before.summary(), after.summary(), compare(before, after), tmp_path / "before_after.png")
    assert titles(drawn())[0].startswith("0 of 6 distributions got better, ")
    assert "got worse; mixture \N{MINUS SIGN}0." in titles(drawn())[0]


def test_a_family_has_one_hue_and_every_member_its_own_shade():
    colours = palette(["countdown-2", "countdown-3", "arithmetic-2", "logic"])
    assert len(set(colours.values())) == 4
    assert colours["logic"] == pytest.approx(to_rgb(module.HUES[2]))
    assert sum(colours["countdown-2"]) > sum(colours["countdown-3"]), "from light to dark"
