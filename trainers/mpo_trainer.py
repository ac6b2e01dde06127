"""GRPO against a judge whose rubric a meta judge rewrites while the policy trains (MPO, arXiv 2504.20157).

Every `meta_every` generation batches the main process shows the meta judge a choice of the completions judged since
the last change; it rewrites the rubric, and what passes the gate is the rubric of all later batches:

    reward = total(judge(completion; rubric_v)) in [0, 1],
    rubric_{v+1} = merge(refine_i(analyse_i(cases_i, rubric_v)))

What deviates from the paper or its released code, and why:

- Totals are normalised by what a rubric makes attainable: the raw sums of the code rose 25-fold without any learning.
- Cases are chosen for what they say (`rewards/judged_cases.py`), not at random; the analyst sees reasons, gold and how
  all scores are spread.
- A gate (`rewards/rubric_gate.py`) tries old and new rubric on completions that the meta judge has not seen, and
  refuses one that ranks worse; a running check goes back to the parent if that has become the better one, on
  completions of now and of the run's beginning.
- Only the main process talks to the meta model. All processes take up a rubric at the same point between two batches;
  with every batch they are told the version, so that no group is ever judged by two.
- A meta step that fails leaves the rubric as it is and says so; a completion that could not be judged has no reward.
- The policy is trained by GRPO instead of PPO: TRL's.
- A second judge that trains nothing looks on, and raises an alarm when the two part.
"""

import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset

from ..rewards.judge import Judge, conversation_text
from ..rewards.judge_client import JudgeError
from ..rewards.judge_reward import JudgeReward
from ..rewards.judge_watch import JudgeAlarm, RubricWatch, batch_quality
from ..rewards.judged_cases import JudgedCase, select_cases, split_by_prompt
from ..rewards.meta_judge import MetaJudge, describe_scores, describe_versions
from ..rewards.rubric import Rubric
from ..rewards.rubric_gate import (
    RubricQuality,
    Verdict,
    decide,
    gold_accuracies,
    rubric_quality,
)
from ..rewards.rubric_history import RubricHistory
from .dump_trainer import DUMPTrainer, Model, RewardFuncs
from .mpo_config import MPOConfig

logger = get_logger(__name__)

CASE_COLUMNS = ("prompt", "completion", "reference")


UNTOLD = -1  # the version in force, before the main process has said it


