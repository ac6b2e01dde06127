import base64
import json
import re
import shutil

import pyarrow
import pyarrow.parquet
import pytest

from metatune.eval import Evaluation
from metatune.eval.report import time_spent, write_report

from .html_page import Page, without_scripts
from .run_folder import DISTRIBUTIONS, make_run_folder


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make_run_folder(tmp_path_factory.mktemp("runs") / "quickstart")


@pytest.fixture
def run(original, tmp_path):
    return shutil.copytree(original, tmp_path / "quickstart")


def page_of(run):
    return Page(write_report(run).read_text())


def test_the_page_is_one_file_that_opens_offline(run):
    path = write_report(run)
    assert path == run / "report.html"
    page = Page(path.read_text())
    assert len(page.addresses) == 4
    for address, name in zip(page.addresses, ("before_after", "learning", "curriculum", "training"), strict=True):
        data = address.removeprefix("data:image/png;base64,")
        assert base64.b64decode(data) == (run / f"{name}.png").read_bytes()
    assert not {"link", "iframe"} & set(page.tags)
    assert "http" not in re.sub(r'(src="data:[^"]*"|http-equiv)', "", without_scripts(path.read_text()))
    assert len(page.scripts) == 3, "plotly, the charts and the completions"
    assert page.allowed_scripts


def test_the_page_shows_the_runs_own_numbers(run):
    text = " ".join(page_of(run).text)
    summary = json.loads((run / "summary.json").read_text())
    assert f"Held-out accuracy {summary['accuracy_before']:.3f} → {summary['accuracy_after']:.3f}" in text
    assert f"{summary['generated_tokens']:,}" in text
    assert "8.5 min" in text
    for name, part in summary["distributions"].items():
        assert name in text
        assert f"{part['accuracy_after']:.3f}" in text


def test_what_a_model_wrote_is_escaped(run):
    source = write_report(run).read_text()
    assert "<script>alert" not in source
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in source
    assert "&lt;b&gt;problem&lt;/b&gt;" in source
    assert "<i>0</i>" not in source


def test_the_recipe_and_names_are_escaped_too(run):
    (run / "recipe.yaml").write_text("learning_rate: 1e-4 # </pre><script>")
    (run / "config.json").write_text('{"model_type": "<llama>"}')
    page = page_of(run)
    assert page.allowed_scripts and "llama" not in page.tags
    assert any("learning_rate: 1e-4 # </pre><script>" in text for text in page.text)


def test_a_run_without_evaluations_says_so(run):
    shutil.rmtree(run / "before")
    (run / "summary.json").unlink()
    page = page_of(run)
    text = " ".join(page.text)
    assert "there is no folder before (`metatune eval --into RUN` writes it)" in text
    assert len(page.addresses) == 3, "learning, curriculum and training can still be drawn"


def test_a_chat_reads_as_text(run):
    chats = {
        "prompt": [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "6 * 4?"}]],
        "completion": [[{"role": "assistant", "content": "first\nthen 24"}]],
    }
    pyarrow.parquet.write_table(pyarrow.table(chats), run / "completions" / "completions_99999.parquet")
    page = page_of(run)
    assert "system: Be brief.\n\nuser: 6 * 4?" in page.text
    assert "first\nthen 24" in page.text
    shown = json.loads(page.data["completion-data"])
    assert shown["prompts"][0] == "system: Be brief.\n\nuser: 6 * 4?"


def test_the_comparison_is_computed_where_the_run_wrote_none(run):
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").unlink()
    assert f"{summary['accuracy_before']:.3f} → {summary['accuracy_after']:.3f}" in " ".join(page_of(run).text)


def test_metrics_alone_make_a_page(run):
    for piece in ("before", "after", "completions"):
        shutil.rmtree(run / piece)
    (run / "summary.json").unlink()
    text = " ".join(page_of(run).text)
    for gap in ("no folder before", "no folder after", "no completions/*.parquet", "no recipe.yaml"):
        assert gap in text


@pytest.mark.parametrize(
    "piece, content, told",
    [
        (
            "metrics.jsonl",
            '{"step": 1, "reward": 0.5, "rollout_tokens": 9}\n{"step": 2, "rew',
            "Line 2 of metrics.jsonl",
        ),
        ("metrics.jsonl", "", "metrics.jsonl is empty"),
        ("summary.json", "{", "summary.json: not JSON"),
        ("summary.json", "[]", "summary.json: not a JSON object"),
        ("after/summary.json", "{}", "evaluation after training: .*not a saved evaluation"),
        ("completions/completions_99999.parquet", "x", "completions_99999.parquet cannot be read"),
    ],
)
def test_a_damaged_piece_is_named_and_the_rest_is_shown(run, piece, content, told):
    (run / piece).write_text(content)
    text = " ".join(page_of(run).text)
    assert re.search(told, text)
    assert "Held-out accuracy" in text


def test_unscorable_completions_are_shown_as_such(run):
    after = Evaluation.load(run / "after")
    rows = [
        type(c)(**{**c.__dict__, "correct": None}) if c.distribution == "logic-3" else c for c in after.completions
    ]
    Evaluation(rows, after.settings, after.seconds).save(run / "after")
    (run / "summary.json").unlink()
    text = " ".join(page_of(run).text)
    assert "not scored" in text
    assert "160" in text and "40 \N{MULTIPLICATION SIGN} 4" in text


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"not a run's folder.*metrics\.jsonl"):
        write_report(tmp_path)


def test_every_distribution_has_an_example_and_a_row(run):
    page = page_of(run)
    assert page.tags.count("tr") == 1 + len(DISTRIBUTIONS) + 1
    headings = [text for text in page.text if text in DISTRIBUTIONS]
    assert len(headings) == 2 * len(DISTRIBUTIONS), "a row of the table and a heading"


def test_the_page_says_where_the_time_went(run):
    assert time_spent([{"reward": 1.0}]) is None
    made = {"time/step": 2.0, "time/generate": 1.0, "time/sync": 0.5, "time/score": 0.0, "time/forward_backward": 0.5}
    made |= {"throughput/rollout_tokens_per_second": 3000.0, "throughput/trained_tokens_per_second": 4000.0}
    made |= {"memory/peak_gib": 1.5, "vllm/prefix_cache_hit_rate": 0.75}
    reused = {"time/step": 1.0, "time/generate": 0.0, "time/score": 0.0, "time/forward_backward": 1.0}
    reused |= {"throughput/trained_tokens_per_second": 1000.0, "memory/peak_gib": 1.25}
    times = time_spent([made, reused, {"eval_accuracy": 0.5}])
    assert times["step"] == 1.5
    assert times["phases"] == {"generate": 0.5, "sync": 0.25, "forward_backward": 0.75}
    assert times["rates"] == {"rollout": 3000, "trained": 2000}
    assert (times["memory"], times["hit_rate"]) == (1.5, 0.75)

    assert "Where the time went" not in write_report(run).read_text()
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(made) + "\n")
    page = write_report(run).read_text()
    assert "<td>forward, backward</td><td>0.500</td><td>25.0 %</td>" in page
    assert (
        "3,000 rollout tokens/s, 4,000 trained tokens/s, peak memory 1.50 GiB, prefix cache hit rate 75.0 %." in page
    )
