"""Options of [`DUMPTrainer`]."""

import math
from dataclasses import dataclass, field

from accelerate.logging import get_logger
from trl import GRPOConfig

from ..curricula import CURRICULA
from .unused_options import reject_unused

logger = get_logger(__name__)


@dataclass
class DUMPConfig(GRPOConfig):
    r"""
    Configuration of the [`DUMPTrainer`]: everything in [`~trl.GRPOConfig`], and which curriculum chooses the prompts.

    Parameters:
        curriculum (`str`, *optional*, defaults to `"dump"`):
            Name of a curriculum in `metatune.curricula.CURRICULA`: `"dump"` is the paper's UCB bandit; `"uniform"`,
            `"easy_to_hard"`, `"pools"` and `"sec"` are its rivals and `"dump_plus"` is our own estimator.
        curriculum_options (`dict` or `str`, *optional*):
            Options of that curriculum, for instance `{temperature: 0.1, window: 64, count: prompts, floor: 0.01}`.
        curriculum_reward (`str`, *optional*, defaults to `"total"`):
            Whose advantages the curriculum sees: those of the `"total"` reward, which train the policy, or those of
            the `"gold"` reward alone. A judge's or a reward model's scores differ within almost every group, so with
            them the total makes every distribution look learnable. Rejected with `"uniform"` and `"easy_to_hard"`,
            which do not depend on rewards.
        gold_reward (`str`, *optional*):
            Name of the reward function that decides whether a completion is correct (1). It defines accuracies, pass
            rates and progress, and a judge's rubric is tested against it. By default `correctness_reward` if it is
            among the functions, else the first that is neither a judge nor a reward model. Set its weight in
            `reward_weights` to 0 to log it without training on it.
        distribution_column (`str`, *optional*, defaults to `"distribution"`):
            Column of the training set that names each row's distribution. Its values are the bandit's arms, in order
            of first appearance.
        compact_generation (`bool`, *optional*, defaults to `False`):
            Generate with [`metatune.trainers.generation.sample_completions`], which reads a repeated prompt once and
            drops completions as they end. Several times faster than `model.generate` where lengths differ; other
            random numbers, the same distribution. Only for text models that generate with transformers.
        length_grouping (`bool`, *optional*, defaults to `False`):
            Sort the rows of each optimizer step by length before they are split into micro-batches, and trim the
            padding that all rows of a micro-batch share. The gradient is the same up to rounding, and the step takes
            less time if `gradient_accumulation_steps` is above 1. Rejected if the gradient would change (`bnpo`,
            entropy terms, the auxiliary loss of a mixture of experts, models without rotary position embeddings or
            with rotary embeddings that depend on the batch's width), and for images.
        num_generations_eval (`int`, *optional*, defaults to `1`):
            Completions of each held-out prompt in an evaluation during training. TRL's default is `num_generations`,
            which multiplies the cost for the same problems.
        per_device_eval_batch_size (`int`, *optional*):
            Completions that a process generates at once in an evaluation. By default twice
            `per_device_train_batch_size`, because no activations are kept for a backward pass, rounded up to a
            multiple of `num_generations_eval`. A larger batch is faster if it fits in memory, above all with vLLM.
        max_verifier_failures (`float`, *optional*, defaults to `0.1`):
            Share of the last 256 completions for which a verifier or your own reward function may raise an
            exception. Such a completion has no reward. Above this share, or if the first completions all fail, the
            run ends with the exception's traceback; 1 never ends it.
        vllm_server_timeout (`float`, *optional*, defaults to `100.0`):
            Seconds to wait for the vLLM server at the start (TRL's default is 240). A large model needs more to load:
            start the server first, or raise this.
        vllm_weight_transfer (`str`, *optional*, defaults to `"auto"`):
            How weights reach a vLLM server: `"nccl"`, `"gloo"` (either side may be a CPU), or `"auto"`, which is gloo
            where the model is trained on a CPU and NCCL elsewhere.
    """

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "curriculum_options"]

    curriculum: str = field(
        default="dump",
        metadata={"help": "Which curriculum chooses the distributions: dump, uniform, easy_to_hard, pools, sec, …"},
    )
    curriculum_options: dict | str | None = field(
        default=None,
        metadata={"help": "Options of the curriculum, for instance {temperature: 0.1, window: 64, count: prompts}."},
    )
    curriculum_reward: str = field(
        default="total", metadata={"help": "Whose advantages the curriculum sees: total, or gold."}
    )
    gold_reward: str | None = field(
        default=None, metadata={"help": "Reward function that decides what is correct (default: correctness, if any)."}
    )
    distribution_column: str = field(
        default="distribution",
        metadata={"help": "Column of the training set that names each row's distribution."},
    )
    compact_generation: bool = field(
        default=False,
        metadata={"help": "Read a repeated prompt once and drop completions as they end (transformers engine)."},
    )

    num_generations_eval: int | None = field(
        default=1, metadata={"help": "Completions of each held-out prompt in an evaluation during training."}
    )
    per_device_eval_batch_size: int | None = field(  # an int after __post_init__
        default=None,
        metadata={"help": "Completions at once in an evaluation (default: twice per_device_train_batch_size)."},
    )
    max_verifier_failures: float = field(
        default=0.1,
        metadata={"help": "Share of the last 256 completions for which a verifier may raise before the run ends."},
    )
    vllm_server_timeout: float = field(
        default=100.0,
        metadata={"help": "Seconds to wait for the vLLM server at the start; a model of many GB needs more."},
    )
    vllm_weight_transfer: str = field(
        default="auto",
        metadata={"help": "How weights reach a vLLM server: nccl, gloo, or auto (gloo on a CPU, else nccl)."},
    )
    length_grouping: bool = field(
        default=False,
        metadata={"help": "Sort the rows of an optimizer step by length and cut the padding of each micro-batch."},
    )

    def __post_init__(self):
        self.derived_options: set[str] = set()  # names of options that were not given; `recipe.yaml` omits them
        if self.per_device_eval_batch_size is None:
            self.derived_options.add("per_device_eval_batch_size")
            together = self.num_generations_eval or self.num_generations
            self.per_device_eval_batch_size = math.ceil(2 * self.per_device_train_batch_size / together) * together
        super().__post_init__()
        if self.vllm_weight_transfer not in ("auto", "nccl", "gloo"):
            raise ValueError(f"vllm_weight_transfer is auto, nccl or gloo, not {self.vllm_weight_transfer!r}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}: greedy rollouts are all alike")
        if not 0 <= self.max_verifier_failures <= 1:
            raise ValueError(f"max_verifier_failures is between 0 and 1, not {self.max_verifier_failures}")
        if self.curriculum_reward not in ("total", "gold"):
            raise ValueError(f"curriculum_reward is total or gold, not {self.curriculum_reward!r}")
        curriculum = CURRICULA.get(self.curriculum)  # an unknown name is rejected later, with a suggestion
        if curriculum is not None and not curriculum.adaptive:
            reject_unused(self, {"curriculum_reward": f"curriculum: {self.curriculum}"})
        if self.sync_ref_model and self.save_strategy != "no":
            logger.warning(
                "sync_ref_model: no checkpoint holds the reference model, so a run that is stopped cannot be resumed"
            )
        if self.length_grouping and (obstacle := self._obstacle_to_length_grouping()):
            raise ValueError(f"{obstacle}, or set length_grouping to false")
        if self.compact_generation and (obstacle := self.obstacle_to_compact_generation()):
            raise ValueError(obstacle)

    def _obstacle_to_length_grouping(self) -> str | None:
        """Tell what would make another gradient of other micro-batches of an optimizer step, and the mend."""
        for option, depends, mend in (
            ("loss_type bnpo", self.loss_type == "bnpo", "use loss_type dapo"),
            ("top_entropy_quantile", self.top_entropy_quantile < 1, "set it to 1"),
            ("entropy_coef", self.entropy_coef or self.use_adaptive_entropy, "do without it"),
        ):
            if depends:
                return f"length_grouping would change {option}, which goes by each micro-batch's own tokens: {mend}"
        step, block = self.gradient_accumulation_steps, self.steps_per_generation
        if block % step and step % block:
            return (
                f"length_grouping would move rows to other optimizer steps, for optimizer steps of {step} "
                f"micro-batches do not divide blocks of {block}: set steps_per_generation to a multiple of "
                "gradient_accumulation_steps"
            )
        return None

    def obstacle_to_compact_generation(self) -> str | None:
        """Tell which option `sample_completions` cannot honour, and the mend; `None` if there is none."""
        if not self.ds3_gather_for_generation:  # each process decodes as long as it has to, by itself
            return "compact_generation needs ds3_gather_for_generation: true"
        others = [name for name in ("use_vllm", "use_transformers_continuous_batching") if getattr(self, name)]
        if others:
            return f"compact_generation and {others[0]} both choose the rollout engine: set one of them to false"
        if self.generation_kwargs or self.repetition_penalty != 1.0 or self.cache_implementation:
            return (
                "compact_generation knows temperature, top_p, top_k and min_p only: remove generation_kwargs, "
                "repetition_penalty and cache_implementation, or set compact_generation to false"
            )
        return None
