"""Check that the forcing suffix fits the grader, before a run with the training set and during the run."""

import inspect
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.logging import get_logger
from trl.data_utils import is_conversational

from ..rewards import Forcing, correctness_reward
from ..rewards.forcing_check import ROWS_PER_DISTRIBUTION, check_forcing, column_of, forced_text, rows_by_verifier
from .forced_watch import Batch, ForcedWatch
from .mrt_config import MRTConfig

logger = get_logger(__name__)


class ForcingChecks:
    """A mixin of [`DUMPTrainer`] that constructs and checks the forcing suffix."""

    args: MRTConfig
    chat_template_kwargs: dict[str, Any]
    reward_funcs: list[Any]
    reward_func_names: list[str]
    state: Any
    train_dataset: Any
    _cycles: list[Any]
    _drawn: list[dict[str, Any]]
    _gold_index: int | None
    _tokenizer: Any
    _with_thinking: Any

    def _set_up_forcing(self, args: MRTConfig) -> None:
        """Construct the forcing suffix and check it with the graders of the training set.

        Raises:
            ValueError: if no suffix is known for the chat template and a verifier, if the suffix does not end the
                thinking, or if a verifier rejects a correct forced answer.
        """
        self._forcing = Forcing(self._tokenizer, args.forcing_suffix, self.chat_template_kwargs)
        self._checked_verifiers, self._forced_watch = set[str](), ForcedWatch()
        if not self._cycles:
            return  # a stream is checked batch by batch
        # Rows without a verifier are also forced to answer, unless nothing else grades them.
        only_verified = self._gold_is_correctness()
        for verifier in {verifier_of({"verifier": name}) for name in column_of(self.train_dataset, "verifier")}:
            if verifier or not only_verified:
                self._forcing.suffix_for(verifier)
        self._check_forcing(self.train_dataset)
        self._check_forced_reward()

    def _check_forcing(self, rows: Any) -> None:
        """Raise `ValueError` if a verifier of these rows rejects a correct forced answer."""
        if self.args.success_estimator != "likelihood" and not self._gold_is_correctness():
            return
        found = {name: some for name, some in rows_by_verifier(rows).items() if name not in self._checked_verifiers}
        self._checked_verifiers |= found.keys()
        some = next((row for rows in found.values() for row in rows), None)
        starts_in_thinking = some is not None and "starts_in_thinking" in self._with_thinking([dict(some)])[0]
        check_forcing(self._forcing, found, starts_in_thinking)

    def _check_forced_reward(self) -> None:
        """Warn if a user's gold reward gives less than 1 to the forced reference answer.

        The check is skipped if the function cannot be called on its own. The column `answer` may not be in the form
        in which the model writes answers, so a low reward is not an error.
        """
        if self._gold_index is None or self._gold_is_correctness() or self.args.success_estimator == "likelihood":
            return
        function = getattr(self.reward_funcs[self._gold_index], "function", None)
        if not inspect.isfunction(function) or inspect.iscoroutinefunction(function):
            return
        for row in self.train_dataset.select(range(min(ROWS_PER_DISTRIBUTION, len(self.train_dataset)))):
            if not isinstance(row.get("answer"), str):
                return
            text = forced_text(self._forcing, verifier_of(row), row["answer"])
            completion = [{"role": "assistant", "content": text}] if is_conversational(row) else text
            columns = {name: [value] for name, value in row.items() if name not in ("prompt", "completion")}
            try:
                (reward,) = function(
                    prompts=[row["prompt"]],
                    completions=[completion],
                    completion_ids=[self._tokenizer(text, add_special_tokens=False)["input_ids"]],
                    trainer_state=self.state,
                    log_metric=lambda name, value: None,
                    log_extra=lambda name, values: None,
                    **columns,
                )
            except Exception:  # it may need a real batch; `ForcedWatch` then detects the problem
                return
            if reward is None or reward >= 1:
                return
        logger.warning(
            f"the reward function {self.reward_func_names[self._gold_index]!r} gives the reward {reward} to a forced "
            f"answer made from the column `answer`: {text!r}. If the model should write this answer, set "
            "forcing_suffix to a text that opens an answer in the form that the function reads"
        )

    def _watch_forced(self, outcomes: torch.Tensor, forced: torch.Tensor) -> None:
        """Warn once per verifier if this process's traces often succeed and their forced answers almost never do.

        Args:
            outcomes (`torch.Tensor` of shape (B, …)): outcomes of this process's rows, NaN where there is none.
            forced (`torch.Tensor` of shape (B, …)): success rates of forced answers, NaN where there is none.
        """
        by_verifier: dict[str | None, list[int]] = defaultdict(list)
        for row, drawn in enumerate(self._drawn):
            by_verifier[verifier_of(drawn)].append(row)
        for verifier, rows in by_verifier.items():
            number = self._forced_watch.observe(verifier, Batch(_known(outcomes[rows]), _known(forced[rows])))
            if number:
                where = f"verifier {verifier!r}, " if verifier else ""
                logger.warning(
                    f"in the last {number} batches, forced answers are almost never correct but complete traces often "
                    f"are ({where}forcing suffix {self._forcing.suffix_for(verifier)!r}), so progress is not "
                    "measured. Set forcing_suffix to a text after which the model answers in the form that is graded, "
                    "or raise forced_answer_tokens"
                )

    def _gold_is_correctness(self) -> bool:
        if self._gold_index is None:
            return False
        return getattr(self.reward_funcs[self._gold_index], "function", None) is correctness_reward


def verifier_of(row: Mapping[str, Any]) -> str | None:
    """Return the name of a row's verifier, `None` if it has none."""
    name = row.get("verifier")
    return name if isinstance(name, str) and name else None


def _known(values: torch.Tensor) -> tuple[float, ...]:
    return tuple(values[~values.isnan()].tolist())
