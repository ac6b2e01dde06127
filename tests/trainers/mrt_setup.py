"""A small MRT set-up for the trainer tests."""

from metatune.curricula import build_tokenizer
from metatune.trainers import MRTConfig, MRTTrainer

from .dump_setup import config, digits, rows, tiny_model

FORCED = {"forcing_suffix": "\nanswer ", "forced_answer_tokens": 4}
FAST = {**FORCED, "num_forced_answers": 2}
EPISODES = {"episodes": {"by": "tokens", "tokens": 4}}
VARIANTS = {  # the options with which each form of progress is fast
    "episode": {**EPISODES, **FAST},
    "anytime": {"budgets": [4, 8, 12], **FAST},
    "prefix": {**EPISODES, **FORCED},
    "length_penalty": {"progress_weight": 0.5},
}
LIKELIHOOD = {"success_estimator": "likelihood", "num_forced_answers": None, "forced_answer_tokens": None}
NO_BONUS = {"terminating_generations": 0, "forcing_suffix": None, "forced_answer_tokens": None}


def make(
    output_dir, progress="episode", reward=digits, train_dataset=None, model=None, parts=None, **options
) -> MRTTrainer:
    """Return a trainer of the tiny model with the options that the form of progress needs.

    `parts` are arguments of the trainer. An option that is `None` is left out.
    """
    options = {"progress": progress, **VARIANTS.get(progress, {}), **options}
    return MRTTrainer(
        tiny_model() if model is None else model,
        reward_funcs=reward,
        args=config(output_dir, MRTConfig, **{name: each for name, each in options.items() if each is not None}),
        train_dataset=rows() if train_dataset is None else train_dataset,
        **{"processing_class": build_tokenizer(), **(parts or {})},
    )


def last(trainer, key: str) -> float:
    """The last number that was logged under a key."""
    return [row[key] for row in trainer.state.log_history if key in row][-1]


class Recording(MRTTrainer):
    """Keeps what a batch was advantaged with."""

    def _advantages(self, outputs):
        self.outcome = outputs["advantages"].clone()
        self.result = super()._advantages(outputs)
        self.seen = outputs
        return self.result
