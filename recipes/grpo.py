"""GRPO with a learned curriculum over task distributions, pay for progress, and a judge whose rubric learns.

    metatune grpo --config recipes/dump/FILE.yaml
    accelerate launch recipes/grpo.py --config recipes/dump/FILE.yaml

Data is either `distributions:` (built-in families, reasoning-gym generators, files or hub datasets), or what
`trl grpo` takes: `dataset_name`, or a mixture, `datasets`. Its column `distribution` names each row's distribution;
without it, and of a stream, all rows are one.

`reward_models:` adds trained reward models to `reward_funcs`, or takes their place where none are given; see
`recipes/reward_models.py`. `judge:` adds a language model that scores by a rubric, which `meta_judge:` rewrites while
the policy trains (MPO); see `recipes/judges.py`. Everything else is TRL's `GRPOConfig` and `ModelConfig`.
`progress: episode|prefix|anytime|length_penalty` pays for more than the outcome (MRT). Over one distribution and with
`progress: none` training is bit-identical to stock `GRPOTrainer`; recipes and options of `trl grpo` run unchanged.

Writes into `output_dir`: the trained model (its adapter with `use_peft: true`) and its tokenizer, `checkpoint-*`,
`recipe.yaml` (the recipe with what the command line changed), `metrics.jsonl` (one JSON object a log line), with
`judge:` `rubrics/` (every version of the rubric, see `metatune rubric`) and, with `log_completions: true`,
`completions/*.parquet`.
`resume_from_checkpoint: true` goes on from the last checkpoint that was written to its end, with the same draws,
rollouts and losses as a run that was never stopped.
"""

from dataclasses import dataclass, field

from trl import ModelConfig

from metatune.recipes.adapters import check_adapter_options, record_base, refusals_in_one_line
from metatune.recipes.chat_template import check_readable, check_template
from metatune.recipes.config import ConfigError, StrictParser, check_world_size, run
from metatune.recipes.data import (
    check_messages,
    check_references,
    check_source,
    check_template_columns,
    distribution_errors,
    need_columns,
    split_of,
    with_text_columns,
)
from metatune.recipes.folder_lock import hold_folder
from metatune.recipes.grpo_checks import (
    check_curriculum,
    check_episodes,
    check_stream,
    check_words,
    fitting_prompts,
    templated_processor,
)
from metatune.recipes.judges import check_judges, load_judges, read_judges
from metatune.recipes.kept_recipe import KeepsRecipe
from metatune.recipes.mixture import SourceArguments, load_source
from metatune.recipes.own_code import HELP, import_own
from metatune.recipes.reward_functions import (
    accept_reward_model,
    check_columns_of_rewards,
    check_reward_columns,
    check_rewards,
    load_rewards,
)
from metatune.recipes.reward_models import read_entries
from metatune.recipes.run_folder import (
    begin_run,
    check_here,
    checkpoint_to_resume,
    dataset_names,
    model_init_kwargs,
    model_to_load,
    train_and_save,
)
from metatune.recipes.sharding import shard_small_parameters
from metatune.trainers.meta_config import MetaConfig


