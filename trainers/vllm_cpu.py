"""What vLLM's CPU build has to be told, wherever an engine of it is made. Imports neither vLLM nor TRL."""

import os

import torch


def engine_options(dtype: torch.dtype | str) -> dict[str, object]:
    """Return the options of `vllm.LLM` for a CPU, and set the environment that it reads.

    Args:
        dtype (`torch.dtype` or `str`): type of the weights; left to itself vLLM serves float32 in bfloat16, silently.
    """
    # Compiling takes a minute and gains nothing on models that fit a CPU.
    os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    # GiB for the cache; vLLM would take a share of the machine's memory.
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    # The prefix cache works in whole blocks, of 128 tokens by default; a multiple of 32 is what the backend can do.
    return {"dtype": dtype, "enforce_eager": True, "block_size": 32}


def pack_tied_head(model: torch.nn.Module) -> None:
    """Pack a tied output head anew after its weights were loaded.

    vLLM's CPU backend computes with a packed copy of each matrix. Loading packs a layer's copy anew when its own
    weight arrives, but a tied head has none: without this it goes on answering with the first weights.

    Args:
        model (`torch.nn.Module`): vLLM's model; on a GPU nothing in it is packed and nothing happens.
    """
    for layer in model.modules():
        if type(layer).__name__ == "ParallelLMHead" and hasattr(layer, "cpu_linear"):
            layer.quant_method.process_weights_after_loading(layer)
