"""vLLM rollouts where TRL alone does not manage: on a CPU, and over gloo.

On GPUs TRL's own `VLLMGeneration` and NCCL do everything and nothing here replaces them, except that the engine of a
colocated run counts its prefix cache. On a CPU three things differ:

- TRL gives the engine no dtype, and vLLM then serves a float32 checkpoint in bfloat16 without a word.
- TRL writes new weights into the engine's parameters one by one; vLLM's CPU backend computes with packed copies, which
  only its reload packs anew, and not that of a tied head (`pack_tied_head`).
- TRL's client sends weights to a server by NCCL; here they go over gloo. The option `vllm_weight_transfer: gloo`
  chooses that for GPUs too, where NCCL does not reach the server.

TRL's trainer has no factory for its engine: the name it uses is replaced while the trainer is constructed.
"""

import atexit
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from unittest.mock import patch

import torch
from trl.generation import vllm_generation
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer import grpo_trainer

from .gloo_weight_transfer import broadcast, open_group
from .server_watch import check_model, check_port, wait_for_server, watched
from .throughput import prefix_cache_counters, prefix_cache_counters_of_server
from .vllm_cpu import engine_options, pack_tied_head


class GlooVLLMClient(VLLMClient):
    """TRL's client of a vLLM server, with weights sent over gloo."""

    def init_communicator(self, device: torch.device | str | int = "cpu") -> None:
        """Open the group of the trainer and the server's workers.

        Raises:
            RuntimeError: if the server was started without the gloo backend, or its workers do not come.
        """
        config = self.get_server_info()["weight_transfer_config"] or {}
        if config.get("backend") != "gloo":
            raise RuntimeError(
                f"the vLLM server at {self.base_url} takes weights by {config.get('backend') or 'no means'}, this run "
                "sends them over gloo: start it with `metatune vllm-serve`, or with --weight-transfer-config "
                """'{"backend": "gloo"}'"""
            )
        world_size = 1 + self.get_world_size()
        address = address_towards(self.host)
        init_info = {"master_address": address, "master_port": self.group_port, "world_size": world_size}
        # The workers join while the server handles the request, so both sides must be under way at once.
        with ThreadPoolExecutor(max_workers=1) as executor:
            joined = executor.submit(
                self._post, f"{self.base_url}/init_weight_transfer_engine", json={"init_info": init_info}
            )
            self.communicator = open_group(address, self.group_port, rank=0, world_size=world_size)
            joined.result()
        atexit.register(self.close_communicator)

    def update_named_params(
        self, metadata: list[tuple[str, str, list[int]]], named_params: Iterator[tuple[str, torch.Tensor]]
    ) -> None:
        """Announce the weights to the server, then broadcast them in the same order."""
        names, dtypes, shapes = (list(column) for column in zip(*metadata, strict=True))
        update_info = {"names": names, "dtype_names": dtypes, "shapes": shapes}
        grouped = self._updating_weights
        if not grouped:
            self._start_weight_update()
        with ThreadPoolExecutor(max_workers=1) as executor:
            received = executor.submit(
                self._post, f"{self.base_url}/update_weights", json={"update_info": update_info}
            )
            for _, weight in named_params:
                if received.done():  # the server has refused, and will not answer the broadcast
                    received.result()
                broadcast(self.communicator, weight.detach().to("cpu").contiguous())
            received.result()
        if not grouped:
            self._finish_weight_update()

    def close_communicator(self) -> None:
        """Leave the group."""
        self.communicator = None


