"""A small MRT set-up for the trainer tests."""

from metatune.curricula import build_tokenizer
from metatune.trainers import MRTConfig, MRTTrainer

from .dump_setup import config, digits, rows, tiny_model

FAST = {"forcing_suffix": "\nanswer ", "num_forced_answers": 2, "forced_answer_tokens": 4}
VARIANTS = {
    "episode": {"episodes": {"by": "tokens", "tokens": 4}},
    "anytime": {"budgets": [4, 8, 12]},
    "prefix": {"episodes": {"by": "tokens", "tokens": 4}},
    "length_penalty": {"progress_weight": 0.5},
}


def make(output_dir, progress="episode", reward=digits, train_dataset=None, model=None, **options) -> MRTTrainer:
    """A trainer of the tiny model; what the form of progress needs is set."""
    measured = FAST if progress not in ("none", "length_penalty") else {}
    return MRTTrainer(
        tiny_model() if model is None else model,
        reward_funcs=reward,
        args=config(
            output_dir, MRTConfig, **{**measured, **VARIANTS.get(progress, {}), "progress": progress, **options}
        ),
        train_dataset=rows() if train_dataset is None else train_dataset,
        processing_class=build_tokenizer(),
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
