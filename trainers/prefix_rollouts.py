"""Rollouts that start from stale prefixes, for `progress: prefix`.

A row's prefix is cut from the trace that was sampled when the row was last drawn. Of a group's rollouts, the last ones
are forced to answer at the prefix if something can grade the answer; the others continue.
"""

import numpy as np
import torch
from accelerate.utils import gather_object

from ..rewards import EpisodeRule, episode_ends, token_texts
from .dump_trainer import DUMPTrainer
from .forcing_checks import verifier_of
from .mrt_config import MRTConfig
from .prefix_pool import PrefixPool
from .success import SuccessAtPrefixes


class PrefixRollouts(SuccessAtPrefixes, DUMPTrainer):
    """A [`DUMPTrainer`] whose rollouts may continue prefixes; a subclass chooses them when it draws rows."""

    args: MRTConfig
    _rule: EpisodeRule
    _pool: PrefixPool
    _prefixes: list[list[int]]  # of each of this process's rollouts; empty if they start at the prompt
    _terminating: list[bool]  # whether each of this process's rollouts answers at its prefix
    _terminates: list[bool]  # the same, of all processes' rollouts

    def _terminating_rows(self) -> torch.Tensor:
        """Return which of all processes' completions answer at the prefix (bool): the last of each graded group."""
        return torch.tensor(self._terminates, device=self.accelerator.device)

    def _choose_prefixes(self) -> None:
        """Cut the stale trace of every drawn row after a random number of its episodes."""
        missing = [row for row in dict.fromkeys(self._drawn_rows) if row not in self._pool]
        if missing:
            self._pool.put(self._sample_traces(missing))
        # One seed for a batch: every process makes the same cuts, and a resumed run makes them again.
        generator = np.random.default_rng([self.args.seed, self._step])
        prefixes = []
        for row in self._drawn_rows:
            ids = self._pool.get(row)
            ends = [0, *episode_ends(ids, token_texts(self._tokenizer, ids), self._rule)][:-1] or [0]
            # The limit may be lower than when the trace was sampled.
            ends = [end for end in ends if end < self.max_completion_length]
            prefixes.append(ids[: ends[generator.integers(len(ends))]])
        number = self.args.terminating_generations
        # Where nothing grades a forced answer, all rollouts continue.
        forced = [number if number and self._is_graded(self.train_dataset[row]) else 0 for row in self._drawn_rows]
        self._terminates = [
            member >= self.num_generations - of_group for of_group in forced for member in range(self.num_generations)
        ]
        first = len(self._drawn) * self.accelerator.process_index
        self._terminating = self._terminates[first : first + len(self._drawn)]
        self._prefixes = []
        for row, (drawn, terminating) in enumerate(zip(self._drawn, self._terminating, strict=True), start=first):
            prefix = prefixes[row // self.num_generations]
            if terminating:
                text = self._tokenizer.decode(prefix, skip_special_tokens=True)
                prefix = [*prefix, *self._forcing.ids_after(text, verifier_of(drawn))]
            self._prefixes.append(prefix)

    def _sample_traces(self, rows: list[int]) -> dict[int, list[int]]:
        """Sample a trace of each training row, the rows divided among the processes."""
        processes = self.accelerator.num_processes
        share = -(-len(rows) // processes)
        padded = rows + [rows[-1]] * (share * processes - len(rows))
        own = padded[share * self.accelerator.process_index :][:share]
        prompt_ids, images, fields = super()._tokenize_prompts([self.train_dataset[row]["prompt"] for row in own])
        completion_ids, _ = super()._generate_single_turn(prompt_ids, images, fields, 1)
        self._count_forced(completion_ids)
        return dict(zip(padded, gather_object([list(ids) for ids in completion_ids]), strict=True))

    def _tokenize_prompts(self, prompts: list):
        prompt_ids, images, fields = super()._tokenize_prompts(prompts)
        if self._prefixes:
            if images is not None:
                raise ValueError("progress: prefix is for text only: a prompt of this batch has images")
            prompt_ids = [[*ids, *prefix] for ids, prefix in zip(prompt_ids, self._prefixes, strict=True)]
        return prompt_ids, images, fields

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, **kwargs):
        if not self._prefixes:
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations, **kwargs)
        # A group has two kinds of prompts, so a server must not take the first for all of them.
        completion_ids, logprobs = super()._generate_single_turn(prompt_ids, images, multimodal_fields, 1, **kwargs)
        room = [
            self.args.forced_answer_tokens if terminating else self.max_completion_length - len(prefix)
            for prefix, terminating in zip(self._prefixes, self._terminating, strict=True)
        ]
        completion_ids = [ids[:length] for ids, length in zip(completion_ids, room, strict=True)]
        if logprobs is not None:
            logprobs = [values[:length] for values, length in zip(logprobs, room, strict=True)]
        self._log_forced_rollouts(completion_ids)
        return completion_ids, logprobs

    def _log_forced_rollouts(self, completion_ids: list[list[int]]) -> None:
        """Log the share of terminating rollouts that ended by themselves; `_observe` counts their tokens."""
        eos = set(self.eos_token_ids)
        ended = [
            bool(ids) and ids[-1] in eos
            for ids, terminating in zip(completion_ids, self._terminating, strict=True)
            if terminating
        ]
        ended = [each for share in gather_object([ended]) for each in share]
        if ended:
            self._log_forced_ended(sum(ended) / len(ended))

    def _keep_traces(self) -> None:
        """Leave one whole new trace of every drawn row for its next visit."""
        traces = [
            [] if terminating else [*prefix, *ids]
            for prefix, ids, terminating in zip(self._prefixes, self._completion_ids, self._terminating, strict=True)
        ]
        traces = gather_object(traces)
        continuing = self.num_generations - self.args.terminating_generations
        chosen = np.random.default_rng([self.args.seed, self._step, 1]).integers(
            continuing, size=len(self._drawn_rows)
        )
        self._pool.put(
            {
                row: traces[group * self.num_generations + member]
                for group, (row, member) in enumerate(zip(self._drawn_rows, chosen, strict=True))
            }
        )

    def _log_prefixes(self, rewards: torch.Tensor, terminating: torch.Tensor) -> None:
        lengths = torch.tensor([len(prefix) for prefix in self._prefixes], dtype=torch.float32, device=rewards.device)
        self._log("prefix_tokens", self.accelerator.gather(lengths).mean().item())
        self._log("value_continuing", rewards[~terminating].nanmean().item())
        if terminating.any():
            self._log("value_terminating", rewards[terminating].nanmean().item())
