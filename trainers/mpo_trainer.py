"""GRPO against a judge whose rubric a meta judge rewrites while the policy trains (MPO, arXiv 2504.20157).

Every `meta_every` generation batches the main process shows the meta judge a choice of the completions judged since
the last change; it rewrites the rubric, and what passes the gate is the rubric of all later batches:

    reward = total(judge(completion; rubric_v)) in [0, 1],
    rubric_{v+1} = merge(refine_i(analyse_i(cases_i, rubric_v)))

What deviates from the paper or its released code, and why:

- Totals are normalized by a rubric's possible range: the raw sums of the code rose 25-fold without any learning.
- Cases are chosen for what they say (`rewards/judged_cases.py`), not at random; the analyst sees reasons, gold and how
  all scores are spread.
- A gate (`rewards/rubric_gate.py`) compares the old and the new rubric on completions that the meta judge has not
  seen, and rejects a rubric that may rank worse. A running check goes back to the parent if the parent now ranks
  better, on completions from now and from the beginning of the run.
- Only the main process calls the meta model. All processes apply a new rubric at the same point between two batches.
  They receive the version with every batch, so that no group is judged by two versions.
- A failed meta step leaves the rubric unchanged and logs the failure; a completion that could not be judged has no
  reward.
- The policy is trained by TRL's GRPO instead of PPO. If a verifier is combined with the judge, the advantages are
  divided by the standard deviation of the verifier's reward (`advantages.py`), so that the judge counts by its weight
  on prompts that are always or never solved.
- A held-out judge observes only, and raises an alarm when its scores and the judge's diverge.
"""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback
from trl import GRPOConfig
from trl.trainer.grpo_trainer import EnvironmentFactory, RolloutFunc

from ..rewards.judge import Judge, conversation_text
from ..rewards.judge_client import JudgeError
from ..rewards.judge_reward import JudgeReward
from ..rewards.judged_cases import JudgedCase
from ..rewards.meta_judge import MetaJudge
from ..rewards.rubric import Rubric
from ..rewards.rubric_history import RubricHistory
from .dump_trainer import DUMPTrainer, Model, RewardFuncs
from .model_card import Method
from .mpo_config import HELD_OUT, OWN_OPTIONS, MPOConfig
from .rubric_evolution import RubricEvolution
from .unused_options import reject_unused

UNTOLD = -1  # the version in force, before the main process has said it


