"""Options that have no effect in combination with others are rejected; one table for all trainers."""

from dataclasses import dataclass

import pytest

from metatune.trainers import DUMPConfig, MetaConfig, MetaRewardConfig, MPOConfig, MRTConfig
from metatune.trainers.unused_options import reject_unused

from .dump_setup import config


@dataclass
class Config:
    method: str = "none"
    weight: float = 1.0
    window: int | None = None


def test_an_option_without_effect_is_rejected_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"weight has no effect with method: none. Remove it"):
        reject_unused(Config(weight=2.0), {"weight": "method: none", "window": "method: none"})


def test_every_such_option_is_named() -> None:
    with pytest.raises(ValueError, match=r"weight has no .*; window has no effect with method: none. Remove them"):
        reject_unused(Config(weight=2.0, window=3), {"weight": "method: none", "window": "method: none"})


def test_the_default_is_accepted() -> None:
    reject_unused(Config(), {"weight": "method: none", "window": "method: none"})


OPTIONS = {  # a value of each option of MRTConfig that is not its default
    "progress_weight": 0.5,
    "progress_decay": 0.5,
    "progress_scale": "batch",
    "episodes": {"by": "delimiter"},
    "success_estimator": "likelihood",
    "num_forced_answers": 2,
    "forced_answer_tokens": 8,
    "forcing_suffix": "\nanswer ",
    "budgets": [4, 12],
    "terminating_generations": 2,
    "prefix_baseline": "joint",
}
NO_EFFECT = {  # form of progress: the options without effect
    "none": OPTIONS,
    "length_penalty": [name for name in OPTIONS if name != "progress_weight"],
    "episode": ["budgets", "terminating_generations", "prefix_baseline"],
    "anytime": ["progress_weight", "progress_decay", "episodes", "terminating_generations", "prefix_baseline"],
    "prefix": ["progress_decay", "progress_scale", "success_estimator", "num_forced_answers", "budgets"],
}
PROGRESS_ROWS = [
    (MRTConfig, {"progress": progress, name: OPTIONS[name]}, f"{name} has no effect with progress: {progress}.")
    for progress, names in NO_EFFECT.items()
    for name in names
]
PROGRESS_ROWS += [
    (
        MRTConfig,
        {"progress": progress, "success_estimator": "likelihood", name: OPTIONS[name]},
        f"{name} has no effect with success_estimator: likelihood.",
    )
    for progress in ("episode", "anytime")
    for name in ("num_forced_answers", "forced_answer_tokens")
]
PROGRESS_ROWS += [
    (
        MRTConfig,
        {"progress": "prefix", "terminating_generations": 0, name: OPTIONS[name]},
        f"{name} has no effect with terminating_generations: 0.",
    )
    for name in ("progress_weight", "prefix_baseline", "forced_answer_tokens", "forcing_suffix")
]
PROGRESS_ROWS += [
    (
        MRTConfig,
        {"progress": "anytime", "progress_scale": "none", "scale_rewards": "batch", "curriculum": "uniform"},
        "scale_rewards has no effect with progress: anytime and progress_scale: none.",
    )
]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (MetaRewardConfig, {"contrastive_weight": 1.0}, "contrastive_weight has no effect with contrastive: none"),
        (MetaRewardConfig, {"contrastive_on": "differences"}, "contrastive_on has no effect with contrastive: none"),
        (MetaRewardConfig, {"contrastive_dropout": 0.1}, "contrastive_dropout has no effect with contrastive: none"),
        (MetaRewardConfig, {"contrastive_queue_size": 9}, "contrastive_queue_size has no effect"),
        (MetaRewardConfig, {"num_prototypes": 3}, "num_prototypes has no effect with contrastive: none"),
        (
            MetaRewardConfig,
            {"contrastive": "simcse", "num_prototypes": 3},
            "num_prototypes has no effect with contrastive: simcse",
        ),
        (MetaRewardConfig, {"meta_step_size": 0.1}, "meta_step_size has no effect with meta_step: none"),
        (
            MetaRewardConfig,
            {"per_device_meta_batch_size": 4},
            "per_device_meta_batch_size has no effect with meta_step: none",
        ),
        *[
            (
                kind,
                {"curriculum": curriculum, "curriculum_reward": "gold"},
                f"curriculum_reward has no effect with curriculum: {curriculum}. Remove it",
            )
            for kind, curriculum in ((DUMPConfig, "uniform"), (DUMPConfig, "easy_to_hard"), (MetaConfig, "uniform"))
        ],
        *PROGRESS_ROWS,
        (MPOConfig, {"meta_every": 0, "meta_cases": 4}, "meta_cases has no effect with meta_every: 0. Remove it"),
        (MPOConfig, {"meta_every": 0, "meta_pool": 300}, "meta_pool has no effect with meta_every: 0"),
        (MPOConfig, {"meta_every": 0, "gate": False}, "gate has no effect with meta_every: 0"),
        (MPOConfig, {"meta_every": 0, "gate_cases": 8}, "gate_cases has no effect with meta_every: 0"),
        (MPOConfig, {"meta_every": 0, "gate_repeats": 3}, "gate_repeats has no effect with meta_every: 0"),
        (MPOConfig, {"meta_every": 0, "gate_temperature": 1.0}, "gate_temperature has no effect with meta_every: 0"),
        (MPOConfig, {"meta_every": 0, "rollback_window": 4}, "rollback_window has no effect with meta_every: 0"),
        (MetaConfig, {"meta_every": 0, "rollback_drop": 0.2}, "rollback_drop has no effect with meta_every: 0"),
        (MPOConfig, {"gate": False, "gate_tolerance": 0.1}, "gate_tolerance has no effect with gate: false"),
        (MPOConfig, {"gate": False, "gate_measurements": 1}, "gate_measurements has no effect with gate: false"),
        (
            MPOConfig,
            {"gate": False, "rollback_window": 0, "gate_cases": 8},
            "gate_cases has no effect with gate: false and rollback_window: 0",
        ),
        (
            MPOConfig,
            {"rollback_window": 0, "rollback_drop": 0.2},
            "rollback_drop has no effect with rollback_window: 0",
        ),
    ],
)
def test_the_options_of_a_trainer(tmp_path, kind, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        kind(output_dir=str(tmp_path), use_cpu=True, bf16=False, **options)


@pytest.mark.parametrize("progress", NO_EFFECT)
def test_every_other_option_of_a_form_of_progress_is_accepted(tmp_path, progress) -> None:
    used = {name: value for name, value in OPTIONS.items() if name not in NO_EFFECT[progress]}
    if progress in ("episode", "anytime"):
        del used["success_estimator"]
    made = config(tmp_path, MRTConfig, progress=progress, **used)
    assert {name: getattr(made, name) for name in used} == used
    again = config(tmp_path, MRTConfig, **{name: getattr(made, name) for name in ("progress", *OPTIONS)})
    assert again.terminating_generations == made.terminating_generations, "derived values are accepted too"


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (MPOConfig, {"gate": False, "gate_cases": 8}),  # the running check uses this number too
        (MPOConfig, {"rollback_window": 0, "gate_cases": 8}),
        (MPOConfig, {"meta_every": 0, "held_out_every": 1}),  # a held-out judge also observes a fixed rubric
    ],
)
def test_options_that_have_an_effect(tmp_path, kind, options) -> None:
    kind(output_dir=str(tmp_path), use_cpu=True, bf16=False, **options)
