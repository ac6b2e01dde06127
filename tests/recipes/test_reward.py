"""The reward recipe: what data it takes, what it says of data it cannot use, and that a model learns from it."""

import json

import pytest
from datasets import Dataset
from transformers import AutoConfig

from metatune.recipes import cli
from metatune.recipes.config import ConfigError, refusal
from metatune.recipes.pairs import load_data, usable
from metatune.recipes.reward import RewardScriptArguments, load_usable_data
from metatune.recipes.run_folder import best_checkpoint
from metatune.rewards.preference_strength import pair_targets
from metatune.trainers import MetaRewardConfig

from .launches import REWARD, last_line, log_rows, metatune, succeed, write_pairs, write_recipe

PAIR = {"chosen": "yes", "rejected": "no"}


def load(path, with_evaluation=False, **options):
    return load_data(RewardScriptArguments(dataset_name=str(path), **options), with_evaluation)


def write_rows(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pairs_come_from_jsonl_and_parquet_files(tmp_path):
    lines = write_pairs(tmp_path / "pairs.jsonl", number=5)
    training, held_out = load(lines)
    assert len(training) == 5 and held_out is None
    training.to_parquet(tmp_path / "pairs.parquet")
    assert load(tmp_path / "pairs.parquet")[0].to_list() == training.to_list()


def test_a_folder_has_its_own_test_split(tmp_path):
    write_rows(tmp_path / "train.jsonl", PAIR, PAIR)
    write_rows(tmp_path / "test.jsonl", PAIR)
    training, held_out = load(tmp_path, with_evaluation=True)
    assert (len(training), len(held_out)) == (2, 1)


def test_pairs_that_are_tokenized_already(tmp_path):
    rows = [{"chosen_ids": [1, 2], "rejected_ids": [1, 3]}]
    Dataset.from_list(rows).to_parquet(tmp_path / "pairs.parquet")
    assert load(tmp_path / "pairs.parquet")[0].to_list() == rows


@pytest.mark.parametrize("name", ["missing.jsonl", "data/of/mine"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(name):
    with pytest.raises(ConfigError, match=f"^dataset_name: {name}: no such file or folder$"):
        load(name)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"chosen": "a", "rejcted": "b"}],
            "no column 'rejected'; did you mean 'rejcted'? (columns: chosen, rejcted)",
        ),
        ([{"text": "a"}], "has no column 'chosen'"),
        ([PAIR, {"chosen": "a", "rejected": None}], "row 2 has no 'rejected'"),
        ([PAIR, {"chosen": "a"}], "row 2 has no 'rejected'"),
    ],
)
def test_pairs_that_are_not_whole_name_the_file_and_the_row(tmp_path, rows, message):
    path = write_rows(tmp_path / "pairs.jsonl", *rows)
    with pytest.raises(ConfigError) as raised:
        load(path)
    assert str(path) in str(raised.value) and message in str(raised.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e39, None, "0.5"], ids=str)
@pytest.mark.parametrize(
    ("column", "options"),
    [
        ("margin", {}),
        ("weight", {"pair_weights": True}),
        ("strength", {"flip": 0.1}),
    ],
)
def test_a_number_that_is_not_finite_names_the_file_the_row_and_the_column(tmp_path, column, options, value):
    pairs = [{**PAIR, "strength": 0.5, column: number} for number in (1.0, 0.0, value)]
    if isinstance(value, str):
        pairs = [{**pair, column: value} for pair in pairs]
    path = write_rows(tmp_path / "pairs.jsonl", *pairs)
    training_args = MetaRewardConfig(output_dir=str(tmp_path / "run"), use_cpu=True, bf16=False, **options)
    row = 1 if isinstance(value, str) else 3
    with pytest.raises(ConfigError, match=rf"pairs\.jsonl, split 'train': row {row}: '{column}' is .*, not a finite"):
        load_usable_data(RewardScriptArguments(dataset_name=str(path)), training_args)


