"""`metatune strength`: which pairs share a prompt, what is refused, and an ensemble that finds wrong labels."""

import json
import os
import random
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM
from trl import RewardConfig, RewardTrainer

from metatune.curricula import build_tokenizer
from metatune.recipes import cli, strength_votes
from metatune.recipes.config import ConfigError
from metatune.recipes.pairs import is_empty, load_data
from metatune.recipes.reward import RewardScriptArguments
from metatune.recipes.strength import check, make_parser
from metatune.recipes.strength_pairs import check_responses, fingerprint, prompt_groups, shared_beginning
from metatune.rewards.preference_strength import detection_auc, preference_strength

from .launches import finish, last_line, metatune, start, wait_for, write_recipe

STRENGTH = {
    "dtype": "float32",
    "num_models": 2,
    "num_folds": 2,
    "per_device_train_batch_size": 16,
    "num_train_epochs": 8,
    "learning_rate": 1.0e-2,
    "max_length": 24,
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "report_to": "none",
}
LORA = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0}


def message(role, text):
    return [{"role": role, "content": text}]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def letters(number, share_flipped, seed=0):
    """Pairs of which the answer with more of the letter a is better, a share of them labelled wrongly."""
    rng = random.Random(seed)
    rows = []
    for i in range(number):
        texts = ["".join(rng.sample("a" * count + "b" * (8 - count), 8)) for count in sorted(rng.sample(range(9), 2))]
        flipped = rng.random() < share_flipped
        rejected, chosen = (message("assistant", text) for text in (texts[::-1] if flipped else texts))
        rows.append({"prompt": message("user", str(i)), "chosen": chosen, "rejected": rejected, "flipped": flipped})
    return rows


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random language model of some 8,000 parameters with the starter's tokenizer, in a folder."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = build_tokenizer()
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = LlamaConfig(vocab_size=len(tokenizer), **shape, **tokens, tie_word_embeddings=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def vote(folder, tiny, pairs, *args, **options):
    """Run `metatune strength` in this process; returns its exit code."""
    folder.mkdir(exist_ok=True)
    values = {"model_name_or_path": str(tiny), "dataset_name": str(pairs), "output_dir": str(folder / "run")}
    recipe = write_recipe(folder / "recipe.yaml", STRENGTH, **{**values, **options})
    return cli.main(["strength", "--config", str(recipe), *map(str, args)])


def voted(folder):
    return [json.loads(line) for line in (folder / "run" / "train.jsonl").read_text().splitlines()]


def strengths(rows):
    return np.array([row["strength"] for row in rows])


# Which pairs share a prompt


def groups(*rows):
    return prompt_groups(Dataset.from_list(list(rows))).tolist()


def test_pairs_of_one_prompt_share_a_group():
    pair = {"chosen": "yes", "rejected": "no"}
    assert groups(*({"prompt": prompt, **pair} for prompt in ("a", "b", "a", "", ""))) == [0, 1, 0, 2, 3]
    asked = {"chosen": message("assistant", "yes"), "rejected": message("assistant", "no")}
    assert groups(*({"prompt": message("user", text), **asked} for text in "aba")) == [0, 1, 0]


def test_without_a_prompt_pairs_share_what_both_answers_begin_with():
    def conversation(question, first, second):
        asked = message("system", "be kind") + message("user", question)
        return {"chosen": asked + message("assistant", first), "rejected": asked + message("assistant", second)}

    assert groups(conversation("q", "a", "b"), conversation("r", "a", "b"), conversation("q", "c", "a")) == [0, 1, 0]

    def text(question, first, second):
        return {
            name: f"\n\nHuman: {question}\n\nAssistant: {x}" for name, x in (("chosen", first), ("rejected", second))
        }

    assert groups(text("q", "A b", "A c"), text("r", "x", "y"), text("q", "the x", "the y"), text("q", "u", "v")) == [
        *(0, 1, 0, 0)
    ], "the words that two answers share by chance are no part of the prompt"
    assert groups({"chosen": "ab", "rejected": "ac"}, {"chosen": "ab", "rejected": "ad"}) == [0, 1]


def test_shared_beginnings_by_hand():
    assert shared_beginning("Q: 1 A: four", "Q: 1 A: five") == "Q: 1 A: "
    assert shared_beginning("Q\nA is x", "Q\nA is y") == "Q\n"
    assert shared_beginning("abc", "abd") == "" == shared_beginning("x", "y")
    first, second = message("user", "q"), message("assistant", "a")
    assert shared_beginning(first + second, first + message("assistant", "b")) == first
    assert shared_beginning(first + second, first + second + first) == first + second


def test_token_ids_do_not_say_where_the_prompt_ends():
    ids = {"chosen_ids": [1, 2], "rejected_ids": [1, 3]}
    with pytest.raises(ConfigError, match="tokenized pairs need a column 'prompt'"):
        groups(ids)
    assert groups({**ids, "prompt": "a"}, {**ids, "prompt": "a"}) == [0, 0]


def test_a_fingerprint_knows_texts_and_order_alone():
    rows = [{"chosen": "a", "rejected": "b", "note": 1}, {"chosen": "c", "rejected": "d", "note": 2}]
    prints = {fingerprint(Dataset.from_list(rows)), fingerprint(Dataset.from_list(rows).remove_columns("note"))}
    assert len(prints) == 1
    prints |= {fingerprint(Dataset.from_list(rows[::-1])), fingerprint(Dataset.from_list(rows[:1]))}
    assert len(prints) == 3


# What is refused


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"chosen": "a", "rejected": "a"}] * 2, "`chosen` and `rejected` are equal in rows 2, 3: remove"),
        ([{"chosen": "a", "rejected": "a"}] * 7, "equal in rows 2, 3, 4, 5, 6 and 2 more"),
        ([{"chosen": "a", "rejected": " "}], "an empty response in row 2: remove or mend"),
        ([{"chosen": "", "rejected": ""}], "an empty response in row 2"),
    ],
)
def test_pairs_that_say_nothing_name_their_rows(rows, message):
    with pytest.raises(ConfigError) as raised:
        check_responses(Dataset.from_list([{"chosen": "a", "rejected": "b"}, *rows]), "pairs")
    assert str(raised.value).startswith("pairs: ") and message in str(raised.value)


