"""A world whose gold score is known: what `benchmarks/reward.py` asks, samples, pays and judges.

A prompt asks for four letters. A response is letters and marks; each letter is worth an amount that nobody is told,
drawn by seed, the first time it is said, and every repetition costs. A small language model is taught by demonstrators
of every diligence, who say more of what was asked, and more marks between, the more diligent they are: so good
responses are longer, repetitions are rare, and most letters are seldom said unasked. A reward model learns from pairs
of its responses what pays there; a policy that is trained against that reward model soon writes what it never saw.
"""

import random
import string
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from shared import ROOT
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from metatune.curricula import build_tokenizer
from metatune.trainers.generation import sample_completions

BASE = ROOT / "runs" / "reward_base"
LETTERS, MARKS = string.ascii_uppercase, ".,;:"
ASKED, LENGTH = 4, 32
REPETITION = 0.3
TOKENIZER = build_tokenizer()
END, PAD = TOKENIZER.eos_token_id, TOKENIZER.pad_token_id


class World:
    """Prompts, and the gold score of responses to them.

    Args:
        seed (`int`): of what letters are worth.
    """

    def __init__(self, seed: int):
        self.worth = dict(zip(LETTERS, np.random.default_rng(seed).normal(0.3, 0.7, len(LETTERS)), strict=True))

    def gold(self, response: str) -> float:
        """Return what the letters of a response are worth, less what its repetitions cost."""
        letters = [letter for letter in response if letter in self.worth]
        said = sorted(set(letters))
        return float(sum(self.worth[letter] for letter in said) - REPETITION * (len(letters) - len(said)))


def draw_prompts(number: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.sample(LETTERS, ASKED)) for _ in range(number)]


def demonstrate(prompt: str, rng: random.Random) -> str:
    """Answer as somebody does whose diligence is drawn anew every time."""
    diligence = rng.uniform(0.1, 1.0)
    letters = [letter for letter in rng.sample(prompt, len(prompt)) if rng.random() < diligence]
    for _ in range(3):
        if rng.random() < 0.6 * (1 - diligence):
            letters.insert(rng.randint(0, len(letters)), rng.choice(LETTERS))
    if letters and rng.random() < 0.15:
        letters.insert(rng.randint(0, len(letters)), rng.choice(letters))
    response = ""
    for letter in letters:
        while rng.random() < 0.65 * diligence:
            response += rng.choice(MARKS)
        response += letter
    return (response or rng.choice(MARKS))[: LENGTH - 1]


def conversation(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def prompt_ids(prompt: str) -> list[int]:
    ids = TOKENIZER.apply_chat_template(conversation(prompt), add_generation_prompt=True, return_dict=True)
    return ids["input_ids"]


def response_ids(prompt: str, response: str) -> list[int]:
    """Return the ids of prompt and response as TRL's reward trainer makes them."""
    return [*prompt_ids(prompt), *TOKENIZER(response)["input_ids"], END]


def small_model(tokenizer: PreTrainedTokenizerBase, intermediate_size: int, positions: int) -> LlamaForCausalLM:
    """Return a language model of 0.1 to 0.25 M parameters with random weights, always the same."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=intermediate_size,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=positions,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )


def teach(model: LlamaForCausalLM, draw: Callable[[], dict[str, torch.Tensor]], steps: int) -> None:
    """Train a language model on batches as they are drawn."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in range(steps):
        model(**draw()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def make_base(steps: int = 1500, batch_size: int = 128) -> None:
    """Teach the language model that policies and reward models begin as, unless it is there; about 1.5 minutes."""
    if (BASE / "model.safetensors").exists():
        return
    model, rng = small_model(TOKENIZER, intermediate_size=128, positions=64), random.Random(0)

    def draw() -> dict[str, torch.Tensor]:
        prompts = ["".join(rng.sample(LETTERS, ASKED)) for _ in range(batch_size)]
        ids_BT, mask_BT, answer_BT = padded([(p, demonstrate(p, rng)) for p in prompts])
        return {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": ids_BT.masked_fill(~answer_BT, -100)}

    teach(model, draw, steps)
    model.save_pretrained(BASE)
    TOKENIZER.save_pretrained(BASE)


def load_base():
    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)


def padded(rows: Sequence[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids, attention mask and what of it is the response, each of shape (B, T), padded on the right."""
    ids = [torch.tensor(response_ids(prompt, response)) for prompt, response in rows]
    starts_B = torch.tensor([len(prompt_ids(prompt)) for prompt, _ in rows])
    ids_BT = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=PAD)
    mask_BT = torch.arange(ids_BT.shape[1]) < torch.tensor([len(row) for row in ids])[:, None]
    return ids_BT, mask_BT.long(), mask_BT & (torch.arange(ids_BT.shape[1]) >= starts_B[:, None])


def respond(policy, prompts: Sequence[str], k: int, seed: int) -> list[list[str]]:
    """Sample k responses to each prompt."""
    torch.manual_seed(seed)
    rows = [prompt_ids(prompt) for prompt in prompts for _ in range(k)]
    texts = []
    for first in range(0, len(rows), 512):
        completions = sample_completions(
            policy.eval(),
            rows[first : first + 512],
            max_new_tokens=LENGTH,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            eos_token_ids=[END],
            pad_token_id=PAD,
        )
        texts += [TOKENIZER.decode(ids, skip_special_tokens=True) for ids in completions]
    return [texts[first : first + k] for first in range(0, len(texts), k)]


@torch.no_grad()
def log_probability(policy, rows: Sequence[tuple[str, str]]) -> np.ndarray:
    """Return the log-probability of each response given its prompt, ending token included."""
    values = []
    for first in range(0, len(rows), 256):
        ids_BT, mask_BT, answer_BT = padded(rows[first : first + 256])
        logits_BTV = policy.eval()(input_ids=ids_BT, attention_mask=mask_BT).logits[:, :-1]
        chosen_BT = logits_BTV.log_softmax(-1).gather(-1, ids_BT[:, 1:, None])[..., 0]
        values.append((chosen_BT * answer_BT[:, 1:]).sum(1))
    return torch.cat(values).double().numpy()


def pair_up(
    world: World, prompts: Sequence[str], responses: Sequence[Sequence[str]], flips: float, seed: int
) -> list[Mapping]:
    """Make a pair of the first two responses to each prompt, a share `flips` of them labelled wrongly; ties make none.

    Exactly that share, rounded: a draw for each pair would make seeds differ in how wrong their labels are.
    """
    rows = []
    for prompt, (first, second, *_) in zip(prompts, responses, strict=True):
        if (difference := world.gold(first) - world.gold(second)) != 0:
            better, worse = (first, second) if difference > 0 else (second, first)
            rows.append({"prompt": prompt, "chosen": better, "rejected": worse, "flipped": False})
    wrong = np.random.default_rng(seed).permutation(len(rows))[: round(flips * len(rows))]
    for row in (rows[index] for index in wrong):
        row.update(chosen=row["rejected"], rejected=row["chosen"], flipped=True)
    return rows


def every_pair(world: World, prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> list[Mapping]:
    """Return all pairs of responses to one prompt that differ in gold, labelled rightly."""
    rows = []
    for prompt, group in zip(prompts, responses, strict=True):
        for place, first in enumerate(group):
            for second in group[place + 1 :]:
                rows += pair_up(world, [prompt], [(first, second)], 0.0, 0)
    return rows
