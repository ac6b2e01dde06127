"""How much memory a training run needs, by formula.

All figures are bytes on one process. With P parameters of which T are trained, w bytes a weight, e bytes an
activation, n processes, and ZeRO stage z:

    weights     w P                        / n if z = 3
    gradients   w T                        / n if z ≥ 2
    optimizer   2 w T  (AdamW's moments)   / n if z ≥ 1
                (4 + 4 + 8) T              under DeepSpeed with half-precision weights: float32 copies of weights and
                                           gradients, and the moments (DeepSpeed's own count, `zero.stage_1_and_2`)
    autocast    2 P                        half-precision copies of float32 weights under bf16 or fp16 training
    gathered    w min(P, 10^9)             z = 3: parameters in use at a time (`stage3_max_live_parameters`)
    reference   w P                        / n if z = 3; a frozen copy, if the loss asks for one (GRPO with beta > 0)

DeepSpeed can offload the optimizer to the machine's memory, with the gradients, and under ZeRO-3 the weights too; they
then count as `host` and not on the device.

For B sequences of S tokens in a micro-batch, through L layers with hidden size h, intermediate size i, attention width
a (heads × head size) and key-value width k (key-value heads × head size), what a gated Transformer block (Llama, Qwen,
Mistral) keeps of a token for its backward pass, attention without stored score matrices (sdpa, flash):

    kept        (2 n + l) h + m n (a + k) + e (2 a + 2 k + 4 i)
    n           8, or 6 with half-precision weights: a norm computes in float32, whatever it is given
    l           2 e, or 5 e under autocast, which casts what q, k, v, gate and up are given for each of them
    m           1 if queries and keys have norms (Qwen3), of what autocast gives them, else 0

The blocks hand on what has the type of the weights, which under autocast is float32. So:

    activations kept B S L                               without gradient checkpointing
                w B S L h                                with it: each block's input
    block       3 e B S i                                the block in its backward pass: three gradients of its MLP
                + kept B S                               with checkpointing, recomputed
    head        4 h (B C + V) + min(B C, 4096) (32768 e + t min(V, 32768))

The head is TRL's, which never holds the logits of all C positions with a loss over the vocabulary V: float32 gradients
of the hidden states and, unless frozen, of the head's weights, and one tile of logits; t is 0 on a GPU, where a kernel
works in place, and 28 on a CPU, where seven float32 tensors of the tile's shape are alive at once.

For R sequences generated at once by transformers, prompt and completion G tokens together:

    kv cache    2 w R G L k                               plus w P if z = 3 and the weights are gathered to generate

vLLM in the same process (colocate) takes a share of the device that its options fix, and in sleep mode gives it back
while the model is trained:

    peak = weights + gradients + optimizer + reference + max(training, rollout)       rollout: kv cache, or the share
    training = gathered + activations + autocast + max(head, block)                   plus the share without sleep
               gathered + activations + max(autocast, head, block)                    with checkpointing

since with checkpointing the copies of autocast go as the forward pass ends. `docs/gpu.md` compares it with a GPU. Not
counted: the device's context (about 1 GiB), communication buffers, fragmentation, temporary buffers of single
operations, datasets, and, on a CPU, the Python process itself (about 1 GB with torch and TRL).
"""

from dataclasses import asdict, dataclass

LIVE_PARAMETERS = 10**9  # DeepSpeed's default
TILE_TOKENS, TILE_VOCABULARY = 4096, 32768  # TRL's tiles of logits (trl.kernels.chunked_logprob, trl.trainer.utils)


@dataclass(frozen=True)
class ModelShape:
    """What the formulas need to know of a model.

    Args:
        parameters (`int`): number of parameters P, tied ones counted once.
        trainable (`int`): number of trained parameters T; P without adapters.
        layers (`int`): number of blocks L.
        hidden (`int`): hidden size h.
        intermediate (`int`): intermediate size i of the MLP.
        attention_width (`int`): attention heads × head size, a.
        key_value_width (`int`): key-value heads × head size, k.
        vocabulary (`int`): size of the vocabulary V.
        query_key_norms (`bool`, *optional*, defaults to `False`): whether queries and keys have norms.
    """

    parameters: int
    trainable: int
    layers: int
    hidden: int
    intermediate: int
    attention_width: int
    key_value_width: int
    vocabulary: int
    query_key_norms: bool = False


@dataclass(frozen=True)
class Workload:
    """What the formulas need to know of a run, all on one process.

    Args:
        weight_bytes (`int`): bytes a weight w.
        activation_bytes (`int`): bytes an activation e.
        batch (`int`): sequences in a micro-batch B.
        length (`int`): tokens in a sequence S.
        loss_positions (`int`): positions of a sequence that the head scores C; 0 if the loss has no head.
        generated (`int`, *optional*, defaults to `0`): sequences generated at once R; 0 if another engine does it.
        generated_length (`int`, *optional*, defaults to `0`): tokens of prompt and completion G.
        gradient_checkpointing (`bool`, *optional*, defaults to `False`): recompute blocks in the backward pass.
        reference_model (`bool`, *optional*, defaults to `False`): keep a frozen copy of the model.
        processes (`int`, *optional*, defaults to `1`): number of processes n.
        deepspeed (`bool`, *optional*, defaults to `False`): DeepSpeed keeps the optimizer.
        zero_stage (`int`, *optional*, defaults to `0`): ZeRO stage z.
        gather_to_generate (`bool`, *optional*, defaults to `True`): under ZeRO-3, gather all weights to generate.
        offload_optimizer (`bool`, *optional*, defaults to `False`): optimizer and gradients in the machine's memory.
        offload_parameters (`bool`, *optional*, defaults to `False`): weights in the machine's memory (ZeRO-3).
        engine_share (`int`, *optional*, defaults to `0`): bytes of the device that vLLM takes.
        engine_sleeps (`bool`, *optional*, defaults to `False`): vLLM gives its share back while the model is trained.
        on_gpu (`bool`, *optional*, defaults to `False`): TRL's head runs its GPU kernels.
    """

    weight_bytes: int
    activation_bytes: int
    batch: int
    length: int
    loss_positions: int
    generated: int = 0
    generated_length: int = 0
    gradient_checkpointing: bool = False
    reference_model: bool = False
    processes: int = 1
    deepspeed: bool = False
    zero_stage: int = 0
    gather_to_generate: bool = True
    offload_optimizer: bool = False
    offload_parameters: bool = False
    engine_share: int = 0
    engine_sleeps: bool = False
    on_gpu: bool = False