@dataclass
class GRPOScriptArguments(KeepsRecipe, SourceArguments):
    """
    The training data and the rewards, in addition to `dataset_name`, `datasets` and related options.

    Args:
        distributions (`list[dict]`, *optional*):
            Task distributions, the arms of the curriculum; see `metatune.curricula.load_distributions`.
        chat_template_path (`str`, *optional*):
            A `.jinja` file, or `plain` for a base model (the texts of the turns); by default the model's own template.
            It is saved with the model's tokenizer.
        imports (`list[str]`, *optional*):
            Modules of your own that register tasks, verifiers or curricula; see `metatune.recipes.own_code`.
        reward_funcs (`list[str]`, *optional*):
            Reward functions: `correctness` (each item's own verifier), one of `trl.rewards` (but for `get_…`, which
            make one), or an import path such as `my_package.rewards.brevity`. `reward_weights` are theirs. Without
            them, without `reward_models` and without `judge` it is `correctness`.
        reward_models (`list[dict]`, *optional*):
            Trained reward models, each with its own `weight`; see [`RewardModelEntry`].
        reward_model_name_or_path (`str`, *optional*):
            TRL's option for one reward model. As in TRL, the first of `reward_weights` is its weight.
        judge (`dict`, *optional*):
            A language model that scores by a rubric, with its own `weight`; see [`JudgeEntry`].
        meta_judge (`dict`, *optional*):
            The one that rewrites the rubric every `meta_every` generation batches; see [`MetaJudgeEntry`].
        held_out_judge (`dict`, *optional*):
            One that trains nothing and looks on; see [`HeldOutJudgeEntry`].
    """

    distributions: list[dict] | None = field(
        default=None, metadata={"help": "Task distributions: {name, source, config, train_size, …}. YAML only."}
    )
    chat_template_path: str | None = field(
        default=None, metadata={"help": "A .jinja file, or plain for a base model; the model's own by default."}
    )
    imports: list[str] | None = field(default=None, metadata={"help": HELP})
    reward_funcs: list[str] | None = field(
        default=None, metadata={"help": "correctness (the default), a reward of trl.rewards, or an import path."}
    )
    reward_models: list[dict] | None = field(
        default=None, metadata={"help": "Reward models: {path | paths | url, weight, combine, …}. YAML only."}
    )
    reward_model_name_or_path: str | None = field(
        default=None, metadata={"help": "One reward model, TRL's short form of reward_models: [{path: …}]."}
    )
    judge: dict | None = field(default=None, metadata={"help": "Judge: {url, rubric, weight, mode, …}. YAML only."})
    meta_judge: dict | None = field(default=None, metadata={"help": "Meta judge: {url, model, …}. YAML only."})
    held_out_judge: dict | None = field(
        default=None, metadata={"help": "Judge that trains nothing: {url, rubric, …}. YAML only."}
    )

    def __post_init__(self):
        super().__post_init__()
        check_source(self)
        import_own(self.imports)
        read_entries(self.reward_models or [])
        read_judges(self)


def load_rows(script_args: GRPOScriptArguments, with_evaluation: bool, rows: int | None = None):
    """Return the training set and the held-out set (`None` without evaluation) of `dataset_name` or `datasets`.

    Args:
        script_args (`GRPOScriptArguments`): names the dataset.
        with_evaluation (`bool`): whether a held-out set is wanted.
        rows (`int`, *optional*): read only the first rows of each split; all by default.
    """
    wanted = [script_args.dataset_train_split] + [script_args.dataset_test_split] * with_evaluation
    splits, name = load_source(script_args, rows)
    for split in wanted:
        where = f"{name}, split '{split}'"
        need_columns(split_of(splits, split, name), ["prompt"], where, "it is what is trained on")
        check_messages(splits[split], ["prompt"], where)
        check_template_columns(splits[split], where)
        if not script_args.is_stream:
            splits[split] = with_text_columns(splits[split], where)
            check_references(splits[split], where)
    return splits[wanted[0]], splits[wanted[1]] if with_evaluation else None


def load_data(script_args: GRPOScriptArguments, with_evaluation: bool, announce: bool = False):
    """Return the training set and the held-out set (`None` without evaluation), pooled over the distributions.

    With `announce`, prints the numbers of rows, one line per distribution.
    """
    if script_args.distributions is None:
        return load_rows(script_args, with_evaluation)
    import datasets

    from metatune.curricula import load_distributions

    with distribution_errors():
        distributions = load_distributions(script_args.distributions)
    for distribution in distributions if announce else ():
        print(distribution.rows(), flush=True)
    held_out = [distribution.test for distribution in distributions if len(distribution.test)]
    if with_evaluation and not held_out:
        raise ConfigError("no distribution has held-out items: set eval_strategy to 'no', or give them a test part")
    return (
        datasets.concatenate_datasets([distribution.train for distribution in distributions]),
        datasets.concatenate_datasets(held_out) if with_evaluation else None,
    )


def check(script_args: GRPOScriptArguments, training_args: MetaConfig, model_args: ModelConfig) -> None:
    """Raise [`ConfigError`] for what can be told before any process is launched."""
    if model_args.model_name_or_path is None:
        raise ConfigError("give `model_name_or_path`: a folder, a hub name, or starter")
    if script_args.is_stream:
        check_stream(training_args)
    check_adapter_options(model_args)
    if script_args.distributions is not None or script_args.chat_template_path is not None:
        check_template(model_to_load(model_args), model_args.model_revision, script_args.chat_template_path)
    if training_args.eval_on_start and training_args.eval_strategy == "no":
        raise ConfigError("eval_on_start needs held-out items, which eval_strategy: no leaves out: set one of the two")
    check_words(training_args)
    check_curriculum(script_args.distributions or [], training_args)
    check_episodes(training_args)
    accept_reward_model(script_args, training_args)
    check_rewards(script_args, training_args)
    check_judges(script_args, training_args)
    check_here(training_args, model_args, script_args.dataset_name)


