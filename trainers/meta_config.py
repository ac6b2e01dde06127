"""Options of [`MetaTrainer`]."""

from dataclasses import dataclass

from .mpo_config import MPOConfig
from .mrt_config import MRTConfig


@dataclass
class MetaConfig(MPOConfig, MRTConfig):
    """Configuration of the [`MetaTrainer`]: everything in [`MPOConfig`] and [`MRTConfig`]."""
