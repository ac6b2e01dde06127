"""A TRL user's script trains the same, number for number, when only the name of its trainer class changes."""

import inspect
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForSequenceClassification, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer, SFTConfig

from metatune.curricula import build_tokenizer
from metatune.rewards import Judge, JudgeClient, JudgeReward
from metatune.trainers import (
    DUMPTrainer,
    MetaRewardConfig,
    MetaRewardTrainer,
    MetaTrainer,
    MPOConfig,
    MPOTrainer,
    MRTConfig,
    MRTTrainer,
)
from metatune.trainers.sft_trainer import SFTTrainer

from .dump_setup import config, rows, tiny_model, tokenizer_with_tools
from .mpo_setup import FIRST
from .test_meta_reward_trainer import config as options_without_rollouts
from .test_meta_reward_trainer import pairs
from .test_meta_reward_trainer import reward_model as seeded_reward_model

OURS = (DUMPTrainer, MRTTrainer, MetaTrainer)
KEYS = ("loss", "grad_norm", "reward", "reward_std", "completions/mean_length", "eval_loss", "kl")


def prompts(number: int = 12) -> Dataset:
    return rows(number, ("alpha",)).remove_columns("distribution").add_column("target", ["1"] * number)


def has_digit(completions, **kwargs):
    return [float(any(character.isdigit() for character in each[0]["content"])) for each in completions]


def has_target(completions, target, **kwargs):
    return [float(wanted in each[0]["content"]) for each, wanted in zip(completions, target, strict=True)]


def sometimes_none(completions, **kwargs):
    """`None` for every prompt but the first, as a reward of one task among several is."""
    return [0.5 * (row % 2) if row < 4 else None for row in range(len(completions))]


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, str]:
    """Folders of a policy and of a reward model, as a hub name would name them."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), build_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    scorer = LlamaForSequenceClassification(
        LlamaConfig(vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id, **sizes)
    )
    for name, model in (("policy", tiny_model()), ("scorer", scorer)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {name: str(folder / name) for name in ("policy", "scorer")}


class StopEarly(TrainerCallback):
    """Ends training after the first step."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = True


# ---- the scripts: each takes a trainer class and returns the trainer, trained ----


@pytest.fixture(autouse=True)
def default_options_are_accepted(monkeypatch):
    """Without a GPU, transformers refuses the default `bf16` that TRL's options have."""
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # which every configuration sets anew
    yield
    AcceleratorState._reset_state()


def no_args(trainer_class, folders, tmp_path):
    return trainer_class(
        model=folders["policy"], reward_funcs=has_digit, train_dataset=prompts(1), callbacks=[StopEarly()]
    )


def plain_config(trainer_class, folders, tmp_path):
    return trainer_class(
        model=folders["policy"],
        reward_funcs=has_digit,
        args=config(tmp_path, GRPOConfig, max_steps=2),
        train_dataset=prompts(),
    )


def by_position(trainer_class, folders, tmp_path):
    options = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "num_generations_eval": 2}
    model, tokenizer = tiny_model(), build_tokenizer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    return trainer_class(
        model,
        [has_digit, folders["scorer"]],
        config(tmp_path, GRPOConfig, **options),
        prompts(),
        {"easy": prompts(4), "hard": prompts(2)},
        tokenizer,
        [None, tokenizer],
        [StopEarly()],
        (optimizer, schedule),
    )


def stream(trainer_class, folders, tmp_path):
    options = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 2}
    return trainer_class(
        model=folders["policy"],
        reward_funcs=has_target,
        args=config(tmp_path, GRPOConfig, **options),
        train_dataset=prompts().to_iterable_dataset(),
        eval_dataset=prompts(4).to_iterable_dataset(),
    )


def weighted_rewards(trainer_class, folders, tmp_path):
    return trainer_class(
        model=folders["policy"],
        reward_funcs=[has_digit, has_target],
        args=config(tmp_path, GRPOConfig, max_steps=2, reward_weights=[0.3, 0.7]),
        train_dataset=prompts(),
    )


