"""Evaluation: accuracy, pass@k and maj@k with bootstrap intervals; accuracy at token budgets.

    metatune eval --model runs/quickstart                     # on the held-out part of what it was trained on
    metatune eval --model starter --recipe recipes/dump/quickstart.yaml
    metatune eval --into runs/mine --num_samples 4            # before and after training, for metatune report
    metatune eval --model runs/quickstart --benchmark gsm8k --data data/gsm8k --num_samples 4
    metatune eval --model Qwen/Qwen2.5-0.5B-Instruct --lm_eval_tasks arc_easy,hellaswag
    metatune eval --model starter --recipe FILE.yaml --budgets 16,32,64 --extrapolate 2,4 --output_dir runs/starter
    metatune eval --compare runs/starter runs/mine --output_dir runs/side_by_side
    metatune eval --reward_model runs/rm-1 runs/rm-2 --pairs data/pairs --best_of_n responses.jsonl

What is evaluated is a named `benchmark` (from the hub, or from `data`), the held-out parts of `distributions:` in its
own `config` or in a training `recipe` (by default the one that the run `model` was trained by), or the
`lm_eval_tasks` of standard suites, which go through lm-eval. `temperature: 0` decodes greedily, anything else samples.
With `output_dir` it writes `summary.json` and `completions.parquet` there. `into` evaluates a run's initial and
trained model on the same problems, and saves both in the run's folder, see `before_after.py`.
`budgets` add test-time compute, see `test_time.py`; `compare` sets saved evaluations at budgets side by side.
`reward_model` evaluates reward models in place of a language model, see `reward_evaluation.py`.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from metatune.recipes.adapters import base_and_adapter, folder_of
from metatune.recipes.before_after import base_of, evaluate_into
from metatune.recipes.chat_template import read_template_kwargs, recipe_of
from metatune.recipes.config import ConfigError, StrictParser, read_recipe, run
from metatune.recipes.conform import conform, nearest
from metatune.recipes.data import distribution_errors, need_path
from metatune.recipes.own_code import HELP, import_own
from metatune.recipes.reward_evaluation import RewardEvaluationArguments, evaluate_reward_models, show_reward_models
from metatune.recipes.tables import show, show_number
from metatune.recipes.test_time import (
    TestTimeArguments,
    compare_saved,
    evaluate_budgets,
    show_budgets,
    show_comparison,
)

MAX_NEW_TOKENS = 1024
BATCH_SIZE, REWARD_BATCH_SIZE = 128, 16
OF_BENCHMARK = {"data", "instruction", "system"}
TASKS = {
    "model",
    "into",
    "before",
    "benchmark",
    "distributions",
    "recipe",
    "lm_eval_tasks",
    "budgets",
    "compare",
} | OF_BENCHMARK
SAMPLING = {"engine", "num_samples", "k", "temperature", "top_p", "top_k", "max_new_tokens", "attn_implementation"}
SAMPLING |= {"chat_template_kwargs"}


@dataclass
class EvaluateArguments(TestTimeArguments, RewardEvaluationArguments):
    """
    What to evaluate, on what, and how.

    Args:
        model (`str`):
            Folder or hub name of the model, or `starter`. A folder of a LoRA run is loaded onto its base model.
            Needed for all but `compare` and `reward_model`.
        benchmark (`str`, *optional*):
            A named benchmark; see `metatune.eval.benchmarks`.
        data (`str`, *optional*):
            Local file or folder of the benchmark; the hub by default.
        instruction (`str`, *optional*):
            Text appended to every question in place of the benchmark's own; an empty one appends nothing.
        system (`str`, *optional*):
            System message of every question of the benchmark; by default that of the distributions that the run
            `model` was trained on, if they all have the same. An empty one leaves it out.
        chat_template_kwargs (`dict` or `str`, *optional*):
            Variables of the chat template, such as `{"enable_thinking": false}`; by default those that the run `model`
            was trained with, or else those of `recipe`.
        imports (`list[str]`, *optional*):
            Modules of your own that register tasks, verifiers or curricula; see `metatune.recipes.own_code`.
        distributions (`list[dict]`, *optional*):
            Task distributions, whose held-out parts are evaluated; see `metatune.curricula.load_distributions`.
        recipe (`str`, *optional*):
            A training recipe, of which `distributions` and `imports` are taken, and `max_completion_length` for
            `max_new_tokens`; where nothing else is evaluated, the `recipe.yaml` in the folder of `model`.
        into (`str`, *optional*):
            Folder of a run. Evaluates the run's initial model and its trained model, or `model`, on the same problems,
            and writes the results to its folders `before` and `after`, which `metatune report` shows.
        before (`str`, *optional*):
            The model before training; only with `into`. By default `model_name_or_path` of the run's recipe.
        lm_eval_tasks (`list[str]`, *optional*):
            Tasks of lm-eval, separated by spaces or commas; needs the extra `metatune[eval]`.
        engine (`str`, *optional*, defaults to `"compact"`):
            Generation engine; see `metatune.eval.engines`.
        num_samples (`int`, *optional*, defaults to `1`):
            Completions of each problem.
        k (`list[int]`, *optional*):
            The k's of pass@k and maj@k; powers of two up to `num_samples` by default.
        temperature (`float`, *optional*, defaults to `1.0`):
            0 decodes greedily.
        top_p (`float`, *optional*, defaults to `1.0`):
            Nucleus mass.
        top_k (`int`, *optional*, defaults to `0`):
            Number of likeliest tokens kept; 0 keeps all.
        max_new_tokens (`int`, *optional*):
            Largest number of tokens of a completion; 1024 by default, and the largest of `budgets` with these.
        batch_size (`int`, *optional*):
            Completions decoded together, 128 by default; responses that a reward model scores together, 16.
        limit (`int`, *optional*):
            Number of problems of each distribution, or pairs of each subset; all by default.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the sampling, and of a reward model's intervals.
        output_dir (`str`, *optional*):
            Where to keep the summary and the completions, and the pictures of `budgets`, `compare` and `reward_model`.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Precision of the weights; `auto` is the checkpoint's own.
        device (`str`, *optional*):
            Where to run; a GPU where there is one by default.
        attn_implementation (`str`, *optional*):
            Attention implementation of transformers.
    """

    model: str | None = field(default=None, metadata={"help": "Folder or hub name of the model, or starter."})
    benchmark: str | None = field(default=None, metadata={"help": "gsm8k, math500, aime24 or knights_knaves."})
    data: str | None = field(default=None, metadata={"help": "Local file or folder of the benchmark."})
    instruction: str | None = field(default=None, metadata={"help": "Appended to every question of the benchmark."})
    system: str | None = field(
        default=None, metadata={"help": "System message of the benchmark's questions; the run's own by default."}
    )
    chat_template_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Variables of the chat template; those of the run's training by default."}
    )
    imports: list[str] | None = field(default=None, metadata={"help": HELP})
    distributions: list[dict] | None = field(
        default=None, metadata={"help": "Task distributions: {name, source, config, test_size, …}. YAML only."}
    )
    recipe: str | None = field(
        default=None, metadata={"help": "A training recipe whose tasks are evaluated; by default the model's own."}
    )
    into: str | None = field(
        default=None, metadata={"help": "Folder of a run: evaluate before and after training, for metatune report."}
    )
    before: str | None = field(
        default=None, metadata={"help": "The model before training, with into; by default the one in its recipe."}
    )
    lm_eval_tasks: list[str] | None = field(default=None, metadata={"help": "Tasks of lm-eval, such as arc_easy."})
    engine: str = field(
        default="compact",
        metadata={
            "help": "Generation engine.",
            "choices": ["compact", "transformers", "continuous_batching", "vllm"],
        },
    )
    num_samples: int = field(default=1, metadata={"help": "Completions of each problem."})
    k: list[int] | None = field(default=None, metadata={"help": "The k's of pass@k and maj@k."})
    temperature: float = field(default=1.0, metadata={"help": "0 decodes greedily."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus mass."})
    top_k: int = field(default=0, metadata={"help": "Number of likeliest tokens kept; 0 keeps all."})
    max_new_tokens: int | None = field(
        default=None, metadata={"help": "Largest number of tokens of a completion; 1024, or the largest budget."}
    )
    batch_size: int | None = field(
        default=None, metadata={"help": "Completions decoded together, 128; 16 responses for reward models."}
    )
    limit: int | None = field(default=None, metadata={"help": "Number of problems of each distribution."})
    seed: int = field(default=0, metadata={"help": "Seed of the sampling."})
    output_dir: str | None = field(default=None, metadata={"help": "Where to keep summary and completions."})
    dtype: str = field(
        default="auto",
        metadata={"help": "Precision of the weights.", "choices": ["auto", "bfloat16", "float16", "float32"]},
    )
    device: str | None = field(default=None, metadata={"help": "Where to run: cpu, cuda, cuda:1, …"})
    attn_implementation: str | None = field(default=None, metadata={"help": "Attention implementation."})

    def __post_init__(self):
        super().__post_init__()
        import_own(self.imports)
        self.lm_eval_tasks = [task for tasks in self.lm_eval_tasks or [] for task in tasks.split(",") if task]
        given = [name for name in ("benchmark", "distributions", "recipe") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give either `{given[0]}` or `{given[1]}`, not both")
        self.check_reward_options()
        if self.batch_size is None:
            self.batch_size = REWARD_BATCH_SIZE if self.reward_model else BATCH_SIZE
        if self.reward_model:
            self._refuse(TASKS | SAMPLING, "`reward_model` has `pairs` and `best_of_n`: give it without `{}`")
            return
        if self.compare:
            self._refuse((TASKS | SAMPLING) - {"compare"}, "`compare` reads saved evaluations: give it without `{}`")
            return
        self._prepare_into()
        if self.model is None:
            raise ValueError("`model` is required: a folder, a hub name or starter")
        self.chat_template_kwargs = read_template_kwargs(self.chat_template_kwargs)
        own = recipe_of(self.into or self.model)
        if not given and not self.lm_eval_tasks and own is not None:
            self.recipe = str(own)
        if self.recipe is not None:
            self._take_tasks(self.recipe)
        if self.budgets and not (self.benchmark or self.distributions):
            raise ValueError("`budgets` need a `benchmark` or `distributions` to evaluate on")
        if not (self.benchmark or self.distributions or self.lm_eval_tasks):
            raise ValueError("give what to evaluate on: `benchmark`, `recipe`, `distributions` or `lm_eval_tasks`")
        if self.benchmark is None:
            self._refuse(OF_BENCHMARK, "`{}` belongs to a `benchmark`, and none is given")
            if self.distributions is None:
                self._refuse(SAMPLING - {"engine"}, "tasks of lm-eval say themselves how they sample: remove `{}`")
        too_many = [k for k in self.k or [] if not 1 <= k <= self.num_samples]
        if too_many:
            raise ValueError(f"`k` {too_many[0]} must be between 1 and `num_samples`, {self.num_samples}")
        self.model = folder_of(self.model)

    def _prepare_into(self) -> None:
        """Set the two models of `into`, and reject options that conflict with it."""
        if self.into is None:
            self._refuse({"before"}, "`{}` requires `into`: set it to the folder of a run")
            return
        self._refuse(
            {"output_dir", "budgets", "lm_eval_tasks"}, "`into` writes its results to the run's folder: remove `{}`"
        )
        self.before = base_of(self.into) if self.before is None else self.before
        self.model = self.into if self.model is None else self.model

    def _take_tasks(self, path: str) -> None:
        """Take what a training recipe was trained on."""
        recipe = read_recipe(path)
        taken: dict[str, Any] = {}
        block = recipe.values.get("grpo")  # of `metatune metarm`
        values = {**block, **recipe.values} if isinstance(block, dict) else recipe.values
        for key, hint in (("distributions", list[dict]), ("imports", list[str]), ("max_completion_length", int)):
            try:
                taken[key] = conform(values.get(key), hint | None)
            except ValueError as error:
                raise recipe.error(key, f"`{key}`: {error}") from error
        self.distributions = taken["distributions"]
        if not self.distributions:
            raise ValueError(f"{path} has no `distributions` to evaluate on: give a `benchmark`, or another `recipe`")
        import_own(taken["imports"])
        if self.max_new_tokens is None and not self.budgets:
            self.max_new_tokens = taken["max_completion_length"]

    def _refuse(self, names: Collection[str], why: str) -> None:
        """Raise `ValueError` for the first of these options that is given; `why` has a place for its name."""
        for option in fields(self):
            if option.name in names and getattr(self, option.name) not in (option.default, []):
                raise ValueError(why.format(option.name))


def evaluate_items(args: EvaluateArguments) -> dict[str, Any]:
    """Evaluate the model on the items and return the summary."""
    from transformers import AutoTokenizer

    from metatune.eval import evaluate
    from metatune.eval.engines import load_engine
    from metatune.recipes.evaluation_items import load_items, rendering_of

    base, adapter = base_and_adapter(str(args.model))
    limit = args.max_new_tokens or MAX_NEW_TOKENS
    try:
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        rendering = rendering_of(args, tokenizer)
        items, left_out = load_items(args, rendering, base, limit)
        engine = load_engine(
            args.engine,
            base.name,
            tokenizer,
            revision=base.revision,
            adapter=adapter,
            batch_size=args.batch_size or BATCH_SIZE,
            dtype=args.dtype,
            device=args.device,
            attn_implementation=args.attn_implementation,
        )
        options: dict[str, Any] = {
            "num_samples": args.num_samples,
            "temperature": args.temperature,
            "top_p": args.top_p,
            "top_k": args.top_k,
            "seed": args.seed,
            "chat_template_kwargs": rendering.chat_template_kwargs,
            "settings": {name: getattr(args, name) for name in ("model", "benchmark", "engine", "dtype", "limit")},
        }
        options["settings"] |= left_out | ({"system": args.system} if args.system else {})
        if args.budgets:
            return evaluate_budgets(args, engine, tokenizer, items, options)
        evaluation = evaluate(engine, tokenizer, items, max_new_tokens=limit, **options)
    except (ValueError, OSError, ImportError) as error:
        raise ConfigError(" ".join(str(error).split())) from error
    return evaluation.summary(args.k) if args.output_dir is None else evaluation.save(args.output_dir, args.k)


def run_lm_eval(args: EvaluateArguments) -> dict[str, dict[str, Any]]:
    """Evaluate the model with lm-eval and return its results by task."""
    try:
        import lm_eval
    except ImportError as error:
        raise ConfigError("lm_eval_tasks need lm-eval: pip install 'metatune[eval]'") from error
    from metatune.eval.files import write_atomically

    base, adapter = base_and_adapter(str(args.model))
    options = {"pretrained": base.name, "dtype": args.dtype}
    options |= {} if base.revision is None else {"revision": base.revision}
    if adapter is not None:
        if args.engine == "vllm":
            raise ConfigError(f"{adapter} is an adapter: for the engine vllm, merge it first with metatune merge")
        options |= {"peft": adapter, "tokenizer": adapter}
    results = lm_eval.simple_evaluate(
        model="vllm" if args.engine == "vllm" else "hf",
        model_args=options,
        tasks=args.lm_eval_tasks,
        batch_size=args.batch_size,
        device=args.device,
        limit=args.limit,
        random_seed=args.seed,
        numpy_random_seed=args.seed,
        torch_random_seed=args.seed,
        fewshot_random_seed=args.seed,
    )["results"]
    if args.output_dir is not None:
        text = json.dumps(results, indent=2, default=str) + "\n"
        write_atomically(Path(args.output_dir) / "lm_eval.json", lambda path: path.write_text(text))
    return results


def show_summary(summary: dict[str, Any]) -> None:
    """Print the summary as a table: a row for every distribution, and last the mixture."""
    from rich.table import Table

    ks = sorted(int(key.removeprefix("pass@")) for key in summary if key.startswith("pass@"))
    settings = summary["settings"]
    how = "greedy" if settings["temperature"] == 0 else f"sampled at temperature {settings['temperature']:g}"
    table = Table(title=f"{how}, {settings['num_samples']} a problem, {summary['confidence']:.0%} intervals")
    table.add_column("distribution")
    columns = ["problems", "accuracy", "interval", *(f"{name}@{k}" for k in ks if k > 1 for name in ("pass", "maj"))]
    for column in [*columns, "tokens", "cut off", "unscorable"]:
        table.add_column(column, justify="right")
    rows = list(summary["distributions"].items())
    if len(rows) > 1:
        rows.append(("mixture", summary))
    for number, (name, part) in enumerate(rows, 1):
        interval = "–" if part["accuracy"] is None else f"{part['ci_low']:.3f} – {part['ci_high']:.3f}"  # noqa: RUF001
        table.add_row(
            name,
            str(part["num_problems"]),
            show_number(part["accuracy"]),
            interval,
            *(show_number(part[column]) for column in columns[3:]),
            f"{part['mean_tokens']:.1f}",
            f"{part['truncation_rate']:.1%}",
            str(part["num_unscorable"]),
            end_section=number == len(rows) - 1,
        )
    show(table)
    print(f"{summary['generated_tokens']:,} tokens generated in {summary['seconds']:.1f} s")


def show_lm_eval(results: dict[str, dict[str, Any]]) -> None:
    """Print lm-eval's results: a row for every task and metric, with its standard error."""
    from rich.table import Table

    table = Table(title="lm-eval")
    for column in ("task", "metric"):
        table.add_column(column)
    for column in ("value", "standard error"):
        table.add_column(column, justify="right")
    for task, metrics in results.items():
        for metric, value in metrics.items():
            name, _, variant = metric.partition(",")
            if isinstance(value, int | float) and not name.endswith("_stderr"):
                error = metrics.get(f"{name}_stderr,{variant}")
                table.add_row(task, metric, show_number(value), show_number(error if error != "N/A" else None))
    show(table)


