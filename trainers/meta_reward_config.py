"""Options of [`MetaRewardTrainer`]."""

from dataclasses import dataclass, field, fields

from trl import RewardConfig

from .contrastive import ON
from .unused_options import reject_unused

CONTRASTIVE = ("none", "simcse", "swav")
META_STEPS = ("none", "plain", "normalised")
# Weight and number of prototypes in arXiv 2401.06080.
DEFAULT_WEIGHT = {("simcse", "pairs"): 1.0, ("simcse", "differences"): 1.0, ("swav", "pairs"): 0.1}
DEFAULT_WEIGHT |= {("swav", "differences"): 0.5}
DEFAULT_PROTOTYPES = {"pairs": 50, "differences": 20}
DEFAULT_TEMPERATURE = {"simcse": 0.05, "swav": 0.1}


@dataclass
class MetaRewardConfig(RewardConfig):
    r"""
    Configuration of the [`MetaRewardTrainer`]: everything in [`~trl.RewardConfig`], and independent treatments, all
    off by default.

    Parameters:
        flip (`float`, *optional*):
            Share of the pairs, those of the lowest preference strength, whose label is turned. Needs the column
            `strength`, as `metatune strength` writes it; so do the next three.
        soft_labels (`float`, *optional*):
            Smoothing of the labels of pairs whose strength is negative.
        adaptive_margin (`float`, *optional*, defaults to `0.0`):
            The margin of a pair is this multiple of its strength.
        posterior_labels (`bool`, *optional*, defaults to `False`):
            The target of a pair is the posterior probability that its margin is positive, given its votes (column
            `strength_votes`, at least two per pair): a form of flipping and smoothing without thresholds.
        label_smoothing (`float`, *optional*, defaults to `0.0`):
            Smoothing of all labels: the target is 1 minus it.
        pair_weights (`bool`, *optional*, defaults to `False`):
            The loss of a pair counts by the column `weight`, as importance weighting gives it; a batch's loss is the
            mean of weight times loss.
        contrastive (`str`, *optional*, defaults to `"none"`):
            Term on the features of two dropout views: `"simcse"` or `"swav"`. The pair loss then counts both views.
        contrastive_on (`str`, *optional*, defaults to `"pairs"`):
            What the term compares: the responses (`"pairs"`) or the differences of pairs (`"differences"`).
        contrastive_weight (`float`, *optional*):
            The paper's beta: by default 1 for SimCSE, 0.1 for SwAV on pairs and 0.5 on differences.
        contrastive_temperature (`float`, *optional*):
            By default 0.05 for SimCSE and 0.1 for SwAV.
        contrastive_dropout (`float`, *optional*, defaults to `0.05`):
            Dropout on the input embeddings that makes two views of a text. The model's own dropout adds to it with
            `disable_dropout: false`.
        contrastive_queue_size (`int`, *optional*, defaults to `256`):
            Number of past items with which the term compares a micro-batch, in addition to the items of the other
            processes; 0 for none.
        num_prototypes (`int`, *optional*):
            Of SwAV; by default 50 on pairs and 20 on differences.
        meta_step (`str`, *optional*, defaults to `"none"`):
            MetaRM: `"plain"` moves the weights by `meta_step_size` times the gradient of the difference objective on
            the meta set before the gradient of the loss is taken; `"normalised"` by a move of that length.
        meta_step_size (`float`, *optional*):
            Eta of the plain step, by default the paper's 5e-6; the length of the normalised one, by default 0.05.
        per_device_meta_batch_size (`int`, *optional*, defaults to `16`):
            Prompts of the meta set, each with all its responses, for one optimizer step on one process.
    """

    flip: float | None = field(
        default=None, metadata={"help": "Share of the pairs, the weakest, whose label is turned."}
    )
    soft_labels: float | None = field(
        default=None, metadata={"help": "Label smoothing of pairs whose strength is negative."}
    )
    adaptive_margin: float = field(default=0.0, metadata={"help": "A pair's margin: this multiple of its strength."})
    posterior_labels: bool = field(
        default=False, metadata={"help": "Target: the posterior probability that a pair's margin is positive."}
    )
    label_smoothing: float = field(default=0.0, metadata={"help": "Label smoothing of all pairs."})
    pair_weights: bool = field(default=False, metadata={"help": "A pair's loss counts by the column weight."})
    contrastive: str = field(default="none", metadata={"help": "Contrastive term: " + ", ".join(CONTRASTIVE) + "."})
    contrastive_on: str = field(
        default="pairs", metadata={"help": "What the term compares: responses (pairs) or differences."}
    )
    contrastive_weight: float | None = field(default=None, metadata={"help": "Weight of the contrastive term."})
    contrastive_temperature: float | None = field(default=None, metadata={"help": "Temperature of the term."})
    contrastive_dropout: float = field(
        default=0.05, metadata={"help": "Dropout on the input embeddings that makes the two views."}
    )
    contrastive_queue_size: int = field(
        default=256, metadata={"help": "Number of past items with which the term compares a micro-batch."}
    )
    num_prototypes: int | None = field(default=None, metadata={"help": "Prototypes of swav."})
    meta_step: str = field(default="none", metadata={"help": "MetaRM's step: none, plain or normalised."})
    meta_step_size: float | None = field(
        default=None, metadata={"help": "Eta of the plain step (5e-6), or the normalised one's length (0.05)."}
    )
    per_device_meta_batch_size: int = field(
        default=16, metadata={"help": "Prompts of the meta set for one optimizer step on one process."}
    )

    def __post_init__(self):
        super().__post_init__()
        for name, choices in (("contrastive", CONTRASTIVE), ("contrastive_on", ON), ("meta_step", META_STEPS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is one of {', '.join(choices)}, not {getattr(self, name)!r}")
        reject_unused(self, self._unused())
        if self.contrastive != "none":
            self._settle_contrastive()
        if self.meta_step != "none" and self.fp16:
            raise ValueError(
                "meta_step does not work with fp16: true, because its loss scaling does not apply to the gradient of "
                "the difference objective: set bf16: true, or neither"
            )
        if self.meta_step_size is None and self.meta_step != "none":
            self.meta_step_size = 5e-6 if self.meta_step == "plain" else 0.05
        if self.meta_step_size is not None and self.meta_step_size <= 0:
            raise ValueError(f"meta_step_size must be positive, got {self.meta_step_size}")
        if self.per_device_meta_batch_size < 1:
            raise ValueError(f"per_device_meta_batch_size must be at least 1, got {self.per_device_meta_batch_size}")

    def _unused(self) -> dict[str, str]:
        """Return the options that have no effect in this combination, each with the reason."""
        unused = {}
        if self.contrastive != "swav":
            unused["num_prototypes"] = f"contrastive: {self.contrastive}"
        if self.contrastive == "none":
            names = [option.name for option in fields(self) if option.name.startswith("contrastive_")]
            unused |= dict.fromkeys(names, "contrastive: none")
        if self.meta_step == "none":
            unused |= dict.fromkeys(("meta_step_size", "per_device_meta_batch_size"), "meta_step: none")
        return unused

    def _settle_contrastive(self) -> None:
        if not 0 < self.contrastive_dropout < 1:
            raise ValueError(
                f"contrastive_dropout makes the two views: between 0 and 1, not {self.contrastive_dropout}"
            )
        if self.contrastive_weight is None:
            self.contrastive_weight = DEFAULT_WEIGHT[self.contrastive, self.contrastive_on]
        if self.contrastive_temperature is None:
            self.contrastive_temperature = DEFAULT_TEMPERATURE[self.contrastive]
        if self.contrastive_temperature <= 0:
            raise ValueError(f"contrastive_temperature must be positive, got {self.contrastive_temperature}")
        if self.contrastive_queue_size < 0:
            raise ValueError(f"contrastive_queue_size must not be negative, got {self.contrastive_queue_size}")
        if self.contrastive == "swav":
            if self.num_prototypes is None:
                self.num_prototypes = DEFAULT_PROTOTYPES[self.contrastive_on]
            if self.num_prototypes < 2:
                raise ValueError(f"num_prototypes must be at least 2, got {self.num_prototypes}")

    @property
    def uses_strength(self) -> bool:
        """Whether a treatment needs the preference strength of the pairs."""
        return bool(self.flip or self.soft_labels or self.adaptive_margin or self.posterior_labels)
