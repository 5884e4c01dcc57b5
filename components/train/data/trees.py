"""Packs examples that share a prefix into one tree of tokens: the prefix is computed once, and the result is exact.

Three examples with a schema S, of which two questions start with the same word a:

    example 1:  S S a b      example 2:  S S a c      example 3:  S S d

                                +-- b                 1
    the tree:     S -- S -+- a -+
                          |     +-- c                 2
                          +-- d                       3

    column        0    1    2    3    4    5    in depth-first order: parents before children
    token         S    S    a    b    c    d
    position      0    1    2    3    3    2    in its own example
    end           6    6    5    4    5    6    first column after the subtree of this token

A token attends to its ancestors and itself. In depth-first order those are the columns k <= q whose subtree contains
column q, which is q < end[k]; so one number per token describes the whole attention mask:

    query \\ key   S  S  a  b  c  d
    b             x  x  x  x  .  .
    c             x  x  x  .  x  .              b has ended: end[3] = 4 <= 4
    d             x  x  .  .  .  x              a has ended: end[2] = 5 <= 5

The idea is PrefixGrouper's (arXiv 2506.05433), for any number of levels.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np
import numpy.typing as npt
import torch

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class TokenizedExample:
    """One example: the token ids of its prompt, the first `prompt_length`, and of its answer."""

    ids: Ids
    prompt_length: int


class Pack(TypedDict):
    """The tokens that a device computes at once: a tree in one row, or padded examples, one per row.

    Attributes:
        input_ids: token ids, shape (rows, columns).
        position_ids: position of each token in its own example; only in a tree.
        ends: for each token, the first column after its subtree; only in a tree.
        sources: the tokens from whose hidden states answer tokens are predicted, example by example; indices into the
            flattened `input_ids`.
        targets: ids of those answer tokens.
    """

    input_ids: torch.Tensor
    position_ids: NotRequired[torch.Tensor]
    ends: NotRequired[torch.Tensor]
    sources: torch.Tensor
    targets: torch.Tensor


def tree_pack(examples: Sequence[TokenizedExample]) -> Pack:
    """Pack the examples into one row, as a tree in which shared prefixes appear once."""
    pieces: list[Ids] = []
    ends = np.empty(sum(len(example.ids) for example in examples), dtype=np.int64)
    positions = np.empty_like(ends)
    sources: list[npt.NDArray[np.int64]] = [ends[:0]] * len(examples)
    # Sorted, examples with the same prefix are neighbors, so that each one is compared with the previous one only.
    # `path` has the columns of the previous example's tokens, from the root down; `size` is the number of columns.
    previous, path, size = np.empty(0, dtype=np.int32), ends[:0], 0
    for number in sorted(range(len(examples)), key=lambda number: _sorting_key(examples[number])):
        ids, prompt_length = examples[number].ids, examples[number].prompt_length
        shared = shared_prefix_length(previous, ids)
        ends[path[shared:]] = size  # the previous example's own branch ends here
        new = np.arange(size, size + len(ids) - shared)
        path = np.concatenate([path[:shared], new])
        positions[new] = np.arange(shared, len(ids))
        pieces.append(ids[shared:])
        sources[number] = path[prompt_length - 1 : -1]
        previous, size = ids, size + len(new)
    ends[path] = size
    return Pack(
        input_ids=torch.from_numpy(np.concatenate(pieces).astype(np.int64))[None],
        position_ids=torch.from_numpy(positions[:size])[None],
        ends=torch.from_numpy(ends[:size])[None],
        sources=torch.from_numpy(np.concatenate(sources)),
        targets=_targets(examples),
    )


def padded_pack(examples: Sequence[TokenizedExample]) -> Pack:
    """Pack the examples one per row, padded on the right; with causal attention no token attends to padding."""
    columns = max(len(example.ids) for example in examples)
    input_ids = np.zeros((len(examples), columns), dtype=np.int64)
    sources = []
    for row, example in enumerate(examples):
        length = len(example.ids)
        input_ids[row, :length] = example.ids
        sources.append(np.arange(example.prompt_length - 1, length - 1) + row * columns)
    return Pack(
        input_ids=torch.from_numpy(input_ids),
        sources=torch.from_numpy(np.concatenate(sources)),
        targets=_targets(examples),
    )


def balanced_parts(examples: Sequence[TokenizedExample], parts: int) -> list[list[TokenizedExample]]:
    """Split the examples into at most `parts` parts such that the largest tree of a part is as small as possible.

    The smallest possible size is found by bisection: for each size, parts are filled greedily and counted.
    """
    ordered, added = _in_tree_order(examples)
    largest = sum(added)
    size = bisect_left(range(largest), True, key=lambda size: len(_part_starts(ordered, added, size)) <= parts)
    starts = _part_starts(ordered, added, size)
    return [ordered[start:end] for start, end in zip(starts, [*starts[1:], len(ordered)], strict=True)]


def cheapest_parts(
    examples: Sequence[TokenizedExample], tokens: int, cost: Callable[[int], float]
) -> list[list[TokenizedExample]]:
    """Split the examples into the parts whose trees cost least in total.

    Dynamic programming over the sorted examples: the cheapest split of the first n of them is the cheapest split of the
    first m, for some m < n, followed by a part of the other n - m.

    Args:
        examples: at least one.
        tokens: the maximum size of a part's tree; a longer example is a part of its own.
        cost: cost of computing a tree of a number of tokens.
    """
    ordered, added = _in_tree_order(examples)
    costs, starts = (
        [0.0],
        [0],
    )  # of the cheapest split of the first n examples: its cost, and where its last part starts
    for end in range(1, len(ordered) + 1):
        choices, following = [], 0
        for start in reversed(range(end)):
            size = len(ordered[start].ids) + following
            if size > tokens and start < end - 1:
                break
            choices.append((costs[start] + cost(size), start))
            following += added[start]
        least, start = min(choices)
        costs.append(least)
        starts.append(start)
    parts, end = [], len(ordered)
    while end:
        parts.append(ordered[starts[end] : end])
        end = starts[end]
    return parts[::-1]


def _in_tree_order(examples: Sequence[TokenizedExample]) -> tuple[list[TokenizedExample], list[int]]:
    """The examples sorted by their ids, and the number of tokens that each adds to the tree of those before it."""
    ordered = sorted(examples, key=_sorting_key)
    previous = [np.empty(0, dtype=np.int32), *(example.ids for example in ordered)]
    pairs = zip(previous, ordered, strict=False)
    return ordered, [len(example.ids) - shared_prefix_length(before, example.ids) for before, example in pairs]


def _part_starts(ordered: list[TokenizedExample], added: list[int], tokens: int) -> list[int]:
    """Where parts start when each takes as many examples as fit into a tree of `tokens` tokens."""
    starts, size = [0], 0
    for number, (example, more) in enumerate(zip(ordered, added, strict=True)):
        size += more
        if size > tokens and number:
            starts.append(number)
            size = len(example.ids)
    return starts


def shared_prefix_length(first: Ids, second: Ids) -> int:
    """Length of the longest common prefix of two sequences."""
    shorter = min(len(first), len(second))
    differ = first[:shorter] != second[:shorter]
    return int(differ.argmax()) if differ.any() else shorter


def _sorting_key(example: TokenizedExample) -> bytes:
    # Big-endian bytes sort as the ids do.
    return example.ids.astype(">u4").tobytes()


def _targets(examples: Sequence[TokenizedExample]) -> torch.Tensor:
    answers = [example.ids[example.prompt_length :] for example in examples]
    return torch.from_numpy(np.concatenate(answers, dtype=np.int64))
