"""Rows that do not fit the model's positions are left out, counted and reported, the same way in every command."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from metatune.curricula import build_tokenizer
from metatune.eval.engines import CompactEngine
from metatune.recipes import evaluate, grpo, reward, sft
from metatune.recipes.config import ConfigError
from metatune.recipes.overlong import without_overlong, without_overlong_sequences
from metatune.rewards.rendering import Rendering

from .launches import GRPO, REWARD, write_recipe

LONG = "1+" * 300  # more than the starter's 512 positions, a token for each character


def said(role: str, content: str) -> list[dict]:
    return [{"role": role, "content": content}]


def write_rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run(command, tmp_path: Path, values: dict, **options) -> None:
    options = {"output_dir": str(tmp_path / "run"), "max_steps": 1, "save_strategy": "no", **options}
    recipe = write_recipe(tmp_path / "recipe.yaml", values, **options)
    command.main(*command.make_parser().parse_args_and_config(["--config", str(recipe)]))


def test_prompts_are_left_out_by_what_may_follow_them():
    rendering = Rendering(build_tokenizer())
    rows = [{"prompt": said("user", "1" * length)} for length in (3, 9, 4, 8)]  # and two tokens of the template
    kept, (line,) = without_overlong(rows, rendering, 16, 10, "prompts", "max_completion_length")
    assert kept == [rows[0], rows[2]]
    assert line == (
        "prompts: 2 of 4 prompts are too long and left out; the first is row 2, 11 tokens (the model has 16 positions, "  # noqa: E501
        "and 10 new tokens may follow a prompt)"
    )
    dataset = Dataset.from_list(rows)
    assert without_overlong(dataset, rendering, 16, 10, "prompts", "x")[0].to_list() == kept
    for positions in (None, 21):
        assert without_overlong(rows, rendering, positions, 10, "prompts", "x") == (rows, [])
    with pytest.raises(ConfigError, match=r"4 of 4 prompts .* no row would remain: set max_new_tokens to at most 11"):
        without_overlong(rows, rendering, 16, 20, "prompts", "max_new_tokens")


def test_a_distribution_is_not_lost_without_a_word():
    rows = [{"prompt": "1" * length, "distribution": name, "key": "k"} for length, name in ((3, "short"), (9, "long"))]
    with pytest.raises(
        ConfigError, match=r"1 of 2 .* the first is 'k' of long, 9 tokens .* no row would remain: set x"
    ):
        without_overlong(rows, Rendering(build_tokenizer()), 12, 5, "prompts", "x")


def test_sequences_are_cut_where_the_user_says_and_left_out_otherwise():
    rows = Dataset.from_dict({"input_ids": [[1] * length for length in (3, 9, 5)]})
    kept, (line,) = without_overlong_sequences(rows, "input_ids", 8, None, "rows")
    assert [len(ids) for ids in kept["input_ids"]] == [3, 5]
    assert (
        line
        == "rows: 1 of 3 rows are longer than the model's 8 positions and are left out; the first is row 2: 9 tokens"
    )
    kept, (line,) = without_overlong_sequences(rows, "input_ids", 16, 9, "rows")
    assert len(kept) == 3 and line.startswith("rows: 1 of 3 rows reach max_length (9 tokens)")
    with pytest.raises(ConfigError, match=r"3 of 3 rows .*no row remains; .* set max_length"):
        without_overlong_sequences(rows, "input_ids", 2, None, "rows")


@pytest.fixture
def problems(tmp_path) -> str:
    rows = [{"prompt": f"{i}+1", "answer": i + 1} for i in range(11)] + [{"prompt": LONG, "answer": 1}]
    return write_rows(tmp_path / "rows.jsonl", rows)


def test_grpo_and_evaluation_leave_out_the_same_prompts(tmp_path, problems, capsys, monkeypatch):
    entry = {"name": "sums", "source": "dataset", "path": problems, "verifier": "exact", "test_size": 4}
    run(grpo, tmp_path, GRPO, distributions=[entry])
    printed = capsys.readouterr().out
    assert "sums: 8 to train on, 4 held out" in printed
    asked = []
    monkeypatch.setattr(CompactEngine, "generate", lambda self, ids, how: asked.append(ids) or [[0] for _ in ids])
    options = ["--model", str(tmp_path / "run"), "--device", "cpu", "--output_dir", str(tmp_path / "out")]
    evaluate.main(*evaluate.make_parser().parse_args_and_config(options))
    printed += capsys.readouterr().out
    line = " prompts are too long and left out; the first is '1+1+1+"
    assert (
        printed.count(line) == 1 and "of sums, 602 tokens (the model has 512 positions, and 32 new tokens" in printed
    )
    where = "held-out prompts: 1 of 4" if "held-out prompts: 1 of 4" in printed else "training prompts: 1 of 8"
    assert where + line in printed


def test_a_run_is_not_evaluated_on_what_it_was_trained_on(tmp_path, problems, capsys, monkeypatch):
    """A larger held-out part than the run's own has problems that it was trained on."""
    entry = {"name": "sums", "source": "dataset", "path": problems, "verifier": "exact", "train_size": 5}
    (tmp_path / "run").mkdir()
    write_recipe(tmp_path / "run" / "recipe.yaml", {"distributions": [entry | {"test_size": 2}]})
    other = write_recipe(tmp_path / "other.yaml", {"distributions": [entry | {"test_size": 10}]})
    monkeypatch.setattr(CompactEngine, "generate", lambda self, ids, how: [[0] for _ in ids])
    from metatune.recipes.evaluation_items import without_trained

    arguments = ["--model", str(tmp_path / "run"), "--recipe", str(other)]
    args = evaluate.make_parser().parse_args_and_config(arguments)[0]
    items = evaluate_items(args)
    kept = without_trained(items, args)
    trained = grpo_keys(tmp_path)
    assert len(items) == 10 and {item["key"] for item in kept} == {item["key"] for item in items} - trained
    assert f"{10 - len(kept)} of 10 items are problems that this run was trained on" in capsys.readouterr().out
    args.distributions = [entry | {"test_size": 2}]
    assert len(without_trained(evaluate_items(args), args)) == 2
    with pytest.raises(ConfigError, match="none is left; evaluate the run on its own held-out part"):
        without_trained([item for item in items if item["key"] in trained], args)