def address_towards(host: str) -> str:
    """Return the address under which `host` can reach this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # no packet is sent: the route alone decides the address
        return probe.getsockname()[0]


class Rollouts(VLLMGeneration):
    """TRL's vLLM generation, on a CPU too.

    Args:
        weight_transfer (`str`, *optional*, defaults to `"auto"`): how weights reach a server: `nccl`, `gloo`, or
            `auto`, which is gloo on a CPU and NCCL elsewhere.
        **kwargs: as for TRL's `VLLMGeneration`.
    """

    def __init__(self, *, weight_transfer: str = "auto", **kwargs):
        refuse_tied_adapters(kwargs["model"])
        self.on_cpu = kwargs["accelerator"].device.type == "cpu"
        self.gloo = weight_transfer == "gloo" or (weight_transfer == "auto" and self.on_cpu)
        super().__init__(**kwargs)

    def _init_vllm(self) -> None:
        options: dict[str, object] = {"disable_log_stats": False}  # or the prefix cache's hits are not counted
        if self.on_cpu:
            options |= engine_options(self.model.dtype)
        client = GlooVLLMClient if self.gloo else VLLMClient
        with (
            patch.object(vllm_generation, "LLM", partial(vllm_generation.LLM, **options)),
            patch.object(vllm_generation, "VLLMClient", client),
            self._server_watched(),
        ):
            super()._init_vllm()

    def _server_watched(self):
        """Return a context that ends the run if the server that it depends on is gone."""
        if self.mode != "server" or not self.accelerator.is_main_process:
            return nullcontext()
        url = self.server_base_url or f"http://{self.server_host}:{self.server_port}"
        if not hasattr(self, "vllm_client"):
            wait_for_server(url, self.server_timeout)
            check_model(url, self.model.name_or_path)
            check_port(self.group_port)
        return watched(url)

    def generate(self, *args, **kwargs) -> tuple:
        """Generate as TRL does; see [`VLLMGeneration.generate`]."""
        with self._server_watched():
            return super().generate(*args, **kwargs)

    def sync_weights(self) -> None:
        """Load the trained weights into the engine and forget the cached prefixes of the old ones."""
        if self.mode == "server" or not self.on_cpu:
            with self._server_watched():
                return super().sync_weights()
        # Copies: a gathered (ZeRO-3) or merged (LoRA) weight is gone or changed before the engine packs it.
        weights = ((name, weight.detach().clone()) for name, weight in self._iter_named_params())
        worker = self.llm.llm_engine.model_executor.driver_worker
        worker.reload_weights(weights_iterator=weights)
        pack_tied_head(worker.model_runner.model)
        self.llm.reset_prefix_cache()

    def prefix_cache_counters(self) -> tuple[float, float] | None:
        """Return the prompt tokens that were looked up in the prefix cache and those found, since the engine began.

        `None` on the processes that do not talk to the server.
        """
        if self.mode == "colocate":
            return prefix_cache_counters(self.llm.get_metrics())
        if not self.accelerator.is_main_process:
            return None
        with self._server_watched():
            response = self.vllm_client.session.get(f"{self.vllm_client.base_url}/metrics", timeout=30)
        return prefix_cache_counters_of_server(response.text)


def refuse_tied_adapters(model: torch.nn.Module) -> None:
    """Raise `ValueError` for adapters of embeddings that are tied: vLLM has one weight for both.

    TRL merges the adapters into the base's weights and sends those. What is merged into one of two tied embeddings
    would change the other as well.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    if not hasattr(model, "peft_config") or not model.config.get_text_config().tie_word_embeddings:
        return
    embeddings = model.get_input_embeddings()
    embeddings = getattr(embeddings, "original_module", getattr(embeddings, "base_layer", embeddings))
    adapted = [
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))
        and any(each._parameters.get("weight") is embeddings.weight for each in module.children())
    ]
    if adapted:
        raise ValueError(
            f"use_vllm: the adapter changes {' and '.join(adapted)}, of which this model ties the input and output "
            "embeddings (tie_word_embeddings), and vLLM has one weight for both: remove the embeddings from "
            "lora_target_modules and lora_modules_to_save, or set use_vllm to false"
        )


def installed_in_trl(weight_transfer: str):
    """Return a context in which TRL's trainers, when constructed, roll out by [`Rollouts`]."""
    return patch.object(grpo_trainer, "VLLMGeneration", partial(Rollouts, weight_transfer=weight_transfer))
