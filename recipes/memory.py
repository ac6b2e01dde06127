"""How much memory a training run needs, by formula.

All figures are bytes on one process. With P parameters of which T are trained, w bytes a weight, e bytes an
activation, n processes, and ZeRO stage z:

    weights     w P                        / n if z = 3
    gradients   w T                        / n if z ≥ 2
    optimizer   2 w T  (AdamW's moments)   / n if z ≥ 1
                (4 + 8) T                  under DeepSpeed with half-precision weights: a float32 copy and its moments
    autocast    2 P                        half-precision copies of float32 weights under bf16 or fp16 training
    reference   w P                        a frozen copy of the model, if the loss asks for one (GRPO with beta > 0)

For B sequences of S tokens in a micro-batch, through L layers with hidden size h, intermediate size i, attention width
a (heads × head size) and key-value width k (key-value heads × head size), what a gated Transformer block (Llama, Qwen,
Mistral) keeps for its backward pass, attention without stored score matrices (sdpa, flash):

    activations e B S L (6 h + 3 a + 2 k + 4 i)          without gradient checkpointing
                e B S L h                                with it: each block's input
    recomputed  e B S (6 h + 3 a + 2 k + 4 i)            with it: one block in full, after the logits are gone
    logits      (2 e + 4) B C V                          C positions with a loss, vocabulary V: logits, their float32
                                                         log-softmax and their gradient

For R sequences generated at once, prompt and completion G tokens together:

    kv cache    2 w R G L k                               none with vLLM, which takes its own share of the device

Training and generation take turns, so that

    peak = weights + gradients + optimizer + reference + max(training, kv cache)
    training = autocast + activations + max(logits, recomputed)

The measured peak of a step of small Llama models in float32, with and without gradient checkpointing, is 0.65 to 1.05
of this, the closer the larger the batch. Not counted: the device's context, fragmentation, temporary buffers of single
operations, datasets, and, on a CPU, the Python process itself (about 1 GB with torch and TRL).
"""

from dataclasses import asdict, dataclass


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
    """

    parameters: int
    trainable: int
    layers: int
    hidden: int
    intermediate: int
    attention_width: int
    key_value_width: int
    vocabulary: int


@dataclass(frozen=True)
class Workload:
    """What the formulas need to know of a run, all on one process.

    Args:
        weight_bytes (`int`): bytes a weight w.
        activation_bytes (`int`): bytes an activation e.
        batch (`int`): sequences in a micro-batch B.
        length (`int`): tokens in a sequence S.
        loss_positions (`int`): positions of a sequence whose logits are computed C.
        generated (`int`, *optional*, defaults to `0`): sequences generated at once R; 0 if another engine does it.
        generated_length (`int`, *optional*, defaults to `0`): tokens of prompt and completion G.
        gradient_checkpointing (`bool`, *optional*, defaults to `False`): recompute blocks in the backward pass.
        reference_model (`bool`, *optional*, defaults to `False`): keep a frozen copy of the model.
        processes (`int`, *optional*, defaults to `1`): number of processes n.
        deepspeed (`bool`, *optional*, defaults to `False`): DeepSpeed keeps the optimizer.
        zero_stage (`int`, *optional*, defaults to `0`): ZeRO stage z.
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


@dataclass(frozen=True)
class Estimate:
    """Bytes by purpose on one process; `peak` is the most that is held at one time."""

    weights: int
    gradients: int
    optimizer: int
    autocast: int
    reference: int
    activations: int
    recomputed: int
    logits: int
    kv_cache: int

    @property
    def peak(self) -> int:
        """The larger of training and generation, which take turns."""
        static = self.weights + self.gradients + self.optimizer + self.reference
        training = self.autocast + self.activations + max(self.logits, self.recomputed)
        return static + max(training, self.kv_cache)

    def as_dict(self) -> dict[str, int]:
        """Return every figure by name, `peak` last."""
        return {**asdict(self), "peak": self.peak}


def estimate(model: ModelShape, work: Workload) -> Estimate:
    """Estimate the memory of one process; the formulas are at the top of this file."""

    def shard(total: int, from_stage: int) -> int:
        return -(-total // work.processes) if work.zero_stage >= from_stage else total

    w, e = work.weight_bytes, work.activation_bytes
    optimizer_bytes = 12 if work.deepspeed and w < 4 else 2 * w
    attention = 3 * model.attention_width + 2 * model.key_value_width
    block = 6 * model.hidden + attention + 4 * model.intermediate
    kept = model.layers * (model.hidden if work.gradient_checkpointing else block)
    token_bytes = e * work.batch * work.length
    return Estimate(
        weights=shard(w * model.parameters, 3),
        gradients=shard(w * model.trainable, 2),
        optimizer=shard(optimizer_bytes * model.trainable, 1),
        autocast=e * model.parameters if e < w else 0,
        reference=shard(w * model.parameters, 3) if work.reference_model else 0,
        activations=token_bytes * kept,
        recomputed=token_bytes * block if work.gradient_checkpointing else 0,
        logits=(2 * e + 4) * work.batch * work.loss_positions * model.vocabulary,
        kv_cache=2 * w * work.generated * work.generated_length * model.layers * model.key_value_width,
    )


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
    )