def rewards_of_some_tasks(trainer_class, folders, tmp_path):
    return trainer_class(
        model=folders["policy"],
        reward_funcs=[has_digit, sometimes_none],
        args=config(tmp_path, GRPOConfig, max_steps=2),
        train_dataset=prompts(),
    )


def reference_model(trainer_class, folders, tmp_path):
    return trainer_class(
        model=folders["policy"],
        reward_funcs=has_digit,
        args=config(tmp_path, GRPOConfig, max_steps=3, beta=0.1, num_iterations=2),
        train_dataset=prompts(),
    )


def adapter(trainer_class, folders, tmp_path):
    return trainer_class(
        model=folders["policy"],
        reward_funcs=has_digit,
        args=config(tmp_path, GRPOConfig, max_steps=2, beta=0.1),
        train_dataset=prompts(),
        peft_config=LoraConfig(r=4, target_modules=["q_proj"]),
    )


class Counter:
    """An environment with one tool, which makes its own prompts and pays its own reward."""

    def reset(self, **kwargs) -> str:
        self.calls = 0
        return "Count to three."

    def count(self, by: int) -> int:
        """
        Count on.

        Args:
            by: How far.

        Returns:
            Where the count stands.
        """
        self.calls += by
        return self.calls

    def get_reward(self) -> float:
        return float(self.calls)


def environment(trainer_class, folders, tmp_path):
    return trainer_class(
        model=folders["policy"],
        reward_funcs=has_digit,
        args=config(tmp_path, GRPOConfig, max_steps=2),
        processing_class=tokenizer_with_tools(),
        environment_factory=Counter,
    )


def tools(trainer_class, folders, tmp_path):
    return trainer_class(
        model=folders["policy"],
        reward_funcs=has_digit,
        args=config(tmp_path, GRPOConfig, max_steps=2),
        train_dataset=prompts(),
        processing_class=tokenizer_with_tools(),
        tools=[Counter().count],
    )


SCRIPTS = {
    each.__name__: each
    for each in (
        no_args,
        plain_config,
        by_position,
        stream,
        weighted_rewards,
        rewards_of_some_tasks,
        reference_model,
        adapter,
        environment,
        tools,
    )
}


def numbers(trainer) -> list[tuple]:
    """What is compared of a run's log."""
    return [tuple(row.get(key) for key in KEYS) for row in trainer.state.log_history]


@pytest.mark.parametrize("script", SCRIPTS)
def test_only_the_class_name_changes_and_every_number_stays(folders, tmp_path, monkeypatch, script):
    """`MetaTrainer` is made of the others, so that it stands for them but where a script is cheap."""
    monkeypatch.chdir(tmp_path)
    curves = {}
    for trainer_class in (GRPOTrainer, *(OURS if script == "plain_config" else [MetaTrainer])):
        torch.manual_seed(0)
        trainer = SCRIPTS[script](trainer_class, folders, tmp_path / trainer_class.__name__)
        trainer.train()
        curves[trainer_class] = numbers(trainer)
    assert all(curve == curves[GRPOTrainer] for curve in curves.values()) and curves[GRPOTrainer]


# ---- what has to be said ----


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [*((each, GRPOTrainer) for each in (*OURS, MPOTrainer)), (MetaRewardTrainer, RewardTrainer)],
)
def test_arguments_come_in_trl_s_order(ours, theirs):
    """Those that TRL does not have come last, and by name alone."""
    own, trl_s = (list(inspect.signature(each.__init__).parameters.values()) for each in (ours, theirs))
    assert [(each.name, each.default, each.kind) for each in own[: len(trl_s)]] == [
        (each.name, each.default, each.kind) for each in trl_s
    ]
    assert all(each.kind is each.KEYWORD_ONLY for each in own[len(trl_s) :])


def test_plain_options_are_kept_and_the_others_are_at_their_defaults(folders, tmp_path):
    options = {"generation_batch_size": 32, "steps_per_generation": None, "learning_rate": 3e-4, "save_steps": 7}
    plain = config(tmp_path, GRPOConfig, **options)
    trainer = MRTTrainer(folders["policy"], has_digit, plain, prompts())
    assert isinstance(trainer.args, MRTConfig) and trainer.args.progress == "none"
    told = ("generation_batch_size", "steps_per_generation", "learning_rate", "save_steps", "output_dir")
    assert [getattr(trainer.args, name) for name in told] == [getattr(plain, name) for name in told]
    assert trainer.curriculum.arms == ("all",)


