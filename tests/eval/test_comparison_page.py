import base64
import json
import re

import pytest

from metatune.eval.comparison_page import write_comparison_page
from metatune.eval.report import Run
from metatune.eval.run_comparison import compare_runs

from .html_page import Page, without_scripts
from .run_folder import make_evaluation, make_metrics


def a_run(folder, name, recipe, evaluation=None, steps=60):
    metrics = [*make_metrics(steps), {"step": steps, "train_runtime": 90.0}]
    return Run(folder / name, recipe=recipe, metrics=metrics, after=evaluation)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [
        a_run(folder, "stock", "curriculum: uniform\nseed: 0", make_evaluation(0)),
        a_run(folder, "dump <0>", "curriculum: dump # <script>\nseed: 0", make_evaluation(1)),
        a_run(folder, "dump-1", "curriculum: dump\nseed: 1", make_evaluation(1), steps=90),
    ]


@pytest.fixture(scope="module")
def source(runs):
    path = write_comparison_page(compare_runs(runs), runs[0].folder.parent / "pages" / "comparison.html")
    return path.read_text()


def test_the_page_is_one_file_that_asks_the_network_for_nothing(source):
    page = Page(source)
    assert not {"link", "iframe"} & set(page.tags)
    assert "http" not in re.sub(r'(src="data:[^"]*"|http-equiv)', "", without_scripts(source))
    assert len(page.scripts) == 2 and page.allowed_scripts
    pictures = [address for address in page.addresses if address.startswith("data:image/png;base64,")]
    assert len(pictures) == 2, "training reward and held-out accuracy"
    titles = [chart["title"] for chart in json.loads(page.data["chart-data"])]
    assert titles == ["By optimizer step", "By rollout tokens"] * 2
    assert all(base64.b64decode(address.split(",")[1]).startswith(b"\x89PNG") for address in pictures)


def test_links_lead_from_the_page_to_the_runs_own(source):
    links = [address for address in Page(source).addresses if not address.startswith("data:")]
    assert links == ["../stock/report.html", "../dump%20%3C0%3E/report.html", "../dump-1/report.html"]


def test_what_differs_and_what_came_of_it_is_on_the_page(source, runs):
    text = " ".join(" ".join(Page(source).text).split())
    assert "3 runs compared" in text
    assert "curriculum uniform dump" in text
    accuracies = [run.after.summary()["accuracy"] for run in runs]
    for accuracy in accuracies:
        assert f"{accuracy:.3f}" in text
    assert f"+{accuracies[1] - accuracies[0]:.3f}" in text
    assert "Before you compare" in text and "rollout tokens, stock" in text
    assert "Over seeds" in text


def test_names_and_recipes_are_escaped(source):
    assert "<script>\nseed" not in source and Page(source).allowed_scripts
    assert "dump &lt;0&gt;" in source


def test_runs_of_one_recipe_and_runs_of_several_read_otherwise(runs, tmp_path):
    def text_of(chosen):
        page = write_comparison_page(compare_runs(chosen), tmp_path / "comparison.html").read_text()
        return " ".join(" ".join(Page(page).text).split())

    seeds = text_of(runs[1:])
    assert "differ only in the seed" in seeds
    assert "What differs in the recipes" not in seeds and "Over seeds" in seeds
    recipes = text_of(runs[:2])
    assert "Each run has its own recipe" in recipes
    assert "Over seeds" not in recipes and "Before you compare" not in recipes


def test_runs_that_logged_nothing_make_a_page_without_pictures(tmp_path):
    runs = [Run(tmp_path / name, recipe="seed: 0", metrics=[{"step": 1}]) for name in "ab"]
    page = write_comparison_page(compare_runs(runs), tmp_path / "comparison.html").read_text()
    assert "data:image" not in page
    assert "Curves" not in Page(page).text


def test_a_number_that_was_logged_without_a_place_is_left_out(tmp_path):
    rows = [{"reward": 0.5}, {"reward": "NaN"}, {"step": 1, "reward": float("inf")}]
    runs = [Run(tmp_path / name, recipe=f"seed: {name}", metrics=list(rows)) for name in "ab"]
    page = write_comparison_page(compare_runs(runs), tmp_path / "comparison.html").read_text()
    assert "data:image" not in page
