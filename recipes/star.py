"""MRT(STaR): sample traces, keep those of most progress that end right, fine-tune on them, repeat.

    metatune star --config recipes/mrt/star_starter.yaml [--num_processes 2]

A round samples `num_samples` traces of each of `num_prompts` training problems, cuts the right ones into episodes,
estimates the chance of success at every episode's end by forced answers, keeps one right trace a problem
(`metatune.trainers.star` says which), and fine-tunes on what was kept. As in STaR (arXiv 2203.14465), every round
fine-tunes the *base* model on its own traces alone; `start_from: last` goes on from the last round's model instead.
Everything but the options below is TRL's `SFTConfig` and `ModelConfig`.

Sampling runs in this process, on one device (vLLM takes what it is given); the fine-tuning is `metatune sft`, launched
anew each round with the launcher's options that are given here. Writes into `output_dir`: `recipe.yaml` and, for every
round, `round-N/` with `samples.jsonl`, `traces.jsonl` (with `select: progress`: the episodes of the right traces and J
along them), `kept/` (what was trained on), `sft.yaml`, `model/` and `summary.json`. `resume_from_checkpoint: true`
goes on after the last phase that was finished (sampling, forced answers, fine-tuning), and inside a fine-tuning that
was stopped from its newest checkpoint.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl import ModelConfig, SFTConfig

from metatune.recipes.adapters import check_adapter_options
from metatune.recipes.chat_template import check_template, load_processor, read_template_kwargs
from metatune.recipes.config import ConfigError, StrictParser, run
from metatune.recipes.data import distribution_errors
from metatune.recipes.kept_recipe import KeepsRecipe
from metatune.recipes.launch import as_options, as_values, plan, resolve_accelerate_config, separate
from metatune.recipes.overlong import positions_of, without_overlong
from metatune.recipes.own_code import HELP, import_own
from metatune.recipes.run_folder import check_here, model_to_load, settle_folder
from metatune.recipes.tables import show, show_number
from metatune.rewards import EpisodeRule
from metatune.trainers.star import SELECT

# what a run may go on with otherwise than it began: how far and where it goes, and what fits the machine
MAY_CHANGE = {"rounds", "output_dir", "resume_from_checkpoint", "sampling_batch_size", "per_device_train_batch_size"}
MAY_CHANGE |= {"gradient_accumulation_steps", "gradient_checkpointing"}


@dataclass
class StarScriptArguments(KeepsRecipe):
    """
    What to sample, how to measure it, and what to keep.

    Args:
        imports (`list[str]`, *optional*):
            Modules of your own that register tasks, verifiers or curricula; see `metatune.recipes.own_code`.
        distributions (`list[dict]`):
            Task distributions, whose training problems are sampled; see `metatune.curricula.load_distributions`.
        rounds (`int`, *optional*, defaults to `3`):
            Number of rounds.
        num_prompts (`int`, *optional*):
            Problems of a round, drawn anew for each from the training parts of all distributions; all by default.
        num_samples (`int`, *optional*, defaults to `8`):
            Traces of each problem.
        select (`str`, *optional*, defaults to `"progress"`):
            Which right trace of a problem is kept: that of least regret (`progress`), the `shortest`, or any
            (`correct`, plain rejection sampling). The last two need no forced answers and draw none.
        start_from (`str`, *optional*, defaults to `"base"`):
            What each round fine-tunes: the `base` model, or the `last` round's.
        episodes (`dict`, *optional*):
            How a trace is cut; the options of `metatune.rewards.EpisodeRule`, for instance `{by: delimiter}`.
        num_forced_answers (`int`, *optional*, defaults to `20`):
            Forced answers at each prefix (the paper's number).
        forced_answer_tokens (`int`, *optional*, defaults to `32`):
            Largest number of tokens of a forced answer.
        forcing_suffix (`str`, *optional*):
            Text that ends the thinking and opens the answer. The default depends on the chat template and on the
            problem's verifier.
        chat_template_kwargs (`dict` or `str`, *optional*):
            Variables of the chat template for all prompts, such as `{enable_thinking: false}`.
        max_completion_length (`int`, *optional*, defaults to `1024`):
            Largest number of tokens of a trace; one that is cut off there is never kept.
        engine (`str`, *optional*, defaults to `"compact"`):
            Generation engine; see `metatune.eval.engines`.
        temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of traces and forced answers, above 0.
        top_p (`float`, *optional*, defaults to `1.0`):
            Nucleus mass.
        top_k (`int`, *optional*, defaults to `0`):
            Number of likeliest tokens kept; 0 keeps all.
        sampling_batch_size (`int`, *optional*, defaults to `128`):
            Completions decoded together.
        sampling_dtype (`str`, *optional*):
            Precision of the weights that sample; by default `dtype`, in which they are trained.
    """

    imports: list[str] | None = field(default=None, metadata={"help": HELP})
    distributions: list[dict] | None = field(
        default=None, metadata={"help": "Task distributions: {name, source, config, train_size, …}. YAML only."}
    )
    rounds: int = field(default=3, metadata={"help": "Number of rounds."})
    num_prompts: int | None = field(default=None, metadata={"help": "Problems of a round; all by default."})
    num_samples: int = field(default=8, metadata={"help": "Traces of each problem."})
    select: str = field(
        default="progress", metadata={"help": "Which right trace of a problem is kept.", "choices": list(SELECT)}
    )
    start_from: str = field(
        default="base", metadata={"help": "What each round fine-tunes.", "choices": ["base", "last"]}
    )
    episodes: dict[str, Any] | None = field(
        default=None, metadata={"help": "How a trace is cut, for instance {by: delimiter}. YAML only."}
    )
    num_forced_answers: int = field(default=20, metadata={"help": "Forced answers sampled at each prefix."})
    forced_answer_tokens: int = field(default=32, metadata={"help": "Largest number of tokens of a forced answer."})
    forcing_suffix: str | None = field(
        default=None, metadata={"help": "Text that ends the thinking and opens the answer; default by verifier."}
    )
    chat_template_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Variables of the chat template, such as {enable_thinking: false}."}
    )
    max_completion_length: int = field(default=1024, metadata={"help": "Largest number of tokens of a trace."})
    engine: str = field(
        default="compact",
        metadata={
            "help": "Generation engine.",
            "choices": ["compact", "transformers", "continuous_batching", "vllm"],
        },
    )
    temperature: float = field(default=1.0, metadata={"help": "Temperature of traces and forced answers."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus mass."})
    top_k: int = field(default=0, metadata={"help": "Number of likeliest tokens kept; 0 keeps all."})
    sampling_batch_size: int = field(default=128, metadata={"help": "Completions decoded together."})
    sampling_dtype: str | None = field(
        default=None,
        metadata={
            "help": "Precision of the weights that sample; `dtype` by default.",
            "choices": ["auto", "bfloat16", "float16", "float32"],
        },
    )

    def __post_init__(self):
        import_own(self.imports)
        self.chat_template_kwargs = read_template_kwargs(self.chat_template_kwargs)
        if self.distributions is None:
            raise ValueError("give the `distributions` to sample problems from")
        for name in (
            *("rounds", "num_prompts", "num_samples", "num_forced_answers", "forced_answer_tokens"),
            *("max_completion_length", "sampling_batch_size"),
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` is {value}; it must be at least 1")
        if self.temperature <= 0:
            raise ValueError(f"`temperature` is {self.temperature}; greedy traces of a problem are all the same one")
        EpisodeRule.from_options(self.episodes)


def check(
    args: StarScriptArguments, training_args: SFTConfig, model_args: ModelConfig, launch_args: Sequence[str] = ()
) -> None:
    """Raise [`ConfigError`] for options that contradict each other; `launch_args` are the launcher's to check."""
    if model_args.model_name_or_path is None:
        raise ConfigError("give the `model_name_or_path` to begin with")
    check_adapter_options(model_args)
    if training_args.eval_strategy != "no":
        raise ConfigError("a round has no evaluation split; set eval_strategy to 'no' and use metatune eval")
    if training_args.push_to_hub:
        raise ConfigError("push_to_hub would push the model of every round; push the one you want afterwards")
    if training_args.resume_from_checkpoint not in (None, False, True):
        raise ConfigError("resume_from_checkpoint is true or nothing here: a run goes on after its last phase")
    if model_args.use_peft and args.start_from == "last" and args.rounds > 1:
        raise ConfigError("`start_from: last` needs whole models and use_peft makes adapters; use start_from: base")
    if model_args.use_peft and args.engine == "vllm" and args.rounds > 1:
        raise ConfigError("the engine vllm samples whole models and use_peft makes adapters; use another engine")
    check_here(training_args, model_args)
    check_template(model_to_load(model_args), model_args.model_revision, training_args.chat_template_path)


def check_data(
    args: StarScriptArguments,
    training_args: SFTConfig,
    model_args: ModelConfig,
    launch_args: list[str],
    rows: int | None = None,
) -> None:
    """Raise [`ConfigError`] for problems that cannot be sampled; `main` loads all of them before its first round."""
    if rows is None:
        load_problems(args, announce=False)


def load_problems(args: StarScriptArguments, announce: bool = True) -> list[dict[str, Any]]:
    """Load the training problems of all distributions, and with `announce` print how many rows each has."""
    from metatune.curricula import check_verified, load_distributions

    with distribution_errors():
        distributions = load_distributions(args.distributions or [])
        problems = [dict(item) for distribution in distributions for item in distribution.train]
        check_verified(problems)
    for distribution in distributions if announce else ():
        print(distribution.rows(), flush=True)
    return problems


def fitting_problems(
    problems: list[dict[str, Any]], args: StarScriptArguments, training_args: SFTConfig, model_args: ModelConfig
) -> list[dict[str, Any]]:
    """Return the problems whose prompt, trace and forced answer fit the model's positions; the others are reported.

    Raises [`ConfigError`] if none fits, or fewer than `num_prompts`, or if a verifier rejects a correct forced answer.
    """
    from metatune.rewards.forcing import Forcing, longest_suffix, opens_thinking
    from metatune.rewards.forcing_check import check_forcing, rows_by_verifier
    from metatune.rewards.rendering import Rendering

    model, revision = model_to_load(model_args), model_args.model_revision
    kwargs: Any = args.chat_template_kwargs  # read as JSON by now
    new_tokens, advice = args.max_completion_length, "max_completion_length"
    try:
        tokenizer = load_processor(model, revision, training_args.chat_template_path)
        rendering = Rendering(tokenizer, kwargs or {})
        if args.select == "progress":
            forcing = Forcing(tokenizer, args.forcing_suffix, kwargs)
            check_forcing(forcing, rows_by_verifier(problems), opens_thinking(rendering))
            suffix_tokens = longest_suffix(forcing, (problem["verifier"] for problem in problems))
            new_tokens += suffix_tokens + args.forced_answer_tokens
            advice = "max_completion_length, with the forcing suffix and forced_answer_tokens,"
        kept, lines = without_overlong(
            problems, rendering, positions_of(model, revision), new_tokens, "training prompts", advice
        )
    except (ValueError, OSError) as error:
        raise ConfigError(" ".join(str(error).split())) from error
    for line in lines:
        print(line, flush=True)
    if args.num_prompts is not None and args.num_prompts > len(kept):
        raise ConfigError(f"num_prompts is {args.num_prompts}, the distributions have {len(kept)} problems")
    return kept


def show_rounds(summaries: list[dict[str, Any]]) -> None:
    """Print a table of all rounds, and how many tokens they sampled."""
    from rich.table import Table

    table = Table(title="rounds, each on the traces of the model before it")
    columns = ["round", "problems", "right", "kept", "J_0", "progress", "regret", "of kept", "tokens", "of kept"]
    for column in columns:
        table.add_column(column, justify="right")
    for row in summaries:
        table.add_row(
            str(row["round"]),
            str(row["problems"]),
            f"{row['right']:.1%}",
            f"{row['kept']:.1%}",
            show_number(row["success_at_once"]),
            show_number(row["progress"]),
            *("–" if row[key] is None else f"{row[key]:.1f}" for key in ("regret", "regret_kept")),  # noqa: RUF001
            f"{row['tokens']:.1f}",
            f"{row['tokens_kept']:.1f}",
        )
    show(table)
    sampled, forced = (sum(row[key] for row in summaries) for key in ("sampled_tokens", "forced_tokens"))
    print(f"{sampled:,} tokens of traces and {forced:,} of forced answers were sampled")


def main(args: StarScriptArguments, training_args: SFTConfig, model_args: ModelConfig, launch_args: list[str]) -> None:
    """Run the rounds that are missing and print the table of all."""
    from metatune.recipes import sft
    from metatune.recipes.star_round import Round

    check(args, training_args, model_args)
    plan(resolve_accelerate_config(launch_args), sft.__name__, [], training_args.use_cpu)  # its refusals come first
    problems = fitting_problems(load_problems(args), args, training_args, model_args)
    folder = Path(training_args.output_dir)
    resume = bool(training_args.resume_from_checkpoint)
    configs = (args, training_args, model_args)
    settle_folder(folder, configs, resume, parts="round-*/samples.jsonl", may_change=MAY_CHANGE)
    model, summaries = model_to_load(model_args), []
    for number in range(1, args.rounds + 1):
        this = Round(number, folder / f"round-{number}", model, args, training_args, model_args, launch_args)
        summaries.append(this.run(problems))
        model = str(this.model)
    show_rounds(summaries)
    print(f"Saved to {model}")


class StarParser(StrictParser):
    """A parser that takes the launcher's options as well, for the fine-tuning, and returns them last."""

    def parse_args_and_config(self, args=None) -> tuple[StarScriptArguments, SFTConfig, ModelConfig, list[str]]:
        """Parse the command line and the recipe; see [`StrictParser`]."""
        recipe_args, options = separate(list(sys.argv[1:] if args is None else args), self)
        configs = super().parse_args_and_config(recipe_args)
        launch_args = as_options(self.launch_values) + options
        configs[0].given |= as_values(options)
        self.launch_values = {}
        return (*configs, launch_args)


def make_parser(prog: str | None = None) -> StarParser:
    """Return the parser of this recipe's options."""
    alone = (
        "star samples in one process and launches the fine-tuning itself: start it with metatune star --num_processes "
        "{processes}, not with accelerate launch"
    )
    return StarParser((StarScriptArguments, SFTConfig, ModelConfig), alone=alone, prog=prog)


if __name__ == "__main__":
    run(make_parser, main)
