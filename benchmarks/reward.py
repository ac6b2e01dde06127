"""Which reward model stays right: with wrong labels, and on a policy that has moved?

    python benchmarks/reward.py [--seeds 10] [--quick] [--workers 2] [--qa_feedback FILE]

`flips`: pairs of a world with a known gold score (reward_world.py), a share of 0 to 40 % of them labelled wrongly. How
well does preference strength find those (AUC), and how often is each reward model right about clean held-out pairs?
`shift`: 20 % of the labels are wrong, a policy is trained by GRPO against a reward model that no other is compared
with (another seed, the same pairs), and every reward model judges pairs of its responses as it moves.

`votes`: as `flips`, but votes are free and the treatments by them have BUDGET passes of their own: no equal compute,
but what a treatment does.

`human`: QA-Feedback's judged answers (`--qa_feedback dev_feedback.json` of FineGrainedRLHF), and a model taught here
on the passages: accuracy on held-out questions. MetaRM's meta set is the answers to those, without judgements; there
are no more pairs and no policy that moves, so `more data` and `ocrm` have no part in it.

Equal compute: every reward model costs BUDGET passes over the pairs, forward and backward.

- `vanilla`: TRL's loss, BUDGET passes; `more data`: one pass over BUDGET times as many pairs;
- `ensemble`: the mean of BUDGET models, a pass each;
- `smoothing`: of all labels; `flip`, `margin`, `soft + margin`, `posterior`: three passes go to an ensemble that
  votes, cross-fitted over two folds, and one to the reward model;
- `simcse`, `swav` on pairs and on differences: a text is read twice, so half as many passes;
- `metarm` (normalised) and `metarm plain`: a step's meta batch has as many responses as its pairs, so half as many
  passes; its meta set is responses of the policy as it stands at that point, without labels. `vanilla, half`, with
  as many passes and no such step, shows what the step does, for half of the compute;
- `ocrm`: pairs weighted by the flattened, relative density ratio of that policy and the one that wrote them; reading
  all responses with both policies is taken off its passes.

The contrastive terms are no treatment of labels and take part in `shift` alone, whose level 0 is the unmoved policy.
Intervals: percentile bootstrap over seeds, differences paired by seed. Seeds from 1000 on are for tuning. Finished
jobs are kept in benchmarks/results/reward_runs.jsonl; delete it after a change of a trainer.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from reward_tables import summarise_flips, summarise_human, summarise_shift, summarise_votes
from reward_trainee import BUDGET, RESPONSES, Trainee
from reward_world import make_base
from shared import CPU_RUN, ROOT, print_claims, run_jobs

RUNS = ROOT / "benchmarks" / "results" / "reward_runs.jsonl"
PAIRS, QUICK_PAIRS, HUMAN_PAIRS = 2000, 320, 500  # in a pass
FLIPS = (0.0, 0.1, 0.2, 0.3, 0.4)
SHIFT_FLIPS = 0.2
PARTS = ("shift", "flips", "votes", "human")
SHARES = {"shift": (SHIFT_FLIPS,), "flips": FLIPS, "votes": FLIPS}
LEVELS = (0, 10, 20, 40, 80)  # steps of GRPO
META_PROMPTS = 500
ALPHA, EXPONENT = 0.2, 0.1  # of importance weights: they are at most 5 times the mean of small ones, and flattened


def letters(num_pairs: int) -> Trainee:
    from reward_world import BASE, TOKENIZER, response_ids

    return Trainee(BASE, TOKENIZER, response_ids, num_pairs)


def sample_pairs(world, policy, number: int, flips: float, seed: int) -> list[dict]:
    from reward_world import draw_prompts, pair_up, respond

    prompts = draw_prompts(int(1.1 * number) + 20, seed)  # some pairs tie and are left out
    return pair_up(world, prompts, respond(policy, prompts, 2, seed), flips, seed)[:number]


def flips_job(seed: int, share: float, num_pairs: int) -> dict:
    """(a): accuracy on clean held-out pairs, and what strength tells of the wrong labels."""
    from reward_world import World, load_base

    from metatune.rewards.preference_strength import detection_auc

    world, base = World(seed), load_base()
    trainee = letters(num_pairs)
    more = sample_pairs(world, base, BUDGET * num_pairs, share, seed)
    models, voted = trainee.label_treatments(more[:num_pairs], more, seed)
    clean = sample_pairs(world, base, 2000, 0.0, seed + 10**6)
    found = {name: trainee.accuracy(models_of, clean) for name, models_of in models.items()}
    flipped = np.array([row["flipped"] for row in voted])
    auc = detection_auc(np.array([row["strength"] for row in voted]), flipped) if flipped.any() else None
    return {"accuracy": found, "auc": auc}


def votes_job(seed: int, share: float, num_pairs: int) -> dict:
    """(a) once more: what treatments by votes do where the votes cost nothing."""
    from reward_world import World, load_base

    world, base, trainee = World(seed), load_base(), letters(num_pairs)
    rows = sample_pairs(world, base, BUDGET * num_pairs, share, seed)[:num_pairs]  # those of `flips`
    models = trainee.with_free_votes(trainee.vote(rows, seed + 100), seed)
    clean = sample_pairs(world, base, 2000, 0.0, seed + 10**6)
    return {"accuracy": {name: trainee.accuracy(models_of, clean) for name, models_of in models.items()}}


def move(reward_model, seed: int) -> dict:
    """Train the policy by GRPO against a reward model and return it as it was at each of LEVELS."""
    from datasets import Dataset
    from reward_world import BASE, LENGTH, PAD, TOKENIZER, conversation, draw_prompts, load_base, response_ids
    from transformers import TrainerCallback

    from metatune.rewards.reward_model import score_ids
    from metatune.trainers import DUMPConfig, DUMPTrainer

    states = {}

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step in LEVELS:
                states[state.global_step] = {name: value.clone() for name, value in model.state_dict().items()}

    def reward(prompts, completions, **kwargs):
        texts = zip(prompts, completions, strict=True)
        ids = [response_ids(prompt[-1]["content"], completion[-1]["content"]) for prompt, completion in texts]
        return score_ids(reward_model, ids, PAD, 256).tolist()

    rows = [{"prompt": conversation(prompt), "distribution": "letters"} for prompt in draw_prompts(2000, seed + 2)]
    with tempfile.TemporaryDirectory() as folder:
        config = DUMPConfig(
            output_dir=folder,
            curriculum="uniform",
            compact_generation=True,
            max_steps=max(LEVELS),
            per_device_train_batch_size=64,
            num_generations=8,
            max_completion_length=LENGTH,
            learning_rate=3e-4,
            lr_scheduler_type="constant",
            beta=0.05,
            seed=seed,
            **CPU_RUN,
            model_init_kwargs={"dtype": "float32"},
        )
        DUMPTrainer(
            model=str(BASE),
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=TOKENIZER,
            callbacks=[Keep()],
        ).train()
    policies = {0: load_base()}
    for level, state in states.items():
        policies[level] = load_base()
        policies[level].load_state_dict(state)
    return policies


def meta_set(policy, seed: int):
    """Responses of a policy, no labels; an empty one is sampled as a mark, for a meta set has none."""
    from datasets import Dataset
    from reward_world import conversation, draw_prompts, respond

    prompts = draw_prompts(META_PROMPTS, seed)
    responses = respond(policy, prompts, RESPONSES, seed)
    return Dataset.from_list(
        [
            {"prompt": conversation(prompt), "responses": [text if text.strip() else "." for text in group]}
            for prompt, group in zip(prompts, responses, strict=True)
        ]
    )


def importance(rows: Sequence[dict], policy, base) -> list[dict]:
    """Weight pairs by how much likelier the policy is to write both of their responses than the base was."""
    from reward_world import log_probability

    from metatune.rewards.importance import relative_importance

    log_ratios_N = sum(
        log_probability(policy, sides) - log_probability(base, sides)
        for sides in ([(row["prompt"], row[side]) for row in rows] for side in ("chosen", "rejected"))
    )
    weights_N = relative_importance(log_ratios_N, ALPHA, EXPONENT)
    return [{**row, "weight": float(weight)} for row, weight in zip(rows, weights_N, strict=True)]


def shift_job(seed: int, num_pairs: int) -> dict:
    """(b): accuracy on pairs of a policy's own responses, as it moves."""
    from reward_world import World, draw_prompts, every_pair, load_base, respond

    world, base = World(seed), load_base()
    trainee = letters(num_pairs)
    more = sample_pairs(world, base, BUDGET * num_pairs, SHIFT_FLIPS, seed)
    rows = more[:num_pairs]
    models, _ = trainee.label_treatments(rows, more, seed)
    models |= trainee.contrasted(rows, seed)
    policies = move(trainee.train(rows, BUDGET, seed + 500), seed)
    found = []
    for level, policy in policies.items():
        prompts = draw_prompts(400, seed + 3)
        responses = respond(policy, prompts, RESPONSES, seed + 4)
        pairs = every_pair(world, prompts, responses)
        here = models | trainee.meta_stepped(rows, meta_set(policy, seed + 5), seed)
        weighted = importance(rows, policy, base)
        read = 4 / 3 / 2  # two policies read all responses, forward only, a third of a pass each
        here["ocrm"] = [trainee.train(weighted, BUDGET - read, seed, pair_weights=True)]
        weights = np.array([row["weight"] for row in weighted])
        found.append(
            {
                "level": level,
                "gold": float(np.mean([world.gold(text) for group in responses for text in group])),
                "length": float(np.mean([len(text) for group in responses for text in group])),
                "pairs": len(pairs),
                "accuracy": {name: trainee.accuracy(models_of, pairs) for name, models_of in here.items()},
                "effective_pairs": float(weights.sum() ** 2 / (weights**2).sum()),
            }
        )
    return {"levels": found}


