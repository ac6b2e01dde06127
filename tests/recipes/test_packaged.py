"""The recipes that come with metatune: listed, copied, and named where one is looked for in vain."""

from metatune.recipes import cli
from metatune.recipes.packaged import FOLDER, packaged_files


def test_every_recipe_is_listed_with_its_first_sentence(capsys):
    assert cli.main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = {line.split()[0]: line for line in lines if ".yaml" in line}
    assert {path.relative_to(FOLDER).as_posix() for path in FOLDER.glob("[!a]*/*.yaml")} == listed.keys()
    assert listed["dump/quickstart.yaml"].endswith(
        "the starter checkpoint gets better at nine tasks of three families."
    )
    assert all(len(line.split()) > 5 and line.endswith(".") for line in listed.values())


def test_recipes_are_copied_once_and_never_over_other_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["grpo", "--config", "recipes/dump/quickstart.yaml"]) == 2
    assert "no such file; `metatune recipes --copy_to recipes` brings it here" in capsys.readouterr().err
    assert cli.main(["recipes", "--copy_to", "recipes"]) == 0
    assert all((tmp_path / "recipes" / path).is_file() for path in packaged_files())
    changed, removed = tmp_path / "recipes/dump/quickstart.yaml", tmp_path / "recipes/mrt/countdown.yaml"
    changed.write_text("max_steps: 1\n")
    removed.unlink()
    assert cli.main(["recipes", "--copy_to", "recipes"]) == 2
    assert "quickstart.yaml is there and differs" in capsys.readouterr().err
    assert changed.read_text() == "max_steps: 1\n" and not removed.exists()
    changed.unlink()
    assert cli.main(["recipes", "--copy_to", "recipes"]) == 0
    assert "Copied 2 files" in capsys.readouterr().out


def test_a_wrong_option_of_the_quickstart_is_one_line(capsys):
    assert cli.main(["quickstart", "--samples", "0"]) == 2
    error = capsys.readouterr().err
    assert "--samples must be at least 1, got 0" in error and error.count("\n") == 1
