"""The chance of success if a trace were stopped at a prefix, estimated with what the trainer has.

Two estimators behind one method: forced answers, sampled by the trainer's own engine and scored by its gold
reward; and the likelihood of all accepted answers, without sampling, where a task can list them.

A row's verifier decides how its answer is opened. Rows that nothing grades get no estimate.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from trl import GRPOTrainer
from trl.data_utils import is_conversational
from trl.distributed import DistributedBackend

from ..rewards import get_verifier
from .answer_likelihood import AcceptedAnswers, Tree, success_probabilities
from .forcing_checks import ForcingChecks, verifier_of
from .throughput import Throughput

logger = get_logger(__name__)
MIN_ENDED = 0.5  # share of forced answers below which something must be wrong


class SuccessAtPrefixes(ForcingChecks):
    """
    A piece of a [`DUMPTrainer`] that estimates J at prefixes of the batch's completions.

    It reads what the trainer keeps of a batch: `_drawn`, this process's rows; `_completion_ids`, their completions;
    `_forcing`, the suffix; and `_gold_index`.
    """

    accelerator: Any
    model: Any
    eos_token_ids: list[int]
    generation_config: Any
    use_vllm: bool
    vllm_generation: Any
    _metrics: dict[str, dict[str, list[float]]]
    _pending_extra_logs: dict[str, Any]
    _pending_metrics: dict[str, Any]
    _throughput: Throughput
    _rollout_tokens: int
    _completion_ids: list[list[int]]
    _dist: DistributedBackend
    _generate_single_turn: Any
    _model_for_rollouts: Any
    _warned_of_limit = False

    def _estimate(self, prompts: list[list[int]], cuts: list[list[int]]) -> list[list[float]]:
        """Estimate J at this process's prefixes: each completion cut at each of its `cuts`.

        The estimate is NaN for rows that nothing grades.
        """
        if not self._cycles:  # the rows of a stream are not known before
            self._check_forcing(self._drawn)
        distinct: dict[tuple[int, ...], tuple[int, int]] = {}  # equal prefixes are answered once
        graded = [self._is_graded(row) for row in self._drawn]
        for row, row_cuts in enumerate(cuts):
            for cut in row_cuts if graded[row] else ():
                distinct.setdefault((*prompts[row], *self._completion_ids[row][:cut]), (row, cut))
        places = list(distinct.values())
        estimate = self._by_likelihood if self.args.success_estimator == "likelihood" else self._by_rollouts
        values = dict(zip(distinct, estimate(prompts, places), strict=True))
        return [
            [
                values[(*prompts[row], *self._completion_ids[row][:cut])] if graded[row] else math.nan
                for cut in row_cuts
            ]
            for row, row_cuts in enumerate(cuts)
        ]

    def _by_rollouts(self, prompts: list[list[int]], places: list[tuple[int, int]]) -> list[float]:
        """Return the mean reward of forced answers at each prefix, a pair of row and cut."""
        wanted = len(places)
        # Ranks generate and score together, so all ask for as many; what a rank adds is thrown away.
        most = max(gather_object([wanted]))
        if most == 0:  # all traces ended before the first budget, or nothing grades them
            return []
        places = [*places, *([places[-1] if places else (0, 0)] * (most - wanted))]
        repeats = self.args.num_forced_answers
        texts = [self._text(row, cut) for row, cut in places]
        suffixes = [self._suffix(row, text) for (row, _), text in zip(places, texts, strict=True)]
        forced = [
            [*prompts[row], *self._completion_ids[row][:cut], *ids]
            for (row, cut), (_, ids) in zip(places, suffixes, strict=True)
        ]
        with self._short_completions(self.args.forced_answer_tokens):
            answers, _ = self._generate_single_turn([ids for ids in forced for _ in range(repeats)], None, {}, repeats)
        ended = self._count_forced(answers[: wanted * repeats])
        self._log_forced_ended(ended)
        contents = [
            text + answer
            for text, answer in zip(
                [text + suffix for text, (suffix, _) in zip(texts, suffixes, strict=True) for _ in range(repeats)],
                self._tokenizer.batch_decode(answers, skip_special_tokens=True),
                strict=True,
            )
        ]
        inputs = [self._drawn[row] for row, _ in places for _ in range(repeats)]
        scores = self._score(inputs, contents, answers)
        return scores.view(most, repeats).nanmean(1)[:wanted].tolist()

    def _suffix(self, row: int, text: str) -> tuple[str, list[int]]:
        """Return the forcing suffix of a row's trace that is cut after `text`; empty for a row that is padding."""
        if not self._is_graded(self._drawn[row]):
            return "", []
        verifier = verifier_of(self._drawn[row])
        return self._forcing.text_after(text, verifier), self._forcing.ids_after(text, verifier)

    def _by_likelihood(self, prompts: list[list[int]], places: list[tuple[int, int]]) -> list[float]:
        """Return the probability of an accepted answer at each prefix, a pair of row and cut."""
        by_row: dict[int, list[int]] = defaultdict(list)
        for row, cut in places:
            by_row[row].append(cut)
        trees, tries = [], {}
        for row, cuts in by_row.items():
            answers, verifier = accepted_answers(self._drawn[row]), self._drawn[row]["verifier"]
            key = (verifier, *answers)  # a group has one list
            if key not in tries:
                tries[key] = AcceptedAnswers(self._tokenizer, self._forcing, answers, verifier)
            branches = [tries[key].branch(self._text(row, cut), len(prompts[row]) + cut) for cut in cuts]
            trees.append(Tree([*prompts[row], *self._completion_ids[row]], branches))
        with self._throughput.phase("score"), self._model_for_rollouts() as model:
            values = success_probabilities(
                model, trees, self.eos_token_ids, temperature=self.args.temperature, synced=self._dist.is_fsdp
            )
        found = {
            (row, cut): value
            for (row, cuts), row_values in zip(by_row.items(), values, strict=True)
            for cut, value in zip(cuts, row_values, strict=True)
        }
        return [found[place] for place in places]

    def _is_graded(self, row: dict[str, Any]) -> bool:
        """Return whether the gold reward, or the likelihood of accepted answers, can grade a row."""
        if self.args.success_estimator == "likelihood":
            return "verifier" not in row or bool(row["verifier"])  # without the column, `accepted_answers` raises
        return verifier_of(row) is not None or not self._gold_is_correctness()

    def _score(self, inputs: list[dict], contents: list[str], ids: list[list[int]]) -> torch.Tensor:
        """Return the gold rewards of this process's texts that are not rollouts; NaN where unscorable."""
        prompts = [row["prompt"] for row in inputs]
        conversational = is_conversational({"prompt": prompts[0]})
        completions = [[{"role": "assistant", "content": text}] for text in contents] if conversational else contents
        with self._throughput.phase("score"), self._gold_alone():
            inputs = self._with_thinking(inputs)
            rewards = GRPOTrainer._calculate_rewards(self, inputs, prompts, completions, ids)[:, 0]
        self._pending_metrics.clear()  # these belong to the next batch's rollouts, not to forced answers
        self._pending_extra_logs.clear()
        first = self.accelerator.process_index * len(inputs)
        return rewards[first : first + len(inputs)]

    @contextmanager
    def _gold_alone(self) -> Iterator[None]:
        """Let TRL call the gold reward only: judges score complete answers only."""
        number = self._gold_index
        if number is None:
            raise ValueError("there is no gold reward: add a verifier to reward_funcs")
        names = ("reward_funcs", "reward_processing_classes", "reward_func_names")
        before = {name: getattr(self, name) for name in names}
        for name, values in before.items():
            setattr(self, name, [values[number]])
        try:
            yield
        finally:
            for name, values in before.items():
                setattr(self, name, values)

    def _text(self, row: int, cut: int) -> str:
        return self._tokenizer.decode(self._completion_ids[row][:cut], skip_special_tokens=True)

    @contextmanager
    def _short_completions(self, length: int) -> Iterator[None]:
        """Generate at most `length` tokens inside the block, whichever engine does it.

        In place of `generate`, which would read every prefix once for each of its answers, `sample_completions` does.
        """
        settings = [(self, "max_completion_length", length)]
        if self.use_vllm:
            settings.append((self.vllm_generation, "max_completion_length", length))
        else:
            settings.append((self.generation_config, "max_new_tokens", length))
        model = self.accelerator.unwrap_model(self.model)
        plain = model._supports_default_dynamic_cache() and not model._is_stateful
        if plain and self.args.obstacle_to_compact_generation() is None:
            settings.append((self, "_compact", True))
        before = [getattr(holder, name) for holder, name, _ in settings]
        for holder, name, value in settings:
            setattr(holder, name, value)
        try:
            yield
        finally:
            for (holder, name, _), value in zip(settings, before, strict=True):
                setattr(holder, name, value)

    def _log_forced_ended(self, ended: float) -> None:
        """Log the share of forced answers that ended within their limit; warn once if it is small."""
        self._log("forced_ended", ended)
        if ended < MIN_ENDED and not self._warned_of_limit:
            self._warned_of_limit = True
            logger.warning(
                f"only {ended:.0%} of the forced answers ended within the limit of forced_answer_tokens, "
                f"{self.args.forced_answer_tokens}: raise it, or set a forcing_suffix after which the model answers "
                "at once"
            )

    def _log(self, name: str, value: float) -> None:
        self._metrics["train"][f"progress/{name}"].append(value)

    def _count_forced(self, completion_ids: Sequence[Sequence[int]]) -> float:
        """Count the tokens of completions that are not rollouts; return the share that ended by themselves."""
        eos = set(self.eos_token_ids)
        ended = sum(bool(ids) and ids[-1] in eos for ids in completion_ids)
        own = [sum(map(len, completion_ids)), ended, len(completion_ids)]
        tokens, ended, number = np.sum(gather_object([own]), axis=0).tolist()
        self._rollout_tokens += tokens
        return ended / number if number else 1.0


def accepted_answers(row: dict[str, Any]) -> list[str]:
    """Return every accepted answer of a training row.

    Raises:
        ValueError: if the row has no verifier, or its accepted answers cannot be listed.
    """
    fix = "set success_estimator to rollouts"
    if row.get("verifier") is None:
        raise ValueError(f"success_estimator: likelihood needs the columns verifier, answer and info; {fix}")
    info = json.loads(row["info"]) if row.get("info") else {}
    answers = get_verifier(row["verifier"]).accepted_answers(row["answer"], info)
    if answers is None:
        raise ValueError(
            f"success_estimator: likelihood sums over all accepted answers, but those of the verifier "
            f"{row['verifier']!r} cannot be listed (an equal answer can be written in many ways); {fix}"
        )
    return answers
