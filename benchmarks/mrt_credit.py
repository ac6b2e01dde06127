"""Why does pay for progress earn what it earns? Two measurements on the checkpoint where benchmarks/mrt.py begins.

    python benchmarks/mrt_credit.py [--batches 60] [--steps 60] [--seed 1000] [--quick]

1. Signal: gradients of batches of 16 prompts of 8 completions under each advantage, all from the same completions. The
   share of a batch's squared gradient that is its mean (signal), the cosine of that mean with the mean gradient of the
   outcome (bias), and the expected cosine of one batch's gradient with the latter: what a rollout is worth to someone
   who wants outcomes. Means are over pairs of different batches, so noise does not count as signal; the interval is a
   jackknife over batches.
2. Behaviour after training, in sampled traces of held-out problems: how often an attempt is right, how often a right
   and a wrong attempt is marked as such (the trace goes by its marks, a forced answer does not), how often a trace
   gives up after a wrong attempt.

Seeds from 1000 on: nothing that benchmarks/mrt.py reports is touched.
"""

import argparse
import json
import re
import tempfile

import mrt
import numpy as np
from shared import print_claims, quiet

ADVANTAGES = {  # weight of the outcome's advantage, weight and decay of the progress', and its scale
    "outcome": (1.0, 0.0, 0.0, "outcome"),
    "progress alone": (0.0, 1.0, 0.0, "outcome"),
    "progress alone, decay 0.5": (0.0, 1.0, 0.5, "outcome"),
    "progress alone, decay 1": (0.0, 1.0, 1.0, "outcome"),
    "outcome + progress": (1.0, 1.0, 0.0, "outcome"),
    "outcome + progress, scale batch": (1.0, 1.0, 0.0, "batch"),
    "outcome + progress, decay 1": (1.0, 1.0, 1.0, "outcome"),
    "anytime": None,
}
TRAINED = {
    "before training": None,
    "grpo": {"progress": "none"},
    "episode": mrt.LIKELIHOOD,
    "episode, scale batch, weight 2": {**mrt.LIKELIHOOD, "progress_scale": "batch", "progress_weight": 2.0},
    "episode, decay 0.5, weight 3": {**mrt.LIKELIHOOD, "progress_decay": 0.5, "progress_weight": 3.0},
}
ATTEMPT = re.compile(r"([0-9+*-]+)=-?\d+ (right|wrong)")


class Batches:
    """Completions of the checkpoint with the chance of success at every episode's end and at every budget."""

    def __init__(self, distributions, seed: int):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from metatune.rewards import EpisodeRule, Forcing

        self.tokenizer = AutoTokenizer.from_pretrained(mrt.SEARCHER)
        self.model = AutoModelForCausalLM.from_pretrained(mrt.SEARCHER, dtype=torch.float32)
        self.rows = [row for distribution in distributions for row in distribution.train]
        self.forcing = Forcing(self.tokenizer)
        self.rule = EpisodeRule.from_options({"by": "delimiter"})
        self.budgets = [24, 48, 72, 96]
        self.generator = np.random.default_rng(seed)
        torch.manual_seed(seed)

    def draw(self) -> dict:
        """Sample one batch and value its prefixes."""
        import torch

        from metatune.rewards import episode_ends, get_verifier, token_texts
        from metatune.trainers.generation import sample_completions

        chosen = self.generator.choice(len(self.rows), mrt.GROUPS, replace=False)
        rows = [self.rows[index] for index in chosen for _ in range(mrt.GENERATIONS)]
        prompts = [
            self.tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
            for row in rows
        ]
        completions = sample_completions(
            self.model,
            prompts,
            max_new_tokens=mrt.LENGTH,
            eos_token_ids=[self.tokenizer.eos_token_id],
            pad_token_id=self.tokenizer.pad_token_id,
        )
        texts = self.tokenizer.batch_decode(completions, skip_special_tokens=True)
        outcomes = [
            float(get_verifier(row["verifier"]).score(text, row["answer"], json.loads(row["info"])))
            for row, text in zip(rows, texts, strict=True)
        ]
        ends = [episode_ends(ids, token_texts(self.tokenizer, ids), self.rule) for ids in completions]
        at_episodes = [[0, *row[:-1]] for row in ends]
        at_budgets = [[b for b in self.budgets if b < len(ids)] for ids in completions]
        cuts = [sorted({*a, *b}) for a, b in zip(at_episodes, at_budgets, strict=True)]
        values = self.value(rows, prompts, completions, cuts)
        width = max(map(len, ends)) + 1
        by_episode = torch.full((len(rows), width), torch.nan)
        by_budget = torch.zeros(len(rows), len(self.budgets))
        for index, outcome in enumerate(outcomes):
            known = [values[index][cut] for cut in at_episodes[index]] + [outcome]
            by_episode[index, : len(known)] = torch.tensor(known)
            by_budget[index] = torch.tensor([values[index].get(budget, outcome) for budget in self.budgets])
        return {
            "prompts": prompts,
            "completions": completions,
            "outcomes": torch.tensor(outcomes),
            "ends": ends,
            "by_episode": by_episode,
            "by_budget": by_budget,
        }

    def value(self, rows, prompts, completions, cuts) -> list[dict[int, float]]:
        """Return the likelihood of an accepted answer at each cut of each completion."""
        from metatune.trainers.answer_likelihood import AcceptedAnswers, Tree, success_probabilities
        from metatune.trainers.success import accepted_answers

        trees = []
        for row, prompt, ids, row_cuts in zip(rows, prompts, completions, cuts, strict=True):
            answers = AcceptedAnswers(self.tokenizer, self.forcing, accepted_answers(row), row["verifier"])
            texts = [self.tokenizer.decode(ids[:cut], skip_special_tokens=True) for cut in row_cuts]
            branches = [answers.branch(text, len(prompt) + cut) for text, cut in zip(texts, row_cuts, strict=True)]
            trees.append(Tree([*prompt, *ids], branches))
        found = success_probabilities(self.model, trees, [self.tokenizer.eos_token_id])
        return [dict(zip(row_cuts, values, strict=True)) for row_cuts, values in zip(cuts, found, strict=True)]

    def gradient(self, batch: dict, advantages):
        """Return the ascent direction of the token-mean policy gradient, flat."""
        import torch

        prompts, completions = batch["prompts"], batch["completions"]
        self.model.zero_grad()
        total = sum(map(len, completions))
        order = sorted(range(len(completions)), key=lambda row: len(completions[row]))
        for at in range(0, len(order), 32):
            part = order[at : at + 32]
            width = max(len(prompts[row]) + len(completions[row]) for row in part)
            ids = torch.zeros(len(part), width, dtype=torch.long)
            weights = torch.zeros(len(part), width)
            for place, row in enumerate(part):
                start, length = len(prompts[row]), len(completions[row])
                ids[place, : start + length] = torch.tensor(prompts[row] + completions[row])
                weights[place, start : start + length] = advantages[row, :length]
            logprobs = self.model(input_ids=ids).logits[:, :-1].log_softmax(-1)
            logprobs = logprobs.gather(-1, ids[:, 1:, None]).squeeze(-1)
            ((logprobs * weights[:, 1:]).sum() / total).backward()
        return torch.cat([parameter.grad.reshape(-1) for parameter in self.model.parameters()]).clone()