def test_options_of_another_method_are_not_dropped_in_silence(folders, tmp_path):
    with pytest.raises(TypeError, match="MPOTrainer: args is a MRTConfig with the option 'progress', which MPOConfig"):
        MPOTrainer(folders["policy"], has_digit, config(tmp_path, MRTConfig), prompts())


def test_mpo_needs_a_judge_and_names_the_trainer_that_does_not(folders, tmp_path):
    with pytest.raises(ValueError, match="one JudgeReward among reward_funcs, not 0; MetaTrainer also trains without"):
        MPOTrainer(folders["policy"], has_digit, config(tmp_path, GRPOConfig), prompts())


def test_mpo_takes_plain_options_beside_its_judge(folders, tmp_path):
    judge = JudgeReward(Judge(JudgeClient("http://127.0.0.1:9/v1", retries=1), FIRST))
    with pytest.raises(ValueError, match="pass a meta_judge, or set meta_every: 0 to keep the rubric unchanged"):
        MPOTrainer(folders["policy"], [has_digit, judge], config(tmp_path, GRPOConfig), prompts())
    options = config(tmp_path, MPOConfig, meta_every=0)
    trainer = MPOTrainer(folders["policy"], [has_digit, judge], options, prompts(), {"easy": prompts(4)})
    assert trainer.judge is judge.judge and list(trainer.eval_dataset) == ["easy"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curriculum": "easy_to_hard"}, "draws rows by index, and the training set is a stream"),
        ({"progress": "prefix", "forcing_suffix": "\nanswer "}, "keeps a trace of every row: load the training set"),
    ],
)
def test_what_a_stream_cannot_give_is_refused(folders, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        MRTTrainer(
            folders["policy"], has_digit, config(tmp_path, MRTConfig, **options), prompts().to_iterable_dataset()
        )


# ---- reward models and SFT ----


def test_a_reward_script_trains_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    curves = []
    for trainer_class in (RewardTrainer, MetaRewardTrainer):
        for data in (pairs(), pairs().to_iterable_dataset()):
            folder = tmp_path / f"{trainer_class.__name__}-{type(data).__name__}"
            options = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 2}
            trainer = trainer_class(
                seeded_reward_model(build_tokenizer()),
                options_without_rollouts(folder, RewardConfig, **options),
                None,
                data,
                {"easy": pairs(4), "hard": pairs(8)},
                build_tokenizer(),
            )
            trainer.train()
            curves.append([row.get("loss", row.get("eval_hard_loss")) for row in trainer.state.log_history])
    assert curves[:2] == curves[2:] and all(any(curve) for curve in curves)


def test_a_reward_script_without_args_trains(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = MetaRewardTrainer(model=folders["scorer"], train_dataset=pairs(4), callbacks=[StopEarly()])
    trainer.train()
    assert isinstance(trainer.args, MetaRewardConfig) and Path(trainer.args.output_dir).name == "scorer-MetaReward"


def test_treatments_refuse_a_stream_of_pairs(folders, tmp_path):
    with pytest.raises(
        ValueError, match="label_smoothing adds a column to all pairs: load the pairs without streaming"
    ):
        MetaRewardTrainer(
            folders["scorer"],
            options_without_rollouts(tmp_path, MetaRewardConfig, label_smoothing=0.1),
            train_dataset=pairs().to_iterable_dataset(),
        )


def test_an_sft_script_trains(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = Dataset.from_dict({"text": ["1 + 1 = 2", "2 + 2 = 4"]})
    for options in ({}, {"max_steps": 1}):
        args = {"args": options_without_rollouts(tmp_path, SFTConfig, **options)} if options else {}
        trainer = SFTTrainer(model=folders["policy"], train_dataset=data, **args)
        trainer.train()
        assert trainer.state.global_step
