"""Why the methods of `benchmarks/reward.py` earn nothing in its world: gradients of MetaRM, and what a flip turns.

    python benchmarks/reward_why.py [--seeds 10] [--parts gradients weakest]

`gradients`: does MetaRM's step point to where a reward model has to go? A reward model after one pass over the pairs,
and the policy at each point of its way. Of three objectives the gradient over the whole sample: J, the difference
objective on the policy's responses, which MetaRM ascends; the loss on the original pairs; and the loss on the policy's
own pairs with gold labels, which nobody has and everybody wants.

A gradient may merely multiply all scores, which lowers a loss and raises J, and orders nothing otherwise. So `scale`
tells how much of J's gradient is that of the spread of scores (the root mean square of their differences from their
prompt's mean); and the other cosines are of gradients of the same objectives with scores divided by that spread, which
change the order alone. `length` is the covariance of score and length in a prompt, also divided.

`weakest`: of the tenth of the pairs that `flip` turns, how many were labelled wrongly? Below a half it does more harm.

Intervals: percentile bootstrap over seeds.
"""

import argparse

import numpy as np
from reward import FLIPS, LEVELS, PAIRS, SHIFT_FLIPS, letters, move, sample_pairs
from reward_tables import over_seeds, show
from reward_trainee import BUDGET, RESPONSES
from reward_world import World, draw_prompts, every_pair, load_base, make_base, respond
from shared import print_claims, quiet

PROMPTS = 400
PARTS = ("gradients", "weakest")
LABELS = {
    "scale": "J with scale",
    "J": "J with what is wanted",
    "pairs": "pairs with the same",
    "J, pairs": "J with pairs",
    "length": "J with length",
}


def gradient(model, objective) -> np.ndarray:
    """Return the gradient of a scalar of the model, flat."""
    model.zero_grad()
    objective.backward()
    return np.concatenate([p.grad.double().flatten().numpy() for p in model.parameters() if p.grad is not None])


def rewards_of(trainee, model, rows):
    import torch

    ids = [torch.tensor(trainee.ids(prompt, response)) for prompt, response in rows]
    pad = trainee.tokenizer.pad_token_id
    ids_BT = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad)
    mask_BT = torch.arange(ids_BT.shape[1]) < torch.tensor([len(row) for row in ids])[:, None]
    return model(input_ids=ids_BT, attention_mask=mask_BT.long()).logits[:, 0]


def spread(rewards):
    """Return the root mean square of scores, of shape (P, k), about their prompt's mean."""
    return (rewards - rewards.mean(1, keepdim=True)).square().mean().sqrt()


def ordered(rewards, size: float):
    """Return scores whose spread is `size`, whatever the model's."""
    return rewards / spread(rewards) * size


def pair_loss(trainee, model, pairs):
    """Return the loss of pairs whose scores have the spread that the model gives them, and keep it."""
    import torch
    from torch.nn.functional import softplus

    sides = [[(pair["prompt"], pair[side]) for pair in pairs] for side in ("chosen", "rejected")]
    rewards_P2 = torch.stack([rewards_of(trainee, model, side) for side in sides], dim=1)
    rewards_P2 = ordered(rewards_P2, spread(rewards_P2).item())
    return softplus(rewards_P2[:, 1] - rewards_P2[:, 0]).mean()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def measure(seed: int) -> dict[str, list[float]]:
    """Return the cosines at every level, for one seed."""
    import torch

    from metatune.trainers.reward_losses import difference_objective

    world, base, trainee = World(seed), load_base(), letters(PAIRS)
    rows = sample_pairs(world, base, PAIRS, SHIFT_FLIPS, seed)
    model = trainee.train(rows, 1, seed)
    found = {name: [] for name in LABELS}
    for policy in move(trainee.train(rows, BUDGET, seed + 500), seed).values():
        prompts = draw_prompts(PROMPTS, seed + 3)
        responses = respond(policy, prompts, RESPONSES, seed + 4)
        flat = [(prompt, text) for prompt, group in zip(prompts, responses, strict=True) for text in group]
        lengths_PK = torch.tensor([[float(len(text)) for text in group] for group in responses])
        lengths_PK = lengths_PK - lengths_PK.mean(1, keepdim=True)

        def scores(flat=flat):
            return rewards_of(trainee, model, flat).view(-1, RESPONSES)

        size = spread(scores()).item()
        ascent = gradient(model, difference_objective(scores()).mean())
        found["scale"].append(cosine(ascent, gradient(model, spread(scores()))))
        ascent = gradient(model, difference_objective(ordered(scores(), size)).mean())
        longer = gradient(model, (ordered(scores(), size) * lengths_PK).mean())
        wanted = -gradient(model, pair_loss(trainee, model, every_pair(world, prompts, responses)))
        original = -gradient(model, pair_loss(trainee, model, rows))
        found["J"].append(cosine(ascent, wanted))
        found["pairs"].append(cosine(original, wanted))
        found["J, pairs"].append(cosine(ascent, original))
        found["length"].append(cosine(ascent, longer))
    return found


def weakest(seed: int) -> list[float]:
    """Return the share of wrong labels in the weakest tenth of the pairs, for each share of wrong labels."""
    world, base, trainee, found = World(seed), load_base(), letters(PAIRS), []
    for share in FLIPS[1:]:
        voted = trainee.vote(sample_pairs(world, base, PAIRS, share, seed), seed + 100)
        turned = np.argsort([row["strength"] for row in voted])[: len(voted) // 10]
        found.append(float(np.mean([voted[index]["flipped"] for index in turned])))
    return found


def summarise_gradients(seeds: int) -> list[dict]:
    claims = []
    with quiet():
        runs = [measure(seed) for seed in range(seeds)]
    print(f"cosines after so many steps of GRPO, {seeds} seeds\n{'':20}" + "".join(f"{n:>26}" for n in LEVELS))
    for name, label in LABELS.items():
        cells = [over_seeds([run[name][place] for run in runs]) for place in range(len(LEVELS))]
        print(f"{label:22}" + "".join(f"{show(cell, '+'):>26}" for cell in cells))
        for level, (value, ci) in zip(LEVELS, cells, strict=True):
            claims.append({"claim": f"{label}, {level} steps", "value": value, "ci": ci, "seeds": seeds})
    return claims


def summarise_weakest(seeds: int) -> list[dict]:
    claims = []
    with quiet():
        runs = [weakest(seed) for seed in range(seeds)]
    for place, share in enumerate(FLIPS[1:]):
        value, ci = over_seeds([run[place] for run in runs])
        print(f"{share:.0%} wrong labels: in the weakest tenth {show((value, ci))}")
        claims.append(
            {"claim": f"wrong in the weakest tenth, {share:.0%} flips", "value": value, "ci": ci, "seeds": seeds}
        )
    return claims


def main() -> None:
    import datasets
    import torch
    import transformers

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    make_base()
    claims = []
    if "gradients" in args.parts:
        claims += summarise_gradients(args.seeds)
    if "weakest" in args.parts:
        claims += summarise_weakest(args.seeds)
    print_claims("reward_why", claims)


if __name__ == "__main__":
    main()
