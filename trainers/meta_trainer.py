"""GRPO with curriculum, evolving judge and pay for progress, in any combination: [`MPOTrainer`] over [`MRTTrainer`].

The total reward is the weighted sum of all reward functions; one of them may be gold, which tells right from wrong.

- Policy: the total's advantages. Progress is made towards gold alone and added; what judges and reward models pay
  counts once, and they are never asked about the forced answers by which progress is measured.
- Curriculum: the advantages of the outcome, before progress; of the total, or with `curriculum_reward: gold` of gold.
- Rubric: tried against gold. When it changes, a curriculum that sees the judge discounts what it observed by the old
  rubric.
- Scales: rewards add up as they are, and the advantages are divided by gold's deviation (`advantages.py`); within a
  group only what was scored by the same functions is compared.
"""

from .meta_config import MetaConfig
from .mpo_trainer import MPOTrainer
from .mrt_trainer import MRTTrainer


class MetaTrainer(MPOTrainer, MRTTrainer):
    """GRPO trainer with every method, each of which may be off: `curriculum: uniform`, `progress: none`, no judge.

    Has the arguments of [`MPOTrainer`]; `args` is a [`MetaConfig`], or TRL's `GRPOConfig`.
    """

    _config_class = MetaConfig
    _needs_judge = False
    _tag_names = ["trl", "grpo", "mpo", "mrt", "metatune"]
    _name = "MPO and MRT"
