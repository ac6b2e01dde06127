"""GRPO whose prompts are chosen by a curriculum over task distributions (DUMP).

Before each generation batch a bandit says how many prompts every distribution contributes; the batch is generated,
scored and trained on as TRL does it; then each prompt's advantages go back to the bandit. Distributions whose groups
still disagree (large advantages) are drawn more often than those already mastered or out of reach.

    L(d) = mean |A| over the last prompts of d,   UCB(d) = L(d) + sqrt(2 ln(n + 1) / (n_d + 1)),
    P(d) = softmax(UCB(d) / temperature)                                          (arXiv 2504.09710, section 3)

What deviates from the paper or its released code, and why:

- The prompts of a batch are drawn when the batch is generated, not in a sampler: a data loader reads ahead, so a
  sampler would always act on feedback that is one batch old. The loader's own rows are only counted, never used.
- Only training rollouts reach the bandit; the released code also feeds it validation scores, as near-zero advantages.
- Within a distribution, items are drawn without replacement, reshuffled every pass.
- Every rank draws the same global batch and takes its slice, and the bandit sees the gathered groups of all ranks, so
  the ranks' bandits stay equal without any communication of their own.
- The bandit does not see completions that cannot be scored (reward `None` or NaN) or that the loss masks
  (`mask_truncated_completions`). A group with fewer than two remaining completions counts as drawn, with the value 0:
  n_d counts drawn prompts, as in the paper. With several reward functions, TRL adds a missing reward as 0; here a
  group is compared by the same functions, and completions that lack one of these rewards have no reward.
- If gold is combined with a [`JudgeReward`] or a [`RewardModelReward`], all advantages are divided by the standard
  deviation of gold, with a floor. TRL divides by that of the total, which cancels the weights of the others if gold is
  constant (`advantages.py`).
- With a judge or a reward model, the bandit can see the advantages of the gold reward alone (`curriculum_reward`).
- The bandit, the item cycles and rollouts not yet trained on are part of the checkpoint.
"""

import math
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import torch
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.data_utils import is_conversational
from trl.extras.profiling import profiling_context
from trl.models import unwrap_model_for_generation
from trl.trainer.grpo_trainer import EnvironmentFactory, RewardFunc, RolloutFunc
from trl.trainer.utils import is_async_callable

from ..curricula import ItemCycle, make_curriculum
from ..rewards import JudgeReward, RewardModelReward, correctness_reward
from ..rewards.forcing import opens_thinking
from ..rewards.guarded_reward import AsyncGuardedReward, GuardedReward
from ..rewards.rendering import Rendering
from .advantages import group_advantages, outcome_divisor, relative_to_group
from .config_conversion import config_for
from .distribution_rows import rows_by_distribution
from .dump_config import DUMPConfig
from .finite_training import FiniteTraining
from .generation import sample_completions
from .length_grouping import group_by_length, obstacle_in_model
from .model_card import Method, NamedModelCard
from .rollout_checkpoint import ExactResume
from .throughput import Throughput
from .weight_precision import check_mixing

Model: TypeAlias = str | torch.nn.Module  # a folder or hub name, or a model that is loaded, with an adapter or without
RewardFuncs: TypeAlias = RewardFunc | list[RewardFunc] | None
OPINIONS = (JudgeReward, RewardModelReward, torch.nn.Module)  # score everything, and know no right or wrong


