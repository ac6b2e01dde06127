"""Trainers: TRL's, each with one method added."""

from .dump_config import DUMPConfig
from .dump_trainer import DUMPTrainer

__all__ = ["DUMPConfig", "DUMPTrainer"]