def test_a_column_that_is_not_used_may_hold_anything(tmp_path):
    path = write_rows(tmp_path / "pairs.jsonl", {**PAIR, "weight": None}, {**PAIR, "weight": 1.0})
    training_args = MetaRewardConfig(output_dir=str(tmp_path / "run"), use_cpu=True, bf16=False)
    assert len(load_usable_data(RewardScriptArguments(dataset_name=str(path)), training_args)[0]) == 2


def test_files_that_cannot_be_read(tmp_path):
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{")
    for path in (broken, write_rows(tmp_path / "empty.jsonl"), write_rows(tmp_path / "pairs.txt", PAIR)):
        with pytest.raises(ConfigError, match=path.name):
            load(path)
    with pytest.raises(ConfigError, match="has no split 'test'"):
        load(write_pairs(tmp_path / "pairs.jsonl"), with_evaluation=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_name_or_path": None}, "give `model_name_or_path`"),
        ({"dataset_name": None}, "give `dataset_name`"),
        ({"resume_from_checkpoint": "nowhere"}, "resume_from_checkpoint: no such folder: nowhere"),
        ({"lora_r": 4}, "`lora_r` is given, but nothing uses it without `use_peft: true`"),
        ({"center_reward_coefficient": 0.1}, "did you mean 'center_rewards_coefficient'?"),
        ({"metric_for_best_model": "eval_acc"}, "'eval_acc' is none of eval_loss, eval_accuracy,"),
        ({"flip": 0.1}, "pairs.jsonl: the pairs have no column 'strength': vote on them first"),
        ({"pair_weights": True}, "pairs.jsonl: pair_weights: the pairs have no column 'weight'"),
        ({"posterior_labels": True}, "pairs.jsonl: the pairs have no column 'strength': vote on them first"),
    ],
)
def test_mistakes_are_one_line_before_any_launch(tmp_path, capsys, options, message):
    values = {**REWARD, "dataset_name": str(write_pairs(tmp_path / "pairs.jsonl")), **options}
    values = {key: value for key, value in values.items() if value is not None}
    recipe = write_recipe(tmp_path / "recipe.yaml", values, output_dir=str(tmp_path / "run"))
    assert cli.main(["reward", "--config", str(recipe)]) == 2
    error = capsys.readouterr().err
    assert message in last_line(error) and "Traceback" not in error


def said(role: str, text: str) -> dict:
    return {"role": role, "content": text}


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        (("chosen", "rejected"), [("a", "b"), ("a", "a"), ("  ", "b"), ("a", "")]),
        (("chosen_ids", "rejected_ids"), [([1], [2]), ([1], [1]), ([], [2]), ([1], [])]),
        (
            ("chosen", "rejected"),
            [
                tuple([said("user", "q"), said("assistant", text)] for text in pair)
                for pair in (("a", "b"), ("a", "a"), ("", "b"), ("a", ""))
            ],
        ),
    ],
)
def test_pairs_that_teach_nothing_are_left_out_and_counted(columns, values):
    dataset = Dataset.from_list([dict(zip(columns, value, strict=True)) for value in values])
    left, lines = usable(dataset, "pairs.jsonl")
    assert left.to_list() == dataset.to_list()[:1]
    assert lines == [
        "pairs.jsonl: an empty response in rows 3, 4; 2 pairs left out",
        "pairs.jsonl: equal chosen and rejected in row 2; 1 pairs left out",
    ]
    with pytest.raises(ConfigError, match="no pair that a model could learn from"):
        usable(dataset.select([1, 2]), "pairs.jsonl")
    assert usable(left, "pairs.jsonl") == (left, [])


def test_equal_pairs_alone_are_one_line_before_any_launch(tmp_path, capsys):
    pairs = write_rows(tmp_path / "pairs.jsonl", {"chosen": "a", "rejected": "a"})
    recipe = write_recipe(tmp_path / "recipe.yaml", REWARD, dataset_name=str(pairs), output_dir=str(tmp_path / "run"))
    assert cli.main(["reward", "--config", str(recipe)]) == 2
    error = capsys.readouterr().err
    assert "no pair that a model could learn from" in last_line(error) and "Traceback" not in error


