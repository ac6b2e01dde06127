"""`reward_models:` in a recipe: trained reward models as rewards, one entry a reward.

    reward_models:
      - {path: runs/rm, weight: 1.0}
      - {paths: [runs/rm-a, runs/rm-b], combine: mean_minus_std, std_weight: 0.5, weight: 0.5}
      - {url: "http://127.0.0.1:8001", model: name}

A model loads on every process, whole, beside the policy unless `device` says otherwise; a `url` is that of a
`vllm serve MODEL --runner pooling`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metatune.recipes.adapters import base_of, is_adapter
from metatune.recipes.config import ConfigError
from metatune.recipes.conform import conform
from metatune.rewards.reward_ensemble import RewardModelReward, check_combination

OF_SERVER = ("model", "tokenizer", "api_key_variable", "retries")


@dataclass
class RewardModelEntry:
    """One entry: exactly one of `path`, `paths` and `url`.

    Args:
        path (`str`, *optional*): a reward model: a folder, an adapter's folder, or a hub name.
        paths (`list[str]`, *optional*): several on one scale, which make one reward.
        combine (`str`, *optional*, defaults to `"mean"`): how `paths` do: `mean`, `min` or `mean_minus_std`.
        std_weight (`float`, *optional*): what `mean_minus_std` takes off for a standard deviation of 1.
        url (`str`, *optional*): of a vLLM pooling server.
        model (`str`, *optional*): the name by which the server serves the model.
        tokenizer (`str`, *optional*): the server's model as this machine sees it, if under another name.
        api_key_variable (`str`, *optional*): environment variable with the server's key; never the key itself.
        weight (`float`, *optional*, defaults to 1.0): of this reward in the sum.
        retries (`int`, *optional*): attempts after the first if the server does not answer; 8 by default, which take
            about two minutes.
        device (`str`, *optional*): where `path` or `paths` compute; by default where the policy does.
        dtype (`str`, *optional*): their precision; by default the checkpoint's.
        batch_size (`int`, *optional*): responses scored at a time.
        max_length (`int`, *optional*): tokens beyond which a response has no reward.
    """

    path: str | None = None
    paths: list[str] | None = None
    combine: str = "mean"
    std_weight: float | None = None
    url: str | None = None
    model: str | None = None
    tokenizer: str | None = None
    api_key_variable: str | None = None
    retries: int | None = None
    weight: float = 1.0
    device: str | None = None
    dtype: str | None = None
    batch_size: int | None = None
    max_length: int | None = None

    def __post_init__(self):
        if [self.path, self.paths, self.url].count(None) != 2:
            raise ValueError("give exactly one of path, paths and url")
        for option in ("device", "dtype") if self.url is not None else OF_SERVER:
            if getattr(self, option) is not None:
                raise ValueError(f"`{option}` does not go with {'url' if self.url is not None else 'path or paths'}")
        if self.paths is not None and len(self.paths) < 2:
            raise ValueError("paths are two or more; give a single one as path")
        if self.paths is None and self.combine != "mean":
            raise ValueError(f"combine: {self.combine} needs several paths")
        check_combination(self.combine, self.std_weight)
        if not math.isfinite(self.weight):
            raise ValueError(f"weight is not finite: {self.weight}")


def read_entries(values: Sequence[dict[str, Any]]) -> list[RewardModelEntry]:
    """Read the entries of a recipe; raises `ValueError` that names the entry, the option and the nearest valid one."""
    entries = []
    for index, value in enumerate(values):
        try:
            entries.append(RewardModelEntry(**conform(value, RewardModelEntry)))
        except ValueError as error:
            raise ValueError(f"reward_models[{index}]: {error}") from None
    return entries


def load_reward_models(entries: Sequence[RewardModelEntry]) -> list[RewardModelReward]:
    """Load what the entries name: one reward function each, called `reward_model` or `reward_model_1` and so on.

    Raises [`ConfigError`] for what is no reward model, and a server that does not answer.
    """
    from metatune.rewards.reward_server import RewardServerError

    rewards = []
    for index, entry in enumerate(entries):
        try:
            scorers = _scorers(entry, f"reward_models[{index}]")
        except (ValueError, RewardServerError) as error:
            raise ConfigError(f"reward_models[{index}]: {error}") from error
        name = f"reward_model_{index + 1}" if len(entries) > 1 else "reward_model"
        rewards.append(RewardModelReward(scorers, entry.combine, entry.std_weight, name))
    return rewards


def _scorers(entry: RewardModelEntry, name: str) -> list[Any]:
    from metatune.rewards.reward_model import RewardModel
    from metatune.rewards.reward_server import RewardServer

    options = (*OF_SERVER, "device", "dtype", "batch_size", "max_length")
    given = {option: getattr(entry, option) for option in options if getattr(entry, option) is not None}
    if entry.url is not None:
        return [RewardServer(entry.url, name=name, **given)]
    paths = [entry.path] if entry.path is not None else entry.paths or []
    return [RewardModel(path, base=base_of(path).name if is_adapter(path) else None, **given) for path in paths]
