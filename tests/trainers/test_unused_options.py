"""Options that have no effect beside others are rejected, one table for all trainers."""

from dataclasses import dataclass

import pytest

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
