"""The chance of success if a trace were stopped here, without sampling: the summed probability of every right answer.

Where a task can list its accepted answers, J at a prefix is

    J = sum over accepted answers a of  p(a, end | prompt, prefix, forcing suffix)

by teacher forcing, of the model at the temperature at which it is trained. It is what the mean of infinitely many
forced answers would be, without top_p, top_k and min_p and up to right answers that are written in another form than
the listed one (spaces, another tokenisation): a lower bound, exact for a single form.

All prefixes of a trace and all their answers share one row: the trace once, then for each prefix the suffix and a trie
of the answers as branches. An attention mask lets a branch see the trace up to its prefix and its own ancestors only,
and position ids continue from the prefix. Attention implementations that take no such mask (flash attention), and
models that would not heed it (sliding windows, recurrent or convolutional layers, ALiBi), get one plain row for each
prefix and answer instead.

Rows are batched by like shape, and a trace whose answers are many gets several rows: attention grows with the square
of a row, and padding costs as much as tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..rewards import Forcing
from .generation import largest_of_processes

MASKED_ATTENTION = ("sdpa", "eager")
ROW_TOKENS = 128  # branch tokens of a row, where its context is not longer still
MAX_PADDING = 0.1  # of a batch's tokens
MAX_LOGITS = 2**28  # numbers in a batch's logits: 1 GiB in fp32


class AnswerTrie:
    """A forcing suffix and the accepted answers after it, as a tree of tokens that has shared beginnings once.

    Args:
        suffix (`Sequence[int]`): token ids that are given, at least one.
        answers (`Iterable[Sequence[int]]`): token ids of the accepted answers, without the ending token.

    Attributes:
        tokens (`list[int]` of length N): token ids, those of the suffix first.
        parents (`list[int]` of length N): the node before each; -1 before the first.
        leaves (`list[int]`): the last node of every distinct answer.
    """

    def __init__(self, suffix: Sequence[int], answers: Iterable[Sequence[int]]):
        self.answers = list(dict.fromkeys(map(tuple, answers)))
        self.num_given = len(suffix)
        self.tokens, self.parents, self.leaves = list(suffix), list(range(-1, len(suffix) - 1)), []
        children: dict[tuple[int, int], int] = {}
        for answer in self.answers:
            node = len(suffix) - 1
            for token in answer:
                if (node, token) not in children:
                    children[node, token] = len(self.tokens)
                    self.tokens.append(token)
                    self.parents.append(node)
                node = children[node, token]
            self.leaves.append(node)

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def ancestors(self) -> torch.Tensor:
        """Which nodes each one follows, itself included, shape (N, N), bool."""
        seen = torch.eye(len(self), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen

    @cached_property
    def chains(self) -> list["AnswerTrie"]:
        """A trie without forks for each answer."""
        return [AnswerTrie(self.tokens[: self.num_given], [answer]) for answer in self.answers]


@dataclass
class Branch:
    """What may follow one prefix.

    Args:
        cut (`int`): length of the prefix in tokens, prompt included, at least 1.
        trie ([`AnswerTrie`]): suffix and answers.
    """

    cut: int
    trie: AnswerTrie


@dataclass
class Tree:
    """A trace and the branches of its prefixes.

    Args:
        context (`list[int]`): token ids of prompt and trace.
        branches (`list[Branch]`): in any order of their cuts, each at most the context's length.
    """

    context: list[int]
    branches: list[Branch]

    def __post_init__(self):
        self.context = self.context[: max((branch.cut for branch in self.branches), default=0)]

    @property
    def num_branch_tokens(self) -> int:
        """Tokens after the context."""
        return sum(len(branch.trie) for branch in self.branches)


IDLE_ROW = Tree([0], [Branch(1, AnswerTrie([0], [[0]]))])  # for a process that has no batch while others do


class AcceptedAnswers:
    """The accepted answers of one problem as tokens, after the suffix as it follows each prefix.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the model's.
        forcing ([`~metatune.rewards.Forcing`]): the suffix. A form that it opens (`\\boxed{`) is closed after the
            answer.
        answers (`Sequence[str]`): the accepted answers, in their written form.
        verifier (`str`, *optional*): the name of the verifier that accepts them, which decides how they are opened.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        forcing: Forcing,
        answers: Sequence[str],
        verifier: str | None = None,
    ):
        self._tokenizer, self._forcing, self._answers, self._verifier = tokenizer, forcing, answers, verifier
        self._tries: dict[str, AnswerTrie] = {}

    def branch(self, prefix_text: str, cut: int) -> Branch:
        """Return the branch of the prefix that ends with `prefix_text` and has `cut` tokens, prompt included.

        Raises:
            ValueError: if nothing of the suffix is left after that text.
        """
        suffix = self._forcing.text_after(prefix_text, self._verifier)
        if not suffix:
            raise ValueError(
                f"forcing_suffix {self._forcing.given!r} adds no text after a trace that has closed its thinking, but "
                "the likelihood is that of the text after the suffix: end it with the text that opens the answer"
            )
        if suffix not in self._tries:
            form = self._forcing.form_after(self._verifier)
            written = [form.opening + answer + form.closing for answer in self._answers]
            ids = [answer_token_ids(self._tokenizer, suffix, text) for text in written]
            self._tries[suffix] = AnswerTrie(self._forcing.ids_after(prefix_text, self._verifier), ids)
        return Branch(cut, self._tries[suffix])


