"""How a judge's rubric changes while a policy trains on it: what the main process makes of each batch's judgements.

Every batch's judged completions are kept to choose from. When a meta step is due the meta judge rewrites the rubric
and the gate tries the result; when the running check suspects the rubric in force, its parent is tried again; and a
held-out judge looks on. No TRL: judges in, a history of rubrics out. The method is told in `mpo_trainer.py`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from accelerate.logging import get_logger

from ..rewards.judge import Judge
from ..rewards.judge_client import JudgeError, is_servers_fault
from ..rewards.judge_watch import JudgeAlarm, RubricWatch, batch_quality
from ..rewards.judged_cases import JudgedCase, select_cases, split_by_prompt, split_for_trial
from ..rewards.meta_judge import MetaJudge, describe_scores, describe_versions
from ..rewards.rubric import Rubric
from ..rewards.rubric_gate import Trial, Verdict, compare, decide, rubric_quality
from ..rewards.rubric_history import RubricHistory
from .mpo_config import MPOConfig

logger = get_logger(__name__)

MOST_SERVER_FAILURES = 3  # consecutive failures of a meta judge or held-out judge that end the run
CASE_COLUMNS = ("prompt", "completion", "reference")


class RubricEvolution:
    """
    Args:
        args ([`MPOConfig`]): its options.
        history (`RubricHistory`): of the run; what is in force is its `current`.
        judge (`Judge`): that trains.
        meta_judge (`MetaJudge`, *optional*): that rewrites the rubric.
        held_out_judge (`Judge`, *optional*): that looks on.
        against_gold (`bool`): whether there is a gold reward.
        log (`Callable[[str, float], None]`): takes a metric's name and value.
    """

    def __init__(
        self,
        args: MPOConfig,
        history: RubricHistory,
        judge: Judge,
        *,
        meta_judge: MetaJudge | None,
        held_out_judge: Judge | None,
        against_gold: bool,
        log: Callable[[str, float], None],
    ):
        self._args, self._history, self._judge = args, history, judge
        self._meta_judge, self._held_out_judge = meta_judge, held_out_judge
        self._against_gold, self._log = against_gold, log
        self._may_roll_back = args.meta_every > 0 and args.rollback_window > 0
        self._step = 0
        self._num_batches = 0
        self._judged: list[JudgedCase] = []  # judged by the rubric in force, the newest last
        self._early: list[JudgedCase] = []  # of the run's beginning, with gold: what the policy is compared with
        self._watch = RubricWatch(max(1, args.rollback_window), args.rollback_drop)
        self._server_failures = {"meta_judge": 0, "held_out_judge": 0}  # in a row
        self._alarm = JudgeAlarm(args.alarm_window, args.alarm_gap)

    def after_batch(self, cases: list[JudgedCase], step: int) -> None:
        """Take in a batch's judged completions, of all processes, and do what is due.

        Args:
            cases (`list[JudgedCase]`): judged by the rubric in force.
            step (`int`): optimizer steps done.
        """
        args = self._args
        if self._num_batches == 0:
            self._history.begin(self._judge.rubric)
        self._step = step
        self._num_batches += 1
        self._judged = [*self._judged, *self._keep_early(cases)][-args.meta_pool :]
        quality = batch_quality(cases, self._against_gold)
        known = [(case.total, case.gold) for case in cases if case.gold is not None]
        self._watch.observe(quality, *(np.mean(known, axis=0) if known else ()))
        if quality is not None:
            self._log("mpo/rank_accuracy" if self._against_gold else "mpo/spread", quality)
        if self._held_out_judge is not None and self._num_batches % args.held_out_every == 0:
            self._look_on(self._held_out_judge, cases)
        suspicion = self._watch.suspicion if self._may_roll_back else None
        rolled_back = suspicion is not None and self._look_back(suspicion)
        due = args.meta_every and self._num_batches % args.meta_every == 0 and not rolled_back
        if due and self._meta_judge is not None:
            started = time.perf_counter()
            self._meta_step(self._meta_judge)
            self._log("mpo/seconds", time.perf_counter() - started)

    def _keep_early(self, cases: list[JudgedCase]) -> list[JudgedCase]:
        """Set the first `gate_cases` with gold aside, from every other prompt of a batch; return the other cases."""
        if not self._may_roll_back:
            return cases
        with_gold = [case for case in cases if case.gold is not None]
        kept: set[str] = set()
        for prompt in list(dict.fromkeys(case.prompt for case in with_gold))[::2]:
            if len(self._early) < self._args.gate_cases:
                kept.add(prompt)
                self._early += [case for case in with_gold if case.prompt == prompt]
        return [case for case in cases if case.prompt not in kept]

    # ---- the rubric ----

    def _meta_step(self, meta_judge: MetaJudge) -> None:
        """Let the meta judge rewrite the rubric, and put the new one in force if the gate accepts it."""
        args, current = self._args, self._history.current
        if not self._judged:
            return self._nothing_new("no completion has been judged since the last change")
        shown, measurements = self._hold_out() if args.gate else (self._judged, [])
        if args.gate and len({case.prompt for cases in measurements for case in cases}) < 2:
            return self._nothing_new(
                "too few prompts to test a new rubric: the gate needs two prompts whose completions differ in gold "
                "(or, without gold, two prompts with two completions each), and the meta judge one more. Raise "
                "meta_every, or the number of prompts per batch"
            )
        if all(case.gold is None for case in shown):
            shown = self._judge_again(shown)
        chosen = select_cases(shown, args.meta_cases, seed=args.seed + self._num_batches)
        spread = describe_scores(self._judged, current.rubric)
        try:
            revision = meta_judge.revise(current.rubric, chosen, spread, describe_versions(self._history))
        except JudgeError as error:
            self._count_server_failure("meta_judge", error)
            return self._nothing_new(str(error))
        self._server_failures["meta_judge"] = 0
        self._log("mpo/tokens", revision.prompt_tokens + revision.completion_tokens)
        if revision.rubric is None:
            return self._nothing_new(str(revision.failure))
        if revision.rubric == current.rubric:
            return self._nothing_new("the meta judge changes nothing")
        verdict = self._try(current.rubric, revision.rubric, measurements) if args.gate else None
        accepted = verdict is None or verdict.accepted
        self._history.propose(
            revision.rubric,
            step=self._step,
            accepted=accepted,
            reason="taken without a gate" if verdict is None else verdict.reason,
            verdict=None if verdict is None else verdict.to_dict(),
            analyses=revision.analyses,
            cases=[{"why": why, **case.to_dict()} for case, why in chosen],
        )
        self._log("mpo/accepted", float(accepted))
        if accepted:
            self._rubric_changed()

    def _judge_again(self, cases: list[JudgedCase]) -> list[JudgedCase]:
        """Add to the `meta_cases` highest totals how far a second judgement agrees: nothing else tells an error."""
        highest = sorted(range(len(cases)), key=lambda index: -cases[index].total)[: self._args.meta_cases]
        columns = [[getattr(cases[index], name) for index in highest] for name in CASE_COLUMNS]
        again = self._judge.judge(*columns, temperature=self._args.gate_temperature)
        self._log("mpo/second_judgments", len(again))
        agreements = {
            index: 1 - abs(each.total - cases[index].total)
            for index, each in zip(highest, again, strict=True)
            if each.total is not None
        }
        return [replace(case, agreement=agreements.get(index)) for index, case in enumerate(cases)]

    def _hold_out(self) -> tuple[list[JudgedCase], list[list[JudgedCase]]]:
        """Split the judged cases into those that the meta judge may see and the gate's measurements."""
        args = self._args
        # Without gold a measurement has half as many completions: each is judged several times by both rubrics.
        number = args.gate_cases if self._has_gold(self._judged) else max(1, args.gate_cases // 2)
        return split_for_trial(self._judged, number, args.gate_measurements, seed=args.seed + self._num_batches)

    def _try(self, old: Rubric, new: Rubric, measurements: Sequence[list[JudgedCase]]) -> Verdict:
        """Let the judge apply a new rubric to sets of held-out completions until the gate decides."""
        trials: list[Trial] = []
        while True:
            trials.append(self._measure(old, new, measurements[len(trials)]))
            is_last = len(trials) == len(measurements)
            verdict = decide(Trial.joined(trials), self._args.gate_tolerance, is_last)
            if verdict.decided:
                break
        known = self._has_gold(measurements[0])  # if so, the old rubric's totals cost no judgments
        self._log("mpo/gate_judgments", sum(trial.new.size + (0 if known else trial.old.size) for trial in trials))
        self._log("mpo/gate_measurements", len(trials))
        return verdict

    def _measure(self, old: Rubric, new: Rubric, cases: list[JudgedCase]) -> Trial:
        """Return both rubrics' totals; with gold, those of the old rubric are already known."""
        totals = self._judge_by(new, cases)
        before = np.array([[case.total] for case in cases]) if self._has_gold(cases) else self._judge_by(old, cases)
        return Trial(before, totals, [case.prompt for case in cases], [case.gold for case in cases])

    def _judge_by(self, rubric: Rubric, cases: Sequence[JudgedCase]) -> np.ndarray:
        """Return the totals of N cases by a rubric: one per case as in training, several if there is no gold."""
        repeats = 1 if self._has_gold(cases) else self._args.gate_repeats
        temperature = None if self._has_gold(cases) else self._args.gate_temperature
        columns = [[getattr(case, name) for case in cases for _ in range(repeats)] for name in CASE_COLUMNS]
        judgements = self._judge.judge(*columns, rubric=rubric, temperature=temperature)
        totals = np.array([np.nan if each.total is None else each.total for each in judgements])
        return totals.reshape(len(cases), repeats)

    @staticmethod
    def _has_gold(cases: Sequence[JudgedCase]) -> bool:
        return any(case.gold is not None for case in cases)

    def _look_back(self, suspicion: str) -> bool:
        """Go back to the current rubric's parent if it ranks the newest completions better; return whether it does."""
        current = self._history.current
        if current.parent is None or not self._judged:
            return False
        parent = self._history.versions[current.parent]
        newest = list(dict.fromkeys(case.prompt for case in reversed(self._judged)))
        kept, cases = 0, []
        for prompt in newest:
            if kept >= self._args.gate_cases:
                break
            cases += (group := [case for case in self._judged if case.prompt == prompt])
            kept += len(group)
        cases = [*self._early, *cases]
        totals = [self._judge_by(rubric, cases) for rubric in (current.rubric, parent.rubric)]
        self._log("mpo/rollback_judgments", sum(each.size for each in totals))
        prompts, golds = [case.prompt for case in cases], [case.gold for case in cases]
        verdict = compare(*(rubric_quality(each, prompts, golds, len(self._early)) for each in totals))
        if verdict.accepted:
            reason = f"{suspicion}; with version {parent.number}: {verdict.reason}"
            self._history.roll_back(parent.number, self._step, reason)
            self._log("mpo/rolled_back", 1.0)
            self._rubric_changed()
        return verdict.accepted

    def _rubric_changed(self) -> None:
        self._judged = []  # their scores are of another rubric
        self._watch.rubric_changed()

    def _count_server_failure(self, judge: str, error: JudgeError) -> None:
        """Raise the error of a judge's server if no later call can succeed, or after several consecutive failures."""
        self._server_failures[judge] += 1
        if error.is_hopeless or self._server_failures[judge] >= MOST_SERVER_FAILURES:
            raise error

    def _nothing_new(self, reason: str) -> None:
        self._log("mpo/failed", 1.0)
        self._history.note_failure(self._step, reason)
        logger.warning(f"the rubric stays as it is: {reason}")

    # ---- the judge that looks on ----

    def _look_on(self, held_out_judge: Judge, judged: list[JudgedCase]) -> None:
        """Let the held-out judge score some of the batch, and raise the alarm if the two have parted."""
        _, some = split_by_prompt(judged, self._args.held_out_cases, seed=self._args.seed + self._num_batches)
        cases = some or judged
        if not cases:  # nothing was judged
            return
        columns = [[getattr(case, name) for case in cases] for name in CASE_COLUMNS]
        judgements = held_out_judge.judge(*columns)
        if is_servers_fault(judgements):
            error = held_out_judge.client.error(f"all {len(judgements)} judgements failed", judgements)
            self._count_server_failure("held_out_judge", error)
            logger.warning(str(error))
        else:
            self._server_failures["held_out_judge"] = 0
        pairs = [
            (case.total, each.total) for case, each in zip(cases, judgements, strict=True) if each.total is not None
        ]
        self._log("held_out_judge/failures", 1 - len(pairs) / len(cases))
        self._log("held_out_judge/tokens", sum(each.prompt_tokens + each.completion_tokens for each in judgements))
        if not pairs:
            return
        trained, held_out = np.mean(pairs, axis=0)
        was_raised = self._alarm.is_raised
        self._alarm.observe(trained, held_out)
        self._log("held_out_judge/score", held_out)
        if self._alarm.parted is not None:
            self._log("held_out_judge/parted", self._alarm.parted)
            self._log("held_out_judge/alarm", float(self._alarm.is_raised))
        if self._alarm.is_raised and not was_raised:
            logger.warning(
                f"step {self._step}: the judge has risen above the held-out judge by "
                f"{self._alarm.parted:.2f} since the start: the policy may be exploiting its rubric"
            )

    # ---- its state ----

    def state_dict(self) -> dict[str, Any]:
        """Return everything that steers later changes, as JSON values."""
        return {
            "num_batches": self._num_batches,
            "pool": [case.to_dict() for case in self._judged],
            "early": [case.to_dict() for case in self._early],
            "watch": self._watch.state_dict(),
            "alarm": self._alarm.state_dict(),
            "rubrics": self._history.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        """Go on from a `state_dict` of `step` optimizer steps; the history may have been turned back by the user."""
        self._num_batches = state["num_batches"]
        self._judged, self._early = ([JudgedCase(**case) for case in state[name]] for name in ("pool", "early"))
        self._watch.load_state_dict(state["watch"])
        self._alarm.load_state_dict(state["alarm"])
        self._history.load_state_dict(state["rubrics"], step)
        if self._history.current.number != state["rubrics"]["current"]:
            self._rubric_changed()
