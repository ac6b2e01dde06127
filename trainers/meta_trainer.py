"""GRPO with curriculum, evolving judge and pay for progress, in any combination: [`MPOTrainer`] over [`MRTTrainer`].

The total reward is the weighted sum of all reward functions; one of them may be gold, which tells right from wrong.

- Policy: the advantages of the total reward, plus progress. Progress is measured by the gold reward alone. Rewards of
  judges and reward models count once; they never score the forced answers that measure progress.
- Curriculum: the advantages of the outcome, before progress; of the total, or with `curriculum_reward: gold` of gold.
- Rubric: tested against gold. When it changes, a curriculum that sees the judge discounts its observations under the
  old rubric.
- Scales: rewards are added without rescaling, and the advantages are divided by the standard deviation of gold
  (`advantages.py`). Within a group, only completions that the same functions scored are compared.
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
