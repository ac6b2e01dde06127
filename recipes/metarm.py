"""MetaRM's loop: reward model and policy in rounds, the reward model corrected for the policy that it is to judge.

    metatune metarm --config recipes/metarm/starter.yaml

A reward model learns from pairs that an early policy wrote; as the policy moves away from them, it tells its responses
apart less and less. A round of `metatune metarm` therefore (MetaRM, arXiv 2405.00438)

1. samples `num_responses` responses to each of `num_prompts` prompts from the policy of the round before, round 1 from
   `model_name_or_path`;
2. trains a fresh reward model on the original pairs by `metatune reward`, whose MetaRM step keeps these responses
   apart (`correction: metarm`). Its rivals are pairs weighted by how likely the policy is to write them (`ocrm`, after
   arXiv 2507.15507; see `rewards/importance.py` for what is ours), which needs no responses, and the same uncorrected
   model in every round (`none`);
3. trains the policy of the round before further by `metatune grpo`, that reward model its only reward;
4. sums up, on held-out prompts: what the new policy and the one before it score under the round's reward model (scores
   of different models are on different scales), and where verifiers know what is right, the gold accuracy that nothing
   was trained on, and how often the reward model prefers a right response of the new policy to a wrong one.

The blocks `reward:` and `grpo:` are recipes of these commands, without what the loop itself sets; options of the
launcher (`num_processes`, `accelerate_config`) stand there too. The pairs are `dataset_name`. Without it they are made
of `distributions:`: a right and a wrong response of the first policy to one problem, a share `label_noise` of them
turned around. Sampling runs in this process, on one device.

Writes into `output_dir`: `recipe.yaml`; `pairs/` where they are made; `start/heldout.jsonl`; for every round
`round-N/` (see `metarm_round.py`); and `rounds.json`, the summaries of all, round 0 the first policy. The last policy
is `round-N/policy`. `resume_from_checkpoint: true` goes on after the last phase that was finished, and inside a
training that was stopped from its newest checkpoint.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from metatune.recipes.config import ConfigError, StrictParser, run
from metatune.recipes.kept_recipe import KeepsRecipe
from metatune.recipes.metarm_blocks import check
from metatune.recipes.own_code import HELP, import_own
from metatune.recipes.run_folder import settle_folder

CORRECTIONS = ("metarm", "ocrm", "none")
# what a run may go on with otherwise than it began: how far and where it goes, and what fits the machine
MAY_CHANGE = {"rounds", "output_dir", "resume_from_checkpoint", "sampling_batch_size"}


@dataclass
class MetaRMScriptArguments(KeepsRecipe):
    """
    What the rounds are made of.

    Args:
        model_name_or_path (`str`):
            The first policy: a folder, a hub name, or starter.
        output_dir (`str`):
            Where everything goes.
        reward (`dict`):
            Recipe of the reward models, as `metatune reward` takes it. With `correction: metarm`, its `meta_step` is
            `normalised` by default. The other corrections ignore its `meta_step_size` and
            `per_device_meta_batch_size`.
        grpo (`dict`):
            Recipe of the policies' training, as `metatune grpo` takes it; it also says how the policy samples
            (`temperature`, `top_p`, `top_k`, `max_completion_length`) and in what precision it is loaded.
        reward_model_name_or_path (`str`, *optional*):
            What every reward model begins as; the first policy by default.
        rounds (`int`, *optional*, defaults to `3`):
            Number of rounds.
        correction (`str`, *optional*, defaults to `"metarm"`):
            How a round's reward model is fitted to the policy: `metarm`, `ocrm` or `none`.
        num_responses (`int`, *optional*, defaults to `5`):
            Responses to each prompt, at least 2 (the paper's k): of the meta set, of held-out prompts, and of problems
            that pairs are made of.
        num_prompts (`int`, *optional*):
            Prompts of a round's meta set, drawn anew for each; all by default. Only `metarm` has one.
        importance_alpha (`float`, *optional*, defaults to `0.1`):
            Of `ocrm`: no weight is above 1 / alpha before they are scaled to mean 1.
        importance_exponent (`float`, *optional*, defaults to `0.1`):
            Of `ocrm`: the ratios of the two policies are raised to it first; with 1 a few pairs soon weigh more than
            all others (docs/log.md).
        imports (`list[str]`, *optional*):
            Modules of your own that register tasks, verifiers or curricula; see `metatune.recipes.own_code`.
        distributions (`list[dict]`, *optional*):
            The policy's prompts, with verifiers; see `metatune.curricula.load_distributions`.
        prompts_name (`str`, *optional*):
            The policy's prompts in place of `distributions`: a folder or hub name of a dataset with the column
            `prompt`, in the splits that the block `grpo` names (`train` and `test`). With the columns `verifier`,
            `answer` and `info` gold is known too.
        dataset_name (`str`, *optional*):
            The original pairs, as `metatune reward` takes them; by default they are made of `distributions`.
        num_pairs (`int`, *optional*):
            Pairs to make at most; one of every problem that gives one by default.
        label_noise (`float`, *optional*, defaults to `0.0`):
            Share of the pairs made whose label is turned around.
        engine (`str`, *optional*, defaults to `"compact"`):
            Generation engine of the sampling; see `metatune.eval.engines`.
        sampling_batch_size (`int`, *optional*, defaults to `128`):
            Responses decoded together.
        sampling_dtype (`str`, *optional*):
            Precision of the weights that sample; by default `dtype` of the block `grpo`.
        seed (`int`, *optional*, defaults to `0`):
            Seed of everything; each part of each round has its own, drawn from it. The reward models share one, so
            that those of two rounds differ by the correction alone.
        resume_from_checkpoint (`bool`, *optional*, defaults to `False`):
            Go on with the run that is in `output_dir`.
    """

    model_name_or_path: str | None = field(default=None, metadata={"help": "The first policy."})
    output_dir: str | None = field(default=None, metadata={"help": "Where everything goes."})
    reward: dict[str, Any] | None = field(
        default=None, metadata={"help": "Recipe of the reward models, as metatune reward takes it. YAML only."}
    )
    grpo: dict[str, Any] | None = field(
        default=None, metadata={"help": "Recipe of the policies, as metatune grpo takes it. YAML only."}
    )
    reward_model_name_or_path: str | None = field(
        default=None, metadata={"help": "What every reward model begins as; the first policy by default."}
    )
    rounds: int = field(default=3, metadata={"help": "Number of rounds."})
    correction: str = field(
        default="metarm",
        metadata={"help": "How a reward model is fitted to the policy.", "choices": list(CORRECTIONS)},
    )
    num_responses: int = field(default=5, metadata={"help": "Responses to each prompt (the paper's k)."})
    num_prompts: int | None = field(default=None, metadata={"help": "Prompts of a meta set; all by default."})
    importance_alpha: float = field(default=0.1, metadata={"help": "Of ocrm: bounds a weight by its inverse."})
    importance_exponent: float = field(default=0.1, metadata={"help": "Of ocrm: flattens the ratios; 1 does not."})
    imports: list[str] | None = field(default=None, metadata={"help": HELP})
    distributions: list[dict] | None = field(
        default=None, metadata={"help": "Task distributions: {name, source, config, train_size, …}. YAML only."}
    )
    prompts_name: str | None = field(default=None, metadata={"help": "A dataset of prompts, in their place."})
    dataset_name: str | None = field(default=None, metadata={"help": "The original pairs; made by default."})
    num_pairs: int | None = field(default=None, metadata={"help": "Pairs to make at most."})
    label_noise: float = field(default=0.0, metadata={"help": "Share of the pairs made whose label is turned."})
    engine: str = field(
        default="compact",
        metadata={
            "help": "Generation engine of the sampling.",
            "choices": ["compact", "transformers", "continuous_batching", "vllm"],
        },
    )
    sampling_batch_size: int = field(default=128, metadata={"help": "Responses decoded together."})
    sampling_dtype: str | None = field(
        default=None,
        metadata={
            "help": "Precision of the weights that sample; `dtype` of the block grpo by default.",
            "choices": ["auto", "bfloat16", "float16", "float32"],
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of everything."})
    resume_from_checkpoint: bool = field(default=False, metadata={"help": "Go on with the run in output_dir."})

    @property
    def pairs_name(self) -> str:
        """The original pairs, given or made."""
        return self.dataset_name or str(Path(str(self.output_dir)) / "pairs")

    def __post_init__(self):
        import_own(self.imports)
        for name in ("model_name_or_path", "output_dir", "reward", "grpo"):
            if getattr(self, name) is None:
                raise ValueError(f"give `{name}`")
        for name in ("rounds", "num_prompts", "num_pairs", "sampling_batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be at least 1")
        if self.num_responses < 2:
            raise ValueError(
                f"`num_responses` is {self.num_responses}; responses to one prompt are compared, so give at least 2"
            )
        if not 0 <= self.importance_alpha < 1:
            raise ValueError(f"`importance_alpha` is {self.importance_alpha}; it must be at least 0 and below 1")
        if not 0 < self.importance_exponent <= 1:
            raise ValueError(f"`importance_exponent` is {self.importance_exponent}; it must be above 0 and at most 1")
        if (self.distributions is None) == (self.prompts_name is None):
            raise ValueError("give the policy's prompts: either `distributions` or `prompts_name`")
        if self.dataset_name is None and self.distributions is None:
            raise ValueError("pairs can be made of `distributions` alone, by their verifiers: give dataset_name")
        if self.dataset_name is not None and (self.num_pairs is not None or self.label_noise):
            raise ValueError("`num_pairs` and `label_noise` are of pairs that are made, and dataset_name gives them")
        if not 0 <= self.label_noise < 1:
            raise ValueError(f"`label_noise` is {self.label_noise}; it is a share, at least 0 and below 1")


def begin(loop: Any) -> None:
    """Sample what comes before the first round, unless it is there: held-out responses, and pairs to be made."""
    from metatune.recipes.metarm_pairs import make_pairs
    from metatune.recipes.metarm_round import HELD_OUT
    from metatune.recipes.rounds import empty_accelerator_cache

    start, pairs = loop.folder / "start", loop.folder / "pairs"
    wants_pairs = loop.args.dataset_name is None and not (pairs / "train.jsonl").exists()
    if wants_pairs or not (start / HELD_OUT).exists():
        policy = loop.policy(loop.args.model_name_or_path)
        if wants_pairs:
            print("Making pairs of the first policy's responses", flush=True)
            make_pairs(pairs, policy, loop.prompts, loop.heldout, loop.args, loop.seed(0, "pairs"))
        loop.sample_heldout(start, policy)
        del policy
        empty_accelerator_cache()


def check_data(args: MetaRMScriptArguments, rows: int | None = None) -> None:
    """Raise [`ConfigError`] for prompts or pairs that cannot be used; `main` reads all before the first sampling."""
    from metatune.recipes.metarm_data import load_pairs, load_prompts

    if rows is None:
        (reward_script, *_), (grpo_script, training_args, _) = check(args)
        load_prompts(args, grpo_script, training_args.curriculum == "uniform")
        if args.dataset_name is not None:
            load_pairs(args, reward_script)


def main(args: MetaRMScriptArguments) -> None:
    """Run the rounds that are missing, print the table of all, and write `rounds.json`."""
    from metatune.eval.files import read_rows, write_json
    from metatune.recipes.grpo_checks import fitting_prompts
    from metatune.recipes.metarm_data import load_pairs, load_prompts
    from metatune.recipes.metarm_round import HELD_OUT, Loop, Round
    from metatune.recipes.metarm_summary import policy_numbers, show_rounds
    from metatune.trainers.distribution_rows import asks_for_several

    (reward_script, *_), (grpo_script, training_args, model_args) = check(args)
    prompts, heldout = (
        fitting_prompts(part, grpo_script, training_args, model_args, where)
        for part, where in zip(
            load_prompts(args, grpo_script, not asks_for_several(training_args)),
            ("training prompts", "held-out prompts"),
            strict=True,
        )
    )
    if args.dataset_name is not None:
        load_pairs(args, reward_script)
    folder = Path(str(args.output_dir))
    settle_folder(folder, (args,), args.resume_from_checkpoint, parts="*/*.jsonl", may_change=MAY_CHANGE)
    loop = Loop(folder, args, training_args, model_args, prompts, heldout, grpo_script.chat_template_path)
    begin(loop)
    loop.pairs, loop.test_pairs = load_pairs(args, reward_script)
    source, before = str(args.model_name_or_path), folder / "start"
    summaries = [{"round": 0, **policy_numbers(read_rows(before / HELD_OUT))}]
    for number in range(1, args.rounds + 1):
        this = Round(number, loop, source, before)
        summaries.append(this.run())
        write_json(folder / "rounds.json", summaries)
        source, before = str(this.policy), this.folder
    show_rounds(summaries)
    print(f"Saved to {source}")


class MetaRMParser(StrictParser):
    """A parser that tells where the launcher's options go."""

    def refuse_launch(self, name: str) -> NoReturn:
        """Raise [`ConfigError`] that says where an option of the launcher goes."""
        raise ConfigError(f"{name} is the launcher's: write it into the blocks reward and grpo, which are launched")


def make_parser(prog: str | None = None) -> MetaRMParser:
    """Return the parser of this recipe's options."""
    alone = "metarm launches its trainings itself: start it with metatune metarm, in one process"
    return MetaRMParser(MetaRMScriptArguments, alone=alone, prog=prog)


if __name__ == "__main__":
    run(make_parser, main)