def check_data(
    script_args: GRPOScriptArguments, training_args: MetaConfig, model_args: ModelConfig, rows: int | None = None
) -> None:
    """Raise [`ConfigError`] for data that cannot be trained on.

    Args:
        script_args (`GRPOScriptArguments`): the data and the rewards.
        training_args ([`MetaConfig`]): whether it is evaluated.
        model_args (`ModelConfig`): the model, whose chat template must read the prompts.
        rows (`int`, *optional*): rows of each split to read; all by default.
    """
    import datasets

    from metatune.curricula import COLUMNS, check_distributions

    evaluates = training_args.eval_strategy != "no"
    if script_args.distributions is None:
        train_dataset, _ = load_rows(script_args, evaluates, rows)
        where = f"{script_args.dataset_name}, split '{script_args.dataset_train_split}'"
        check_readable({where: train_dataset}, script_args.chat_template_path, model_args)
    elif rows is None:
        train_dataset, _ = load_data(script_args, evaluates)
    else:
        train_dataset = datasets.Dataset.from_dict({column: [] for column in COLUMNS})
        with distribution_errors():
            check_distributions(script_args.distributions, rows)
    check_columns_of_rewards(script_args, train_dataset, script_args.dataset_name or "distributions")


def trainer_of(script_args: GRPOScriptArguments, training_args: MetaConfig) -> type:
    """Return the smallest trainer that does what the recipe asks for."""
    from metatune.trainers import DUMPTrainer, MetaTrainer, MPOTrainer, MRTTrainer

    if script_args.judge is None:
        return DUMPTrainer if training_args.progress == "none" else MRTTrainer
    return MPOTrainer if training_args.progress == "none" else MetaTrainer


def main(script_args: GRPOScriptArguments, training_args: MetaConfig, model_args: ModelConfig) -> None:
    """Train, and save the model and its tokenizer in `training_args.output_dir`."""
    from trl import get_peft_config, get_quantization_config

    from metatune.recipes.callbacks import MetricsLog, ProgressLine

    check(script_args, training_args, model_args)
    check_world_size()
    recipe = begin_run(script_args, training_args, model_args)
    shard_small_parameters(training_args)
    training_args.model_init_kwargs = model_init_kwargs(training_args, model_args)
    with_evaluation, is_main = training_args.eval_strategy != "no", training_args.process_index == 0
    train_dataset, eval_dataset = load_data(script_args, with_evaluation, announce=is_main)
    if not script_args.is_stream:
        train_dataset = fitting_prompts(train_dataset, script_args, training_args, model_args, "training prompts")
        if eval_dataset is not None:
            eval_dataset = fitting_prompts(eval_dataset, script_args, training_args, model_args, "held-out prompts")
    reward_funcs = load_rewards(script_args, training_args)
    for dataset in (train_dataset, eval_dataset):
        if dataset is not None:
            check_reward_columns(reward_funcs, dataset, script_args.dataset_name or "distributions")
    hold_folder(training_args.output_dir)
    with refusals_in_one_line():
        trainer = trainer_of(script_args, training_args)(
            model=model_to_load(model_args),
            reward_funcs=reward_funcs,
            args=training_args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=templated_processor(script_args, model_args),
            callbacks=[MetricsLog()],
            quantization_config=get_quantization_config(model_args),
            peft_config=get_peft_config(model_args),
            **load_judges(script_args),
        )
    record_base(trainer.model, model_args)
    ProgressLine.replace_default(trainer)
    train_and_save(trainer, recipe, checkpoint_to_resume(training_args), dataset_names(script_args))


def make_parser(prog: str | None = None) -> StrictParser:
    """Return the parser of this recipe's options."""
    return StrictParser((GRPOScriptArguments, MetaConfig, ModelConfig), prog=prog)


if __name__ == "__main__":
    run(make_parser, main)