def answer_token_ids(tokenizer: PreTrainedTokenizerBase, suffix: str, answer: str) -> list[int]:
    """Return the token ids of an answer after the forcing suffix.

    Suffix and answer are encoded together, as the model has learnt them. Where the suffix would then be cut into other
    tokens, which a forced trace does not have, the answer is encoded alone: one of several ways to write it.
    """
    given = tokenizer(suffix, add_special_tokens=False)["input_ids"]
    together = tokenizer(suffix + answer, add_special_tokens=False)["input_ids"]
    if together[: len(given)] == given and len(together) > len(given):
        return together[len(given) :]
    return tokenizer(answer, add_special_tokens=False)["input_ids"]


def takes_masks(model: PreTrainedModel) -> bool:
    """Tell whether what a model's token sees is what an attention mask shows it, and nothing else.

    Windows, recurrent layers and convolutions go by the order of a row, in which the branches stand side by side.
    """
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is None:  # then one window, if any, holds for all layers
        full = getattr(config, "sliding_window", None) is None
    else:
        full = set(kinds) == {"full_attention"}
    # What transformers cannot run on sdpa adds to the mask itself, or takes no positions (GPT-Neo, MPT, Bloom).
    plain = full and model._supports_sdpa and not model._is_stateful
    return plain and config._attn_implementation in MASKED_ATTENTION