def advantages_of(batch: dict, kind, budgets: list[int]):
    """Return the advantage of every token, shape (B, T)."""
    from metatune.trainers import progress
    from metatune.trainers.advantages import group_advantages, outcome_divisor

    size, width = mrt.GENERATIONS, max(map(len, batch["completions"]))
    outcome_weight, weight, decay, scale = (0.0, 1.0, 0.0, "outcome") if kind is None else kind
    if kind is None:
        ends = [[min(budget, len(ids)) for budget in budgets] for ids in batch["completions"]]
        paid = progress.anytime_advantages(batch["by_budget"], size)
    else:
        ends = batch["ends"]
        paid = progress.episode_advantages(batch["by_episode"], size, decay=decay)
    divisor = progress.progress_divisor(paid, scale, outcome_divisor(batch["outcomes"], size, "group"))
    by_token = progress.spread((paid / divisor[:, None]).nan_to_num(0.0), ends, width)
    return outcome_weight * group_advantages(batch["outcomes"], size, "group")[:, None] + weight * by_token


def across(products: np.ndarray) -> float:
    """Return the mean of the products, shape (N, N), of gradients of different batches."""
    return float((products.sum() - products.trace()) / (len(products) * (len(products) - 1)))


def alignment(squares: np.ndarray, with_outcome: np.ndarray, outcome: np.ndarray) -> float:
    """Return the expected cosine of one batch's gradient with the outcome's mean gradient."""
    return float(across(with_outcome) / squares.mean() ** 0.5 / max(across(outcome), 1e-12) ** 0.5)


