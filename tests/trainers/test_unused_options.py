"""Options that have no effect beside others are rejected, one table for all trainers."""

from dataclasses import dataclass

import pytest

from metatune.trainers import MetaRewardConfig
from metatune.trainers.unused_options import reject_unused


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


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (MetaRewardConfig, {"contrastive_weight": 1.0}, "contrastive_weight has no effect with contrastive: none"),
        (MetaRewardConfig, {"contrastive_on": "differences"}, "contrastive_on has no effect with contrastive: none"),
        (MetaRewardConfig, {"contrastive_dropout": 0.1}, "contrastive_dropout has no effect with contrastive: none"),
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
    ],
)
def test_the_options_of_a_trainer(tmp_path, kind, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        kind(output_dir=str(tmp_path), use_cpu=True, bf16=False, **options)
