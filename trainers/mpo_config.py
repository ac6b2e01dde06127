"""Options of [`MPOTrainer`]."""

from dataclasses import dataclass, field

from .dump_config import DUMPConfig


@dataclass
class MPOConfig(DUMPConfig):
    r"""
    Configuration of the [`MPOTrainer`]: everything in [`DUMPConfig`], and how the judge's rubric changes.

    Parameters:
        meta_every (`int`, *optional*, defaults to `10`):
            Generation batches from one meta step to the next (the paper's k); 0 leaves the rubric as it is.
        meta_cases (`int`, *optional*, defaults to `20`):
            Judged completions that a meta step is shown (the paper's n).
        meta_pool (`int`, *optional*, defaults to `256`):
            Judged completions that are kept to choose from, the newest; they are part of the checkpoint.
        gate (`bool`, *optional*, defaults to `True`):
            Try a new rubric on held-out completions and refuse one that ranks them worse than the rubric in force.
            Without it every rubric is taken, as in the paper.
        gate_cases (`int`, *optional*, defaults to `32`):
            Completions that a rubric is tried on, by whole prompts; none of them is shown to the meta judge.
        gate_repeats (`int`, *optional*):
            How often each is judged by each rubric. By default once where gold scores are known and else twice, which
            it takes to tell a judge's noise.
        gate_temperature (`float`, *optional*, defaults to `0.7`):
            Of these judgements; at 0 a judge that is unsure repeats itself.
        gate_tolerance (`float`, *optional*, defaults to `0.0`):
            By how much a new rubric may rank worse than the one in force.
        rollback_window (`int`, *optional*, defaults to `8`):
            Batches after which a new rubric is compared with what was before it; 0 never looks back.
        rollback_drop (`float`, *optional*, defaults to `0.1`):
            By how much the judge must have become worse, or its scores have risen above gold, for the parent to be
            tried again; against gold, on `gate_cases` of the run's beginning too.
        held_out_every (`int`, *optional*, defaults to `4`):
            Generation batches from one look of the held-out judge to the next, where there is one.
        held_out_cases (`int`, *optional*, defaults to `32`):
            Completions that it judges each time.
        alarm_window (`int`, *optional*, defaults to `4`):
            Looks at the start and at the end that are compared.
        alarm_gap (`float`, *optional*, defaults to `0.15`):
            By how much the two judges' mean scores must have parted for the alarm.
    """

    meta_every: int = field(default=10, metadata={"help": "Generation batches between meta steps (k); 0 for none."})
    meta_cases: int = field(default=20, metadata={"help": "Judged completions shown to a meta step (n)."})
    meta_pool: int = field(default=256, metadata={"help": "Judged completions kept to choose from."})
    gate: bool = field(default=True, metadata={"help": "Refuse a rubric that ranks held-out completions worse."})
    gate_cases: int = field(default=32, metadata={"help": "Completions that a rubric is tried on."})
    gate_repeats: int | None = field(default=None, metadata={"help": "How often each is judged by each rubric."})
    gate_temperature: float = field(default=0.7, metadata={"help": "Temperature of these judgements."})
    gate_tolerance: float = field(default=0.0, metadata={"help": "By how much a new rubric may rank worse."})
    rollback_window: int = field(
        default=8, metadata={"help": "Batches after which a change is looked back on; 0: never."}
    )
    rollback_drop: float = field(default=0.1, metadata={"help": "Drop after which the parent rubric is tried again."})
    held_out_every: int = field(
        default=4, metadata={"help": "Generation batches between looks of the held-out judge."}
    )
    held_out_cases: int = field(default=32, metadata={"help": "Completions that it judges each time."})
    alarm_window: int = field(default=4, metadata={"help": "Its looks at the start and at the end that are compared."})
    alarm_gap: float = field(default=0.15, metadata={"help": "Parting of the two judges that raises the alarm."})

    def __post_init__(self):
        super().__post_init__()
        at_least = {"meta_every": 0, "rollback_window": 0}
        at_least |= dict.fromkeys(
            ("meta_cases", "gate_cases", "gate_repeats", "held_out_every", "held_out_cases", "alarm_window"), 1
        )
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.meta_every and self.meta_pool < self.meta_cases + self.gate * self.gate_cases:
            raise ValueError(
                f"meta_pool is {self.meta_pool}, and a meta step takes {self.meta_cases} meta_cases"
                f"{f' and {self.gate_cases} gate_cases' if self.gate else ''}: raise it"
            )
        for name in ("gate_temperature", "gate_tolerance"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("rollback_drop", "alarm_gap"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
