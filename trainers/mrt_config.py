"""Options of [`MRTTrainer`]."""

from dataclasses import dataclass, field

from .dump_config import DUMPConfig
from .prefix_advantages import BASELINES
from .progress import SCALES
from .unused_options import reject_unused

ESTIMATORS = ("rollouts", "likelihood")
FORCED = ("num_forced_answers", "forced_answer_tokens")
MEASUREMENT = ("success_estimator", *FORCED, "forcing_suffix")
BONUS_AT_PREFIX = ("progress_weight", "prefix_baseline", "forced_answer_tokens", "forcing_suffix")
PROGRESS: dict[str, tuple[str, ...]] = {  # each form with the options that have an effect in it
    "none": (),
    "episode": ("progress_weight", "progress_decay", "progress_scale", "episodes", *MEASUREMENT),
    "prefix": ("episodes", "terminating_generations", *BONUS_AT_PREFIX),
    "anytime": ("progress_scale", "budgets", *MEASUREMENT),
    "length_penalty": ("progress_weight",),
}


@dataclass
class MRTConfig(DUMPConfig):
    r"""
    Configuration of the [`MRTTrainer`]: everything in [`DUMPConfig`], and how progress is measured and paid.

    Parameters:
        progress (`str`, *optional*, defaults to `"none"`):
            `"episode"` rewards each episode for its increase in the probability of success; `"prefix"` trains rollouts
            that continue from a stale prefix together with rollouts that answer there; `"anytime"` rewards success at
            every token budget; `"length_penalty"` is the usual baseline. Options that have no effect with a form are
            rejected.
        progress_weight (`float`, *optional*, defaults to `1.0`):
            The paper's alpha: weight of progress relative to the outcome. With `prefix`, rollouts that continue weigh
            `1 + progress_weight` and those that answer at the prefix weigh 1. With `length_penalty`, the share of a
            correct answer's reward that a long answer can lose (0 to 1). `anytime` has no weight: its return contains
            the outcome.
        progress_decay (`float`, *optional*, defaults to `0.0`):
            For `episode`: share of the later episodes' progress that an episode earns too, from 0 (none) to 1 (all of
            it: the outcome minus the probability of success before the episode).
        progress_scale (`str`, *optional*, defaults to `"outcome"`):
            Divisor of the advantages of `episode` and `anytime`. `"outcome"`: the divisor that `scale_rewards` gives
            the outcome, with a floor if the outcomes of a group are equal, so that `progress_weight` has the same
            effect on easy and on hard prompts. For comparison: `"batch"`, their own root mean square over the batch,
            or `"none"`, no divisor.
        episodes (`dict` or `str`, *optional*):
            How a trace is split; the options of [`metatune.rewards.EpisodeRule`], for instance `{by: delimiter}`. By
            default paragraphs that open with a turning phrase.
        success_estimator (`str`, *optional*, defaults to `"rollouts"`):
            How the chance of success at a prefix is found: `"rollouts"` samples forced answers; `"likelihood"` sums
            the probability of all accepted answers, without noise, where the task can list them (at `temperature`,
            without `top_p`, `top_k` and `min_p`).
        num_forced_answers (`int`, *optional*, defaults to `4`):
            Number of forced answers sampled at each prefix (K); at least 2 for `episode`, which estimates their noise.
        forced_answer_tokens (`int`, *optional*, defaults to `32`):
            Largest number of tokens of a forced answer.
        forcing_suffix (`str`, *optional*):
            Text that ends the thinking and opens the answer. The default depends on the chat template and on the row's
            verifier.
        budgets (`list[int]`, *optional*):
            Token budgets of `anytime`, increasing; the last must be `max_completion_length`. By default four equal
            parts.
        terminating_generations (`int`, *optional*):
            How many of the `num_generations` rollouts of a prefix answer at once. By default a quarter, but at least
            two with separate baselines and one with a joint baseline; 0 is GRPO from prefixes without a bonus.
        prefix_baseline (`str`, *optional*, defaults to `"separate"`):
            What `prefix` subtracts from a reward: the mean over the group's rollouts of the same kind, continuing or
            terminating (`"separate"`), or over the whole group (`"joint"`, as in the paper). If continuing and
            answering at once differ in success, the joint mean adds the same number to the advantages of all
            continuing rollouts. This is noise, because neither the prefix nor the forced suffix is an action of the
            policy. `"separate"` needs at least two rollouts of each kind.
    """

    _VALID_DICT_FIELDS = [*DUMPConfig._VALID_DICT_FIELDS, "episodes"]

    progress: str = field(
        default="none", metadata={"help": "What is paid beside the outcome: " + ", ".join(PROGRESS) + "."}
    )
    progress_weight: float = field(default=1.0, metadata={"help": "Weight of the progress (alpha)."})
    progress_decay: float = field(
        default=0.0, metadata={"help": "Share of the next episode's progress that an episode is paid too (episode)."}
    )
    progress_scale: str = field(
        default="outcome",
        metadata={"help": "Divisor of progress advantages: the outcome's, their own size (batch), or none."},
    )
    episodes: dict | str | None = field(
        default=None,
        metadata={"help": "How a trace is cut, for instance {by: delimiter} or {by: tokens, tokens: 64}."},
    )
    success_estimator: str = field(
        default="rollouts", metadata={"help": "rollouts (forced answers) or likelihood (of all accepted answers)."}
    )
    num_forced_answers: int = field(default=4, metadata={"help": "Forced answers sampled at each prefix."})
    forced_answer_tokens: int = field(default=32, metadata={"help": "Largest number of tokens of a forced answer."})
    forcing_suffix: str | None = field(
        default=None, metadata={"help": "Text that ends the thinking and opens the answer; default by verifier."}
    )
    budgets: list[int] | None = field(
        default=None, metadata={"help": "Token budgets of anytime, the last is max_completion_length."}
    )
    terminating_generations: int | None = field(
        default=None, metadata={"help": "Rollouts of a prefix that answer at once (prefix); a quarter by default."}
    )
    prefix_baseline: str = field(
        default="separate",
        metadata={"help": "Baseline of prefix: separate for continuing and terminating rollouts, or joint."},
    )

    def __post_init__(self):
        super().__post_init__()
        for name, choices in (
            ("progress", PROGRESS),
            ("progress_scale", SCALES),
            ("success_estimator", ESTIMATORS),
            ("prefix_baseline", BASELINES),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is one of {', '.join(choices)}, not {getattr(self, name)!r}")
        reject_unused(self, self._options_without_effect())
        for name in FORCED:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.progress_decay <= 1:
            raise ValueError(f"progress_decay is between 0 and 1, got {self.progress_decay}")
        if self.progress == "length_penalty" and not 0 <= self.progress_weight <= 1:
            raise ValueError(
                f"progress_weight is the share of the reward that length can take, 0 to 1: got {self.progress_weight}"
            )
        if self.progress == "anytime":
            self._settle_budgets()
        if self.progress == "prefix":
            self._settle_terminating()
        if self.progress in ("episode", "anytime"):
            self._check_measured()
        if self.progress != "none" and self.multi_objective_aggregation != "sum_then_normalize":
            raise ValueError(
                f"progress: {self.progress} needs one outcome: set multi_objective_aggregation to sum_then_normalize"
            )

    def _options_without_effect(self) -> dict[str, str]:
        """Return the options that have no effect in this combination, each with the reason."""
        options = dict.fromkeys(name for names in PROGRESS.values() for name in names)
        unused = {name: f"progress: {self.progress}" for name in options if name not in PROGRESS[self.progress]}
        if self.progress in ("episode", "anytime") and self.success_estimator == "likelihood":
            unused |= dict.fromkeys(FORCED, "success_estimator: likelihood")
        if self.progress == "anytime" and self.progress_scale != "outcome" and self.curriculum == "uniform":
            unused["scale_rewards"] = f"progress: anytime and progress_scale: {self.progress_scale}"
        if self.progress == "prefix" and self.terminating_generations == 0:
            unused |= dict.fromkeys(BONUS_AT_PREFIX, "terminating_generations: 0")
        return unused

    def _check_measured(self) -> None:
        """Raise for options that do not work with success measured at prefixes, or with one advantage per token."""
        if self.success_estimator == "likelihood" and not self.ds3_gather_for_generation:
            raise ValueError("success_estimator: likelihood needs ds3_gather_for_generation: true")
        if self.progress == "episode" and self.success_estimator == "rollouts" and self.num_forced_answers < 2:
            raise ValueError(
                "num_forced_answers must be at least 2 for progress: episode, got 1: the noise cannot be estimated "
                "from one answer. Raise it, or set success_estimator: likelihood"
            )
        for name, given in (
            ("off_policy_mask_threshold", self.off_policy_mask_threshold is not None),
            ("loss_type: vespo", self.loss_type == "vespo"),
        ):
            if given:
                raise ValueError(
                    f"{name} depends on the sign of a completion's advantage, but progress: {self.progress} gives "
                    "each token its own advantage: remove it, or set progress: none"
                )

    def _settle_budgets(self) -> None:
        longest = self.max_completion_length
        if self.budgets is None:
            parts = min(4, longest)
            self.budgets = [longest * part // parts for part in range(1, parts + 1)]
        increasing = all(earlier < later for earlier, later in zip(self.budgets, self.budgets[1:], strict=False))
        if not self.budgets or self.budgets[0] < 1 or not increasing or self.budgets[-1] != longest:
            raise ValueError(
                f"budgets must increase and end with max_completion_length, {longest}; got {self.budgets}"
            )

    def _settle_terminating(self) -> None:
        least = 2 if self.prefix_baseline == "separate" else 1  # per kind: a single rollout would be its own baseline
        if self.terminating_generations is None:
            self.terminating_generations = max(least, self.num_generations // 4)
        most = self.num_generations - least
        if self.terminating_generations and not least <= self.terminating_generations <= most:
            fix = f"set it to {least} to {most}, or to 0 for no bonus"
            if most < least:
                fix = f"set num_generations to at least {2 * least}"
            raise ValueError(
                f"terminating_generations is {self.terminating_generations} with num_generations: "
                f"{self.num_generations}, and prefix_baseline: {self.prefix_baseline} needs at least {least} of each "
                f"kind of rollout: {fix}{', or set prefix_baseline: joint' if least > 1 else ''}"
            )
