import json

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


def test_a_folder_that_is_no_run_is_one_line(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path / "nowhere")]) == 2
    assert "no such folder; name the output_dir of a run" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "not a run's folder" in capsys.readouterr().err
    assert cli.main(["report"]) == 2
    assert "--run_dir" in capsys.readouterr().err


def test_a_recipe_can_name_the_runs(run, tmp_path):
    (tmp_path / "report.yaml").write_text(f"run_dir: [{run}]\n")
    (args,) = report.make_parser().parse_args_and_config(["--config", str(tmp_path / "report.yaml")])
    assert args.run_dir == [str(run)]