def test_empty_responses_of_every_form():
    assert all(map(is_empty, ("", " \n", [], message("assistant", ""), message("assistant", None))))
    calls = [{"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}]
    parts = [{"role": "assistant", "content": [{"type": "text", "text": "a"}]}]
    assert not any(map(is_empty, ("a", [1], message("assistant", "a"), calls, parts)))


def test_votes_are_not_overwritten():
    with pytest.raises(ConfigError, match="pairs has a column 'strength' already"):
        check_responses(Dataset.from_list([{"chosen": "a", "rejected": "b", "strength": 1.0}]), "pairs")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_name_or_path": None}, "give `model_name_or_path`"),
        ({"dataset_name": None}, "give `dataset_name`"),
        ({"num_models": 0}, "`num_models` is 0; it must be at least 1"),
        ({"num_folds": 0}, "`num_folds` is 0"),
        ({"num_folds": 7}, "6 pairs of 6 different prompts are too few for 7 folds"),
        ({"eval_strategy": "epoch"}, "eval_strategy: the votes are the evaluation here"),
        ({"save_strategy": "epoch"}, "save_strategy: no model is kept"),
        ({"report_to": "tensorboard"}, "report_to: every vote would be a run of its own"),
        ({"resume_from_checkpoint": "somewhere"}, "resume_from_checkpoint is true or nothing here"),
        ({"lora_r": 4}, "`lora_r` is given, but nothing uses it without `use_peft: true`"),
        ({"num_fold": 2}, "did you mean 'num_folds'?"),
        ({"flip": 0.1}, "unknown key 'flip'"),
        ({"num_processes": 2}, "`num_processes` belongs to the launcher"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, options, message):
    values = {
        "model_name_or_path": "starter",
        "dataset_name": str(write_rows(tmp_path / "pairs.jsonl", letters(6, 0))),
    }
    values = {key: value for key, value in {**STRENGTH, **values, **options}.items() if value is not None}
    recipe = write_recipe(tmp_path / "recipe.yaml", values, output_dir=str(tmp_path / "run"))
    assert cli.main(["strength", "--config", str(recipe)]) == 2
    error = last_line(capsys.readouterr().err)  # before it, the data set's progress
    assert error.startswith("metatune: error: ") and message in error
    assert not (tmp_path / "run").exists()


def test_several_processes_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["strength", "--dataset_name", "x"]) == 2
    assert "strength runs in one process" in capsys.readouterr().err


def test_the_recipe_for_a_gpu_is_a_strict_one():
    path = Path(cli.__file__).parent / "reward" / "strength.yaml"
    configs = make_parser().parse_args_and_config(["--config", str(path), "--bf16", "false", "--use_cpu", "true"])
    check(*configs)
    assert (configs[0].num_models, configs[0].num_folds) == (10, 5)


# Votes


def test_margins_of_a_batch_are_those_of_each_pair_alone(tiny, tmp_path):
    rows = letters(7, 0)
    for count, row in enumerate(rows):
        row["chosen"][0]["content"] += "a" * (3 * count % 5)  # padding on either side
    args = RewardConfig(str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False, max_length=None)
    args.per_device_eval_batch_size = 3
    trainer = RewardTrainer(str(tiny), args, train_dataset=Dataset.from_list(rows))
    margins = strength_votes._margins(trainer, trainer.train_dataset)
    alone = [
        trainer.model(torch.tensor([row["chosen_ids"]])).logits.item()
        - trainer.model(torch.tensor([row["rejected_ids"]])).logits.item()
        for row in trainer.train_dataset
    ]
    assert margins == pytest.approx(alone, abs=1e-6) and len(set(margins)) == 7


def test_every_training_has_a_seed_of_its_own():
    ensemble = strength_votes.Ensemble(None, None, None, "", 10, 5, RewardConfig("x", use_cpu=True, bf16=False), None)
    seeds = [ensemble.seed(model, fold) for model in range(1, 11) for fold in (None, 1, 2, 3, 4, 5)]
    assert len(set(seeds)) == 60


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A run on pairs of which a fifth is labelled wrongly and two are too long; there is a held-out split."""
    folder = tmp_path_factory.mktemp("votes")
    rows = letters(160, 0.2)
    for row in rows[-2:]:
        row["chosen"] = message("assistant", "a" * 30)
    data = folder / "data"
    data.mkdir()
    write_rows(data / "train.jsonl", rows)
    write_rows(data / "test.jsonl", letters(3, 0, seed=1))
    assert vote(folder, tiny, data) == 0
    return folder


@pytest.mark.slow
def test_wrong_labels_are_weak(finished):
    rows = voted(finished)
    assert len(rows) == 158, "two pairs are longer than max_length"
    mean, std = preference_strength([row["strength_votes"] for row in rows])
    assert np.allclose(mean, strengths(rows)) and np.allclose(std, [row["strength_std"] for row in rows])
    assert all(len(row["strength_votes"]) == 2 for row in rows)
    assert detection_auc(strengths(rows), [row["flipped"] for row in rows]) > 0.9

    summary = json.loads((finished / "run" / "strength.json").read_text())
    assert (summary["pairs"], summary["left_out"], summary["prompts"]) == (158, 2, 160)
    assert summary["below_0"] == pytest.approx((strengths(rows) < 0).mean())
    assert 0.1 < summary["below_0"] < 0.35
    assert summary["quantiles"]["0.5"] == pytest.approx(np.median(strengths(rows)))
    assert np.shape(summary["seeds"]) == (2, 2)
    assert (finished / "run" / "strength.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_folder_is_a_data_set_of_the_reward_recipe(finished):
    training, held_out = load_data(RewardScriptArguments(dataset_name=str(finished / "run")), with_evaluation=True)
    assert len(training) == 158 and len(held_out) == 3
    assert {"prompt", "chosen", "rejected", "strength", "strength_std", "strength_votes"} <= set(training.column_names)
    assert training["strength"][0] == pytest.approx(voted(finished)[0]["strength"], abs=1e-12)


@pytest.mark.slow
def test_a_killed_run_goes_on_after_its_last_vote(finished, tiny, tmp_path, capsys):
    values = {"model_name_or_path": str(tiny), "dataset_name": str(finished / "data")}
    recipe = write_recipe(tmp_path / "recipe.yaml", STRENGTH, **values, output_dir=str(tmp_path / "run"))
    process = start(metatune("strength", "--config", recipe))
    votes = tmp_path / "run" / "votes"
    wait_for(votes / "model-1-fold-2.json", process)
    os.killpg(process.pid, signal.SIGKILL)
    finish(process)
    left = {path.name: path.stat().st_mtime_ns for path in votes.glob("model-*")}
    assert 2 <= len(left) < 4 and not (tmp_path / "run" / "train.jsonl").exists()

    assert cli.main(["strength", "--config", str(recipe)]) == 2
    assert "holds a run already: go on with it by resume_from_checkpoint: true" in capsys.readouterr().err
    again = ["strength", "--config", str(recipe), "--resume_from_checkpoint", "true"]
    assert cli.main([*again, "--learning_rate", "1e-3"]) == 2
    assert "learning_rate is not what the run" in capsys.readouterr().err

    assert cli.main(again) == 0
    assert voted(tmp_path) == voted(finished), "as if it had never been stopped"
    assert {name: (votes / name).stat().st_mtime_ns for name in left} == left, "nothing was trained twice"

    other = write_rows(tmp_path / "other.jsonl", letters(160, 0.2, seed=5))
    capsys.readouterr()
    assert cli.main([*again, "--dataset_name", str(other)]) == 2
    assert "holds votes on other pairs" in capsys.readouterr().err


@pytest.mark.slow
def test_adapters_on_one_trunk_do_not_learn_from_each_other(tiny, tmp_path):
    pairs = write_rows(tmp_path / "pairs.jsonl", letters(60, 0.2))
    options = {**LORA, "num_train_epochs": 4, "gradient_checkpointing": True}
    assert vote(tmp_path, tiny, pairs, **options) == 0
    whole = voted(tmp_path)
    assert len({tuple(np.sign(row["strength_votes"])) for row in whole}) > 1, "something was learnt"
    for path in (tmp_path / "run" / "votes").iterdir():
        if path.name != "model-1-fold-1.json":
            path.unlink()
    assert vote(tmp_path, tiny, pairs, "--resume_from_checkpoint", "true", **options) == 0
    assert voted(tmp_path) == whole, "a trunk that has trained one adapter is as good as a new one"


@pytest.mark.slow
def test_a_vote_never_comes_from_a_model_that_has_seen_the_pair(tiny, tmp_path, capsys):
    rng = random.Random(0)

    def text():
        return "".join(rng.choices("abcdefgh", k=8))

    rows = [{"prompt": f"{i}\n", "chosen": text(), "rejected": text()} for i in range(60)]
    pairs = write_rows(tmp_path / "pairs.jsonl", rows)
    flipped = np.array([row["chosen"] < row["rejected"] for row in rows])  # labels that nothing tells
    auc = {}
    for num_folds in (1, 2):
        folder = tmp_path / str(num_folds)
        assert vote(folder, tiny, pairs, num_folds=num_folds, num_models=2, num_train_epochs=40) == 0
        strength = strengths(voted(folder))
        auc[num_folds] = detection_auc(np.where(flipped, -strength, strength), flipped)
    assert auc[1] > 0.95, "models that know the labels by heart repeat them"
    assert abs(auc[2] - 0.5) < 0.2, "and have nothing to say about others"
    assert "num_folds is 1: every model votes on the pairs it was trained on" in capsys.readouterr().out


@pytest.mark.slow
def test_a_training_that_diverges_does_not_vote(tiny, tmp_path, capsys):
    pairs = write_rows(tmp_path / "pairs.jsonl", letters(20, 0))
    options = {"learning_rate": 1e30, "max_grad_norm": 0.0, "num_train_epochs": 3}
    assert vote(tmp_path, tiny, pairs, **options) == 1
    error = capsys.readouterr().err
    assert re.search(r"model 1 of 2, fold 1 of 2: step \d+: .*gradient norm is nan. Training stopped", error)
    assert not list((tmp_path / "run" / "votes").glob("*.json"))


def test_pairs_that_are_all_too_long(tiny, tmp_path, capsys):
    pairs = write_rows(tmp_path / "pairs.jsonl", letters(4, 0))
    assert vote(tmp_path, tiny, pairs, max_length=3) == 2
    assert "all 4 pairs are longer than max_length 3 tokens" in capsys.readouterr().err
