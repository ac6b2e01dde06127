"""The chance of success if a trace were stopped here, without sampling: the summed probability of every right answer.

Where a task can list its accepted answers, J at a prefix is

    J = sum over accepted answers a of  p(a, end | prompt, prefix, forcing suffix)

by teacher forcing. It is what the mean of infinitely many forced answers would be, up to right answers that are
written in another form than the listed one (spaces, another tokenisation): a lower bound, exact for a single form.

All prefixes of a trace and all their answers share one row: the trace once, then for each prefix the suffix and a trie
of the answers as branches. An attention mask lets a branch see the trace up to its prefix and its own ancestors only,
and position ids continue from the prefix. Attention implementations that take no such mask (flash attention), and
models with sliding windows, get one plain row for each prefix and answer instead.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..rewards import Forcing

MASKED_ATTENTION = ("sdpa", "eager")
ROOT = -1  # the parent of a branch's first token: the last token of its prefix


@dataclass
class Branch:
    """Continuations of one prefix: the suffix, and a trie of the answers after it.

    Args:
        cut (`int`): length of the prefix in tokens, prompt included.
        suffix (`Sequence[int]`): token ids that are given, at least one.
        answers (`Iterable[Sequence[int]]`): token ids of the accepted answers, without the ending token.
    """

    cut: int
    tokens: list[int] = field(init=False)
    parents: list[int] = field(init=False)
    paths: list[list[int]] = field(init=False)  # of every answer: the node before it, then its nodes

    def __init__(self, cut: int, suffix: Sequence[int], answers: Iterable[Sequence[int]]):
        self.cut = cut
        self.tokens = list(suffix)
        self.parents = list(range(ROOT, len(suffix) - 1))
        children: dict[tuple[int, int], int] = {}
        self.paths = []
        for answer in dict.fromkeys(map(tuple, answers)):
            path = [len(suffix) - 1]
            for token in answer:
                edge = (path[-1], token)
                if edge not in children:
                    children[edge] = len(self.tokens)
                    self.tokens.append(token)
                    self.parents.append(path[-1])
                path.append(children[edge])
            self.paths.append(path)

    def chains(self) -> list["Branch"]:
        """Return a branch without forks for each answer."""
        first = len(self.tokens) if not self.paths else self.paths[0][0] + 1
        suffix = self.tokens[:first]
        return [Branch(self.cut, suffix, [[self.tokens[node] for node in path[1:]]]) for path in self.paths]


@dataclass
class Tree:
    """A trace and the branches of its prefixes.

    Args:
        context (`list[int]`): token ids of prompt and trace.
        branches (`list[Branch]`): in any order of their cuts, each at least 1 and at most the context's length.
    """

    context: list[int]
    branches: list[Branch]

    def __post_init__(self):
        self.context = self.context[: max((branch.cut for branch in self.branches), default=0)]

    @property
    def num_branch_tokens(self) -> int:
        """Tokens after the context."""
        return sum(len(branch.tokens) for branch in self.branches)


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


def answer_branch(
    tokenizer: PreTrainedTokenizerBase, forcing: Forcing, prefix_text: str, cut: int, answers: Iterable[str]
) -> Branch:
    """Return the branch of a prefix: the suffix as it follows `prefix_text`, and the accepted answers.

    A suffix that opens a brace (`\\boxed{`) has it closed after the answer.
    """
    suffix = forcing.text_after(prefix_text)
    closing = "}" if suffix.endswith("{") else ""
    ids = [answer_token_ids(tokenizer, suffix, answer + closing) for answer in answers]
    return Branch(cut, forcing.ids_after(prefix_text), ids)


def takes_masks(model: PreTrainedModel) -> bool:
    """Tell whether a model's attention can be masked token by token."""
    config = model.config.get_text_config()
    windows = any("sliding" in kind or "chunked" in kind for kind in getattr(config, "layer_types", None) or [])
    return config._attn_implementation in MASKED_ATTENTION and not windows


def success_probabilities(
    model: PreTrainedModel,
    trees: Sequence[Tree],
    eos_token_ids: Sequence[int],
    *,
    max_tokens: int = 16_384,
) -> list[list[float]]:
    """Return the probability that a forced answer is an accepted one, for every branch.

    Args:
        model ([`~transformers.PreTrainedModel`]): causal language model; evaluated without dropout, its mode restored.
        trees (`Sequence[Tree]` of length N): traces with the branches of their prefixes.
        eos_token_ids (`Sequence[int]`): tokens that end an answer, any of them.
        max_tokens (`int`, *optional*, defaults to `16_384`): largest number of tokens of a batch, padding included.

    Returns:
        `list[list[float]]` of length N: a number from 0 to 1 for each branch; 0 for one without answers.
    """
    packed = takes_masks(model)
    rows = [(index, tree) for index, tree in enumerate(trees) if tree.branches]
    if not packed:
        rows = [
            (index, Tree(tree.context, [chain]))
            for index, tree in rows
            for branch in tree.branches
            for chain in branch.chains()
        ]
    results: dict[int, list[float]] = {}
    with _evaluating(model), torch.no_grad():
        for batch in _batches([tree for _, tree in rows], max_tokens):
            sums = _branch_probabilities(model, [rows[i][1] for i in batch], list(eos_token_ids), packed)
            results.update(zip(batch, sums, strict=True))
    if packed:
        found = {index: results[i] for i, (index, _) in enumerate(rows)}
        return [found.get(index, []) for index in range(len(trees))]
    chains = iter([results[i][0] for i in range(len(rows))])
    return [[sum(next(chains) for _ in branch.paths) for branch in tree.branches] for tree in trees]


