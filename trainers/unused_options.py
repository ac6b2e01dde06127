"""Reject options that have no effect in combination with the other options of a configuration."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any


def reject_unused(config: Any, unused: Mapping[str, str]) -> None:
    """Raise if an option that has no effect is set.

    Args:
        config: a dataclass instance.
        unused (`Mapping[str, str]`): names of options that have no effect here, each with the reason, for instance
            `{"progress_weight": "progress: none"}`.

    Raises:
        ValueError: if such an option is not at its default; the message names all of them.
    """
    defaults = {field.name: field.default for field in fields(config)}
    given = [name for name in unused if getattr(config, name) != defaults[name]]
    if given:
        listed = "; ".join(f"{name} has no effect with {unused[name]}" for name in given)
        raise ValueError(f"{listed}. Remove {'it' if len(given) == 1 else 'them'}")
