"""GRPO that rewards each episode of a trace for its progress (MRT), with any curriculum.

A trace is split into episodes. J_j is the probability of success if the trace is stopped after episode j and the model
must answer. The progress of an episode is the increase of J. The objective adds the progress of each episode, with a
context sampled by an earlier policy (arXiv 2503.07572, section 6):

    l = l_GRPO + alpha * E_x [ sum_j E_{c_(j-1) ~ pi_old, z_j ~ pi} [ J(c_(j-1), z_j) - J(c_(j-1)) ] ]

What deviates from the paper or its released code, and why:

- The paper's bonus is one number at the end of a trace. On an on-policy trace it telescopes to the outcome, so
  `progress: episode` rewards the tokens of each episode for that episode only; `progress: prefix` is the paper's form.
- In the released code, the bonus is the reward minus that of terminating at the prefix, which cancels in the group's
  mean. The paper normalizes terminating and continuing rollouts jointly, which adds variance. Here each kind has its
  own baseline (`prefix_advantages.py`); `prefix_baseline: joint` is the paper's form.
- A terminating rollout gets the gold reward only. Judges, reward models, the curriculum and the pass rates see
  continuing rollouts only.
- The paper draws prefixes once from the base model. Here a row's prefix is cut from the trace that was sampled when
  the row was last drawn; when a row is drawn for the first time, a trace is sampled beforehand.
- An estimate of J from 4 answers has a standard error of up to 0.25, so the progress of each episode is shrunk by the
  share of noise in its variance. The first and the last episode have half the noise variance: J_0 is the same for the
  group, and the outcome is exact. If no forced answer at a prefix could be scored, its J is interpolated. If a task
  can list its accepted answers, their summed likelihood can replace sampling.
- The paper specifies no normalization. Progress is multiplied by the weight of gold and has the divisor of the
  outcome's advantage, the standard deviation of gold with a floor (`advantages.py`), so that alpha has the same effect
  on easy and on hard prompts. `length_penalty` (arXiv 2502.04463) has the same divisor, because its own standard
  deviation would cancel its weight if all answers are correct.
- The curriculum sees the advantages of the outcome, never the bonus.
- With a judge, a reward model or other rewards, progress is measured by the gold reward alone; the other rewards count
  once, as without progress.

The math is in `progress.py` and `prefix_advantages.py`.
"""

import json
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger

from ..rewards import EpisodeRule, episode_ends, token_texts
from . import progress
from .advantages import relative_to_group
from .model_card import Method
from .mrt_config import MRTConfig
from .prefix_advantages import prefix_advantages
from .prefix_pool import PrefixPool
from .prefix_rollouts import PrefixRollouts

logger = get_logger(__name__)
NUM_KEPT_TRACES = 16