def success_probabilities(
    model: PreTrainedModel,
    trees: Sequence[Tree],
    eos_token_ids: Sequence[int],
    *,
    temperature: float = 1.0,
    max_tokens: int = 16_384,
    synced: bool = False,
) -> list[list[float]]:
    """Return the probability that a forced answer is an accepted one, for every branch.

    Args:
        model ([`~transformers.PreTrainedModel`]): causal language model; evaluated without dropout, its mode restored.
        trees (`Sequence[Tree]` of length N): traces with the branches of their prefixes.
        eos_token_ids (`Sequence[int]`): tokens that end an answer, any of them.
        temperature (`float`, *optional*, defaults to `1.0`): by which logits are divided, above 0.
        max_tokens (`int`, *optional*, defaults to `16_384`): largest number of tokens of a batch, padding included.
        synced (`bool`, *optional*, defaults to `False`): run as many batches as the other processes, which call this
            function at the same time. Needed if a forward pass is a collective operation (FSDP).

    Returns:
        `list[list[float]]` of length N: a number from 0 to 1 for each branch; 0 for one without answers.
    """
    packed = takes_masks(model)
    values = [[0.0] * len(tree.branches) for tree in trees]
    rows, owners = [], []  # what is run, and whose value each of its branches adds to
    for index, tree in enumerate(trees):
        for piece in _pieces(tree, packed):
            rows.append(Tree(tree.context, [branch for _, branch in piece]))
            owners.append([(index, number) for number, _ in piece])
    max_branch_tokens = max(1, MAX_LOGITS // model.config.get_text_config().vocab_size)
    batches = list(_batches(rows, max_tokens, max_branch_tokens))
    num_idle = largest_of_processes(len(batches), model.device) - len(batches) if synced else 0
    eos = sorted(set(eos_token_ids))
    with _evaluating(model), torch.no_grad():
        for _ in range(num_idle):
            _branch_probabilities(model, [IDLE_ROW], eos, temperature, packed)
        for batch in batches:
            found = _branch_probabilities(model, [rows[i] for i in batch], eos, temperature, packed)
            for row, row_values in zip(batch, found, strict=True):
                for (index, number), value in zip(owners[row], row_values, strict=True):
                    values[index][number] += value
    return values


def _pieces(tree: Tree, packed: bool) -> Iterator[list[tuple[int, Branch]]]:
    """Divide a tree's branches, with their numbers, over rows; without masks a row holds one answer of one branch."""
    numbered = [(number, branch) for number, branch in enumerate(tree.branches) if branch.trie.leaves]
    if not packed:
        for number, branch in numbered:
            yield from ([(number, Branch(branch.cut, chain))] for chain in branch.trie.chains)
        return
    room = max(ROW_TOKENS, len(tree.context))
    piece: list[tuple[int, Branch]] = []
    size = 0
    for number, branch in numbered:
        if piece and size + len(branch.trie) > room:
            yield piece
            piece, size = [], 0
        piece.append((number, branch))
        size += len(branch.trie)
    if piece:
        yield piece


def _batches(rows: Sequence[Tree], max_tokens: int, max_branch_tokens: int) -> Iterator[list[int]]:
    """Yield row numbers of like shape; a row beyond the limits goes alone."""
    order = sorted(range(len(rows)), key=lambda i: (rows[i].num_branch_tokens, len(rows[i].context)))
    batch: list[int] = []
    context = branches = used = 0
    for index in order:
        own = len(rows[index].context), rows[index].num_branch_tokens
        wider = max(context, own[0]), max(branches, own[1])
        padded = (len(batch) + 1) * sum(wider)
        too_much_padding = padded > (used + sum(own)) / (1 - MAX_PADDING)
        if batch and (padded > max_tokens or (len(batch) + 1) * wider[1] > max_branch_tokens or too_much_padding):
            yield batch
            batch, wider, used = [], own, 0
        batch.append(index)
        (context, branches), used = wider, used + sum(own)
    if batch:
        yield batch


def _branch_probabilities(
    model: PreTrainedModel, rows: Sequence[Tree], eos_token_ids: list[int], temperature: float, packed: bool
) -> list[list[float]]:
    """Run one batch."""
    ids_BL, positions_BL, real_BL, seen_BLL, parents_BN = (tensor.to(model.device) for tensor in _layout(rows))
    num_branch = parents_BN.shape[1]
    if not packed:  # without forks a branch continues its context: plain causal attention will do
        mask = real_BL.long()
    elif model.config.get_text_config()._attn_implementation == "sdpa":
        mask = seen_BLL[:, None]
    else:
        nothing_BLL = torch.zeros(seen_BLL.shape, dtype=model.dtype, device=model.device)
        mask = nothing_BLL.masked_fill(~seen_BLL, torch.finfo(model.dtype).min)[:, None]
    logits_BNV = model(
        input_ids=ids_BL, attention_mask=mask, position_ids=positions_BL, logits_to_keep=num_branch, use_cache=False
    ).logits

    dtype = torch.promote_types(logits_BNV.dtype, torch.float32)

    def scaled(logits: torch.Tensor) -> torch.Tensor:
        return logits.to(dtype) / temperature

    norms_BN = torch.stack([scaled(logits_NV).logsumexp(-1) for logits_NV in logits_BNV])  # a row each: V is large
    rows_B1 = torch.arange(len(rows), device=model.device)[:, None]
    steps_BN = scaled(logits_BNV[rows_B1, parents_BN, ids_BL[:, -num_branch:]]) - norms_BN[rows_B1, parents_BN]
    ending_BN = scaled(logits_BNV[..., eos_token_ids]).logsumexp(-1) - norms_BN
    steps_BN, ending_BN = steps_BN.cpu(), ending_BN.cpu()
    values: list[list[float]] = []
    for row, tree in enumerate(rows):
        values.append([])
        at = 0
        for branch in tree.branches:
            trie = branch.trie
            own = slice(at, at + len(trie))
            steps_N = steps_BN[row, own].clone()  # of each node, the log-probability of its token
            steps_N[: trie.num_given] = 0.0
            # no product, in which an impossible token (minus infinity) would spoil the answers without it
            paths_A = torch.where(trie.ancestors[trie.leaves], steps_N, 0.0).sum(1)
            answers_A = paths_A + ending_BN[row, own][trie.leaves]
            values[-1].append(answers_A.exp().sum().item())
            at = own.stop
    return values


def _layout(rows: Sequence[Tree]) -> tuple[torch.Tensor, ...]:
    """Lay rows out as [padding][context][branches][padding], contexts ending in one column.

    Returns:
        Token ids and positions, shape (B, L); where no padding is, shape (B, L), bool; who sees whom, shape (B, L, L),
        bool, everyone himself; and of each token after the contexts the one before it, counted from there, shape
        (B, N); where that is in the context or nowhere, any.
    """
    width = max(len(row.context) for row in rows)
    num_branch = max(row.num_branch_tokens for row in rows)
    ids_BL = torch.zeros(len(rows), width + num_branch, dtype=torch.long)
    positions_BL, real_BL = torch.zeros_like(ids_BL), torch.zeros_like(ids_BL, dtype=torch.bool)
    seen_BLL = torch.eye(width + num_branch, dtype=torch.bool).repeat(len(rows), 1, 1)
    causal_CC = torch.ones(width, width, dtype=torch.bool).tril()
    parents_BN = torch.zeros(len(rows), num_branch, dtype=torch.long)
    for row, tree in enumerate(rows):
        length = len(tree.context)
        start = width - length
        ids_BL[row, start:width] = torch.tensor(tree.context)
        positions_BL[row, start:width] = torch.arange(length)
        seen_BLL[row, start:width, start:width] = causal_CC[:length, :length]
        at = width
        for branch in tree.branches:
            block = slice(at, at + len(branch.trie))
            ids_BL[row, block] = torch.tensor(branch.trie.tokens)
            positions_BL[row, block] = branch.cut - 1 + branch.trie.ancestors.sum(1)
            seen_BLL[row, block, block] = branch.trie.ancestors
            seen_BLL[row, block, start : start + branch.cut] = True
            parents_BN[row, at - width : block.stop - width] = (
                torch.tensor(branch.trie.parents).clamp(min=0) + at - width
            )
            at = block.stop
        real_BL[row, start:at] = True
    return ids_BL, positions_BL, real_BL, seen_BLL, parents_BN


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
