"""What the numbers of a recipe can be: checked before any library sees them.

Out of its range a number would divide by zero, be refused deep inside of torch, or train in silence on nonsense. Here
are only ranges that hold for every command that has the option; what depends on other options is its dataclass's.
"""

import math
from collections.abc import Mapping
from typing import Any

LARGEST_SEED = 2**32 - 1  # numpy's
LARGEST = 2**63 - 1  # torch's and Arrow's whole numbers

AT_LEAST_1 = [
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "generation_batch_size",
    "num_generations",
    "num_generations_eval",
    "num_iterations",
    "max_completion_length",
    "max_length",
    "lora_r",
    "lora_alpha",
    "eval_accumulation_steps",
    "dataset_num_proc",
    "num_processes",
    "ref_model_sync_steps",
    "save_total_limit",
    "dataloader_prefetch_factor",
    "pad_to_multiple_of",
    "vllm_tensor_parallel_size",
    "num_samples",
    "max_new_tokens",
    "batch_size",
    "limit",
    "num_answers",
    "answer_tokens",
]
AT_LEAST_0 = [
    "temperature",
    "learning_rate",
    "weight_decay",
    "adam_epsilon",
    "max_grad_norm",
    "warmup_steps",
    "dataloader_num_workers",
    "beta",
    "epsilon",
    "epsilon_high",
    "delta",
    "top_k",
    "num_train_epochs",
    "neftune_noise_alpha",
    "ddp_timeout",
    "vllm_server_timeout",
    "eval_delay",
    "num_completions_to_print",
    "vllm_server_port",
]
ABOVE_0 = [
    "repetition_penalty",
    "logging_steps",
    "save_steps",
    "eval_steps",
    "vllm_gpu_memory_utilization",
]
SHARES = [
    "min_p",
    "lora_dropout",
    "label_smoothing_factor",
    "label_smoothing",
    "top_entropy_quantile",
    "ref_model_mixup_alpha",
    "flip",
    "soft_labels",
]
BELOW_1 = ["adam_beta1", "adam_beta2"]


def out_of_range(name: str, value: Any) -> str | None:
    """Return what is wrong with the number of an option, `None` if nothing is known to be."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if math.isnan(value):
        return "is not a number (nan)"
    if isinstance(value, int) and abs(value) > LARGEST:
        return f"is {value}, more than any library can count"
    for names, holds, expected in (
        (AT_LEAST_1, value >= 1, "at least 1"),
        (AT_LEAST_0, 0 <= value < math.inf, "at least 0, and finite"),
        (ABOVE_0, 0 < value < math.inf, "above 0, and finite"),
        (SHARES, 0 <= value <= 1, "between 0 and 1"),
        (BELOW_1, 0 <= value < 1, "at least 0 and below 1"),
        (("top_p",), 0 < value <= 1, "above 0 and at most 1"),
        (("seed", "data_seed"), 0 <= value <= LARGEST_SEED, f"between 0 and {LARGEST_SEED}"),
    ):
        if name in names and not holds:
            return f"must be {expected}, got {value}"
    return None


def refused(values: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the first option whose number cannot be, and what is wrong with it; `None` if all can.

    Args:
        values (`Mapping[str, Any]`): options by name.
    """
    for name, value in values.items():
        problem = out_of_range(name, value)
        if problem is not None:
            return name, f"`{name}` {problem}"
    return None
