"""The completions of training on a run's page: found, filtered and paged, whatever a model wrote."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from metatune.eval.report import write_report
from metatune.eval.report.completions import LONGEST, cut_middle, read_training_completions

from .html_page import Page

ATTACK = "</script><script>alert(1)</script><!-- \u2028 \u202e]]> &lt;b&gt;"


def write_step(folder: Path, step: int, columns: dict) -> None:
    (folder / "completions").mkdir(exist_ok=True, parents=True)
    count = len(columns["completion"])
    table = pyarrow.table({"step": [step] * count, **columns})
    pyarrow.parquet.write_table(table, folder / "completions" / f"completions_{step:05d}.parquet")


def a_run(folder: Path, steps: int = 3) -> Path:
    """Two prompts of four completions at every step; of the first prompt's half are right, the last is not scored."""
    for step in range(1, steps + 1):
        write_step(
            folder,
            step,
            {
                "prompt": [[{"role": "user", "content": f"sum {step}-{n // 4}"}] for n in range(8)],
                "completion": [[{"role": "assistant", "content": f"answer {step}.{n}"}] for n in range(8)],
                "distribution": ["sums"] * 4 + ["products"] * 4,
                "reference": [str(step)] * 8,
                "correct": [True, True, False, False, False, False, False, None],
                "correctness_reward": [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, None],
                "advantage": [0.5, 0.5, -0.5, -0.5, 0.0, 0.0, 0.0, None],
                "extracted": ["x"] * 8,
            },
        )
    return folder


def test_every_completion_is_in_the_page_with_its_reference_and_verdict(tmp_path):
    page = Page(write_report(a_run(tmp_path)).read_text())
    data = json.loads(page.data["completion-data"])
    assert len(data["rows"]) == 24
    assert len(data["prompts"]) == 6, "a prompt stands once"
    assert data["distributions"] == ["products", "sums"]
    first = data["rows"][0]
    assert data["prompts"][first["prompt"]] == "sum 3-1", "the last step first"
    assert [row["correct"] for row in data["rows"][4:8]] == [1, 1, 0, 0]
    assert [row["correct"] for row in data["rows"][:4]] == [0, 0, 0, -1]
    assert data["references"][first["reference"]] == "3"
    facts = dict(zip(data["numbers"], data["rows"][4]["numbers"], strict=True))
    assert facts == {"correctness_reward": 1.0, "advantage": 0.5, "extracted": "x"}
    assert "All 24 that were logged" in " ".join(" ".join(page.text).split())


def test_where_scripts_do_not_run_the_page_shows_different_prompts(tmp_path):
    page = Page(write_report(a_run(tmp_path)).read_text())
    assert [text for text in page.text if text.startswith("sum ")] == ["sum 3-1", "sum 3-0", "sum 2-1", "sum 2-0"]


@pytest.mark.parametrize("reward, verdict", [(1.0, 1), (0.0, 0), (None, -1)])
def test_a_table_without_verdicts_is_judged_by_the_reward_of_a_right_answer(tmp_path, reward, verdict):
    reward = pyarrow.array([reward], pyarrow.float64())
    write_step(tmp_path, 1, {"prompt": ["p"], "completion": ["c"], "correctness_reward": reward})
    assert read_training_completions(tmp_path).rows[0]["correct"] == verdict


def test_where_nothing_tells_right_from_wrong_there_is_no_verdict(tmp_path):
    write_step(tmp_path, 1, {"prompt": ["p"], "completion": ["c"], "judge": [0.4]})
    assert read_training_completions(tmp_path).rows[0]["correct"] is None


def test_of_more_than_fit_whole_groups_are_drawn(tmp_path):
    found = read_training_completions(a_run(tmp_path, steps=40), most=8000)
    assert found.total == 320
    assert 0 < len(found.rows) < 100
    assert all(len(group) == 4 for group in found.groups)
    steps = [group[0]["step"] for group in found.groups]
    assert steps == sorted(steps, reverse=True)
    assert found.groups == read_training_completions(tmp_path, most=8000).groups


def test_a_long_text_is_cut_in_its_middle():
    text = "a" * LONGEST + "answer 42"
    assert cut_middle(text).endswith("answer 42") and "[… 9 characters left out …]" in cut_middle(text)
    assert cut_middle("short") == "short"


def test_what_a_model_wrote_stays_text(tmp_path):
    write_step(
        tmp_path, 1, {"prompt": [ATTACK], "completion": [ATTACK], "reference": [ATTACK], "distribution": [ATTACK]}
    )
    source = write_report(tmp_path).read_text()
    page = Page(source)
    assert page.allowed_scripts and len(page.scripts) == 1, "a run without charts does not carry plotly"
    data = json.loads(page.data["completion-data"])
    assert data["rows"][0]["completion"] == data["prompts"][0] == data["references"][0] == ATTACK
    assert source.count("alert(1)") == source.count("alert(1)\\u003c") + source.count("alert(1)&lt;")


PROBE = """<script>
const pause = () => new Promise((done) => setTimeout(done, 400));
const texts = () => [...document.querySelectorAll(".list .completion pre")].map((pre) => pre.textContent);
const choose = async (name, value) => {
  const field = document.querySelector(`.controls [name=${name}]`);
  field.value = value;
  field.dispatchEvent(new Event(name === "search" ? "input" : "change"));
  await pause();
  return document.querySelector(".count").textContent;
};
addEventListener("load", async () => {
  const found = {};
  found.wide = document.documentElement.scrollWidth > innerWidth;
  found.all = document.querySelector(".count").textContent;
  document.querySelectorAll(".pages button")[1].click();
  found.second = document.querySelector(".count").textContent;
  found.right = await choose("verdict", "right");
  found.step = await choose("step", "2");
  found.verdict = await choose("verdict", "");
  found.searched = await choose("search", "ANSWER 2.5");
  found.shown = texts();
  found.attack = document.querySelectorAll("script").length;
  const pre = document.createElement("pre");
  pre.id = "found";
  pre.textContent = JSON.stringify(found);
  document.body.replaceChildren(pre);
});
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_completions_are_searched_filtered_and_paged_in_a_browser(tmp_path):
    run = a_run(tmp_path / "run")
    write_step(run, 4, {"prompt": ["x" * 900], "completion": ["\u05d0" * 900], "distribution": [ATTACK]})
    source = write_report(run).read_text()
    (tmp_path / "inner.html").write_text(re.sub(r"<meta http-equiv[^>]*>", PROBE, source))
    frame = """<iframe src="inner.html" width="390" height="800"></iframe><script>
      setTimeout(() => { document.title = document.querySelector("iframe").contentDocument.body.textContent; }, 4000);
    </script>"""
    (tmp_path / "frame.html").write_text(frame)
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000", "--dump-dom"]
    shown = subprocess.run([*command, f"file://{tmp_path}/frame.html"], capture_output=True, text=True, timeout=120)
    found = json.loads(re.search(r"<title>(.*)</title>", shown.stdout).group(1))
    assert found == {
        "wide": False,
        "all": "25 of 25 · page 1 of 2",
        "second": "25 of 25 · page 2 of 2",
        "right": "6 of 25 · page 1 of 1",
        "step": "2 of 25 · page 1 of 1",
        "verdict": "8 of 25 · page 1 of 1",
        "searched": "1 of 25 · page 1 of 1",
        "shown": ["answer 2.5"],
        "attack": 3,
    }
