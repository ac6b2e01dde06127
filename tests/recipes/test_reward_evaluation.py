"""`metatune eval --reward_model`: real tiny reward models by the command line, and mistakes in one line."""

import json
import math
import random

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from metatune.curricula import build_tokenizer
from metatune.eval.best_of_n import best_of_n
from metatune.recipes import cli, evaluate
from metatune.recipes.adapters import STARTER
from metatune.recipes.config import ConfigError
from metatune.recipes.reward_evaluation import load_pairs
from metatune.recipes.tables import names_of
from metatune.rewards.reward_model import RewardModel

POSITIONS = 32


def tiny_reward_model(folder, seed):
    tokenizer = build_tokenizer()
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    limits = {"max_position_embeddings": POSITIONS, "initializer_range": 0.2, "num_labels": 1}
    config = LlamaConfig(vocab_size=len(tokenizer), **shape, **tokens, **limits)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [tiny_reward_model(folder / f"rm-{seed}", seed) for seed in (0, 1)]


def write_rows(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def text(rng):
    return "".join(rng.choices("abcd", k=rng.randint(1, 12)))


def make_pairs(number, rng):
    prompts = [f"{i // 2}?\n" for i in range(number)]
    return [{"prompt": prompt, "chosen": text(rng), "rejected": text(rng)} for prompt in prompts]


@pytest.mark.slow
def test_two_models_on_pairs_and_best_of_n_by_the_command_line(models, tmp_path, capsys):
    rng = random.Random(0)
    rows = [{**row, "strength": rng.gauss(0, 1)} for row in make_pairs(30, rng)]
    rows[0]["rejected"] = rows[0]["chosen"]
    rows[1]["rejected"] = ""
    rows[2]["chosen"] = "a" * POSITIONS
    pairs = write_rows(tmp_path / "pairs.jsonl", rows)
    groups = [{"prompt": str(i), "responses": [text(rng) for _ in range(6)]} for i in range(5)]
    groups = [{**group, "gold": [rng.random() for _ in range(6)]} for group in groups]
    groups[0]["gold"][0] = None
    groups[1]["responses"][0] = "b" * POSITIONS
    responses = write_rows(tmp_path / "responses.jsonl", groups)

    out = tmp_path / "out"
    options = ["--pairs", pairs, "--best_of_n", responses, "--device", "cpu", "--output_dir", str(out)]
    assert cli.main(["eval", "--reward_model", *models, *options]) == 0
    assert {path.name for path in out.iterdir()} == {"reward_models.json", "reward_models.png"}
    summary = json.loads((out / "reward_models.json").read_text())

    assert summary["settings"]["reward_model"] == models and summary["settings"]["pairs"] == pairs
    assert summary["pairs"] == {"split": "test", "num_pairs": 30, "num_prompts": 15, "num_empty": 1}
    assert list(summary["models"]) == [*("rm-0", "rm-1", "ensemble mean", "ensemble min", "ensemble mean_minus_std")]
    columns = [[row[name] for row in rows] for name in ("chosen", "rejected", "prompt")]
    margins = [RewardModel(path, device="cpu").score_pairs(*columns) for path in models]
    for name, part in (("rm-0", margins[0]), ("rm-1", margins[1]), ("ensemble mean", np.mean(margins, axis=0))):
        found = summary["models"][name]
        assert (found["num_pairs"], found["num_too_long"], found["num_ties"], found["num_equal"]) == (29, 1, 1, 1)
        part = part[~np.isnan(part)]
        assert found["accuracy"] == pytest.approx(((part > 0) + 0.5 * (part == 0)).mean())
        assert found["ci_low"] < found["accuracy"] < found["ci_high"]
        assert sum(row["num_pairs"] for row in found["by_strength"]) == 29
        assert sum(row["num_pairs"] for row in found["calibration"]["bins"]) == 29

    found = summary["best_of_n"]
    assert (found["num_prompts"], found["num_responses"], found["num_without_gold"]) == (5, 30, 1)
    assert found["models"]["rm-0"]["num_unscored"] == 1
    curve = found["models"]["rm-0"]["rows"]
    assert [(row["n"], row["num_prompts"]) for row in curve] == [(1, 5), (2, 5), (4, 5), (6, 3)]
    model, expected = RewardModel(models[0], device="cpu"), []
    for group in groups:
        proxy = model.score([group["prompt"]] * 6, group["responses"])
        gold = [math.nan if value is None else value for value in group["gold"]]
        kept = [(p, g) for p, g in zip(proxy, gold, strict=True) if not math.isnan(p + g)]
        expected.append(best_of_n(*zip(*kept, strict=True), 4))
    assert curve[2]["gold"] == pytest.approx(np.mean(expected))

    printed = capsys.readouterr().out
    for line in (
        "30 pairs of 15 prompts",
        "ensemble mean_minus_std",
        "rm-0: pairs left out: 1 too long, 0 without a finite score",
        "rm-1: ties, each half right: 1, of equal responses: 1",
        "pairs with an empty response, which is scored like any other: 1",
        "accuracy by preference strength",
        "5 prompts, 30 responses",
        "rm-0: responses left out, too long or without a finite score: 1",
        "responses left out, without a gold score: 1",
        f"Saved to {out}",
    ):
        assert line in printed, line


@pytest.mark.slow
def test_a_benchmark_of_subsets_alone(models, tmp_path, capsys):
    rng = random.Random(1)
    rows = [{**row, "subset": subset, "id": 1} for subset in ("donotanswer", "mine") for row in make_pairs(4, rng)]
    pairs = write_rows(tmp_path / "pairs.jsonl", rows)
    assert cli.main(["eval", "--reward_model", models[0], "--pairs", pairs, "--limit", "3", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "6 pairs of" in printed and "accuracy by subset" in printed and "ensemble" not in printed
    assert "Safety (without refusals-dangerous, " in printed and "mean of sections" not in printed


@pytest.mark.slow
def test_pairs_that_no_model_can_score_are_no_wrong_answers(models, tmp_path, capsys):
    pairs = write_rows(tmp_path / "pairs.jsonl", [{"chosen": "a" * 40, "rejected": "b"}])
    out = tmp_path / "out"
    command = ["eval", "--reward_model", models[0], "--pairs", pairs, "--device", "cpu", "--output_dir", str(out)]
    assert cli.main(command) == 0
    assert "rm-0: pairs left out: 1 too long" in capsys.readouterr().out
    summary = json.loads((out / "reward_models.json").read_text())
    assert summary["models"]["rm-0"]["accuracy"] is None
    assert not (out / "reward_models.png").exists()


@pytest.mark.slow
def test_responses_that_a_model_cannot_score_are_told_by_number(models, tmp_path, capsys):
    rows = [{"prompt": "q", "responses": ["a" * POSITIONS, "b"], "gold": [1, None]}]
    path = write_rows(tmp_path / "responses.jsonl", rows)
    assert cli.main(["eval", "--reward_model", models[0], "--best_of_n", path, "--device", "cpu"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "of 2 responses none has both a score of rm-0 and a gold score" in error
    assert "(1 too long or without a finite score, 1 without a gold score)" in error


@pytest.mark.slow
def test_a_language_model_is_no_reward_model(tmp_path, capsys):
    pairs = write_rows(tmp_path / "pairs.jsonl", make_pairs(2, random.Random(0)))
    starter = str(STARTER)
    assert cli.main(["eval", "--reward_model", starter, "--pairs", pairs, "--device", "cpu"]) == 2
    assert "is no reward model" in capsys.readouterr().err


# What is read


def test_the_split_that_is_read(tmp_path):
    rows = make_pairs(6, random.Random(0))
    write_rows(tmp_path / "both" / "train.jsonl", rows)
    write_rows(tmp_path / "both" / "test.jsonl", rows[:2])
    write_rows(tmp_path / "one" / "train.jsonl", rows[:3])
    write_rows(tmp_path / "neither" / "train.jsonl", rows)
    write_rows(tmp_path / "neither" / "validation.jsonl", rows)
    found = [load_pairs(str(tmp_path / name), None, None)[1] for name in ("both", "one")]
    assert [(kept["split"], kept["num_pairs"]) for kept in found] == [("test", 2), ("train", 3)]
    assert load_pairs(str(tmp_path / "both"), "train", None)[1]["num_pairs"] == 6
    with pytest.raises(ConfigError, match=r"say which split by `pairs_split` \(splits: train, validation\)"):
        load_pairs(str(tmp_path / "neither"), None, None)
    with pytest.raises(ConfigError, match="no split 'tset'; did you mean 'test'"):
        load_pairs(str(tmp_path / "both"), "tset", None)


def test_prompts_are_found_in_conversations(tmp_path):
    def conversation(question, answer):
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    rows = [
        {"chosen": conversation(question, good), "rejected": conversation(question, "no")}
        for question, good in (("a", "yes"), ("b", "yes"), ("a", "indeed"))
    ]
    pairs, kept = load_pairs(write_rows(tmp_path / "pairs.jsonl", rows), None, None)
    assert list(pairs.groups) == [0, 1, 0] and kept["num_prompts"] == 2
    assert pairs.prompts is None and pairs.strength is None and pairs.subsets is None and not pairs.turns


def test_a_limit_holds_for_every_subset(tmp_path):
    rows = [{**row, "subset": subset} for subset in "ab" for row in make_pairs(3, random.Random(0))]
    pairs, kept = load_pairs(write_rows(tmp_path / "pairs.jsonl", rows), None, 2)
    assert list(pairs.subsets) == list("aabb") and kept["num_pairs"] == 4
    assert list(pairs.chosen) == [rows[index]["chosen"] for index in (0, 1, 3, 4)] and pairs.turns


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "a"}, "has no column 'rejected'"),
        ({"chosen": "a", "rejected": None}, "row 2 has no 'rejected'"),
        ({"chosen": "a", "rejected": "b", "strength": None}, "row 2 has no finite `strength`"),
        ({"chosen": "a", "rejected": "b", "subset": None}, "row 1 has no `subset`: name one, or remove the column"),
        (
            {"prompt": None, "chosen": "a", "rejected": "b"},
            "row 1: 'prompt' is null, not a text and not a conversation",
        ),
        ({"chosen_ids": [1], "rejected_ids": [2]}, "is tokenized, for one model: give the texts"),
    ],
)
def test_pairs_that_are_not_whole(tmp_path, row, message):
    first = {key: value for key, value in {"chosen": "a", "rejected": "b", "strength": 1.0}.items() if key in row}
    path = write_rows(tmp_path / "pairs.jsonl", [first | {k: v for k, v in row.items() if k not in first}, row])
    with pytest.raises(ConfigError) as raised:
        load_pairs(path, None, None)
    assert str(raised.value).startswith("pairs: ") and message in str(raised.value)


def test_prompts_and_responses_are_of_one_kind(tmp_path):
    answer = [{"role": "assistant", "content": "a"}]
    path = write_rows(tmp_path / "pairs.jsonl", [{"prompt": "q", "chosen": answer, "rejected": answer}])
    with pytest.raises(
        ConfigError, match=r"row 1: 'chosen' is a conversation where a text is needed: it must be the same in all of"
    ):
        load_pairs(path, None, None)


@pytest.mark.parametrize("strength", ["much", [1.0]])
def test_strength_is_one_number_a_pair(tmp_path, strength):
    path = write_rows(tmp_path / "pairs.jsonl", [{"chosen": "a", "rejected": "b", "strength": strength}])
    with pytest.raises(ConfigError, match=r"pairs\.jsonl.*`strength` is one number a pair"):
        load_pairs(path, None, None)


def test_no_pairs(tmp_path):
    (tmp_path / "pairs.jsonl").touch()
    with pytest.raises(ConfigError, match="is empty"):
        load_pairs(str(tmp_path / "pairs.jsonl"), None, None)
    with pytest.raises(ConfigError, match=r"pairs: .*nothing"):
        load_pairs(str(tmp_path / "nothing"), None, None)


def test_names_tell_models_apart():
    assert names_of(["runs/a", "runs/b/"], "reward_model") == ["a", "b"]
    assert names_of(["one/rm", "two/rm"], "reward_model") == ["one/rm", "two/rm"]
    with pytest.raises(ConfigError, match="`reward_model` names the same twice: one/rm, one/rm/"):
        names_of(["one/rm", "one/rm/"], "reward_model")


# Mistakes on the command line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reward_model", "a"], "give what to evaluate the reward model on: `pairs` or `best_of_n`"),
        (["--pairs", "p"], "`pairs` belongs to `reward_model`, and none is given"),
        (["--best_of_n", "f", "--model", "starter"], "`best_of_n` belongs to `reward_model`"),
        (["--reward_model", "a", "--best_of_n", "f", "--pairs_split", "s"], "`pairs_split` belongs to `pairs`"),
        (["--reward_model", "a", "--pairs", "p", "--model", "starter"], "give it without `model`"),
        (["--reward_model", "a", "--pairs", "p", "--num_samples", "4"], "give it without `num_samples`"),
        (["--reward_model", "a", "--pairs", "p", "--compare", "x", "y"], "give it without `compare`"),
        (["--reward_models", "a"], "did you mean '--reward_model'"),
    ],
)
def test_mistakes_are_one_line(options, message):
    with pytest.raises(ConfigError) as raised:
        evaluate.make_parser().parse_args_and_config(options)
    assert message in str(raised.value)


def test_mistakes_in_values_show_before_a_model_is_loaded(tmp_path, capsys):
    command = ["eval", "--reward_model", "runs/none", "--best_of_n", str(tmp_path / "none.jsonl")]
    assert cli.main(command) == 2
    assert "none.jsonl: no such file" in capsys.readouterr().err
    assert cli.main(["eval", "--reward_model", "/no/where", "--pairs", "p"]) == 2
    assert "reward_model: no such folder: /no/where" in capsys.readouterr().err
    assert cli.main([*command, "--limit", "0"]) == 2
    assert "`limit` must be at least 1, got 0" in capsys.readouterr().err


def test_batches_are_smaller_for_reward_models():
    parser = evaluate.make_parser
    assert parser().parse_args_and_config(["--reward_model", "a", "--pairs", "p"])[0].batch_size == 16
    assert parser().parse_args_and_config(["--model", "starter", "--benchmark", "gsm8k"])[0].batch_size == 128
