"""Examples that begin alike as one tree of tokens: what they share is computed once, and each is computed exactly.

The tokens stand in the order of a walk through the tree, a node before what follows on it. So a token sees those before
it whose subtree it is in, and the end of its subtree is all that the attention mask must know of a token. The idea is
PrefixGrouper's (arXiv 2506.05433), for any number of levels.
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
    """One example: the ids of prompt and answer, and how many of them are the prompt's."""

    ids: Ids
    prompt_length: int


class Pack(TypedDict):
    """What a device computes at once.

    Attributes:
        input_ids: token ids, (rows, columns).
        position_ids: of each token in its example; absent where each row is one example.
        ends: for each token the column after its subtree; absent where each row is one example.
        sources: indices into the flattened tokens, from which an answer's tokens are predicted, example by example.
        targets: ids of those answer tokens.
    """

    input_ids: torch.Tensor
    position_ids: NotRequired[torch.Tensor]
    ends: NotRequired[torch.Tensor]
    sources: torch.Tensor
    targets: torch.Tensor


def tree_pack(examples: Sequence[TokenizedExample]) -> Pack:
    """The examples as one row, beginnings that several have in common once."""
    pieces: list[Ids] = []
    ends = np.empty(sum(len(example.ids) for example in examples), dtype=np.int64)
    positions = np.empty_like(ends)
    sources: list[npt.NDArray[np.int64]] = [ends[:0]] * len(examples)
    # Where in the row the tokens of the example before are.
    previous, path, size = np.empty(0, dtype=np.int32), ends[:0], 0
    for number in sorted(range(len(examples)), key=lambda number: _sorting_key(examples[number])):
        ids, prompt_length = examples[number].ids, examples[number].prompt_length
        shared = shared_prefix_length(previous, ids)
        ends[path[shared:]] = size
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
    """The examples one a row, filled up at their right, where no token of theirs looks."""
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
    """The examples in at most so many parts, such that the largest tree of a part is as small as it can be."""
    ordered, added = _ordered(examples)
    most = sum(added)
    size = bisect_left(range(most), True, key=lambda size: len(_starts(ordered, added, size)) <= parts)
    starts = _starts(ordered, added, size)
    return [ordered[start:end] for start, end in zip(starts, [*starts[1:], len(ordered)], strict=True)]


def cheapest_parts(
    examples: Sequence[TokenizedExample], tokens: int, cost: Callable[[int], float]
) -> list[list[TokenizedExample]]:
    """The examples in the parts that cost least together.

    Args:
        examples: at least one.
        tokens: the most that the tree of a part may have; an example that is longer is a part of its own.
        cost: of computing a tree, by its tokens.
    """
    ordered, added = _ordered(examples)
    costs, starts = [0.0], [0]
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


def _ordered(examples: Sequence[TokenizedExample]) -> tuple[list[TokenizedExample], list[int]]:
    """The examples with those that begin alike side by side, and how many tokens each adds to the tree before it."""
    ordered = sorted(examples, key=_sorting_key)
    previous = [np.empty(0, dtype=np.int32), *(example.ids for example in ordered)]
    pairs = zip(previous, ordered, strict=False)
    return ordered, [len(example.ids) - shared_prefix_length(before, example.ids) for before, example in pairs]


def _starts(ordered: list[TokenizedExample], added: list[int], tokens: int) -> list[int]:
    """Where parts begin when each takes all that its size allows."""
    starts, size = [0], 0
    for number, (example, more) in enumerate(zip(ordered, added, strict=True)):
        size += more
        if size > tokens and number:
            starts.append(number)
            size = len(example.ids)
    return starts


def shared_prefix_length(first: Ids, second: Ids) -> int:
    """How many tokens two sequences have in common at their beginning."""
    shorter = min(len(first), len(second))
    differ = first[:shorter] != second[:shorter]
    return int(differ.argmax()) if differ.any() else shorter


def _sorting_key(example: TokenizedExample) -> bytes:
    # Big-endian bytes sort as the ids do.
    return example.ids.astype(">u4").tobytes()


def _targets(examples: Sequence[TokenizedExample]) -> torch.Tensor:
    return torch.from_numpy(
        np.concatenate([example.ids[example.prompt_length :] for example in examples], dtype=np.int64)
    )