class MPOTrainer(DUMPTrainer):
    """
    GRPO trainer whose judge learns.

    Takes what [`DUMPTrainer`] takes. `args` is a [`MPOConfig`]; one of `reward_funcs` is a [`JudgeReward`], alone or
    beside verifiers and reward models.

    Args:
        meta_judge (`MetaJudge`, *optional*): that rewrites the rubric; needed unless `meta_every` is 0.
        held_out_judge (`Judge`, *optional*): that never trains anything, with a rubric of its own.

    Raises:
        ValueError: no judge or several among `reward_funcs`, no meta judge, or no such gold reward.
    """

    _needs_judge = True
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
        args: MPOConfig | None = None,
        train_dataset: Dataset | None = None,
        *,
        meta_judge: MetaJudge | None = None,
        held_out_judge: Judge | None = None,
        **kwargs: Any,
    ):
        args = MPOConfig() if args is None else args
        super().__init__(model, reward_funcs, args, train_dataset, **kwargs)
        judges = [function for function in self.reward_funcs if isinstance(function, JudgeReward)]
        if len(judges) > 1 or (self._needs_judge and not judges):
            raise ValueError(f"{type(self).__name__} needs one JudgeReward among reward_funcs, not {len(judges)}")
        if judges and args.meta_every and meta_judge is None:
            raise ValueError("give a meta_judge, or leave the rubric as it is by meta_every: 0")
        if not judges and (meta_judge is not None or held_out_judge is not None):
            raise ValueError("a meta_judge and a held_out_judge go with a JudgeReward among reward_funcs")
        self._judge_reward: JudgeReward | None = judges[0] if judges else None
        self._meta_judge, self._held_out_judge = meta_judge, held_out_judge
        self.rubric_history = RubricHistory(Path(args.output_dir) / "rubrics")  # of the main process alone
        self.rubric_version = 0
        self._num_batches = 0
        self._cases: list[JudgedCase] = []  # of the batch, of all processes, on the main one
        self._judged: list[JudgedCase] = []  # judged by the rubric in force, the newest last
        self._early: list[JudgedCase] = []  # of the run's beginning, with gold: what the policy is compared with
        self._watch = RubricWatch(max(1, args.rollback_window), args.rollback_drop)
        self._alarm = JudgeAlarm(args.alarm_window, args.alarm_gap)

    @property
    def judge(self) -> Judge:
        """The judge that trains.

        Raises:
            ValueError: no JudgeReward is among the reward functions.
        """
        if self._judge_reward is None:
            raise ValueError(f"this {type(self).__name__} has no judge: no JudgeReward is among its reward_funcs")
        return self._judge_reward.judge

    def _forget_other_rubric(self) -> None:
        """Let a curriculum that sees the judge forget what another rubric said: a change of scores is no learning."""
        pays = self.reward_weights[self.reward_funcs.index(self._judge_reward)] != 0
        if pays and self.args.curriculum_reward == "total":
            self.curriculum.forget()

    # ---- what was judged ----

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self._judge_reward is not None and self.model.training:
            self._collect(*self._judge_reward.last)
        return rewards

    def _collect(self, prompts, completions, references, judgements) -> None:
        """Gather the batch's judged completions on the main process."""
        first = len(prompts) * self.accelerator.process_index
        golds = self._gold[first : first + len(prompts)].tolist()
        cases = []
        rows = zip(prompts, completions, references, judgements, golds, strict=True)
        for prompt, completion, reference, judgement, gold in rows:
            if judgement.total is not None:
                texts = (conversation_text(prompt), conversation_text(completion))
                said = (judgement.total, judgement.scores, judgement.rationales)
                known = {"gold": None if np.isnan(gold) else gold, "reference": reference}
                cases.append(JudgedCase(*texts, *said, **known, step=self.state.global_step))
        self._cases = gather_object(cases)

    # ---- after a batch ----

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self._judge_reward is None or not self.model.training:
            return super()._generate_and_score_completions(inputs)
        if self._num_batches == 0 and self.accelerator.is_main_process:
            self.rubric_history.begin(self.judge.rubric)
        self._log_mpo("version", self.rubric_version, "rubric")
        outputs = super()._generate_and_score_completions(inputs)
        self._num_batches += 1
        with self._throughput.phase("score"):
            self._share(self._after_batch)
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
                told = [f"{type(error).__name__}: {error}", None, None]
                broadcast_object_list(told)
                raise
        broadcast_object_list(told)
        if told[0] is not None:
            raise RuntimeError(f"the main process failed: {told[0]}")
        if told[1] != self.rubric_version:
            if self.rubric_version != UNTOLD:  # on resume the checkpoint's is compared
                self._forget_other_rubric()
            self.rubric_version, self.judge.rubric = told[1], Rubric.from_dict(told[2])

    def _after_batch(self) -> None:
        args, against_gold = self.args, self._gold_index is not None
        new = self._keep_early(self._cases)
        self._judged = [*self._judged, *new][-args.meta_pool :]
        quality = batch_quality(self._cases, against_gold)
        known = [(case.total, case.gold) for case in self._cases if case.gold is not None]
        self._watch.observe(quality, *(np.mean(known, axis=0) if known else ()))
        if quality is not None:
            self._log_mpo("rank_accuracy" if against_gold else "spread", quality)
        if self._held_out_judge is not None and self._num_batches % args.held_out_every == 0:
            self._look_on(self._held_out_judge)
        suspicion = self._watch.suspicion if args.rollback_window and quality is not None else None
        rolled_back = suspicion is not None and self._look_back(suspicion)
        due = args.meta_every and self._num_batches % args.meta_every == 0 and not rolled_back
        if due and self._meta_judge is not None:
            started = time.perf_counter()
            self._meta_step(self._meta_judge)
            self._log_mpo("seconds", time.perf_counter() - started)

    def _keep_early(self, cases: list[JudgedCase]) -> list[JudgedCase]:
        """Keep the first `gate_cases` with gold aside, by whole prompts; returns the others."""
        if not self.args.rollback_window:
            return cases
        prompts: set[str] = set()
        for case in cases:
            if case.gold is not None and (case.prompt in prompts or len(self._early) < self.args.gate_cases):
                prompts.add(case.prompt)
                self._early.append(case)
        return [case for case in cases if case.prompt not in prompts]

    # ---- the rubric ----

    def _meta_step(self, meta_judge: MetaJudge) -> None:
        """Let the meta judge rewrite the rubric, and put it in force if the gate lets it through."""
        args, step, current = self.args, self.state.global_step, self.rubric_history.current
        wanted = args.gate_cases if args.gate else 0
        shown, held_out = split_by_prompt(self._judged, wanted, seed=args.seed + self._num_batches)
        if not shown:
            return self._nothing_new("no completion has been judged since the last change")
        if args.gate and not held_out:
            return self._nothing_new(
                "all completions since the last change are of one prompt alone, and none is left to try a new rubric "
                "on: raise meta_every, or the prompts of a batch"
            )
        if all(case.gold is None for case in shown):
            shown = self._judge_again(shown)
        chosen = select_cases(shown, args.meta_cases, seed=args.seed + self._num_batches)
        spread = describe_scores(self._judged, current.rubric)
        try:
            revision = meta_judge.revise(current.rubric, chosen, spread, describe_versions(self.rubric_history))
        except JudgeError as error:
            return self._nothing_new(str(error))
        self._log_mpo("tokens", revision.prompt_tokens + revision.completion_tokens)
        if revision.rubric is None:
            return self._nothing_new(str(revision.failure))
        if revision.rubric == current.rubric:
            return self._nothing_new("the meta judge changes nothing")
        verdict = self._try(current.rubric, revision.rubric, held_out) if args.gate else None
        accepted = verdict is None or verdict.accepted
        self.rubric_history.propose(
            revision.rubric,
            step=step,
            accepted=accepted,
            reason="taken without a gate" if verdict is None else verdict.reason,
            verdict=None if verdict is None else verdict.to_dict(),
            analyses=revision.analyses,
            cases=[{"why": why, **case.to_dict()} for case, why in chosen],
        )
        self._log_mpo("accepted", float(accepted))
        if accepted:
            self._rubric_changed()

    def _judge_again(self, cases: list[JudgedCase]) -> list[JudgedCase]:
        """Add to the `meta_cases` highest totals how far a second judgement agrees: nothing else tells an error."""
        highest = sorted(range(len(cases)), key=lambda index: -cases[index].total)[: self.args.meta_cases]
        columns = [[getattr(cases[index], name) for index in highest] for name in CASE_COLUMNS]
        again = self.judge.judge(*columns, temperature=self.args.gate_temperature)
        agreements = {
            index: 1 - abs(each.total - cases[index].total)
            for index, each in zip(highest, again, strict=True)
            if each.total is not None
        }
        return [replace(case, agreement=agreements.get(index)) for index, case in enumerate(cases)]

    def _try(self, old: Rubric, new: Rubric, cases: list[JudgedCase], early: Sequence[JudgedCase] = ()) -> Verdict:
        """Let the judge use both rubrics on the same completions."""
        before, after = (self._measure(rubric, cases, early) for rubric in (old, new))
        return decide(before, after, tolerance=self.args.gate_tolerance)

    def _measure(self, rubric: Rubric, cases: list[JudgedCase], early: Sequence[JudgedCase]) -> RubricQuality:
        cases = [*early, *cases]
        repeats = self.args.gate_repeats or (2 if self._gold_index is None else 1)
        columns = [[getattr(case, name) for case in cases for _ in range(repeats)] for name in CASE_COLUMNS]
        judgements = self.judge.judge(*columns, rubric=rubric, temperature=self.args.gate_temperature)
        totals = np.array([np.nan if each.total is None else each.total for each in judgements])
        prompts, golds = [case.prompt for case in cases], [case.gold for case in cases]
        return rubric_quality(totals.reshape(len(cases), repeats), prompts, golds, len(early))

    def _look_back(self, suspicion: str) -> bool:
        """Go back to the rubric in force's parent if that ranks the newest completions better; tell if it did."""
        current = self.rubric_history.current
        if current.parent is None or not self._judged:
            return False
        parent = self.rubric_history.versions[current.parent]
        newest = list(dict.fromkeys(case.prompt for case in reversed(self._judged)))
        kept, cases = 0, []
        for prompt in newest:
            if kept >= self.args.gate_cases:
                break
            cases += (group := [case for case in self._judged if case.prompt == prompt])
            kept += len(group)
        verdict = self._try(current.rubric, parent.rubric, cases, self._early)
        before, after = gold_accuracies(verdict.old, verdict.new) or (None, None)
        if before is None and verdict.measure == "reliability":
            before, after = verdict.old.reliability, verdict.new.reliability
        better = verdict.accepted and before is not None and after is not None and after > before
        if better:
            reason = f"{suspicion}; with version {parent.number}: {verdict.reason}"
            self.rubric_history.roll_back(parent.number, self.state.global_step, reason)
            self._log_mpo("rolled_back", 1.0)
            self._rubric_changed()
        return better

    def _rubric_changed(self) -> None:
        self._judged = []  # their scores are of another rubric
        self._watch.rubric_changed()

    def _nothing_new(self, reason: str) -> None:
        self._log_mpo("failed", 1.0)
        self.rubric_history.note_failure(self.state.global_step, reason)
        logger.warning(f"the rubric stays as it is: {reason}")

    # ---- the judge that looks on ----

    def _look_on(self, held_out_judge: Judge) -> None:
        """Let the held-out judge score some of the batch, and raise the alarm if the two have parted."""
        _, cases = split_by_prompt(self._cases, self.args.held_out_cases, seed=self.args.seed + self._num_batches)
        cases = cases or self._cases
        columns = [[getattr(case, name) for case in cases] for name in CASE_COLUMNS]
        try:
            judgements = held_out_judge.judge(*columns)
        except JudgeError as error:
            logger.warning(f"the held-out judge does not answer: {error}")
            return
        pairs = [
            (case.total, each.total) for case, each in zip(cases, judgements, strict=True) if each.total is not None
        ]
        self._log_mpo("failures", 1 - len(pairs) / max(1, len(cases)), "held_out_judge")
        if not pairs:
            return
        trained, held_out = np.mean(pairs, axis=0)
        was_raised = self._alarm.is_raised
        self._alarm.observe(trained, held_out)
        self._log_mpo("score", held_out, "held_out_judge")
        if self._alarm.parted is not None:
            self._log_mpo("parted", self._alarm.parted, "held_out_judge")
            self._log_mpo("alarm", float(self._alarm.is_raised), "held_out_judge")
        if self._alarm.is_raised and not was_raised:
            logger.warning(
                f"step {self.state.global_step}: the judge has risen above the held-out judge by "
                f"{self._alarm.parted:.2f} since the start: the policy may be exploiting its rubric"
            )

    def _log_mpo(self, name: str, value: float, group: str = "mpo") -> None:
        self._metrics["train"][f"{group}/{name}"].append(float(value))

    # ---- checkpoints ----

    def _run_state(self) -> dict[str, Any]:
        if self._judge_reward is None:
            return super()._run_state()
        return super()._run_state() | {
            "mpo": {
                "step": self.state.global_step,
                "num_batches": self._num_batches,
                "pool": [case.to_dict() for case in self._judged],
                "early": [case.to_dict() for case in self._early],
                "watch": self._watch.state_dict(),
                "alarm": self._alarm.state_dict(),
                "rubrics": self.rubric_history.state_dict(),
            }
        }

    def _load_run_state(self, state: dict[str, Any], folder: Path) -> None:
        super()._load_run_state(state, folder)
        if self._judge_reward is None:
            return
        state = state["mpo"]
        self._num_batches = state["num_batches"]
        self._judged, self._early = ([JudgedCase(**case) for case in state[name]] for name in ("pool", "early"))
        self._watch.load_state_dict(state["watch"])
        self._alarm.load_state_dict(state["alarm"])
        self.rubric_version = UNTOLD  # taken up from the history, which may have been turned back by the user
        self._share(lambda: self._resume_history(state["rubrics"], state["step"]))
        if self.rubric_version != state["rubrics"]["current"]:
            self._forget_other_rubric()

    def _resume_history(self, state: dict[str, Any], step: int) -> None:
        self.rubric_history.load_state_dict(state, step)
        if self.rubric_history.current.number != state["current"]:
            self._rubric_changed()