def test_a_row_in_a_message_is_a_row_of_the_file(tmp_path, capsys):
    """Pairs that are left out are counted all the same."""
    rows = [{**PAIR, "weight": 1.0}, {"chosen": "a", "rejected": "a", "weight": 1.0}, {**PAIR, "weight": -1.0}]
    pairs = write_rows(tmp_path / "pairs.jsonl", *rows)
    values = {**REWARD, "dataset_name": str(pairs), "pair_weights": True, "output_dir": str(tmp_path / "run")}
    assert cli.main(["reward", "--config", str(write_recipe(tmp_path / "recipe.yaml", values))]) == 2
    assert "row 3 has the weight -1.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "responses": ["a"]}, "meta set: row 2 has 1 response: MetaRM compares responses"),
        ({"prompt": "q", "responses": ["a", "b", "c"]}, "meta set: row 2 has 3 responses and row 1 has 2"),
        ({"prompt": "q", "responses": ["a", " "]}, "meta set: response 2 of row 2 is empty"),
    ],
)
def test_a_meta_set_that_cannot_be_compared_is_one_line_before_any_launch(tmp_path, capsys, row, message):
    meta = write_rows(tmp_path / "meta.jsonl", {"prompt": "q", "responses": ["a", "b"]}, row)
    options = {"meta_step": "plain", "meta_dataset_name": str(meta), "output_dir": str(tmp_path / "run")}
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    recipe = write_recipe(tmp_path / "recipe.yaml", REWARD, dataset_name=str(pairs), **options)
    assert cli.main(["reward", "--config", str(recipe)]) == 2
    error = capsys.readouterr().err
    assert f"meta_dataset_name: {meta}: {message}" in last_line(error) and "Traceback" not in error


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"dtype": "bfloat16"}, "dtype: bfloat16 has too little precision for the small moves of meta_step"),
        ({"load_in_4bit": True, "use_peft": True}, "TRL keeps the adapters of a quantized model in bfloat16"),
    ],
)
def test_a_meta_step_with_16_bit_weights_is_rejected_before_the_launch(tmp_path, capsys, model, message):
    options = {"meta_step": "plain", "meta_dataset_name": "meta.jsonl", **model}
    recipe = write_recipe(tmp_path / "recipe.yaml", REWARD, dataset_name="pairs.jsonl", output_dir="run", **options)
    assert cli.main(["reward", "--config", str(recipe)]) == 2
    assert message in last_line(capsys.readouterr().err)


def test_checks_are_one_line_and_other_errors_keep_their_traceback():
    with pytest.raises(ValueError) as raised:
        pair_targets([1.0], flip=2.0)
    assert str(refusal(raised.value)) == "flip must be at least 0 and below 1, got 2.0"
    with pytest.raises(ValueError) as raised:
        AutoConfig.for_model("no such kind")
    assert refusal(raised.value) is None


