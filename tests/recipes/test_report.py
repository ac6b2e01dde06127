import json
import shutil

import pytest

from metatune.recipes import cli, report


@pytest.fixture
def run(tmp_path):
    rows = [{"step": step, "reward": 0.5, "rollout_tokens": 100 * step} for step in (1, 2)]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "run"


@pytest.mark.parametrize("option", [[], ["--run_dir"]])
def test_every_run_gets_its_page(run, tmp_path, capsys, option):
    other = tmp_path / "other"
    other.mkdir()
    (other / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes())
    assert cli.main(["report", *option, str(run), str(other)]) == 0
    printed = capsys.readouterr().out
    for folder in (run, other):
        assert (folder / "report.html").is_file()
        assert f"Wrote {folder / 'report.html'}" in printed


def test_several_runs_get_a_page_that_compares_them(run, tmp_path, capsys):
    other = shutil.copytree(run, tmp_path / "other")
    assert cli.main(["report", str(run), str(other)]) == 0
    assert f"Wrote {run / 'comparison.html'}" in capsys.readouterr().out
    assert "2 runs compared" in (run / "comparison.html").read_text()
    assert cli.main(["report", str(other), str(run), "--output", str(tmp_path / "pages" / "mine.html")]) == 0
    assert (tmp_path / "pages" / "mine.html").is_file() and not (other / "comparison.html").exists()
    assert cli.main(["report", str(run)]) == 0


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["run", "--output", "page.html"], "name two runs or more, or leave it out"),
        (["run", "other", "run"], "run: named twice"),
        (["run", "other", "--output", "other"], "other: cannot be written, Is a directory"),
    ],
)
def test_a_comparison_that_cannot_be_is_one_line(run, tmp_path, capsys, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, "other")
    assert cli.main(["report", *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_a_folder_that_is_no_run_is_one_line(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path / "nowhere")]) == 2
    assert "no such folder; name the output_dir of a run" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "not a run's folder" in capsys.readouterr().err
    assert cli.main(["report"]) == 2
    assert "metatune report RUN" in capsys.readouterr().err


def test_a_recipe_can_name_the_runs(run, tmp_path):
    (tmp_path / "report.yaml").write_text(f"run_dir: [{run}]\n")
    (args,) = report.make_parser().parse_args_and_config(["--config", str(tmp_path / "report.yaml")])
    assert args.run_dir == [str(run)]