def evaluate_items(args):
    from metatune.eval import load_held_out

    return load_held_out(args.distributions)


def grpo_keys(tmp_path: Path) -> set[str]:
    from metatune.recipes.evaluation_items import trained_keys

    return trained_keys(str(tmp_path / "run" / "recipe.yaml"))


def test_sft_and_reward_models_leave_out_long_rows(tmp_path, capsys):
    turns = [{"prompt": said("user", f"{i}+1"), "completion": said("assistant", str(i + 1))} for i in range(4)]
    turns.insert(1, {"prompt": said("user", LONG), "completion": said("assistant", "1")})
    name = write_rows(tmp_path / "turns.jsonl", turns)
    values = {**REWARD, "dataset_name": name}
    run(sft, tmp_path, values, max_length=None)
    line = "split 'train': 1 of 5 rows are longer than the model's 512 positions and are left out; the first is row 2"
    assert line in capsys.readouterr().out
    (tmp_path / "run").rename(tmp_path / "first")
    run(sft, tmp_path, values, max_length=8)
    printed = capsys.readouterr().out
    assert "split 'train': 1 of 5 rows have no token to train on within max_length (8) and are left out" in printed
    with pytest.raises(ConfigError, match="max_length: 600 exceeds the model's 512 positions, and packing"):
        run(sft, tmp_path, values, max_length=600, packing=True, output_dir=str(tmp_path / "packed"))

    pairs = [
        {"prompt": row["prompt"], "chosen": said("assistant", "1"), "rejected": said("assistant", "2")}
        for row in turns
    ]
    name = write_rows(tmp_path / "pairs.jsonl", pairs)
    run(reward, tmp_path, REWARD, dataset_name=name, max_length=None, output_dir=str(tmp_path / "reward"))
    printed = capsys.readouterr().out
    assert "1 pairs are longer than max_length and left out: of 5, more than 512 tokens each" in printed
