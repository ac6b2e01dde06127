"""A small MPO run against a server without a model, importable by the processes that the tests launch.

The fake judge applies rubric items as programs, named by the items: `digits` pays for a completion with a digit in
it, `same` pays everything alike, `letters` pays for one without. The fake meta judge answers with rubrics it is given.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from metatune.curricula import build_tokenizer
from metatune.rewards import Judge, JudgeClient, JudgeReward, MetaJudge, Rubric, RubricItem
from metatune.trainers import MetaConfig, MPOConfig, MPOTrainer

from ..rewards.fake_judge_server import FakeJudgeServer
from .dump_setup import config, digits, rows, tiny_model

PROGRAMS = {
    "digits": lambda text: any(character.isdigit() for character in text),
    "letters": lambda text: not any(character.isdigit() for character in text),
    "same": lambda text: True,
}
FIRST = Rubric("Make a number.", (RubricItem("digits", "A digit.", 2), RubricItem("same", "Anything.", 2)))
BETTER = Rubric("Make a number.", (RubricItem("digits", "A digit, at last.", 3),))
WORSE = Rubric("Make a number.", (RubricItem("letters", "No digit.", 2),))


def is_meta(body: dict) -> bool:
    return "You improve the rubric" in body["messages"][0]["content"]


def judge_or_revise(revisions: Sequence[Rubric]):
    """Return an answer for a `FakeJudgeServer`: judgements by program; the n-th meta step writes the n-th rubric."""
    steps = []

    def answer(body: dict) -> str:
        if not is_meta(body):
            text = re.search(r"answer to be judged\n(.*)\n~+ end of", body["messages"][1]["content"], re.S)[1]
            items = body["response_format"]["json_schema"]["schema"]["properties"]
            return json.dumps({name: judged(name, item, text) for name, item in items.items()})
        if len(body["messages"]) == 2:
            steps.append(None)
            return "an analysis"
        rubric = revisions[min(len(steps), len(revisions)) - 1]
        return json.dumps({"items": rubric.to_dict()["items"]})

    return answer


def judged(name: str, item: dict, text: str) -> dict:
    most = item["properties"]["score"]["maximum"]
    return {"rationale": f"{name} of it", "score": most if PROGRAMS[name](text) else 0}


def make_mpo(
    output_dir: Path | str,
    url: str,
    *,
    gold: bool = True,
    held_out: Rubric | None = None,
    trainer_class: type[MPOTrainer] = MPOTrainer,
    **options,
) -> MPOTrainer:
    """Four prompts of four completions a batch, judged; `digits` is the gold score, watched but not paid."""
    client = JudgeClient(url, retries=1)
    rewards = [JudgeReward(Judge(client, FIRST)), *([digits] if gold else [])]
    defaults = {"meta_every": 2, "meta_cases": 6, "gate_cases": 8, "rollback_window": 0}
    if options.get("meta_every") == 0:
        defaults = {"meta_every": 0}
    elif options.get("gate") is False and not options.get("rollback_window"):
        del defaults["gate_cases"]
    defaults |= {"curriculum": "uniform", "reward_weights": [1.0, 0.0][: len(rewards)]}
    config_class = MPOConfig if trainer_class is MPOTrainer else MetaConfig
    return trainer_class(
        tiny_model(),
        reward_funcs=rewards,
        args=config(output_dir, config_class, **{**defaults, **options}),
        train_dataset=rows(),
        processing_class=build_tokenizer(),
        meta_judge=MetaJudge(client, num_refinements=1),
        held_out_judge=None if held_out is None else Judge(client, held_out),
    )


def run(folder: Path, *revisions: Rubric, fault=None, **options) -> tuple[MPOTrainer, list[dict]]:
    """Train with a meta judge that writes these rubrics; returns the trainer and what the server was asked."""
    with FakeJudgeServer(judge_or_revise(revisions), fault) as server:
        trainer = make_mpo(folder, server.url, **options)
        trainer.train()
    return trainer, server.bodies
