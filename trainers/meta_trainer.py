"""GRPO with curriculum, evolving judge and pay for progress, in any combination: [`MPOTrainer`] over [`MRTTrainer`].

The judge's part stands outside: it acts between batches, on what was judged. The curriculum sees the outcome's
advantages, as always, before progress replaces them.
"""

from .mpo_trainer import MPOTrainer
from .mrt_trainer import MRTTrainer


class MetaTrainer(MPOTrainer, MRTTrainer):
    """GRPO trainer with every method, each of which may be off: `curriculum: uniform`, `progress: none`, no judge.

    Takes what [`MPOTrainer`] takes; `args` is a [`MetaConfig`].
    """

    _needs_judge = False
    _tag_names = ["trl", "grpo", "mpo", "mrt", "metatune"]
    _name = "MPO and MRT"