def measure_signal(distributions, batches: int, seed: int) -> list[dict]:
    """Print the table of gradients and return its claims."""
    import torch

    source = Batches(distributions, seed)
    gradients = {name: [] for name in ADVANTAGES}
    for _ in range(batches):
        batch = source.draw()
        for name, kind in ADVANTAGES.items():
            gradients[name].append(source.gradient(batch, advantages_of(batch, kind, source.budgets)))
    outcome_NP = torch.stack(gradients["outcome"])
    outcome, claims = (outcome_NP @ outcome_NP.T).double().numpy(), []
    print(f"\n{batches} batches of {mrt.GROUPS} x {mrt.GENERATIONS}")
    print(f"{'advantage':34}{'signal':>8}{'cosine':>8}   one batch against the outcome's mean [95 %]")
    for name in ADVANTAGES:
        rows_NP = torch.stack(gradients.pop(name))
        own, with_outcome = ((rows_NP @ other_NP.T).double().numpy() for other_NP in (rows_NP, outcome_NP))
        mean_square = max(across(own), 1e-12)
        cosine = across(with_outcome) / (mean_square * max(across(outcome), 1e-12)) ** 0.5
        value = alignment(own.diagonal(), with_outcome, outcome)
        left_out = np.array(
            [
                alignment(
                    np.delete(own.diagonal(), i), *(without(products, i) for products in (with_outcome, outcome))
                )
                for i in range(batches)
            ]
        )
        error = 1.96 * np.sqrt((batches - 1) / batches * ((left_out - left_out.mean()) ** 2).sum())
        signal = mean_square / own.diagonal().mean()
        interval = [float(value - error), float(value + error)]
        print(f"{name:34}{signal:8.3f}{cosine:8.2f}   {value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]", flush=True)
        claim = f"cosine of a batch's gradient with the outcome's mean gradient, {name}"
        claims.append({"claim": claim, "value": value, "ci": interval, "batches": batches})
    return claims


def without(products: np.ndarray, index: int) -> np.ndarray:
    """Leave one batch out of a matrix of products."""
    return np.delete(np.delete(products, index, 0), index, 1)


def behaviour(model, tokenizer, rows: list[dict]) -> dict[str, float]:
    """Sample a trace of every row and return what it does."""
    import torch

    from metatune.rewards import get_verifier
    from metatune.trainers.generation import sample_completions

    torch.manual_seed(0)
    prompts = [tokenizer.apply_chat_template(r["prompt"], add_generation_prompt=True, return_dict=False) for r in rows]
    how = {"eos_token_ids": [tokenizer.eos_token_id], "pad_token_id": tokenizer.pad_token_id}
    completions = sample_completions(model, prompts, max_new_tokens=mrt.LENGTH, **how)
    verifier = get_verifier("countdown")
    found = {"accuracy": [], "attempts": [], "right": [], "right marked right": [], "wrong marked wrong": []}
    found["gives up"] = []
    for row, text in zip(rows, tokenizer.batch_decode(completions, skip_special_tokens=True), strict=True):
        info, lines = json.loads(row["info"]), text.split("\n")
        found["accuracy"].append(bool(verifier.score(text, row["answer"], info)))
        attempts = [match for line in lines if (match := ATTEMPT.fullmatch(line))]
        found["attempts"].append(len(attempts))
        for number, (expression, mark) in enumerate(match.groups() for match in attempts):
            right = bool(verifier.score(f"answer {expression}", row["answer"], info))
            found["right"].append(right)
            found["right marked right" if right else "wrong marked wrong"].append((mark == "right") == right)
            if mark == "wrong":
                found["gives up"].append(number == len(attempts) - 1)
    return {name: float(np.mean(values)) for name, values in found.items()}


def measure_behaviour(distributions, steps: int, seed: int) -> list[dict]:
    """Train with each kind of pay, print what the traces do, and return the claims."""
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from metatune.rewards import correctness_reward
    from metatune.trainers import MRTConfig, MRTTrainer

    tokenizer = AutoTokenizer.from_pretrained(mrt.SEARCHER)
    held_out = [row for distribution in distributions for row in distribution.test for _ in range(4)]
    claims, header = [], None
    for name, options in TRAINED.items():
        if options is None:
            model = AutoModelForCausalLM.from_pretrained(mrt.SEARCHER)
        else:
            trainer = MRTTrainer(
                model=str(mrt.SEARCHER),
                reward_funcs=correctness_reward,
                args=MRTConfig(
                    **mrt.grpo_options(tempfile.mkdtemp(), steps, seed, mrt.LEARNING_RATE), **mrt.OURS, **options
                ),
                train_dataset=datasets.concatenate_datasets([d.train for d in distributions]),
            )
            with quiet():
                trainer.train()
            model = trainer.model.eval()
        numbers = behaviour(model, tokenizer, held_out)
        if header is None:
            header = f"\nafter {steps} steps, seed {seed}{'':15}" + "".join(f"{column:>20}" for column in numbers)
            print(header)
        print(f"{name:34}" + "".join(f"{number:20.3f}" for number in numbers.values()), flush=True)
        claims += [{"claim": f"{key}, {name}", "value": value, "seeds": 1} for key, value in numbers.items()]
    return claims


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="the same path in a few minutes: 6 batches, 4 steps")
    args = parser.parse_args()
    import datasets
    import torch

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    mrt.make_searcher()
    distributions = mrt.tasks()
    claims = measure_signal(distributions, 6 if args.quick else args.batches, args.seed)
    claims += measure_behaviour(distributions, 4 if args.quick else args.steps, args.seed)
    print_claims("mrt_credit", claims)


if __name__ == "__main__":
    main()