def _batches(trees: Sequence[Tree], max_tokens: int) -> Iterator[list[int]]:
    """Yield indices of trees of like shape whose padded size stays within `max_tokens`; a larger tree goes alone."""
    order = sorted(range(len(trees)), key=lambda i: len(trees[i].context) + trees[i].num_branch_tokens)
    batch, context, branches = [], 0, 0
    for index in order:
        context_now = max(context, len(trees[index].context))
        branches_now = max(branches, trees[index].num_branch_tokens)
        if batch and (len(batch) + 1) * (context_now + branches_now) > max_tokens:
            yield batch
            batch, context_now, branches_now = [], len(trees[index].context), trees[index].num_branch_tokens
        batch.append(index)
        context, branches = context_now, branches_now
    if batch:
        yield batch


def _branch_probabilities(
    model: PreTrainedModel, trees: Sequence[Tree], eos_token_ids: list[int], packed: bool
) -> list[list[float]]:
    """Run one batch. Rows are laid out as [padding][context][branches][padding], contexts ending in one column."""
    width = max(len(tree.context) for tree in trees)
    num_branch = max(tree.num_branch_tokens for tree in trees)
    length = width + num_branch
    ids_BL = torch.zeros(len(trees), length, dtype=torch.long)
    positions_BL = torch.zeros(len(trees), length, dtype=torch.long)
    seen_BLL = torch.eye(length, dtype=torch.bool).repeat(len(trees), 1, 1)
    causal_CC = torch.ones(width, width, dtype=torch.bool).tril()
    edges: list[tuple[int, int, int]] = []  # row, column before a token (from the first branch column on), token
    ends: list[tuple[int, int]] = []  # row, column of an answer's last token
    paths: list[tuple[int, int, list[int], int]] = []  # row, branch, its edges, its end
    for row, tree in enumerate(trees):
        start = width - len(tree.context)
        ids_BL[row, start:width] = torch.tensor(tree.context)
        positions_BL[row, start:width] = torch.arange(len(tree.context))
        seen_LL = seen_BLL[row]
        seen_LL[start:width, start:width] = causal_CC[: len(tree.context), : len(tree.context)]
        offset = width
        for number, branch in enumerate(tree.branches):
            for node, (token, parent) in enumerate(zip(branch.tokens, branch.parents, strict=True)):
                column = offset + node
                before = start + branch.cut - 1 if parent == ROOT else offset + parent
                ids_BL[row, column] = token
                positions_BL[row, column] = positions_BL[row, before] + 1
                seen_LL[column] |= seen_LL[before]
            for path in branch.paths:
                first = len(edges)
                edges += [(row, offset + before - width, branch.tokens[node]) for before, node in pairwise(path)]
                paths.append((row, number, list(range(first, len(edges))), len(ends)))
                ends.append((row, offset + path[-1] - width))
            offset += len(branch.tokens)

    device = model.device
    if packed:
        mask = torch.zeros(seen_BLL.shape, dtype=model.dtype).masked_fill(~seen_BLL, torch.finfo(model.dtype).min)
        mask = mask[:, None]
    else:  # without forks a branch continues its context, so plain causal attention over what is there will do
        mask = ids_BL.new_zeros(ids_BL.shape)
        for row, tree in enumerate(trees):
            mask[row, width - len(tree.context) : width + tree.num_branch_tokens] = 1
    logits_BNV = model(
        input_ids=ids_BL.to(device),
        attention_mask=mask.to(device),
        position_ids=positions_BL.to(device),
        logits_to_keep=num_branch,
        use_cache=False,
    ).logits

    sums = [[0.0] * len(tree.branches) for tree in trees]
    if not paths:
        return sums
    nodes = sorted({(row, column) for row, column, _ in edges} | set(ends))
    place = {node: index for index, node in enumerate(nodes)}
    rows, columns = torch.tensor(nodes, device=device).unbind(1)
    log_probs_NV = logits_BNV[rows, columns].float().log_softmax(-1)
    ending = log_probs_NV[:, eos_token_ids].logsumexp(-1).tolist()
    tokens = torch.tensor([token for _, _, token in edges], dtype=torch.long, device=device)
    parents = torch.tensor([place[row, column] for row, column, _ in edges], dtype=torch.long, device=device)
    steps = log_probs_NV[parents, tokens].tolist()
    for row, number, own_edges, end in paths:
        log_prob = sum(steps[edge] for edge in own_edges) + ending[place[ends[end]]]
        sums[row][number] += torch.tensor(log_prob).exp().item()
    return sums


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