def human_job(seed: int, num_pairs: int, path: Path) -> dict:
    """(c): accuracy on what people preferred, of answers to questions that are not learnt from."""
    import human_pairs as human

    trainee = Trainee(human.BASE, human.tokenizer(), human.response_ids, num_pairs)
    learnt, held_out = human.split(human.load(path), seed)
    rows = [pair for question in learnt for pair in human.pairs_of(question)]
    pairs = [pair for question in held_out for pair in human.pairs_of(question)]
    models, _ = trainee.label_treatments(rows, None, seed)
    models |= trainee.contrasted(rows, seed) | trainee.meta_stepped(rows, human.meta_set(held_out), seed)
    longer = float(np.mean([len(pair["chosen"]) > len(pair["rejected"]) for pair in pairs]))
    accuracies = {name: trainee.accuracy(models_of, pairs) for name, models_of in models.items()}
    return {"accuracy": {"the longer one": longer, **accuracies}}


# Jobs and their table


def run_job(part: str, seed: int, share: float | None, num_pairs: int, path: Path | None) -> dict:
    """Do one part for one seed."""
    import datasets
    import torch
    import transformers

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    started = time.perf_counter()
    if part == "human":
        found = human_job(seed, num_pairs, path)
    elif part == "shift":
        found = shift_job(seed, num_pairs)
    else:
        found = (flips_job if part == "flips" else votes_job)(seed, share, num_pairs)
    seconds = round(time.perf_counter() - started, 1)
    return {"part": part, "seed": seed, "share": share, "pairs": num_pairs, "seconds": seconds, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first_seed", type=int, default=0, help="1000 and above are for tuning")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="all, human with --qa_feedback alone, by default")
    parser.add_argument("--qa_feedback", type=Path, metavar="FILE", help="dev_feedback.json of FineGrainedRLHF")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="the same path in a few minutes: 1 seed, fewer pairs")
    args = parser.parse_args()
    parts = args.parts or [part for part in PARTS if part != "human" or args.qa_feedback]
    if "human" in parts and not args.qa_feedback:
        parser.error("--parts human needs --qa_feedback FILE")
    seeds = range(args.first_seed, args.first_seed + (1 if args.quick else args.seeds))
    pairs = {part: QUICK_PAIRS if args.quick else HUMAN_PAIRS if part == "human" else PAIRS for part in PARTS}

    make_base()
    if "human" in parts:
        import human_pairs

        human_pairs.make_base(human_pairs.load(args.qa_feedback))
    # Seeds outermost: an interrupted benchmark has whole seeds.
    wanted = [
        (part, seed, share, pairs[part]) for seed in seeds for part in parts for share in SHARES.get(part, (None,))
    ]
    run = partial(run_job, path=args.qa_feedback)
    done = run_jobs(run, wanted, RUNS, ("part", "seed", "share", "pairs"), args.workers)

    claims = []
    if "shift" in parts:
        claims += summarise_shift([done["shift", seed, SHIFT_FLIPS, pairs["shift"]] for seed in seeds])
    if "flips" in parts:
        flips = {share: [done["flips", seed, share, pairs["flips"]] for seed in seeds] for share in FLIPS}
        claims += summarise_flips(flips)
    if "votes" in parts:
        claims += summarise_votes(
            {share: [done["votes", seed, share, pairs["votes"]] for seed in seeds] for share in FLIPS}
        )
    if "human" in parts:
        claims += summarise_human([done["human", seed, None, pairs["human"]] for seed in seeds])
    print_claims("reward", claims)


if __name__ == "__main__":
    main()