def check(args: EvaluateArguments) -> None:
    """Raise [`ConfigError`] for what this machine lacks: told before anything is loaded, and not after hours."""
    import torch

    from metatune.eval.benchmarks import BENCHMARKS
    from metatune.recipes.run_folder import check_output_dir, need_model

    if args.benchmark is not None and args.benchmark not in BENCHMARKS:
        advice = nearest(args.benchmark, BENCHMARKS) or f"; there are {', '.join(BENCHMARKS)}"
        raise ConfigError(f"benchmark: unknown '{args.benchmark}'{advice}")
    if args.output_dir is not None:
        check_output_dir(args.output_dir)
    need_model(args.model, "model")
    need_model(args.before, "before")
    for name in args.reward_model or []:
        need_model(name, "reward_model")
    for option in ("pairs", "best_of_n"):
        if getattr(args, option) is not None:
            need_path(getattr(args, option), option)
    if args.device is not None:
        try:
            torch.empty(0, device=args.device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"device: '{args.device}' is not here: {str(error).splitlines()[0]}") from error


def check_data(args: EvaluateArguments, rows: int | None = None) -> None:
    """Raise [`ConfigError`] for problems that cannot be used; without `rows` only, because `main` reads all first."""
    from metatune.eval.benchmarks import load_benchmark, load_held_out

    if rows is not None:
        return
    with distribution_errors():
        if args.distributions is not None:
            load_held_out(args.distributions)
        elif args.benchmark is not None:
            load_benchmark(args.benchmark, args.data)


def main(args: EvaluateArguments) -> None:
    """Evaluate, print a table, and keep the results where `output_dir` says."""
    check(args)
    if args.reward_model:
        show_reward_models(evaluate_reward_models(args))
    if args.compare:
        show_comparison(compare_saved(args.compare, args.output_dir))
    if args.into is not None:
        evaluate_into(args)
    elif args.benchmark is not None or args.distributions is not None:
        summary = evaluate_items(args)
        show_summary(summary)
        show_budgets(summary.get("test_time"))
    if args.lm_eval_tasks:
        show_lm_eval(run_lm_eval(args))
    if args.output_dir is not None:
        print(f"Saved to {args.output_dir}")


def make_parser(prog: str | None = None) -> StrictParser:
    """Return the parser of this recipe's options."""
    return StrictParser(EvaluateArguments, prog=prog)


if __name__ == "__main__":
    run(make_parser, main)
