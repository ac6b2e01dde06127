"""Evaluate three rows, in groups of one and of two, and print the accuracies as JSON.

`torchrun --nproc_per_node 2 -m tests.trainers.evaluation_program FOLDER`
"""

import json
import sys

from metatune.curricula import build_tokenizer
from metatune.recipes.failures import leave
from metatune.trainers import DUMPTrainer

from .dump_setup import config, rows, tiny_model


def first_alone(prompts, **kwargs) -> list[float]:
    """1 for the first row, whatever is sampled."""
    return [float(prompt[0]["content"].endswith(" 100")) for prompt in prompts]


def main(folder: str) -> None:
    found = []
    for group in (1, 2):
        trainer = DUMPTrainer(
            tiny_model(),
            reward_funcs=first_alone,
            args=config(
                folder, per_device_train_batch_size=8, per_device_eval_batch_size=2, num_generations_eval=group
            ),
            train_dataset=rows(),
            processing_class=build_tokenizer(),
        )
        found.append(trainer.evaluate(rows(num_items=3, distributions=("alpha",), first=100))["eval_accuracy"])
    if trainer.is_world_process_zero():
        print(json.dumps({"accuracies": found}))


if __name__ == "__main__":
    main(sys.argv[1])
    leave(0)
