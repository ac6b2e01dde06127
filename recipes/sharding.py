"""DeepSpeed ZeRO-3 without its silent trap: parameters that are never sharded.

DeepSpeed keeps every parameter of up to 100,000 numbers whole on every process, so of a small model it shards nothing
and says nothing. accelerate's YAML cannot set that threshold; here it follows the model's width instead, and a line
tells what was sharded.
"""

from transformers import TrainerCallback, TrainingArguments


def shard_small_parameters(training_args: TrainingArguments) -> None:
    """Make ZeRO-3 keep whole only what is as small as a few vectors; call it before the trainer is built.

    A threshold that the launcher's DeepSpeed configuration sets is left alone.
    """
    plugin = training_args.deepspeed_plugin
    if plugin is None or plugin.zero_stage != 3:
        return
    # `Trainer` replaces auto by ten times the hidden size.
    plugin.deepspeed_config["zero_optimization"].setdefault("stage3_param_persistence_threshold", "auto")


class ShardingReport(TrainerCallback):
    """Says after the first optimizer step, on the first process, how much of the model ZeRO-3 has sharded."""

    def __init__(self):
        self._told = False

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if self._told:
            return
        self._told = True
        parameters = [p for p in model.parameters() if hasattr(p, "ds_numel")]
        if parameters and state.is_world_process_zero:
            # Between steps a sharded parameter is empty here: its numbers lie in its own process's shard.
            sharded = [p for p in parameters if p.numel() == 0 and p.ds_tensor.numel() < p.ds_numel]
            share = sum(p.ds_numel for p in sharded) / sum(p.ds_numel for p in parameters)
            print(
                f"ZeRO-3 shards {len(sharded)} of {len(parameters)} parameters, {share:.1%} of the weights, "
                f"over {args.world_size} processes",
                flush=True,
            )
