"""The command line that `metatune vllm-serve` becomes."""

import json

import pytest

from metatune.recipes.config import ConfigError
from metatune.recipes.vllm_serve import SERVER, command


def options(line: list[str]) -> dict[str, str | None]:
    """Read a command line as a mapping."""
    assert line[:2] == ["-m", SERVER]
    values, rest = {}, line[2:]
    for index, word in enumerate(rest):
        if word.startswith("--") and "=" in word:
            values.update([word.split("=", 1)])
        elif word.startswith("--"):
            follows = rest[index + 1] if index + 1 < len(rest) else "--"
            values[word] = None if follows.startswith("--") else follows
    return values


@pytest.fixture
def recipe(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_a_gpu_server_gets_what_weight_sync_needs():
    values = options(command(["--model", "Qwen/Qwen2.5-7B", "--tensor_parallel_size", "2"], on_cpu=False))
    assert values == {
        "--model": "Qwen/Qwen2.5-7B",
        "--tensor-parallel-size": "2",
        "--host": "127.0.0.1",
        "--weight-transfer-config": '{"backend": "nccl"}',
        "--logprobs-mode": "processed_logprobs",
        "--max-logprobs": "-1",
    }


def test_a_cpu_server_computes_as_the_trainer_does():
    values = options(command(["--model=some/model"], on_cpu=True))
    assert json.loads(values["--weight-transfer-config"]) == {"backend": "gloo"}
    assert values["--dtype"] == "float32" and "--enforce-eager" in values


def test_what_is_given_wins():
    values = options(command(["--model", "m", "--host", "0.0.0.0", "--max_logprobs=5"], on_cpu=False))
    assert values["--host"] == "0.0.0.0" and values["--max-logprobs"] == "5"


def test_a_recipe_names_model_port_and_transfer(recipe):
    path = recipe(
        "model_name_or_path: org/model\nuse_vllm: true\nvllm_mode: server\nvllm_server_port: 9000\n"
        "vllm_max_model_length: 2048\nvllm_weight_transfer: gloo\n"
    )
    values = options(command(["--config", path, "--port", "9001"], on_cpu=False))
    assert values["--model"] == "org/model" and values["--port"] == "9001"
    assert values["--max-model-len"] == "2048"
    assert json.loads(values["--weight-transfer-config"]) == {"backend": "gloo"}
    assert "--config" not in values


def test_a_recipe_names_the_server_s_address_and_the_model_s_revision(recipe):
    path = recipe(
        "model_name_or_path: org/model\nmodel_revision: v2\nuse_vllm: true\nvllm_mode: server\n"
        "vllm_server_base_url: http://node-a:8123\n"
    )
    values = options(command(["--config", path], on_cpu=False))
    assert values["--port"] == "8123" and values["--revision"] == "v2"


def test_the_starter_is_known_by_name():
    assert options(command(["--model", "starter"], on_cpu=True))["--model"].endswith("starter")


def test_refusals(recipe):
    with pytest.raises(ConfigError, match="name the model"):
        command(["--port", "8000"], on_cpu=True)
    with pytest.raises(ConfigError, match="uses no server"):
        command(["--config", recipe("model_name_or_path: m\n")], on_cpu=True)
    with pytest.raises(ConfigError, match="give `model_name_or_path`"):
        command(["--config", recipe("use_vllm: true\nvllm_mode: server\n")], on_cpu=True)