class MPOTrainer(DUMPTrainer):
    """
    GRPO trainer whose judge learns.

    Has the arguments of [`DUMPTrainer`], in the same order. `args` is an [`MPOConfig`], or TRL's `GRPOConfig`; one of
    `reward_funcs` is a [`JudgeReward`], alone or with verifiers and reward models.

    Args:
        meta_judge (`MetaJudge`, *optional*): that rewrites the rubric; needed unless `meta_every` is 0.
        held_out_judge (`Judge`, *optional*): that never trains anything, with a rubric of its own.

    Raises:
        ValueError: no judge or several among `reward_funcs`, no meta judge, or no such gold reward.
    """

    _needs_judge = True
    _config_class = MPOConfig
    _tag_names = ["trl", "grpo", "mpo", "metatune"]
    _name = "MPO"
    _paper = {
        "title": "Toward Evaluative Thinking: Meta Policy Optimization with Evolving Reward Models",
        "id": "2504.20157",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @article{kim2025mpo,
                title        = {{Toward Evaluative Thinking: Meta Policy Optimization with Evolving Reward Models}},
                author       = {Zae Myung Kim and Chanwoo Park and Vipul Raheja and Suin Kim and Dongyeop Kang},
                year         = 2025,
                eprint       = {arXiv:2504.20157},
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
        *,
        meta_judge: MetaJudge | None = None,
        held_out_judge: Judge | None = None,
    ):
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
        judges = [function for function in self.reward_funcs if isinstance(function, JudgeReward)]
        if len(judges) > 1 or (self._needs_judge and not judges):
            raise ValueError(
                f"{type(self).__name__} needs one JudgeReward among reward_funcs, not {len(judges)}"
                + ("" if judges else "; MetaTrainer also trains without a judge")
            )
        if judges and self.args.meta_every and meta_judge is None:
            raise ValueError("pass a meta_judge, or set meta_every: 0 to keep the rubric unchanged")
        if not judges and (meta_judge is not None or held_out_judge is not None):
            raise ValueError("a meta_judge and a held_out_judge go with a JudgeReward among reward_funcs")
        if not judges:
            unused = [name for name in OWN_OPTIONS if name != "meta_every" or self.args.meta_every]  # it is already 0
            reject_unused(self.args, dict.fromkeys(unused, "no JudgeReward among reward_funcs"))
        elif held_out_judge is None:
            reject_unused(self.args, dict.fromkeys(HELD_OUT, "no held_out_judge"))
        self._judge_reward: JudgeReward | None = judges[0] if judges else None
        self.rubric_version = 0
        self._cases: list[JudgedCase] = []  # of the batch, of all processes
        # The main process alone uses the history and the evolution.
        self.rubric_history = RubricHistory(Path(self.args.output_dir) / "rubrics")
        if self._judge_reward is not None:
            self._evolution = RubricEvolution(
                self.args,
                self.rubric_history,
                self._judge_reward.judge,
                meta_judge=meta_judge,
                held_out_judge=held_out_judge,
                against_gold=self._gold_index is not None,
                log=self._log_metrics,
            )

    @property
    def judge(self) -> Judge:
        """The judge that trains.

        Raises:
            ValueError: no JudgeReward is among the reward functions.
        """
        if self._judge_reward is None:
            raise ValueError(f"this {type(self).__name__} has no judge: no JudgeReward is among its reward_funcs")
        return self._judge_reward.judge

    def _discount_other_rubric(self) -> None:
        """Discount the curriculum's observations under another rubric, if the curriculum sees the judge."""
        pays = self.reward_weights[self.reward_funcs.index(self._judge_reward)] != 0
        if pays and self.args.curriculum_reward == "total":
            self.curriculum.discount_past()

    # ---- what was judged ----

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self._judge_reward is not None and self.model.training:
            self._collect(*self._judge_reward.last)
        return rewards

    def _collect(self, prompts, completions, references, judgements) -> None:
        """Gather the batch's judged completions."""
        first = len(prompts) * self.accelerator.process_index
        golds = self._gold[first : first + len(prompts)].tolist()
        cases = []
        rows = zip(prompts, completions, references, judgements, golds, strict=True)
        for prompt, completion, reference, judgement, gold in rows:
            if judgement is not None and judgement.total is not None:
                texts = (conversation_text(prompt), conversation_text(completion))
                said = (judgement.total, judgement.scores, judgement.rationales)
                known = {"gold": None if np.isnan(gold) else gold, "reference": reference}
                cases.append(JudgedCase(*texts, *said, **known, step=self.state.global_step))
        self._cases = gather_object(cases)

    # ---- after a batch ----

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self._judge_reward is None or not self.model.training:
            return super()._generate_and_score_completions(inputs)
        self._log_metrics("rubric/version", self.rubric_version)
        outputs = super()._generate_and_score_completions(inputs)
        with self._throughput.phase("score"):
            self._share(lambda: self._evolution.after_batch(self._cases, self.state.global_step))
        return outputs

    def _share(self, part: Callable[[], None]) -> None:
        """Let the main process do its part, and all processes take up the rubric that it ends with."""
        told: list[Any] = [None, None, None]
        if self.accelerator.is_main_process:
            try:
                part()
                current = self.rubric_history.current
                told = [None, current.number, current.rubric.to_dict()]
            except Exception as error:  # the others wait for an answer
                told = [f"{type(error).__name__}: {error}", isinstance(error, JudgeError), None]
                broadcast_object_list(told)
                raise
        broadcast_object_list(told)
        if told[0] is not None:
            raise (JudgeError if told[1] else RuntimeError)(f"the main process failed: {told[0]}")
        if told[1] != self.rubric_version:
            if self.rubric_version != UNTOLD:  # on resume the checkpoint's is compared
                self._discount_other_rubric()
            self.rubric_version, self.judge.rubric = told[1], Rubric.from_dict(told[2])

    def _log_metrics(self, name: str, value: float) -> None:
        self._metrics["train"][name].append(float(value))

    # ---- the model card ----

    def _methods(self) -> list[Method]:
        on = self._judge_reward is not None
        return super()._methods() + [Method(MPOTrainer._name, MPOTrainer._paper)] * on

    # ---- checkpoints ----

    def _run_state(self) -> dict[str, Any]:
        if self._judge_reward is None:
            return super()._run_state()
        mpo = {"step": self.state.global_step, **self._evolution.state_dict()}
        return super()._run_state() | {"mpo": mpo}

    def _load_run_state(self, state: dict[str, Any], folder: Path) -> None:
        super()._load_run_state(state, folder)
        if self._judge_reward is None:
            return
        mpo = dict(state["mpo"])
        step = mpo.pop("step")
        self.rubric_version = UNTOLD  # taken up from the history, which may have been turned back by the user
        self._share(lambda: self._evolution.load_state_dict(mpo, step))
        if self.rubric_version != mpo["rubrics"]["current"]:
            self._discount_other_rubric()
