"""Trainers: TRL's, each with one method added. Loaded when used: vLLM's processes read a module of this package."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .dump_config import DUMPConfig
    from .dump_trainer import DUMPTrainer
    from .meta_config import MetaConfig
    from .meta_reward_config import MetaRewardConfig
    from .meta_reward_trainer import MetaRewardTrainer
    from .meta_trainer import MetaTrainer
    from .mpo_config import MPOConfig
    from .mpo_trainer import MPOTrainer
    from .mrt_config import MRTConfig
    from .mrt_trainer import MRTTrainer

__all__ = [
    "DUMPConfig",
    "DUMPTrainer",
    "MPOConfig",
    "MPOTrainer",
    "MRTConfig",
    "MRTTrainer",
    "MetaConfig",
    "MetaRewardConfig",
    "MetaRewardTrainer",
    "MetaTrainer",
]

if not TYPE_CHECKING:  # a type checker would take any name for one of ours

    def __getattr__(name: str) -> Any:
        import re
        from importlib import import_module

        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        kind = "Config" if name.endswith("Config") else "Trainer"
        words = re.sub("(?<=[a-z])(?=[A-Z])", "_", name.removesuffix(kind))  # MetaReward: meta_reward, DUMP: dump
        module = f"{words}_{kind}".lower()
        return getattr(import_module(f".{module}", __name__), name)
