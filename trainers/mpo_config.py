"""Options of [`MPOTrainer`]."""

from dataclasses import dataclass, field, fields

from .dump_config import DUMPConfig
from .unused_options import reject_unused

HELD_OUT = ("held_out_every", "held_out_cases", "alarm_window", "alarm_gap")  # options of the held-out judge
GATE = ("gate_cases", "gate_measurements", "gate_repeats", "gate_temperature", "gate_tolerance")
META = ("meta_cases", "meta_pool", "gate", *GATE, "rollback_window", "rollback_drop")  # options of a changing rubric


@dataclass
class MPOConfig(DUMPConfig):
    r"""
    Configuration of the [`MPOTrainer`]: everything in [`DUMPConfig`], and how the judge's rubric changes.

    Parameters:
        meta_every (`int`, *optional*, defaults to `10`):
            Generation batches from one meta step to the next (the paper's k); 0 leaves the rubric as it is.
        meta_cases (`int`, *optional*, defaults to `20`):
            Judged completions that a meta step is shown (the paper's n).
        meta_pool (`int`, *optional*, defaults to `512`):
            Judged completions that are kept to choose from, the newest; they are part of the checkpoint.
        gate (`bool`, *optional*, defaults to `True`):
            Test a new rubric on held-out completions and reject it unless it ranks them at least as well as the rubric
            in force. Without the gate every rubric is accepted, as in the paper.
        gate_cases (`int`, *optional*, defaults to `64`):
            Number of completions in one measurement of the gate, four per prompt; half as many if there is no gold
            score. The meta judge sees none of their prompts.
        gate_measurements (`int`, *optional*, defaults to `3`):
            Maximum number of measurements of a new rubric, each on other prompts. A further measurement is made only
            if chance could explain the difference. At most three quarters of the prompts in `meta_pool` are held out;
            if these are too few, fewer measurements are made.
        gate_repeats (`int`, *optional*, defaults to `2`):
            Number of judgments of each completion by each rubric if there is no gold score, to measure a judge's
            noise. With gold scores, the new rubric judges each completion once, and the scores by the rubric in force
            are already known.
        gate_temperature (`float`, *optional*, defaults to `0.7`):
            Sampling temperature of repeated judgments; at 0 they would all be the same.
        gate_tolerance (`float`, *optional*, defaults to `0.0`):
            By how much the new rubric's rank accuracy or reliability may be lower than that of the rubric in force.
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
    meta_pool: int = field(default=512, metadata={"help": "Judged completions kept to choose from."})
    gate: bool = field(default=True, metadata={"help": "Reject a rubric that ranks held-out completions worse."})
    gate_cases: int = field(default=64, metadata={"help": "Completions of one measurement of a new rubric."})
    gate_measurements: int = field(default=3, metadata={"help": "Maximum number of measurements of a new rubric."})
    gate_repeats: int = field(
        default=2, metadata={"help": "Judgments of each completion by each rubric if there is no gold."}
    )
    gate_temperature: float = field(default=0.7, metadata={"help": "Temperature of repeated judgments."})
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
            ("meta_cases", "gate_cases", "gate_measurements", "held_out_every", "held_out_cases", "alarm_window"), 1
        )
        at_least["gate_repeats"] = 2
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        self._reject_unused()
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

    def _reject_unused(self) -> None:
        """Reject options of features that are off; the trainer also rejects those of a missing judge."""
        if not self.meta_every:
            return reject_unused(self, dict.fromkeys(META, "meta_every: 0"))
        unused = {}
        if not self.gate:
            unused = dict.fromkeys(("gate_measurements", "gate_tolerance"), "gate: false")
        if not self.rollback_window:
            unused["rollback_drop"] = "rollback_window: 0"
            if not self.gate:  # the running check also uses these options
                unused |= dict.fromkeys(("gate_cases", "gate_repeats"), "gate: false and rollback_window: 0")
        reject_unused(self, unused)


OWN_OPTIONS = [option.name for option in fields(MPOConfig) if option.name not in DUMPConfig.__dataclass_fields__]