class MRTTrainer(PrefixRollouts):
    """
    GRPO trainer that rewards progress.

    Has the arguments of [`DUMPTrainer`]. `args` is an [`MRTConfig`], or TRL's `GRPOConfig`.

    Raises:
        ValueError: as [`DUMPTrainer`]; if the forcing suffix is unknown or does not end the thinking; if a verifier of
            the training set rejects a correct answer after it; if the accepted answers of a row cannot be listed with
            `success_estimator: likelihood`.
    """

    _config_class = MRTConfig
    _tag_names = ["trl", "grpo", "mrt", "metatune"]
    _name = "MRT"
    _paper = {
        "title": "Optimizing Test-Time Compute via Meta Reinforcement Fine-Tuning",
        "id": "2503.07572",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @inproceedings{qu2025optimizing,
                title        = {{Optimizing Test-Time Compute via Meta Reinforcement Fine-Tuning}},
                author       = {Yuxiao Qu and Matthew Y. R. Yang and Amrith Setlur and Lewis Tunstall and
                                Edward Emanuel Beeching and Ruslan Salakhutdinov and Aviral Kumar},
                year         = 2025,
                booktitle    = {International Conference on Machine Learning},
                eprint       = {arXiv:2503.07572},
            }"""),
    }

    def _set_up_method(self, args: MRTConfig) -> None:
        super()._set_up_method(args)
        self._check_gold()
        self._check_rollouts()
        if args.progress == "prefix" and not self._cycles:
            raise ValueError("progress: prefix keeps a trace of every row: load the training set without streaming")
        options: Any = args.episodes  # transformers has read a text as JSON
        self._rule = EpisodeRule.from_options(options)
        if args.progress in ("episode", "anytime") or args.terminating_generations:
            self._set_up_forcing(args)
        self._pool = PrefixPool()
        self._prefixes = []
        self._traces: list[dict[str, Any]] = []  # some of the last batch, for the report

    def _check_gold(self) -> None:
        """Raise if progress needs a gold reward and none with a weight exists."""
        forces = self.args.progress == "prefix" and self.args.terminating_generations
        if self.args.progress not in ("episode", "anytime", "length_penalty") and not forces:
            return
        problem = f"progress: {self.args.progress} needs a gold reward"
        if self._gold_index is None:
            raise ValueError(f"{problem}, not only a judge or a reward model: add a verifier to reward_funcs")
        if not self.reward_weights[self._gold_index]:
            name = self.reward_func_names[self._gold_index]
            raise ValueError(
                f"{problem}, and the weight of {name!r} is 0: raise it in reward_weights, or set gold_reward to "
                "another function"
            )

    def _check_rollouts(self) -> None:
        """Raise if the policy does not write all tokens of the completions, or if prompts cannot be extended."""
        form, others = self.args.progress, bool(self.tools) or self.environment_factories is not None
        if form == "prefix" and (others or self.rollout_func is not None):
            raise ValueError(
                "progress: prefix appends to prompts, which does not work with tools, an environment or a "
                "rollout_func: remove them, or set progress: none"
            )
        if form in ("episode", "anytime") and others:
            raise ValueError(
                f"progress: {form} forces answers at prefixes of a completion, which tools and an environment cannot "
                "process: remove them, or set progress: none"
            )

    def _check_outcome(self, outcome: torch.Tensor) -> None:
        """Raise if a gold reward of a batch, shape (B,), is not between 0 and 1."""
        outside = outcome[(outcome < 0) | (outcome > 1)]
        if outside.numel():
            name = self.reward_func_names[self._gold_index or 0]
            raise ValueError(
                f"progress: {self.args.progress} needs gold rewards between 0 and 1, but the reward function {name!r} "
                f"returned {outside[0].item():g}. Return 0 to 1, or set gold_reward to another function"
            )

    # ---- one batch: TRL generates and scores, then the advantages are replaced ----

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        training = self.model.training
        outputs = super()._generate_and_score_completions(inputs)
        if training and self.args.progress != "none":
            with torch.no_grad():
                self._set_advantages(outputs, self._advantages(outputs))
        self._prefixes = []
        return outputs

    def _draw(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self._drawn = super()._draw(inputs)
        if self.args.progress == "prefix":
            self._choose_prefixes()
        return self._drawn

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        self._completion_ids = completion_ids_list
        if self._prefixes:
            texts = self._tokenizer.batch_decode(self._prefixes, skip_special_tokens=True)
            self._log_completion_extra("prefix", texts)
            completions = [_continued(text, completion) for text, completion in zip(texts, completions, strict=True)]
        if not self._prefixes or not self.args.terminating_generations:
            return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._log_completion_extra("forced_answer", self._terminating)
        inputs = [{**row, "forced_answer": forced} for row, forced in zip(inputs, self._terminating, strict=True)]
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        terminating = self._terminating_rows()
        rewards[terminating] = torch.nan
        rewards[terminating, self._gold_index] = self._gold[terminating]
        return rewards

    def _observed(self) -> torch.Tensor:
        if self.args.progress != "prefix":
            return super()._observed()
        return ~self._terminating_rows()

    def _advantages(self, outputs: dict[str, Any]) -> torch.Tensor:
        """Return the advantages of this process's completions, shape (B,) or (B, T)."""
        args, total = self.args, self._total_rewards()
        if args.progress == "length_penalty":
            return self._local(self._length_penalty_advantages(total))
        if args.progress == "prefix":
            return self._local(self._prefix_advantages(total))
        ends, weight = self._ends(), self._paid_weight_of_gold()
        outcome = self._gold.masked_fill(total.isnan(), torch.nan)
        self._check_outcome(outcome)
        values, outcome_at = self._values(outputs, ends, outcome)
        if args.progress == "anytime":
            paid = weight * progress.anytime_advantages(values, self.num_generations)
        else:
            paid = weight * self._episode_advantages(values, outcome_at)
            self._show(ends, self._local(values))
        divisor = progress.progress_divisor(paid, args.progress_scale, self._outcome_divisor(total), weight)
        paid = (paid / divisor[:, None]).nan_to_num(0.0)
        by_token = progress.spread(self._local(paid), ends, outputs["completion_ids"].shape[1])
        if args.progress == "anytime":
            others = relative_to_group(total - weight * outcome.nan_to_num(0.0), self.num_generations) / divisor
            return by_token + self._local(others.nan_to_num(0.0))[:, None]
        return outputs["advantages"][:, None] + args.progress_weight * by_token

    def _length_penalty_advantages(self, total: torch.Tensor) -> torch.Tensor:
        weight, outcome = self._paid_weight_of_gold(), self._gold.masked_fill(total.isnan(), torch.nan)
        lengths = self.accelerator.gather(self._lengths)
        shaped = progress.length_penalised(outcome, lengths, self.num_generations, self.args.progress_weight)
        # A distribution without a gold reward gets the other rewards only.
        return self._advantages_over_gold(total + weight * (shaped - outcome).nan_to_num(0.0))

    def _prefix_advantages(self, total: torch.Tensor) -> torch.Tensor:
        self._keep_traces()
        weight, outcome, others = 1.0, total, None
        if self._paid_weight_of_gold():  # else, without terminating rollouts, the total is the outcome
            weight, outcome = self._paid_weight_of_gold(), self._gold.masked_fill(total.isnan(), torch.nan)
        if self._divides_by_gold():
            others = total - weight * outcome.nan_to_num(0.0)
        terminating = self._terminating_rows()
        self._log_prefixes(outcome, terminating)
        if self.args.terminating_generations:
            continuing = outcome.masked_fill(terminating, torch.nan)
            self._watch_forced(self._local(continuing), self._local(outcome.masked_fill(~terminating, torch.nan)))
        return prefix_advantages(
            outcome,
            others,
            terminating,
            self.num_generations,
            alpha=self.args.progress_weight,
            weight=weight,
            baseline=self.args.prefix_baseline,
            scale=self.scale_rewards,
        )

    def _episode_advantages(self, values: torch.Tensor, outcome_at: torch.Tensor) -> torch.Tensor:
        """Return the episodes' advantages of all ranks' completions, in units of J, shape (B, E)."""
        exists = (outcome_at.cumsum(1) - outcome_at.long() == 0)[:, 1:]  # the outcome is what the last one ends with
        bridged, decay = progress.bridged(values), self.args.progress_decay
        factor: float | torch.Tensor = 1.0
        sampled = ~outcome_at & ~values.isnan()
        sampled[:, 0] = False
        if self.args.success_estimator == "rollouts" and sampled.any():
            variance = progress.binomial_variance(values[sampled], self.args.num_forced_answers).mean()
            noise = progress.progress_noise(bridged, ~outcome_at, variance, decay)
            paid = progress.progress_to_go(progress.progress_of(bridged), decay)
            factor = progress.precision_weights(paid, noise, self.num_generations, exists)
            self._log("shrinkage", factor[~paid.isnan()].mean().item())
        return progress.episode_advantages(bridged, self.num_generations, decay=decay, factor=factor, exists=exists)

    def _divides_by_gold(self) -> bool:
        """Return `True` also with a plain function, whose weight must count like that of a judge."""
        beside = self.args.progress != "none" and int((self.reward_weights != 0).sum()) > 1
        return super()._divides_by_gold() or (beside and self._paid_weight_of_gold() != 0)

    # ---- the chance of success at the prefixes ----

    def _ends(self) -> list[list[int]]:
        """Return where the episodes of each completion end; for `anytime`, where its budgets cut it."""
        if self.args.budgets:  # of anytime
            return [[min(budget, len(ids)) for budget in self.args.budgets] for ids in self._completion_ids]
        return [episode_ends(ids, token_texts(self._tokenizer, ids), self._rule) for ids in self._completion_ids]

    def _values(
        self, outputs: dict[str, Any], ends: list[list[int]], rewards: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return J of all processes' completions, and where it is the outcome.

        For `anytime` the columns are the budgets, shape (B, S); else J_0 to J_n, shape (B, E + 1), then NaN.
        """
        anytime = self.args.progress == "anytime"
        if "num_images" in outputs:
            raise ValueError(f"progress: {self.args.progress} is for text only: a prompt of this batch has images")
        if "tool_mask" in outputs:
            raise ValueError(
                f"progress: {self.args.progress} needs completions of which the policy writes every token, but the "
                "rollout_func returns an env_mask: remove it, or set progress: none"
            )
        masks = outputs["prompt_mask"].bool()
        prompts = [ids[mask].tolist() for ids, mask in zip(outputs["prompt_ids"], masks, strict=True)]
        lengths = [len(ids) for ids in self._completion_ids]
        cuts = [
            [end for end in row if end < length] if anytime else [0, *row[:-1]]
            for row, length in zip(ends, lengths, strict=True)
        ]
        estimated = self._estimate(prompts, cuts)

        width = len(self.args.budgets) if self.args.budgets else max(map(len, cuts)) + 1  # and the outcome
        local = torch.full((len(cuts), width), torch.nan, device=rewards.device)
        for row, values in enumerate(estimated):
            local[row, : len(values)] = torch.tensor(values, device=rewards.device)
        estimates = torch.tensor([len(row) for row in cuts], device=rewards.device)
        values = self.accelerator.gather(
            self.accelerator.pad_across_processes(local, dim=1, pad_index=torch.nan).contiguous()
        )
        estimates = self.accelerator.gather(estimates)[:, None]
        columns = torch.arange(values.shape[1], device=rewards.device)
        outcome_at = columns >= estimates if anytime else columns == estimates
        values = torch.where(outcome_at, rewards[:, None].to(values.dtype), values)
        if not anytime:  # the empty prefix is the same for a group, whichever process sampled its answers
            first = values[:, 0].view(-1, self.num_generations).nanmean(1)
            values[:, 0] = first.repeat_interleave(self.num_generations)
        self._log_values(values, outcome_at)
        outcomes, forced = values.masked_fill(~outcome_at, torch.nan), values.masked_fill(outcome_at, torch.nan)
        self._watch_forced(self._local(outcomes), self._local(forced))
        return values, outcome_at

    # ---- logs ----

    def _log_values(self, values: torch.Tensor, outcome_at: torch.Tensor) -> None:
        sampled = ~outcome_at & ~values.isnan()
        if self.args.success_estimator == "rollouts" and sampled.any():
            variance = progress.binomial_variance(values[sampled], self.args.num_forced_answers)
            self._log("standard_error", variance.mean().sqrt().item())
        self._log("value_at_start", values[:, 0].nanmean().item())
        if self.args.progress == "episode":
            steps = progress.progress_of(values)
            self._log("episodes", (~values.isnan()).sum(1).float().mean().item() - 1)
            self._log("mean", steps.nanmean().item())
            self._log("first", steps[:, 0].nanmean().item())

    def _show(self, ends: list[list[int]], values: torch.Tensor) -> None:
        """Keep some of this process's traces for `traces.jsonl`."""
        self._traces = []
        for row in range(min(NUM_KEPT_TRACES, len(ends))):
            pieces = token_texts(self._tokenizer, self._completion_ids[row])  # an episode may end inside a character
            texts = ["".join(pieces[start:end]) for start, end in pairwise([0, *ends[row]])]
            own = values[row, : len(texts) + 1].tolist()
            prompt = self._drawn[row]["prompt"]
            self._traces.append(
                {
                    "step": self.state.global_step,
                    "distribution": self._drawn[row].get(self.args.distribution_column, "all"),
                    "prompt": prompt if isinstance(prompt, str) else prompt[-1]["content"],
                    "episodes": texts,
                    "values": [None if value != value else value for value in own],
                    "correct": None if not own or own[-1] != own[-1] else own[-1] >= 1.0,
                }
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._traces and self.args.log_completions and self.is_world_process_zero():
            path = Path(self.args.output_dir) / "traces.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(".traces.tmp")
            temporary.write_text("".join(json.dumps(trace) + "\n" for trace in self._traces))
            temporary.replace(path)
        super().log(logs, start_time)

    # ---- the model card ----

    def _methods(self) -> list[Method]:
        on = self.args.progress in ("episode", "prefix", "anytime")
        return super()._methods() + [Method(MRTTrainer._name, MRTTrainer._paper)] * on

    # ---- checkpoints ----

    def _save_beside(self, folder):
        super()._save_beside(folder)
        if self.args.progress == "prefix" and self.args.should_save:
            self._pool.save(folder)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.args.progress == "prefix":
            self._pool.load(Path(checkpoint))
            longest = self._pool.longest()
            if longest > self.max_completion_length:
                logger.warning(
                    f"{checkpoint} has stale traces of up to {longest} tokens, but max_completion_length is "
                    f"{self.max_completion_length}. Until their rows are drawn again, they are cut after episodes "
                    "that end before this limit"
                )


def _continued(prefix: str, completion: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Return a completion with the text that it continues before it."""
    if isinstance(completion, str):
        return prefix + completion
    message, *rest = completion
    return [{**message, "content": prefix + (message["content"] or "")}, *rest]