def test_the_best_checkpoint_is_found_where_it_is(tmp_path):
    """Beside the checkpoint, if the run's folder was moved; where it was, if another folder went on with the run."""
    last, best = tmp_path / "run" / "checkpoint-9", tmp_path / "run" / "checkpoint-3"
    last.mkdir(parents=True)

    def recorded(path) -> None:
        (last / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": path and str(path)}))

    recorded(None)
    assert best_checkpoint(last) == last
    recorded("somewhere/else/checkpoint-3")
    with pytest.raises(ConfigError, match="not there: put it back, or set load_best_model_at_end: false"):
        best_checkpoint(last)
    best.mkdir()
    assert best_checkpoint(last) == best
    before = tmp_path / "before" / "checkpoint-2"
    before.mkdir(parents=True)
    recorded(before)
    assert best_checkpoint(last) == before


@pytest.mark.slow
def test_what_is_left_out_is_told(tmp_path):
    pairs = write_pairs(tmp_path / "pairs.jsonl", number=6)
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    rows[1]["rejected"] = rows[1]["chosen"]
    rows[2]["chosen"][-1]["content"] = ""
    rows[4]["chosen"][-1]["content"] = "1" * 600
    write_rows(pairs, *rows)
    run = tmp_path / "run"
    recipe = write_recipe(tmp_path / "recipe.yaml", REWARD, dataset_name=str(pairs), output_dir=str(run), max_steps=1)
    output = succeed(metatune("reward", "--config", recipe))
    assert "equal chosen and rejected in row 2; 1 pairs left out" in output
    assert "an empty response in row 3; 1 pairs left out" in output
    assert "max_length is 512, the model's positions, in place of 1024" in output
    assert "1 pairs are longer than max_length and left out" in output


@pytest.mark.slow
@pytest.mark.parametrize(("metric", "swav", "kept"), [("eval_loss", False, 1), ("eval_accuracy", True, 2)])
def test_the_best_checkpoint_is_what_is_saved(tmp_path, metric, swav, kept):
    """Held-out labels are the wrong way round, so the first checkpoint is the best, and the end is the worst."""
    write_pairs(tmp_path / "pairs.jsonl", number=16).rename(tmp_path / "train.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    for row in rows:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    write_rows(tmp_path / "test.jsonl", *rows)
    run = tmp_path / "run"
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        REWARD,
        dataset_name=str(tmp_path),
        output_dir=str(run),
        per_device_train_batch_size=8,
        per_device_eval_batch_size=16,
        max_steps=12,
        save_steps=4,
        eval_strategy="steps",
        eval_steps=4,
        save_total_limit=kept,
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        contrastive="swav" if swav else "none",
    )
    succeed(metatune("reward", "--config", recipe))
    assert {folder.name for folder in run.glob("checkpoint-*")} == {"checkpoint-4", *["checkpoint-12"] * (kept - 1)}
    files = ["model.safetensors", *(["prototypes.safetensors"] if swav else [])]

    def saved_is(checkpoint: str) -> list[bool]:
        return [(run / file).read_bytes() == (run / checkpoint / file).read_bytes() for file in files]

    assert all(saved_is("checkpoint-4")) and (kept == 1 or not any(saved_is("checkpoint-12")))

    # Gone on with, from its end or from its best checkpoint, it saves the best one once more, not the last.
    for file in files:
        (run / file).unlink()
    output = succeed(metatune("reward", "--config", recipe, "--resume_from_checkpoint", "true"))
    assert ("saving the model of checkpoint-4, the best one" in output) == (kept == 2)
    assert log_rows(run)[-1]["step"] == 12 and all(saved_is("checkpoint-4"))


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_a_reward_model_learns_its_pairs(tmp_path, lora):
    from transformers import AutoTokenizer

    from metatune.recipes.adapters import STARTER

    pairs = write_pairs(tmp_path / "pairs.jsonl", number=8)
    options = {"max_steps": 40, "per_device_train_batch_size": 8, "save_strategy": "no"}
    if lora:
        options |= {"use_peft": True, "lora_target_modules": ["q_proj", "v_proj"], "learning_rate": 1e-2}
    run = tmp_path / "run"
    succeed(
        metatune(
            "reward",
            "--config",
            write_recipe(tmp_path / "recipe.yaml", REWARD, dataset_name=str(pairs), output_dir=str(run), **options),
        )
    )
    rows = log_rows(run)
    assert rows[-1]["accuracy"] == 1.0 and rows[-1]["loss"] < 0.3 < rows[0]["loss"]
    assert (run / "recipe.yaml").is_file()
    assert len(AutoTokenizer.from_pretrained(run)) == len(AutoTokenizer.from_pretrained(STARTER))

    # The saved model prefers what it was trained to prefer: head and adapter are both there.
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    base = STARTER if lora else run
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, run) if lora else model
    tokenizer = AutoTokenizer.from_pretrained(run)
    for pair in map(json.loads, pairs.read_text().splitlines()):
        scores = [
            model(**tokenizer.apply_chat_template(pair["prompt"] + pair[answer], return_tensors="pt")).logits.item()
            for answer in ("chosen", "rejected")
        ]
        assert scores[0] > scores[1]