class DUMPTrainer(NamedModelCard, ExactResume, FiniteTraining, GRPOTrainer):
    """
    GRPO trainer with a curriculum over task distributions.

    Has the arguments of [`~trl.GRPOTrainer`], in the same order. `args` is a [`DUMPConfig`], or TRL's `GRPOConfig`;
    then the other options have their defaults. A column of `train_dataset` (by default `distribution`) names each
    row's distribution; without it all rows are one. A stream, and prompts from an environment, are one distribution.

    Raises:
        ValueError: if the options need several distributions and the training set has none or is a stream; if a
            reward is infinite; if no completion of a generation batch could be scored.
    """

    _config_class: type[DUMPConfig] = DUMPConfig

    _tag_names = ["trl", "grpo", "dump", "metatune"]
    _name = "DUMP"
    _paper = {
        "title": "DUMP: Automated Distribution-Level Curriculum Learning for RL-based LLM Post-training",
        "id": "2504.09710",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @article{wang2025dump,
                title        = {{DUMP: Automated Distribution-Level Curriculum Learning for RL-based LLM
                                Post-training}},
                author       = {Zhenting Wang and Guofeng Cui and Yu-Jhe Li and Kun Wan and Wentian Zhao},
                year         = 2025,
                eprint       = {arXiv:2504.09710},
            }"""),
    }

    def __init__(
        self,
        model: Model,
        reward_funcs: RewardFuncs = None,
        args: GRPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        tools: list[Callable] | None = None,
        rollout_func: RolloutFunc | None = None,
        environment_factory: EnvironmentFactory | dict[str, EnvironmentFactory] | None = None,
    ):
        args = config_for(self._config_class, args, model, type(self).__name__)
        rows_by_arm = {}
        if isinstance(train_dataset, Dataset | IterableDataset):  # before the model is loaded
            rows_by_arm = rows_by_distribution(train_dataset, args)
        with self._rollout_engine(args):
            super().__init__(
                model,
                reward_funcs,
                args,
                train_dataset,
                eval_dataset,
                processing_class,
                reward_processing_classes,
                callbacks,
                optimizers,
                quantization_config,
                peft_config,
                tools,
                rollout_func,
                environment_factory,
            )
        if args.sync_ref_model:
            check_mixing(self.ref_model, args)
        # With an environment, TRL has created a placeholder dataset by now.
        self._set_up_curriculum(args, rows_by_arm or rows_by_distribution(self.train_dataset, args))
        self._set_up_measurements(args)
        if args.length_grouping and (obstacle := obstacle_in_model(self.model, self.aux_loss_enabled)):
            raise ValueError(obstacle)
        self._check_tools(args)
        self._set_up_method(args)

    def _set_up_curriculum(self, args: DUMPConfig, rows_by_arm: dict[str, list[int]]) -> None:
        options: Any = args.curriculum_options or {}  # transformers has read a text as JSON
        try:
            self.curriculum = make_curriculum(args.curriculum, list(rows_by_arm), **{"seed": args.seed, **options})
        except ValueError as error:
            raise ValueError(f"curriculum, curriculum_options: {error}") from error
        self._arm_rows = list(rows_by_arm.values())
        self._cycles = [
            ItemCycle(len(rows), seed=args.seed + index, shuffle=args.shuffle_dataset)
            for index, rows in enumerate(self._arm_rows)
            if rows  # a stream's rows come from the data loader
        ]

    def _set_up_measurements(self, args: DUMPConfig) -> None:
        self._throughput = Throughput(self.accelerator.device, self.accelerator.gather)
        self._compact = args.compact_generation
        self.add_callback(self._throughput)
        if self.use_vllm:
            self.vllm_generation.sync_weights = self._throughput.timed("sync", self.vllm_generation.sync_weights)
        self._rollout_tokens = 0
        self._rewards_per_func: torch.Tensor  # of the batch being scored: (all ranks' completions, reward functions)
        self._gold: torch.Tensor  # the gold rewards of that batch: (all ranks' completions,)
        self._gold_index = self._find_gold(args.gold_reward)
        self._opens_thinking = None if correctness_reward in self.reward_funcs else False  # None: not known yet
        self._guard_rewards(args.max_verifier_failures)
        if args.curriculum_reward == "gold" and self._gold_index is None:
            raise ValueError("curriculum_reward: gold needs a reward function that is neither judge nor reward model")
        self._eval_rewards: dict[str, list[float]] = defaultdict(list)

    def _check_tools(self, args: DUMPConfig) -> None:
        """Raise `ValueError` for tools if processes generate together: TRL does not synchronize the calls."""
        if args.use_vllm:
            together = args.vllm_mode == "server" or args.vllm_tensor_parallel_size > 1
        else:
            together = self._dist.is_fsdp or self._dist.is_zero3
        if together and self.tools and self.accelerator.num_processes > 1:
            raise ValueError(
                "tools and environments do not work on several processes with FSDP, ZeRO-3, a vLLM server or "
                "vllm_tensor_parallel_size above 1: a process whose completions call no more tools leaves the others "
                "waiting. Use one process, DDP or ZeRO-2 without vLLM, or vllm_mode: colocate with "
                "vllm_tensor_parallel_size: 1"
            )

    def _set_up_method(self, args: Any) -> None:
        """Construct what a subclass adds, once TRL's trainer and the curriculum exist."""

    def _find_gold(self, name: str | None) -> int | None:
        """Return the index of the gold reward function, `None` if there is none."""
        names = self.reward_func_names
        if name is not None and name not in names:
            raise ValueError(f"gold_reward: no reward function {name!r} (there are {', '.join(names)})")
        tellers = [
            n for n, function in zip(names, self.reward_funcs, strict=True) if not isinstance(function, OPINIONS)
        ]
        candidates = [each for each in (name, correctness_reward.__name__, *tellers) if each in names]
        return names.index(candidates[0]) if candidates else None

    def _guard_rewards(self, max_failures: float) -> None:
        """Wrap the reward functions, so that an exception affects only the completions that cause it."""
        self.reward_funcs: list[Any] = [
            function
            if isinstance(function, OPINIONS)
            else (AsyncGuardedReward if is_async_callable(function) else GuardedReward)(function, name, max_failures)
            for name, function in zip(self.reward_func_names, self.reward_funcs, strict=True)
        ]

    @staticmethod
    def _rollout_engine(args: DUMPConfig):
        """Return the context in which TRL constructs its trainer, so that its vLLM engine also runs on a CPU."""
        if not args.use_vllm:
            return nullcontext()
        from .vllm_rollouts import installed_in_trl

        return installed_in_trl(args.vllm_weight_transfer)

    # ---- drawing and learning: around TRL's own generation, scoring and advantages ----

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        column = self.args.distribution_column
        training = self.model.training
        if training:
            self.check_weights()  # sampling with NaN weights fails on the device without a clear error
            inputs = self._draw(inputs)
        if column in inputs[0]:
            self._log_completion_extra(column, [row[column] for row in inputs])
        outputs = super()._generate_and_score_completions(inputs)
        if training:
            if self._divides_by_gold():
                self._set_advantages(outputs, self._local(self._advantages_over_gold(self._total_rewards())))
            self._observe(outputs)
        else:
            self._record_evaluation(inputs)
        return outputs

    def _draw(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Draw the global batch of prompts, each repeated for its group, and return this rank's rows.

        `inputs` are the data loader's rows, which are used only if the training set is a stream.
        """
        num_local_rows = len(inputs)
        num_rows = num_local_rows * self.accelerator.num_processes
        self._drawn_arms = self.curriculum.draw(num_rows // self.num_generations).tolist()
        if not self._cycles:
            return inputs
        self._drawn_rows = [self._arm_rows[arm][self._cycles[arm].take()] for arm in self._drawn_arms]
        first = num_local_rows * self.accelerator.process_index
        local = [self._drawn_rows[row // self.num_generations] for row in range(first, first + num_local_rows)]
        rows = {index: self.train_dataset[index] for index in set(local)}  # reading a row takes longer than copying it
        return [dict(rows[index]) for index in local]

    def _generate(self, prompts):
        generated = super()._generate(prompts)
        completion_ids, tool_mask = generated[1], generated[2]
        # The masks of truncated completions may be cleared later. The policy does not write the tokens of a tool or an
        # environment.
        lengths = map(sum, tool_mask) if tool_mask is not None else map(len, completion_ids)
        self._lengths = torch.tensor(list(lengths), device=self.accelerator.device)
        return generated

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        with self._throughput.phase("score"):
            inputs = self._with_thinking(inputs)
            rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._num_missing = rewards.isnan().sum(dim=0).tolist()
        self._gold = torch.full_like(rewards[:, 0], torch.nan)
        if self._gold_index is not None:
            self._gold = rewards[:, self._gold_index].clone()
        self._log_references_and_verdicts(inputs)
        by_model = torch.tensor([isinstance(function, OPINIONS) for function in self.reward_funcs])
        paid = self.reward_weights.cpu() != 0
        # TRL adds a missing reward as 0: what a reward model or a judge could not score has no reward at all.
        missing = rewards[:, by_model & paid].isnan().any(dim=1, keepdim=True)
        if paid.any():
            # Nor has what only functions that pay nothing know, or what a function failed at that scored its group.
            size = self.num_generations if self.model.training else self.num_generations_eval
            unknown = rewards[:, paid].isnan()
            spoke = (~unknown).view(-1, size, unknown.shape[1]).any(dim=1).repeat_interleave(size, dim=0)
            missing |= unknown.all(dim=1, keepdim=True) | (unknown & spoke).any(dim=1, keepdim=True)
        self._rewards_per_func = rewards.masked_fill(missing, torch.nan)
        return self._rewards_per_func

    def _log_references_and_verdicts(self, inputs: list[dict[str, Any]]) -> None:
        """Add the columns `reference` and `correct` to the table of completions, unless a reward function has them."""
        columns: dict[str, list[Any]] = {}
        if "answer" in inputs[0]:
            columns["reference"] = [None if row["answer"] is None else str(row["answer"]) for row in inputs]
        if self._gold_index is not None:
            first = self.accelerator.process_index * len(inputs)
            gold = self._gold[first : first + len(inputs)].tolist()
            columns["correct"] = [None if math.isnan(reward) else reward >= 1 for reward in gold]
        for name, values in columns.items():
            if name not in self._pending_extra_logs and name not in self.reward_func_names:
                self._log_completion_extra(name, values)

    def _with_thinking(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Add a column for `correctness_reward` if the chat template opens the thinking before each completion."""
        if self._opens_thinking is None:
            options = {"chat_template": self.chat_template, **self.chat_template_kwargs}
            self._opens_thinking = opens_thinking(Rendering(self._tokenizer, options))
        if not self._opens_thinking or not is_conversational(inputs[0]):
            return inputs
        return [{**row, "starts_in_thinking": True} for row in inputs]

    def _total_rewards(self) -> torch.Tensor:
        """Return the weighted rewards of all ranks' completions, shape (B,); NaN where none could be scored."""
        rewards_per_func = self._rewards_per_func
        if torch.isinf(rewards_per_func).any():
            name = self.reward_func_names[int(torch.isinf(rewards_per_func).any(dim=0).nonzero()[0])]
            raise ValueError(f"reward function {name!r} returned an infinite reward; return None for 'unscorable'")
        return _weighted_total(rewards_per_func, self.reward_weights)

    # ---- gold combined with other rewards ----

    def _paid_weight_of_gold(self) -> float:
        """Return gold's weight in the total reward; 0 if there is no gold reward."""
        return 0.0 if self._gold_index is None else self.reward_weights[self._gold_index].item()

    def _divides_by_gold(self) -> bool:
        """Return whether advantages are divided by the standard deviation of gold, not by that of the total as in TRL.

        A script for TRL has neither a [`JudgeReward`] nor a [`RewardModelReward`], so its results do not change.
        """
        judged = any(
            weight != 0 and isinstance(function, JudgeReward | RewardModelReward)
            for function, weight in zip(self.reward_funcs, self.reward_weights.tolist(), strict=True)
        )
        one_sum = self.multi_objective_aggregation == "sum_then_normalize"
        return judged and one_sum and self.scale_rewards != "none" and self._paid_weight_of_gold() != 0

    def _outcome_divisor(self, rewards: torch.Tensor) -> torch.Tensor:
        """Return the divisor of the advantages of rewards that include gold; shapes (B,), over all ranks."""
        outcome = self._gold.masked_fill(rewards.isnan(), torch.nan)
        weight = self._paid_weight_of_gold()
        return outcome_divisor(outcome, self.num_generations, self.scale_rewards, weight=weight, total=rewards)

    def _advantages_over_gold(self, rewards: torch.Tensor) -> torch.Tensor:
        """Return the advantages of rewards that include gold, divided by the standard deviation of gold."""
        relative = relative_to_group(rewards, self.num_generations)
        return (relative / self._outcome_divisor(rewards)).nan_to_num(0.0)

    def _set_advantages(self, outputs: dict[str, Any], advantages: torch.Tensor) -> None:
        """Replace the advantages that TRL trains on and writes to the completions table.

        Args:
            outputs (`dict`): this rank's batch; `advantages` is replaced.
            advantages (`torch.Tensor` of shape (B,) or (B, T)): this rank's. The table has one number per completion;
                for advantages per token, it is the mean over the completion's tokens.
        """
        outputs["advantages"] = advantages
        if advantages.dim() == 2:
            tokens = torch.arange(advantages.shape[1], device=advantages.device) < self._lengths[:, None]
            advantages = (advantages * tokens).sum(dim=1) / self._lengths.clamp(min=1)
        table, trained_on = self._logs["advantages"], self.accelerator.gather(advantages.float()).tolist()
        for _ in trained_on:
            table.pop()
        table.extend(trained_on)

    def _local(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return this rank's rows of a tensor over all ranks' completions."""
        number = len(tensor) // self.accelerator.num_processes
        return tensor[self.accelerator.process_index * number :][:number]

    # ---- what the curriculum sees ----

    def _observed(self) -> torch.Tensor:
        """Return which of all ranks' completions the curriculum and the pass rates see: bool, shape (B,).

        A subclass overrides this if some completions of a group are not ordinary samples of the policy. The curriculum
        then sees the advantages of the other completions relative to each other.
        """
        return torch.ones_like(self._gold, dtype=torch.bool)

    def _observe(self, outputs: dict[str, Any]) -> None:
        """Pass every prompt's group to the curriculum, in the order of the draw, and record the metrics."""
        totals = rewards = self._total_rewards()
        if totals.isnan().all():
            raise ValueError(self._nothing_scored(len(totals)))
        in_loss = (outputs["completion_mask"] * outputs.get("tool_mask", 1)).any(dim=1)
        local = torch.stack([outputs["advantages"].float(), self._lengths.float(), in_loss.float()], dim=1)
        advantages, tokens, in_loss = self.accelerator.gather(local).unbind(dim=1)
        self._rollout_tokens += int(tokens.sum())
        observed = self._observed()
        if self.args.curriculum_reward == "gold":
            rewards = self._gold
        rewards = rewards.masked_fill(~observed, torch.nan)
        if self.args.curriculum_reward == "gold" or not observed.all():
            by_gold = self.args.curriculum_reward == "total" and self._divides_by_gold()
            advantages = (
                self._advantages_over_gold(rewards)
                if by_gold
                else group_advantages(rewards, self.num_generations, self.scale_rewards)
            )
        self._pass_groups(advantages, rewards.masked_fill(in_loss == 0, torch.nan), tokens)
        self._metrics["train"]["unscorable"].append(totals.isnan().float().mean().item())
        self._log_by_arm(totals.masked_fill(~observed, torch.nan), self._gold.masked_fill(~observed, torch.nan))

    def _pass_groups(self, advantages: torch.Tensor, rewards: torch.Tensor, tokens: torch.Tensor) -> None:
        """Pass all ranks' completions, each of shape (B,), to the curriculum; a NaN reward leaves one out."""
        group_shape = (len(self._drawn_arms), self.num_generations)
        groups = [tensor.view(group_shape).tolist() for tensor in (advantages, rewards, tokens)]
        for arm, *group in zip(self._drawn_arms, *groups, strict=True):
            scored = [completion for completion in zip(*group, strict=True) if not math.isnan(completion[1])]
            name = self.curriculum.arms[arm]
            if len(scored) > 1:  # a single completion has no advantage
                self.curriculum.observe(name, *map(list, zip(*scored, strict=True)))
            else:
                self.curriculum.observe_unscorable(name, self.num_generations, group[-1])

    def _log_by_arm(self, totals: torch.Tensor, golds: torch.Tensor) -> None:
        """Log each drawn distribution's mean reward and pass rate, from all ranks' rewards of shape (B,)."""
        metrics = self._metrics["train"]  # TRL's, the means of which are in the next log line
        for arm, values in self._by_arm(totals).items():
            metrics[f"reward/{arm}"].append(sum(values) / len(values))
        for arm, values in self._by_arm(golds).items():
            metrics[f"pass_rate/{arm}"].append(_pass_rate(values))

    def _nothing_scored(self, number: int) -> str:
        """Return the error for a batch of `number` completions without a reward, with each function's last error."""
        causes = []
        functions = zip(self.reward_func_names, self.reward_funcs, self.reward_weights, self._num_missing, strict=True)
        for name, function, weight, missing in functions:
            if missing and weight != 0:
                trouble = getattr(function, "trouble", None)
                causes.append(f"{name} returned none for {missing} of them{f' ({trouble})' if trouble else ''}")
        return (
            f"none of the {number} completions of this batch has a reward: {'; '.join(causes)}. The run can be "
            "resumed from its last checkpoint"
        )

    def _by_arm(self, rewards: torch.Tensor) -> dict[str, list[float]]:
        """Return each drawn distribution's rewards, without NaN; `rewards` are of all ranks, shape (B,)."""
        by_arm: dict[str, list[float]] = defaultdict(list)
        for arm, group in zip(self._drawn_arms, rewards.view(-1, self.num_generations).tolist(), strict=True):
            by_arm[self.curriculum.arms[arm]].extend(reward for reward in group if not math.isnan(reward))
        return {arm: values for arm, values in by_arm.items() if values}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        logs["rollout_tokens"] = self._rollout_tokens
        if self.model.training:
            logs.update({f"curriculum/{key}": value for key, value in self.curriculum.metrics().items()})
            logs.update(self._throughput.take())
        # An evaluation would overwrite the step's file of training completions with its own last batch.
        self.log_completions = self.args.log_completions and self.model.training
        super().log(logs, start_time)

    def get_eval_dataloader(self, eval_dataset: str | Dataset | IterableDataset | None = None) -> DataLoader:
        """Return TRL's data loader with every held-out row: `dataloader_drop_last` applies to training only."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drop_last

    def _record_evaluation(self, inputs: list[dict[str, Any]]) -> None:
        """Keep the held-out accuracy per distribution in TRL's evaluation metrics. The curriculum never sees it."""
        metrics = self._metrics["eval"]
        if "accuracy" not in metrics:  # TRL clears its metrics when an evaluation has been logged
            self._eval_rewards.clear()
        names = gather_object([str(row.get(self.args.distribution_column, "all")) for row in inputs])
        rows = zip(names, self._gold.tolist(), strict=True)
        for name, reward in islice(rows, self._num_evaluated(len(names))):
            if not math.isnan(reward):
                self._eval_rewards[name].append(reward)
        accuracies = {name: _pass_rate(rewards) for name, rewards in self._eval_rewards.items()}
        for name, accuracy in accuracies.items():
            metrics[f"accuracy/{name}"] = [accuracy]
        if accuracies:
            metrics["accuracy"] = [sum(accuracies.values()) / len(accuracies)]

    def _num_evaluated(self, num_rows: int) -> int:
        """Return how many of a batch's rows, of all processes, count: the loader fills up the last batch."""
        state = self.accelerator.gradient_state
        loader = state.active_dataloader
        if not state.end_of_dataloader or not isinstance(loader.dataset, Dataset):
            return num_rows
        rest = len(loader.dataset) * self.num_generations_eval % loader.total_batch_size
        return rest or num_rows

    # ---- the same steps with less padding ----

    def _prepare_inputs(self, generation_batch):
        buffered = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self.args.length_grouping and self._buffered_inputs is not buffered:
            self._buffered_inputs = group_by_length(
                self._buffered_inputs, min(self.args.gradient_accumulation_steps, self.args.steps_per_generation)
            )
            inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]
        if self.model.training:
            self._throughput.add_trained(inputs)
        return inputs

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, *args, **kwargs):
        generate = self._generate_compactly if self._compact else super()._generate_single_turn
        with self._throughput.phase("generate"):
            completion_ids, logprobs = generate(prompt_ids, images, multimodal_fields, *args, **kwargs)
        self._throughput.add_generated(completion_ids)
        if self.use_vllm and (counters := self.vllm_generation.prefix_cache_counters()) is not None:
            self._throughput.set_prefix_cache(counters)
        return completion_ids, logprobs

    def _generate_compactly(self, prompt_ids, images, multimodal_fields, *args, **kwargs):
        if images is not None or multimodal_fields:
            raise ValueError("compact_generation is for text only: set it to false for a model that reads images")
        with profiling_context(self, "compact.generate"), self._model_for_rollouts() as model:
            completion_ids = sample_completions(
                model,
                prompt_ids,
                max_new_tokens=self.max_completion_length,
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k or 0,
                min_p=self.min_p,
                eos_token_ids=self.eos_token_ids,
                pad_token_id=self._tokenizer.pad_token_id,
                synced=self._dist.is_fsdp,
            )
        return completion_ids, None

    @contextmanager
    def _model_for_rollouts(self) -> Iterator[PreTrainedModel]:
        """Yield the unwrapped model: ZeRO-3 gathers its weights here, FSDP gathers them in each forward pass."""
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
        ):
            yield model

    # ---- the model card ----

    def _methods(self) -> list[Method]:
        methods = [Method(GRPOTrainer._name, GRPOTrainer._paper)]
        if self._has_choice() and self.args.curriculum.startswith("dump"):
            methods.append(Method(DUMPTrainer._name, DUMPTrainer._paper))
        return methods

    def _card_lines(self) -> list[str]:
        if not self._has_choice():
            return super()._card_lines()
        arms = ", ".join(f"`{arm}`" for arm in self.curriculum.arms)
        return [*super()._card_lines(), f"Curriculum: `{self.args.curriculum}`, over the task distributions {arms}."]

    def _has_choice(self) -> bool:
        """Return whether the curriculum chooses among several distributions."""
        return len(self.curriculum.arms) > 1

    # ---- checkpoints ----

    def _run_state(self) -> dict[str, Any]:
        return super()._run_state() | {
            "rollout_tokens": self._rollout_tokens,
            "curriculum": self.curriculum.state_dict(),
            "item_cycles": [cycle.state_dict() for cycle in self._cycles],
        }

    def _load_run_state(self, state: dict[str, Any], folder: Path) -> None:
        super()._load_run_state(state, folder)
        self.curriculum.load_state_dict(state["curriculum"])
        cycles = zip(self._cycles, state["item_cycles"], strict=True)
        for arm, (cycle, cycle_state) in zip(self.curriculum.arms, cycles, strict=False):  # none for a stream
            try:
                cycle.load_state_dict(cycle_state)
            except ValueError as error:
                raise ValueError(
                    f"{folder}: distribution {arm!r} is not the one of the checkpoint: {error}"
                ) from error
        self._rollout_tokens = state["rollout_tokens"]


def _weighted_total(rewards_per_func: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the weighted sums of the rewards (B, F), of shape (B,); NaN where no function has one."""
    totals = (rewards_per_func * weights.to(rewards_per_func.device)).nansum(dim=1)
    return totals.masked_fill(rewards_per_func.isnan().all(dim=1), torch.nan)


def _pass_rate(rewards: list[float]) -> float:
    return sum(reward >= 1.0 for reward in rewards) / len(rewards)
