"""What the tests of `metatune doctor` share: small recipes, and a call that returns what is found about one."""

import pytest
from transformers import AutoConfig

from metatune.recipes.doctor import diagnose, make_parser

TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 99,
}
SFT = """
init_config: {model_type: llama, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 2,
  vocab_size: 1000, tie_word_embeddings: true}
tokenizer: starter
max_length: 64
bf16: false
use_cpu: true
gradient_checkpointing: false
save_strategy: "no"
num_processes: 2
"""
GRPO = """
dtype: float32
bf16: false
use_cpu: true
gradient_checkpointing: false
distributions: [{name: a, source: countdown}]
per_device_train_batch_size: 4
num_generations: 4
max_completion_length: 64
save_strategy: "no"
"""


def doctor(path, *args):
    """Return what `metatune doctor --config PATH ARGS` finds about the recipe."""
    return diagnose(*parsed(path, *args))["recipe"]


def parsed(path, *args):
    parsed, options = make_parser().parse_args_and_config(["--config", str(path), *map(str, args)])
    return parsed, options.recipe_args


@pytest.fixture
def sft(tmp_path):
    path = tmp_path / "sft.yaml"
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1 + 1", "completion": "2"}\n')
    path.write_text(SFT + f"dataset_name: {tmp_path}/rows.jsonl\noutput_dir: {tmp_path}\n")
    return path


@pytest.fixture
def grpo(tmp_path):
    """Write a GRPO recipe for a tiny local model, with more lines or others of the same key."""
    AutoConfig.for_model("llama", **TINY).save_pretrained(tmp_path / "model")

    def write(extra=""):
        keys = [line.split(":")[0] for line in extra.splitlines()]
        kept = [line for line in GRPO.splitlines() if line.split(":")[0] not in keys]
        kept += [f"output_dir: {tmp_path}"] if "output_dir" not in keys else []
        path = tmp_path / "grpo.yaml"
        path.write_text("\n".join([*kept, f"model_name_or_path: {tmp_path}/model", extra]))
        return path

    return write
