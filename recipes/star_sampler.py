"""The model that a round of `metatune star` samples from, and measures the traces of."""

import json
from collections.abc import Iterable, Sequence
from itertools import chain

from trl import ModelConfig, SFTConfig

from ..eval.engines import Sampling
from ..eval.forced import ForcedAnswers, force_answers
from ..eval.scoring import score
from ..rewards import EpisodeRule, Forcing, episode_ends, get_verifier, token_texts
from ..rewards.rendering import Rendering
from ..trainers.star import regret
from .rounds import Row, load_policy


class Sampler:
    """A loaded model that samples traces and measures them.

    Args:
        model (`str`): its folder or hub name; an adapter is loaded onto its base.
        args (`StarScriptArguments`): how to sample.
        training_args (`SFTConfig`): `use_cpu`, `max_length` and `chat_template_path` are read.
        model_args (`ModelConfig`): `model_revision`, `dtype` and `attn_implementation` are read.

    Raises:
        ValueError: if the episode rule or the forcing suffix does not fit, or the model cannot be loaded.
    """

    def __init__(self, model: str, args, training_args: SFTConfig, model_args: ModelConfig):
        self.tokenizer, self.engine = load_policy(
            model, args, training_args.use_cpu, model_args, training_args.chat_template_path
        )
        if args.select == "progress":
            self.forcing = Forcing(self.tokenizer, args.forcing_suffix, args.chat_template_kwargs)
        self.rendering = Rendering(self.tokenizer, args.chat_template_kwargs or {})
        self.rule = EpisodeRule.from_options(args.episodes)
        self.args, self.max_length = args, training_args.max_length

    def _sampling(self, max_new_tokens: int, seed: int) -> Sampling:
        shared = {"temperature": self.args.temperature, "top_p": self.args.top_p, "top_k": self.args.top_k}
        return Sampling(max_new_tokens=max_new_tokens, seed=seed, **shared)

    def sample(self, problems: Sequence[Row], seed: int) -> list[Row]:
        """Sample `num_samples` traces of every problem and judge them.

        Returns:
            `list[dict]`: a row a trace; `right` is a verdict True on a trace that ended by itself.

        Raises:
            ValueError: if a prompt and its trace could exceed `max_length`, beyond which TRL cuts, or the model's
                positions.
        """
        count, longest = self.args.num_samples, self.args.max_completion_length
        prompt_ids = [self.rendering.prompt_ids(problem["prompt"]) for problem in problems]
        needed = max(map(len, prompt_ids)) + longest
        if self.max_length is not None and needed > self.max_length:
            raise ValueError(
                f"max_length ({self.max_length}) would cut traces: prompt and max_completion_length together need "
                f"{needed} tokens; raise it or set it to null"
            )
        drawn = self.engine.generate([ids for ids in prompt_ids for _ in range(count)], self._sampling(longest, seed))
        texts = self.tokenizer.batch_decode(drawn, skip_special_tokens=True)
        rows = []
        for position, (ids, text) in enumerate(zip(drawn, texts, strict=True)):
            problem, sample = divmod(position, count)
            judged = score(problems[problem], sample, text, ids, self.engine.eos_token_ids)
            rows.append(
                {
                    "problem": problem,
                    "sample": sample,
                    "distribution": judged.distribution,
                    "key": judged.key,
                    "prompt": judged.prompt,
                    "text": text,
                    "tokens": judged.tokens,
                    "truncated": judged.truncated,
                    "correct": judged.correct,
                    "right": judged.correct is True and not judged.truncated,
                    "prompt_ids": prompt_ids[problem],
                    "ids": list(ids),
                }
            )
        return rows

    def measure(
        self, problems: dict[int, Row], rows: Sequence[Row], seed: int
    ) -> tuple[list[float | None], list[Row], int]:
        """Estimate J_0 of every problem and J along every right trace of them, in one call of the engine.

        Args:
            problems (`dict[int, dict]`): problems by their number in the round.
            rows (`Sequence[dict]`): right traces of these problems, as [`Sampler.sample`] returns them.
            seed (`int`): seed of the forced answers.

        Returns:
            `tuple`: J_0 of each problem, in order; a row a trace with `episodes` (texts), `ends` (token positions),
            `values` (J_0 to J_n, the last the outcome) and `regret`; and the number of tokens generated. A value is
            `None` where the grader failed on all forced answers, and then so is the regret.
        """
        ends = [self._ends(row["ids"]) for row in rows]
        prefixes = [  # of each trace, before its outcome
            [(row["problem"], tuple(row["ids"][:end])) for end in (0, *at[:-1])]
            for row, at in zip(rows, ends, strict=True)
        ]
        cuts = list(dict.fromkeys([*((number, ()) for number in problems), *chain.from_iterable(prefixes)]))
        forced = force_answers(
            self.engine,
            self.tokenizer,
            [self.rendering.prompt_ids(problems[number]["prompt"]) for number, _ in cuts],
            [list(trace) for _, trace in cuts],
            [problems[number]["verifier"] for number, _ in cuts],
            self.forcing,
            num_answers=self.args.num_forced_answers,
            sampling=self._sampling(self.args.forced_answer_tokens, seed),
        )
        success = {cut: success_rate(problems[cut[0]], answers) for cut, answers in zip(cuts, forced, strict=True)}
        traces = []
        for row, at, before in zip(rows, ends, prefixes, strict=True):
            values = [*(success[prefix] for prefix in before), 1.0]
            known = [value for value in values if value is not None]
            shared = {name: row[name] for name in ("problem", "sample", "distribution", "key", "correct")}
            traces.append(
                {
                    **shared,
                    "episodes": self._texts(row["ids"], at),
                    "ends": at,
                    "values": values,
                    "regret": regret(at, known) if len(known) == len(values) else None,
                }
            )
        tokens = sum(sum(answers.answer_tokens) for answers in forced)
        return [success[number, ()] for number in problems], traces, tokens

    def _ends(self, ids: list[int]) -> list[int]:
        return episode_ends(ids, token_texts(self.tokenizer, ids), self.rule)

    def _texts(self, ids: list[int], ends: Iterable[int]) -> list[str]:
        texts, start = [], 0
        pieces = token_texts(self.tokenizer, ids)
        for end in ends:
            texts.append("".join(pieces[start:end]))
            start = end
        return texts


def success_rate(problem: Row, answers: ForcedAnswers) -> float | None:
    """Return the share of right ones among forced answers; those on which the grader failed count for nothing."""
    verifier, info = get_verifier(problem["verifier"]), json.loads(problem["info"]) if problem["info"] else {}
    verdicts = {text: verifier.score(text, problem["answer"], info) for text in set(answers.texts)}
    return mean(right for text in answers.texts if (right := verdicts[text]) is not None)


def mean(values: Iterable[float]) -> float | None:
    """Return the mean, `None` of nothing."""
    values = list(values)
    return sum(values) / len(values) if values else None
