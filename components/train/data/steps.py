"""Which examples an optimizer step takes, in what order, and what each process computes of them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypedDict

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from chatmetrics.components.train.data.packing import packing
from chatmetrics.components.train.data.token_cache import TokenizedExamples
from chatmetrics.components.train.data.trees import Pack, TokenizedExample, balanced_parts
from chatmetrics.components.train.settings import TrainSettings

Indices = npt.NDArray[np.int64]


class StepShare(TypedDict):
    """What one process computes of an optimizer step, and the extent of the whole step.

    Attributes:
        packs: at least one, so that processes which wait for each other all have something to compute.
        answer_tokens: of the whole step, which its loss is the mean of.
        tokens: of the whole step's examples, each in full.
        indices: of the whole step's examples.
    """

    packs: list[Pack]
    answer_tokens: int
    tokens: int
    indices: list[int]


class OptimizerSteps(Dataset[StepShare]):
    """The optimizer steps of an epoch, for each process its share: share `s` of `n` of step `t` is item `t * n + s`.

    The order is a function of seed and epoch alone, so that a run which goes on anywhere goes on in the same order.
    """

    def __init__(
        self,
        examples: TokenizedExamples,
        examples_per_step: int,
        processes: int,
        order: Callable[[np.random.Generator], Indices],
        pack: Callable[[list[TokenizedExample]], list[Pack]],
        seed: int,
    ) -> None:
        self._examples, self._examples_per_step, self._processes = examples, examples_per_step, processes
        self._choose_order, self._pack, self._seed = order, pack, seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Put the examples in the order of this epoch; the trainer calls it."""
        self._order = self._choose_order(np.random.default_rng((self._seed, epoch)))

    def __len__(self) -> int:
        return -(-len(self._examples) // self._examples_per_step) * self._processes

    def __getitem__(self, item: int) -> StepShare:
        step, share = divmod(item, self._processes)
        first = step * self._examples_per_step
        indices = self._order[first : first + self._examples_per_step].tolist()
        examples = [self._examples[index] for index in indices]
        shares = balanced_parts(examples, self._processes)
        nothing = [TokenizedExample(examples[0].ids[:1], 1)]
        return StepShare(
            packs=self._pack(shares[share] if share < len(shares) else nothing),
            answer_tokens=sum(len(example.ids) - example.prompt_length for example in examples),
            tokens=sum(len(example.ids) for example in examples),
            indices=indices,
        )


def optimizer_steps(
    settings: TrainSettings, examples: TokenizedExamples, attention_tokens: float, processes: int
) -> OptimizerSteps:
    """The examples in steps of as many as the recipe says, whatever is computed at once.

    Args:
        settings: the recipe's `train` section.
        examples: of an epoch.
        attention_tokens: see `packing`.
        processes: that share a step.
    """
    examples_per_step = settings.examples_per_step
    if settings.group_by_length and not settings.packing:
        order = partial(order_by_length, examples.lengths, examples_per_step)
    else:
        order = partial(order_by_group, examples.groups, settings.questions_per_schema)
    return OptimizerSteps(
        examples, examples_per_step, processes, order, packing(settings, attention_tokens), settings.seed
    )


def order_by_group(groups: Sequence[int] | Indices, run: int, random: np.random.Generator) -> Indices:
    """The examples in an order that is random but for this: they come in runs of `run` of the same group.

    What is left of the groups makes runs of several, and what is left of those the end.
    """
    labels = random.permutation(int(np.max(groups)) + 1)[np.asarray(groups)]
    shuffled = random.permutation(len(labels))
    by_group = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, begins, counts = np.unique(labels[by_group], return_index=True, return_counts=True)
    in_group = np.arange(len(labels)) - np.repeat(begins, counts)
    whole = in_group < np.repeat(counts // run * run, counts)
    return _shuffled_runs(np.concatenate([by_group[whole], by_group[~whole]]), run, random)


def order_by_length(lengths: Indices, run: int, random: np.random.Generator) -> Indices:
    """The examples in runs of `run` of like length, as like as they are among fifty runs of random examples."""
    blocks = np.split(random.permutation(len(lengths)), range(50 * run, len(lengths), 50 * run))
    ordered = [block[np.argsort(lengths[block], kind="stable")] for block in blocks]
    return _shuffled_runs(np.concatenate(ordered), run, random)


def _shuffled_runs(indices: Indices, run: int, random: np.random.Generator) -> Indices:
    """Runs in random order; what is left at the end stays there, so that runs begin where steps do."""
    end = len(indices) // run * run
    runs = random.permutation(indices[:end].reshape(-1, run))
    return np.concatenate([runs.ravel(), indices[end:]])
