import json
import os
import subprocess
import sys

import pandas as pd
import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from metatune.curricula import build_tokenizer
from metatune.trainers import DUMPConfig, DUMPTrainer

from .dump_setup import DISTRIBUTIONS, config, digits, make, rows, tiny_model, training_log
from .evaluation_program import first_alone

KEYS = ("loss", "grad_norm", "reward")


def curve(trainer, keys=KEYS) -> list[tuple]:
    return [tuple(row.get(key) for key in keys) for row in training_log(trainer)]


# ---- the same as TRL with everything off ----


@pytest.mark.parametrize("shuffle_dataset", [True, False])
@pytest.mark.parametrize(
    "blocks", [{}, {"per_device_train_batch_size": 8, "steps_per_generation": 2, "num_iterations": 2}]
)
def test_a_uniform_curriculum_over_one_distribution_is_stock_grpo_bit_for_bit(tmp_path, shuffle_dataset, blocks):
    data = rows(num_items=24, distributions=("alpha",))
    ours = make(tmp_path, train_dataset=data, curriculum="uniform", shuffle_dataset=shuffle_dataset, **blocks)
    ours.train()  # before the other one is made: making a trainer seeds the random generators
    stock = GRPOTrainer(
        tiny_model(),
        reward_funcs=digits,
        args=config(tmp_path, GRPOConfig, shuffle_dataset=shuffle_dataset, **blocks),
        train_dataset=data,
        processing_class=build_tokenizer(),
    )
    stock.train()
    assert len(training_log(stock)) == 6
    assert curve(ours) == curve(stock)
    assert any(row["grad_norm"] > 0 for row in training_log(stock))
    for mine, theirs in zip(ours.model.parameters(), stock.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


# ---- what the curriculum is told, and when ----


def test_each_batch_is_drawn_after_the_groups_of_the_batch_before_it(tmp_path):
    trainer = make(tmp_path)
    events = []
    draw, observe = trainer.curriculum.draw, trainer.curriculum.observe
    trainer.curriculum.draw = lambda n: events.append("draw") or draw(n)
    trainer.curriculum.observe = lambda *group: events.append("observe") or observe(*group)
    trainer.train()
    assert events == ["draw", *["observe"] * 4] * 6


def test_a_group_reaches_the_arm_it_was_drawn_from(tmp_path):
    def by_distribution(completions, distribution, **kwargs):
        value = {"alpha": 0.25, "beta": 0.5, "gamma": 0.75}
        return [value[name] for name in distribution]

    trainer = make(tmp_path, reward=by_distribution)
    seen = []
    observe = trainer.curriculum.observe
    trainer.curriculum.observe = lambda arm, advantages, rewards, tokens: (
        seen.append((arm, tuple(rewards), len(tokens))) or observe(arm, advantages, rewards, tokens)
    )
    trainer.train()
    assert set(seen) == {("alpha", (0.25,) * 4, 4), ("beta", (0.5,) * 4, 4), ("gamma", (0.75,) * 4, 4)}


def test_evaluation_measures_each_distribution_and_never_feeds_the_curriculum(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 5, "num_generations_eval": 1}
    options |= {"log_completions": True, "num_completions_to_print": 0}
    trainer = DUMPTrainer(
        tiny_model(),
        reward_funcs=digits,
        args=config(tmp_path, **options),
        train_dataset=rows(),
        eval_dataset=rows(num_items=5, first=100),
        processing_class=build_tokenizer(),
    )
    trainer.train()
    evaluations = [row for row in trainer.state.log_history if "eval_accuracy" in row]
    assert len(evaluations) == 3
    for row in evaluations:
        per_arm = [row[f"eval_accuracy/{name}"] for name in DISTRIBUTIONS]
        assert row["eval_accuracy"] == pytest.approx(sum(per_arm) / 3)
        assert row["eval_accuracy/gamma"] == 0
        assert row["eval_reward"] == pytest.approx(row["eval_accuracy"])  # arms of equal size, all scored
    assert sum(trainer.curriculum.metrics()[f"count/{name}"] for name in DISTRIBUTIONS) == 6 * 4
    tables = [pd.read_parquet(path) for path in sorted((tmp_path / "completions").glob("*.parquet"))]
    trained_on = {prompt[0]["content"] for prompt in trainer.train_dataset["prompt"]}
    for table in tables:  # an evaluation leaves the training completions of its step alone
        assert len(table) == 16
        assert {prompt[0]["content"] for prompt in table["prompt"]} <= trained_on
    assert len(tables) == 6


def test_every_held_out_row_counts_once_where_training_drops_its_last_batch(tmp_path):
    """Three rows in batches of two; only the first row is correct."""
    options = {"per_device_eval_batch_size": 2, "num_generations_eval": 1, "dataloader_drop_last": True}
    trainer = make(tmp_path, reward=first_alone, **options)
    held_out = rows(num_items=3, distributions=("alpha",), first=100)
    assert trainer.evaluate(held_out)["eval_accuracy"] == pytest.approx(1 / 3)
    assert trainer.args.dataloader_drop_last


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_what_fills_up_the_last_batch_of_an_evaluation_is_not_counted_again(tmp_path, processes):
    """Three rows, of which the first alone is right; the loader gives two processes a fourth, the first again."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    program = ["-m", "tests.trainers.evaluation_program", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *launch, *program]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-3000:]
    (line,) = [line for line in result.stdout.splitlines() if line.startswith('{"accuracies"')]
    assert json.loads(line)["accuracies"] == pytest.approx([1 / 3, 1 / 3])


def test_every_log_line_has_every_distribution_and_completions_go_to_parquet(tmp_path):
    trainer = make(tmp_path, log_completions=True, num_completions_to_print=0)
    trainer.train()
    for row in training_log(trainer):
        probabilities = [row[f"curriculum/probability/{name}"] for name in DISTRIBUTIONS]
        assert sum(probabilities) == pytest.approx(1)
        assert all(f"curriculum/{what}/{name}" in row for what in ("learnability", "count") for name in DISTRIBUTIONS)
        drawn = [name for name in DISTRIBUTIONS if f"pass_rate/{name}" in row]
        assert drawn
        assert all(row[f"reward/{name}"] == row[f"pass_rate/{name}"] for name in drawn)
    tokens = [row["rollout_tokens"] for row in training_log(trainer)]
    assert tokens[0] == pytest.approx(16 * training_log(trainer)[0]["completions/mean_length"])
    assert tokens == sorted(tokens)
    table = pd.read_parquet(tmp_path / "completions" / "completions_00006.parquet")
    assert len(table) == 16
    assert set(table["distribution"]) <= set(DISTRIBUTIONS)
    assert {"prompt", "completion", "digits", "advantage", "step"} <= set(table.columns)
    assert list(table["correct"]) == [reward >= 1 for reward in table["digits"]]


def test_truncated_completions_count_as_generated_tokens_also_when_they_are_not_trained_on(tmp_path):
    trainer = make(tmp_path, max_steps=1, mask_truncated_completions=True, length_grouping=True)
    trainer.train()
    row = training_log(trainer)[0]
    assert row["completions/clipped_ratio"] > 0
    assert row["rollout_tokens"] == pytest.approx(16 * row["completions/mean_length"])


def test_the_curriculum_sees_no_completion_that_the_loss_masks(tmp_path):
    end = build_tokenizer().eos_token_id

    def parity(completions, completion_ids, **kwargs):
        ended[:] = [ids[-1] == end for ids in completion_ids]
        return [float(sum(ids) % 2) for ids in completion_ids]

    ended, observed, pass_rates = [], [], []
    for masked in (False, True):
        options = {"max_steps": 1, "max_completion_length": 60, "mask_truncated_completions": masked}
        trainer = make(tmp_path, reward=parity, **options)
        groups, observe = [], trainer.curriculum.observe
        trainer.curriculum.observe = lambda arm, *group, to=groups, then=observe: to.append(group) or then(arm, *group)
        trainer.train()
        observed.append([list(zip(*group, strict=True)) for group in groups])
        pass_rates.append({key: value for key, value in training_log(trainer)[0].items() if "pass_rate/" in key})
    every, trained_on = observed
    flags = iter(ended)
    expected = [[completion for completion in group if next(flags)] for group in every]
    assert any(1 < len(group) < 4 for group in expected)
    assert trained_on == [group for group in expected if len(group) > 1], "with the advantages that train the policy"
    assert pass_rates[0] == pass_rates[1], "of all completions: a truncated answer is not a success"


def test_a_subclass_can_leave_members_of_a_group_out(tmp_path):
    """Half of each group is always correct, because it contains the answer; the other half never is."""

    class HalfForced(DUMPTrainer):
        def _observed(self):
            return torch.arange(len(self._gold)) % 4 < 2

    def first_two_fail(completions, **kwargs):
        return [float(row % 4 >= 2) for row in range(len(completions))]

    args = config(tmp_path, max_steps=1)
    trainer = HalfForced(tiny_model(), first_two_fail, args, rows(), processing_class=build_tokenizer())
    groups, observe = [], trainer.curriculum.observe
    trainer.curriculum.observe = lambda arm, *group: groups.append(group) or observe(arm, *group)
    trainer.train()
    assert [group[:2] for group in groups] == [([0.0, 0.0], [0.0, 0.0])] * 4
    log = training_log(trainer)[0]
    assert {log[key] for key in log if key.startswith(("pass_rate/", "reward/"))} == {0.0}


def test_an_arm_that_is_never_solved_teaches_nothing_but_is_still_tried(tmp_path):
    trainer = make(tmp_path, max_steps=12)
    trainer.train()
    last = training_log(trainer)[-1]
    assert last["curriculum/learnability/gamma"] == 0
    assert 0 < last["curriculum/probability/gamma"] < 1 / 3
    assert last["curriculum/count/gamma"] >= 2


# ---- resume ----


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, (1, 5)),
        # Two generation blocks of four optimizer steps: checkpoints inside a block and at its end.
        (
            {"max_steps": 8, "per_device_train_batch_size": 8, "steps_per_generation": 2, "num_iterations": 2},
            range(1, 8),
        ),
        ({"compact_generation": True, "length_grouping": True, "gradient_accumulation_steps": 2}, (2, 3)),
    ],
)
def test_resuming_after_any_step_goes_on_bit_for_bit(tmp_path, options, steps):
    options = {"save_strategy": "steps", "save_steps": 1, **options}
    keys = (*KEYS, "rollout_tokens", *(f"curriculum/probability/{name}" for name in DISTRIBUTIONS))
    whole = make(tmp_path, **options)
    whole.train()
    for step in steps:
        resumed = make(tmp_path, **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert curve(resumed, keys) == curve(whole, keys), f"resumed after step {step}"
        for mine, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
            assert torch.equal(mine, theirs)
    assert resumed.curriculum.state_dict() == whole.curriculum.state_dict()


def test_resuming_with_other_data_is_refused(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    make(tmp_path, **options).train()
    checkpoint = str(tmp_path / "checkpoint-2")
    with pytest.raises(ValueError, match="'alpha' is not the one of the checkpoint: num_items was 12"):
        make(tmp_path, train_dataset=rows(num_items=13)).train(resume_from_checkpoint=checkpoint)
    with pytest.raises(ValueError, match="arms"):
        make(tmp_path, train_dataset=rows(distributions=("alpha", "delta"))).train(resume_from_checkpoint=checkpoint)


def test_resuming_a_block_with_another_number_of_processes_is_refused(tmp_path):
    options = {
        "max_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "per_device_train_batch_size": 8,
        "steps_per_generation": 2,
    }
    make(tmp_path, **options).train()
    state = tmp_path / "checkpoint-1" / "metatune_state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "world_size": 2}))
    with pytest.raises(ValueError, match="saved inside a generation block by 2 processes"):
        make(tmp_path, **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_blocks_and_optimizer_steps_meet_again_where_accumulation_has_changed(tmp_path):
    """As on fewer processes: each step is twice the micro-batches, and has rollouts of its own."""
    make(tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    resumed = make(tmp_path, max_steps=4, per_device_train_batch_size=8, gradient_accumulation_steps=2)
    drawn, draw = [], resumed.curriculum.draw
    resumed.curriculum.draw = lambda number: drawn.append(resumed.state.global_step) or draw(number)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert drawn == [1, 2, 3]


@pytest.mark.parametrize("options", [{"steps_per_generation": 4}, {"steps_per_generation": 1}])
def test_waiting_rollouts_of_another_division_are_refused(tmp_path, options):
    blocks = {"per_device_train_batch_size": 4, "steps_per_generation": 2, "save_strategy": "steps", "save_steps": 1}
    make(tmp_path, max_steps=1, **blocks).train()
    with pytest.raises(ValueError, match=r"rollouts wait in 2 parts.*steps_per_generation and num_iterations"):
        make(tmp_path, **{**blocks, **options}).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_a_moving_reference_model_that_no_checkpoint_holds_is_not_resumed(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")  # TRL loads the reference model by its name

    def trainer(max_steps):
        options = {"sync_ref_model": True, "beta": 0.1, "save_strategy": "steps", "save_steps": 1}
        args = config(tmp_path, max_steps=max_steps, **options)
        return DUMPTrainer(str(tmp_path / "model"), digits, args, rows(), processing_class=build_tokenizer())

    trainer(1).train()
    with pytest.raises(ValueError, match="checkpoint-1 does not hold the reference model that sync_ref_model moves"):
        trainer(2).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_a_reference_model_of_low_precision_is_not_mixed(tmp_path):
    """TRL mixes in the weights' own data type: at 1, bfloat16 rounding removes 0.3 of its spacing in every update."""
    tiny_model().save_pretrained(tmp_path / "model")

    def trainer(dtype, alpha):
        options = {"sync_ref_model": True, "beta": 0.1, "ref_model_mixup_alpha": alpha}
        args = config(tmp_path, model_init_kwargs={"dtype": dtype}, **options)
        return DUMPTrainer(str(tmp_path / "model"), digits, args, rows(), processing_class=build_tokenizer())

    with pytest.raises(ValueError, match=r"torch.bfloat16 removes: set ref_model_mixup_alpha to at least 0.5"):
        trainer("bfloat16", 0.3)
    trainer("bfloat16", 0.6)
    trainer("float32", 0.3)


def test_the_entropy_controller_is_in_the_run_state(tmp_path):
    """TRL writes its own file after the mark of a whole checkpoint, so a kill may leave it out."""
    options = {"use_adaptive_entropy": True, "entropy_target": 10.0, "save_strategy": "steps", "save_steps": 2}
    whole = make(tmp_path, max_steps=3, **options)
    whole.train()
    (tmp_path / "checkpoint-2" / "entropy_ctrl_state.json").unlink()
    resumed = make(tmp_path, max_steps=3, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    keys = (*KEYS, "entropy_coef")
    assert curve(resumed, keys) == curve(whole, keys)


def test_a_checkpoint_of_another_trainer_is_refused(tmp_path):
    make(tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    (tmp_path / "checkpoint-1" / "metatune_state.json").unlink()
    with pytest.raises(FileNotFoundError, match="was not written by a metatune trainer"):
        make(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


# ---- the same steps for less ----


def test_length_grouping_gives_the_same_losses_up_to_rounding(tmp_path):
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "max_steps": 3}
    plain = make(tmp_path, **options)
    plain.train()
    grouped = make(tmp_path, length_grouping=True, **options)
    grouped.train()
    assert any(row["grad_norm"] > 0 for row in training_log(plain))
    for mine, theirs in zip(curve(grouped), curve(plain), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)


def test_compact_generation_trains(tmp_path):
    trainer = make(tmp_path, compact_generation=True)
    trainer.train()
    assert any(row["grad_norm"] > 0 for row in training_log(trainer))
    assert all(row["completions/max_length"] <= 12 for row in training_log(trainer))


# ---- mistakes ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compact_generation": True, "use_vllm": True}, "compact_generation and use_vllm both choose"),
        ({"compact_generation": True, "repetition_penalty": 1.2}, "remove generation_kwargs, repetition_penalty"),
        ({"compact_generation": True, "ds3_gather_for_generation": False}, "needs ds3_gather_for_generation: true"),
        ({"length_grouping": True, "loss_type": "bnpo"}, "length_grouping would change loss_type bnpo"),
        ({"length_grouping": True, "top_entropy_quantile": 0.5}, "length_grouping would change top_entropy_quantile"),
        ({"length_grouping": True, "entropy_coef": 0.1}, "length_grouping would change entropy_coef"),
        ({"length_grouping": True, "use_adaptive_entropy": True}, "length_grouping would change entropy_coef"),
        (
            {"length_grouping": True, "gradient_accumulation_steps": 2, "steps_per_generation": 3},
            "optimizer steps of 2 micro-batches do not divide blocks of 3",
        ),
    ],
)
def test_options_that_contradict_each_other_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        DUMPConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **options)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (
            Dataset.from_dict({"prompt": ["a"], "source": ["x"]}),
            {"distribution_column": "sorce"},
            r"no column 'sorce' .*\(columns: prompt, source\)",
        ),
        (Dataset.from_dict({"prompt": ["a"]}), {"curriculum": "sec"}, "no column 'distribution'"),
        (Dataset.from_dict({"prompt": ["a"]}), {"curriculum_options": {"window": 4}}, "no column 'distribution'"),
        (
            Dataset.from_dict({"prompt": ["a", "b"], "distribution": ["x", None]}),
            {},
            "row 1 .* has the distribution None",
        ),
        (Dataset.from_dict({"prompt": [], "distribution": []}), {}, "no distribution has any item"),
        (rows().to_iterable_dataset(), {}, "load the dataset without streaming"),
    ],
)
def test_a_training_set_that_cannot_be_drawn_from_is_refused(tmp_path, data, options, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, train_dataset=data, **options)


def test_an_unknown_curriculum_names_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'uniform'"):
        make(tmp_path, curriculum="unifrom")


def test_an_evaluation_during_training_takes_one_completion_and_twice_the_training_batch(tmp_path):
    evaluation = {"eval_strategy": "steps", "eval_steps": 1}
    default = config(tmp_path, **evaluation)  # of 16 completions a step
    assert (default.per_device_eval_batch_size, default.num_generations_eval) == (32, 1)
    # A group stays whole in a batch, and what is given counts.
    grouped = config(tmp_path, per_device_train_batch_size=4, num_generations_eval=6, **evaluation)
    assert grouped.per_device_eval_batch_size == 12
    given = config(tmp_path, per_device_eval_batch_size=8, num_generations_eval=4, **evaluation)
    assert (given.per_device_eval_batch_size, given.num_generations_eval) == (8, 4)
    assert default.derived_options == {"per_device_eval_batch_size"} and not given.derived_options
