"""Does the forcing suffix fit what grades? Checked before the run with the training set, and watched during it."""

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
    """A piece of a [`DUMPTrainer`] that constructs the forcing suffix and checks it."""

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
        """Construct the forcing suffix and check it with what grades the training set.

        Raises:
            ValueError: no suffix is known for the chat template and a verifier, the suffix does not end the thinking,
                or a verifier rejects a right answer that is forced.
        """
        self._forcing = Forcing(self._tokenizer, args.forcing_suffix, self.chat_template_kwargs)
        self._checked_verifiers, self._forced_watch = set[str](), ForcedWatch()
        if not self._cycles:
            return  # a stream is checked batch by batch
        # Rows without a verifier are forced too, unless nothing else grades them.
        only_verified = self._gold_is_correctness() and args.progress != "prefix"
        for verifier in {verifier_of({"verifier": name}) for name in column_of(self.train_dataset, "verifier")}:
            if verifier or not only_verified:
                self._forcing.suffix_for(verifier)
        self._check_forcing(self.train_dataset)
        self._check_forced_reward()

    def _check_forcing(self, rows: Any) -> None:
        """Raise `ValueError` if a verifier of these rows rejects a right answer that is forced."""
        if self.args.success_estimator != "likelihood" and not self._gold_is_correctness():
            return
        found = {name: some for name, some in rows_by_verifier(rows).items() if name not in self._checked_verifiers}
        self._checked_verifiers |= found.keys()
        some = next((row for rows in found.values() for row in rows), None)
        starts_in_thinking = some is not None and "starts_in_thinking" in self._with_thinking([dict(some)])[0]
        check_forcing(self._forcing, found, starts_in_thinking)

    def _check_forced_reward(self) -> None:
        """Warn if a gold reward of the user's own gives a forced reference less than 1, where it can be called alone.

        The column `answer` need not be an answer as the model writes it, so a low reward is no error.
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
            except Exception:  # it may need what only a batch has; then `ForcedWatch` finds out
                return
            if reward is None or reward >= 1:
                return
        logger.warning(
            f"the reward function {self.reward_func_names[self._gold_index]!r} gives a reference that is forced "
            f"{reward}: {text!r}; if the column `answer` is what the model should write, set forcing_suffix to a text "
            "that opens an answer as the function reads it"
        )

    def _watch_forced(self, outcomes: torch.Tensor, forced: torch.Tensor) -> None:
        """Warn once for a verifier if this process's traces often succeed and their forced answers never do.

        Args:
            outcomes (`torch.Tensor` of shape (B, …)): outcomes of this process's rows, NaN where there is none.
            forced (`torch.Tensor` of shape (B, …)): chances of success of forced answers, NaN where there is none.
        """
        by_verifier: dict[str | None, list[int]] = defaultdict(list)
        for row, drawn in enumerate(self._drawn):
            by_verifier[verifier_of(drawn)].append(row)
        for verifier, rows in by_verifier.items():
            number = self._forced_watch.observe(verifier, Batch(_known(outcomes[rows]), _known(forced[rows])))
            if number:
                where = f"verifier {verifier!r}, " if verifier else ""
                logger.warning(
                    f"in the last {number} batches, forced answers are almost never right and whole traces often are "
                    f"({where}forcing suffix {self._forcing.suffix_for(verifier)!r}), so progress is not measured; "
                    "set forcing_suffix to a text after which the model answers in a form that is graded, or raise "
                    "forced_answer_tokens"
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