@dataclass(frozen=True)
class Estimate:
    """Bytes by purpose on one process; `peak` is the most its device holds at one time, `host` is beside it."""

    weights: int
    gradients: int
    optimizer: int
    reference: int
    gathered: int
    autocast: int
    activations: int
    block: int
    head: int
    kv_cache: int
    engine: int
    engine_sleeps: bool
    gradient_checkpointing: bool
    host: int

    @property
    def peak(self) -> int:
        """The larger of training and generation, which take turns."""
        static = self.weights + self.gradients + self.optimizer + self.reference
        backward = max(self.head, self.block)
        passes = max(self.autocast, backward) if self.gradient_checkpointing else self.autocast + backward
        training = self.gathered + self.activations + passes
        if self.engine and not self.engine_sleeps:
            return static + training + self.engine
        return static + max(training, self.kv_cache, self.engine)

    def as_dict(self) -> dict[str, int]:
        """Return every figure in bytes by name, `peak` and then `host` last."""
        figures = asdict(self)
        host = figures.pop("host")
        del figures["engine_sleeps"], figures["gradient_checkpointing"]
        return {**figures, "peak": self.peak, "host": host}


def estimate(model: ModelShape, work: Workload) -> Estimate:
    """Estimate the memory of one process; the formulas are at the top of this file."""

    def shard(total: int, from_stage: int) -> int:
        return -(-total // work.processes) if work.zero_stage >= from_stage else total

    w, e, stage_3 = work.weight_bytes, work.activation_bytes, work.zero_stage == 3
    weights = shard(w * model.parameters, 3)
    gradients = shard(w * model.trainable, 2)
    optimizer = shard((16 if work.deepspeed and w < 4 else 2 * w) * model.trainable, 1)
    host = (optimizer if work.offload_optimizer else 0) + (weights if work.offload_parameters else 0)

    tokens, kept = work.batch * work.length, kept_bytes(model, work)
    mlp_gradients = 3 * e * model.intermediate
    cache = 2 * w * work.generated * work.generated_length * model.layers * model.key_value_width
    gathers = stage_3 and work.gather_to_generate and work.generated > 0
    return Estimate(
        weights=0 if work.offload_parameters else weights,
        gradients=0 if work.offload_optimizer else gradients,
        optimizer=0 if work.offload_optimizer else optimizer,
        reference=shard(w * model.parameters, 3) if work.reference_model else 0,
        gathered=w * min(model.parameters, LIVE_PARAMETERS) if stage_3 else 0,
        autocast=e * model.parameters if e < w else 0,
        activations=tokens * model.layers * (w * model.hidden if work.gradient_checkpointing else kept),
        block=tokens * (mlp_gradients + (kept if work.gradient_checkpointing else 0)),
        head=head_bytes(model, work),
        kv_cache=cache + (w * model.parameters if gathers else 0),
        engine=work.engine_share,
        engine_sleeps=work.engine_sleeps,
        gradient_checkpointing=work.gradient_checkpointing,
        host=host,
    )


def kept_bytes(model: ModelShape, work: Workload) -> int:
    """Count what a block keeps of one token for its backward pass."""
    w, e = work.weight_bytes, work.activation_bytes
    attention = model.attention_width + model.key_value_width
    norm, heads_norm = (8 if size == 4 else 6 for size in (w, e))
    inputs = (5 if e < w else 2) * e
    kept = (2 * norm + inputs) * model.hidden + e * (2 * attention + 4 * model.intermediate)
    return kept + (heads_norm * attention if model.query_key_norms else 0)


def head_bytes(model: ModelShape, work: Workload) -> int:
    """Estimate what TRL's fused head holds in its backward pass."""
    positions = work.batch * work.loss_positions
    if positions == 0:
        return 0
    head_gradient = model.vocabulary if model.trainable == model.parameters else 0
    copies = 0 if work.on_gpu else 28 * min(model.vocabulary, TILE_VOCABULARY)
    tile = min(positions, TILE_TOKENS) * (work.activation_bytes * TILE_VOCABULARY + copies)
    return 4 * model.hidden * (positions + head_gradient) + tile


def shape_of(config, peft_config=None) -> ModelShape:
    """Read the shape of a model off its transformers configuration, without allocating it.

    Args:
        config (`PreTrainedConfig`): configuration of a causal language model.
        peft_config (`PeftConfig`, *optional*): adapters; then only they are trained.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        if peft_config is not None:
            from peft import get_peft_model

            model = get_peft_model(model, peft_config)
    text = config.get_text_config()
    heads = text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    return ModelShape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trainable=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        attention_width=heads * head_size,
        key_value_width=(getattr(text, "num_key_value_heads", None) or heads) * head_size,
        vocabulary=text.vocab_size,
        query_key_norms=any(name.endswith("q_norm.weight") for name, _ in model.named_parameters()),
    )
