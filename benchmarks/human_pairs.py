"""Real human preferences for `benchmarks/reward.py`: QA-Feedback (Wu et al., arXiv 2306.01693), and a model for it.

Each question has four answers and the judgement of a person on each of the six pairs of them. The model that reward
models begin as is taught here, on the passages and the reference answers that come with the questions; no answer that
is judged, and no judgement, is among what it reads.
"""

import json
from collections.abc import Sequence
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from reward_world import small_model, teach
from shared import ROOT
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

BASE = ROOT / "runs" / "human_base"
VOCABULARY, POSITIONS = 2000, 160
QUESTION, ANSWER = 28, 128  # tokens that are read; the longest question has 28, three answers of four have no more
PAD, END, SEPARATOR = "<|pad|>", "<|end|>", "<|answer|>"
ANSWERS = 4
HELD_OUT = 100  # questions


def load(path: Path) -> list[dict]:
    """Read QA-Feedback's file of judged answers."""
    return json.loads(path.read_text())


def pairs_of(question: dict) -> list[dict]:
    """Return a question's pairs, without those that the person held equal."""
    rows = []
    for (first, second), verdict in zip(combinations(answers_to(question), 2), question["preference"], strict=True):
        if verdict:
            better, worse = (first, second) if verdict == 1 else (second, first)
            rows.append({"prompt": prompt_of(question), "chosen": better, "rejected": worse})
    return rows


def prompt_of(question: dict) -> str:
    return shortened(question["question"], QUESTION) + SEPARATOR


def answers_to(question: dict) -> list[str]:
    return [shortened(question[f"prediction {number}"], ANSWER) for number in range(1, ANSWERS + 1)]


def split(questions: Sequence[dict], seed: int) -> tuple[list[dict], list[dict]]:
    """Return questions to learn from and HELD_OUT others."""
    order = np.random.default_rng(seed).permutation(len(questions))
    return [questions[i] for i in order[HELD_OUT:]], [questions[i] for i in order[:HELD_OUT]]


def _texts(questions: Sequence[dict]) -> list[str]:
    passages = [" ".join(passage) for question in questions for passage in question["passages"]]
    return passages + [f"{question['question']} {question['gold']}" for question in questions]


def make_base(questions: Sequence[dict], steps: int = 1200, batch_size: int = 32) -> None:
    """Teach tokenizer and language model, unless they are there; about four minutes on one core."""
    if (BASE / "model.safetensors").exists():
        return
    texts = _texts(questions)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [PAD, END, SEPARATOR]
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=PAD, eos_token=END)
    model = small_model(tokenizer, intermediate_size=192, positions=POSITIONS)
    stream = torch.tensor(
        [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    )

    def draw() -> dict[str, torch.Tensor]:
        starts_B = torch.randint(len(stream) - POSITIONS, (batch_size,))
        ids_BT = stream[starts_B[:, None] + torch.arange(POSITIONS)]
        return {"input_ids": ids_BT, "labels": ids_BT}

    teach(model, draw, steps)
    model.save_pretrained(BASE)
    tokenizer.save_pretrained(BASE)


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(BASE)


@cache
def shortened(text: str, tokens: int) -> str:
    return tokenizer().decode(tokenizer()(text)["input_ids"][:tokens])


@cache
def response_ids(prompt: str, answer: str) -> list[int]:
    """Return the ids of prompt and answer as TRL's reward trainer makes them."""
    return tokenizer()(prompt + answer + END)["input_ids"]


def meta_set(questions: Sequence[dict]):
    """Return the answers to questions that are not learnt from: no judgements."""
    from datasets import Dataset

    return Dataset.from_list(
        [{"prompt": prompt_of(question), "responses": answers_to(question)} for question in questions]
    )
