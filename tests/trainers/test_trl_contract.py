"""What metatune relies on in TRL's trainers. If one of these fails, TRL has moved: read its change first."""

import inspect

import pytest
import trl
from accelerate.utils.deepspeed import DeepSpeedEngineWrapper
from transformers import Trainer
from trl import GRPOTrainer, RewardTrainer, SFTTrainer
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration

from metatune.trainers import MetaRewardTrainer, MetaTrainer
from metatune.trainers.sft_trainer import SFTTrainer as OurSFTTrainer

HOOKED = {
    "_generate_and_score_completions": ["self", "inputs"],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_generate": ["self", "prompts"],
    "_generate_single_turn": [
        "self",
        "prompt_ids",
        "images",
        "multimodal_fields",
        "num_generations",
        "has_tool_images",
    ],
    "_prepare_inputs": ["self", "generation_batch"],
    "_tokenize_prompts": ["self", "prompts"],
    "get_eval_dataloader": ["self", "eval_dataset"],
    "log": ["self", "logs", "start_time"],
    "create_model_card": ["self", "model_name", "dataset_name", "tags"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_save_rng_state": ["self", "output_dir"],
    "_load_optimizer_and_scheduler": ["self", "checkpoint"],
    "_issue_warnings_after_load": ["self", "load_result"],
    "_get_grad_norm": ["self", "model", "grad_norm"],
    "save_model": ["self", "output_dir", "_internal_call"],
}


# Of `Trainer`, for all of ours.
CHECKPOINTS = {
    name: HOOKED[name]
    for name in (
        *("_save_checkpoint", "_save_rng_state", "_load_optimizer_and_scheduler"),
        *("_issue_warnings_after_load", "create_model_card"),
    )
}
FINITE = {name: HOOKED[name] for name in ("_get_grad_norm", "save_model")}


def test_trl_is_the_minor_version_that_was_read():
    assert trl.__version__.startswith("1.16.")


@pytest.mark.parametrize("method", HOOKED)
def test_a_hooked_method_has_the_signature_that_was_read(method):
    assert list(inspect.signature(getattr(GRPOTrainer, method)).parameters) == HOOKED[method]


def overridden(trainer: type, theirs: type) -> set[str]:
    """What the classes of ours that a trainer is made of, wherever they stand, override of TRL's trainer."""
    ours = [each for each in trainer.__mro__ if each.__module__.startswith("metatune.")]
    return {
        name
        for each in ours
        for name, value in vars(each).items()
        if callable(value) and name != "__init__" and hasattr(theirs, name)
    }


def test_only_the_listed_methods_are_overridden():
    assert overridden(MetaTrainer, GRPOTrainer) == set(HOOKED)  # it is made of all trainers over GRPO


def test_nothing_of_the_sft_trainer_is_overridden_but_how_it_saves_and_stops():
    assert overridden(OurSFTTrainer, SFTTrainer) == {*CHECKPOINTS, *FINITE}


def test_the_gradient_norm_is_taken_once_per_step_before_the_update():
    source = inspect.getsource(Trainer._run_epoch)
    order = ("self._tr_loss += tr_loss_step", "= self._get_grad_norm(", "self.optimizer.step()", "_maybe_log_save")
    assert [source.index(call) for call in order] == sorted(source.index(call) for call in order)
    assert source.count("_get_grad_norm(") == 1
    assert "self.save_model(output_dir, _internal_call=True)" in inspect.getsource(Trainer._save_checkpoint)


@pytest.mark.parametrize(
    ("method", "fragments"),
    [
        # The reward matrix that is kept is the gathered one.
        ("_calculate_rewards", ["gather(rewards_per_func)", "return rewards_per_func"]),
        # Forced answers are scored by the gold reward alone: these three lists are all that names a function.
        (
            "_calculate_rewards",
            [
                "zip(self.reward_funcs, self.reward_processing_classes, self.reward_func_names, strict=True)",
                "rewards_per_func = torch.zeros(len(prompts), len(self.reward_funcs), device=device)",
            ],
        ),
        # Groups are contiguous and the advantages that come back are this rank's slice.
        ("_generate_and_score_completions", ["advantages = advantages[process_slice]", '"advantages": advantages']),
        # Advantages may have a number for every token.
        ("_compute_loss", ["if advantages.dim() == 1:", "advantages = advantages.unsqueeze(1)"]),
        # What is appended to a prompt's ids is generated from, and is no part of the completion.
        ("_generate", ["prompt_ids, images, multimodal_fields = self._tokenize_prompts(prompts)"]),
        # Forced answers are bounded through these.
        ("__init__", ['"max_new_tokens": self.max_completion_length', "self.max_completion_length = args.max_comp"]),
        # The rollouts wait in `_buffered_inputs` and `_step` says which slice is next.
        ("_prepare_inputs", ["self._buffered_inputs[self._step % self.args.steps_per_generation]"]),
        ("training_step", ["self._step += 1"]),
        # The sync's time is taken by wrapping this method of the engine, inside the generation.
        ("_generate_single_turn", ["self.vllm_generation.sync_weights()", "self.vllm_generation.generate("]),
        # What reward functions log of forced answers is taken back before it is counted with the next rollouts.
        ("__init__", ["self._pending_extra_logs = defaultdict", "self._pending_metrics = defaultdict"]),
        # The entropy controller's state, which is saved with the run's own.
        ("_load_optimizer_and_scheduler", ["self.entropy_coef = state", "self._last_world_entropy = state"]),
        # Evaluation metrics are cleared when they are logged, which is how an evaluation's end is told.
        ("log", ["self._metrics[mode].clear()"]),
    ],
)
def test_a_method_still_does_what_is_built_on(method, fragments):
    source = inspect.getsource(getattr(GRPOTrainer, method))
    for fragment in fragments:
        assert fragment in source


def test_the_trainer_state_is_written_last_in_a_checkpoint():
    source = inspect.getsource(Trainer._save_checkpoint)
    order = ("self.save_model", "self._save_rng_state", "save_to_json", "rotate_checkpoints")
    assert [source.index(call) for call in order] == sorted(source.index(call) for call in order)


@pytest.mark.parametrize("trainer", [SFTTrainer, RewardTrainer])
def test_tokens_are_counted_where_it_was_read(trainer):
    source = inspect.getsource(trainer)
    assert "self._total_train_tokens = 0" in source and '["num_tokens"] = [self._total_train_tokens]' in source
    assert "num_input_tokens_seen" not in source


@pytest.mark.parametrize(
    ("owner", "fragments"),
    [
        # The engine's class is looked up in the trainer's module when the trainer is constructed.
        (GRPOTrainer.__init__, ["self.vllm_generation = VLLMGeneration(", "accelerator=self.accelerator"]),
        # So are the engine and the client that it makes.
        (
            VLLMGeneration._init_vllm,
            ["self.llm = LLM(", "self.vllm_client = VLLMClient(", "init_communicator(device="],
        ),
        # Weights come one by one, gathered, under vLLM's names; the prefix cache is reset after them.
        (
            VLLMGeneration._iter_named_params,
            ["gather_params([param])", "model.merge_adapter()", "yield name, param.data"],
        ),
        (VLLMGeneration.sync_weights, ["vllm_client.update_named_params(", "reset_prefix_cache()"]),
        (
            VLLMClient.update_named_params,
            ["self._start_weight_update()", "/update_weights", "_finish_weight_update()"],
        ),
    ],
)
def test_vllm_rollouts_still_do_what_is_built_on(owner, fragments):
    source = inspect.getsource(owner)
    for fragment in fragments:
        assert fragment in source


HOOKED_IN_VLLM = {
    VLLMGeneration: {"_init_vllm", "generate", "sync_weights"},
    VLLMClient: {"init_communicator", "update_named_params", "close_communicator"},
}


@pytest.mark.parametrize("theirs", HOOKED_IN_VLLM)
def test_what_vllm_rollouts_override_is_there(theirs):
    assert all(callable(getattr(theirs, method)) for method in HOOKED_IN_VLLM[theirs])


@pytest.mark.needs("vllm")
def test_vllm_rollouts_override_nothing_else():
    from metatune.trainers.vllm_rollouts import GlooVLLMClient, Rollouts

    assert overridden(Rollouts, VLLMGeneration) == HOOKED_IN_VLLM[VLLMGeneration]
    assert overridden(GlooVLLMClient, VLLMClient) == HOOKED_IN_VLLM[VLLMClient]


# ---- the reward trainer ----

HOOKED_IN_REWARD = {
    "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    "training_step": ["self", "args", "kwargs"],
    "_set_signature_columns_if_needed": ["self"],
    "_save": ["self", "output_dir", "state_dict"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "_load_best_model": ["self"],
}


@pytest.mark.parametrize("method", HOOKED_IN_REWARD)
def test_a_hooked_method_of_the_reward_trainer_has_the_signature_that_was_read(method):
    assert list(inspect.signature(getattr(RewardTrainer, method)).parameters) == HOOKED_IN_REWARD[method]


def test_only_the_listed_methods_of_the_reward_trainer_are_overridden():
    assert overridden(MetaRewardTrainer, RewardTrainer) == {*HOOKED_IN_REWARD, *CHECKPOINTS, *FINITE}


@pytest.mark.parametrize("trainer", [RewardTrainer, SFTTrainer])
@pytest.mark.parametrize("method", CHECKPOINTS)
def test_checkpoints_of_other_trainers_are_saved_by_the_same_methods(trainer, method):
    assert list(inspect.signature(getattr(trainer, method)).parameters) == CHECKPOINTS[method]


@pytest.mark.parametrize(
    ("owner", "fragments"),
    [
        # Soft targets are a term on this loss, and two views are rows of its halves.
        (
            RewardTrainer.compute_loss,
            [
                'rewards_chosen - rewards_rejected - inputs["margin"]',
                "torch.chunk(outputs.logits.squeeze(-1), chunks=2)",
            ],
        ),
        # The arguments that ours passes on by position.
        (RewardTrainer.__init__, ["data_collator: DataCollator | None = None,\n        train_dataset:"]),
        # The move is undone when the engine steps, which is here.
        (DeepSpeedEngineWrapper.backward, ["self.engine.step()"]),
    ],
)
def test_reward_models_still_do_what_is_built_on(owner, fragments):
    source = inspect.getsource(owner)
    for fragment in fragments:
        assert fragment in source
