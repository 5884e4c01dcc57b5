"""Which examples an optimizer step takes, in what order, and which of them each process computes.

With `examples_per_step` 4 and 2 processes:

    order          | 7 2 5 0 | 3 1 6 4 |          a permutation of the examples, another one in each epoch
    step           |    0    |    1    |
    item           |  0 |  1 |  2 |  3 |          step * processes + process
    process        |  0 |  1 |  0 |  1 |
"""

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
    """The part of an optimizer step that one process computes, and totals of the whole step.

    Attributes:
        packs: at least one, because processes wait for each other and each must have something to compute.
        answer_tokens: answer tokens of the whole step; its loss is the mean over them.
        tokens: tokens of the whole step's examples, each counted in full.
        indices: indices of the whole step's examples.
    """

    packs: list[Pack]
    answer_tokens: int
    tokens: int
    indices: list[int]


class OptimizerSteps(Dataset[StepShare]):
    """The optimizer steps of an epoch, sharded: item `t * n + p` is the share of process `p` of `n` in step `t`.

    The order depends on the seed and the epoch only, so that a run which resumes anywhere continues in the same order.
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
        step, process = divmod(item, self._processes)
        first = step * self._examples_per_step
        indices = self._order[first : first + self._examples_per_step].tolist()
        examples = [self._examples[index] for index in indices]
        shares = balanced_parts(examples, self._processes)
        # A process without examples computes one token, which has no answer token and so no loss.
        nothing = [TokenizedExample(examples[0].ids[:1], 1)]
        return StepShare(
            packs=self._pack(shares[process] if process < len(shares) else nothing),
            answer_tokens=sum(len(example.ids) - example.prompt_length for example in examples),
            tokens=sum(len(example.ids) for example in examples),
            indices=indices,
        )


def optimizer_steps(
    settings: TrainSettings, examples: TokenizedExamples, attention_tokens: float, processes: int
) -> OptimizerSteps:
    """The optimizer steps of an epoch, in the order and with the packing that the settings choose.

    Args:
        settings: the recipe's `train` section.
        examples: the examples of an epoch.
        attention_tokens: see `packing`.
        processes: number of processes that share each step.
    """
    examples_per_step = settings.examples_per_step
    if settings.group_by_length and not settings.packing:
        order = partial(order_by_length, examples.lengths, examples_per_step)
    else:
        order = partial(order_by_group, examples.groups, settings.questions_per_schema)
    pack = packing(settings, attention_tokens)
    return OptimizerSteps(examples, examples_per_step, processes, order, pack, settings.seed)


def order_by_group(groups: Sequence[int] | Indices, run: int, random: np.random.Generator) -> Indices:
    """A random order in which `run` examples of the same group follow each other.

    Examples that do not fill a run of their group form runs of several groups; an incomplete last run comes last.
    """
    labels = random.permutation(int(np.max(groups)) + 1)[np.asarray(groups)]
    shuffled = random.permutation(len(labels))
    by_group = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, begins, counts = np.unique(labels[by_group], return_index=True, return_counts=True)
    in_group = np.arange(len(labels)) - np.repeat(begins, counts)  # number of each example in its group
    whole = in_group < np.repeat(counts // run * run, counts)
    return _shuffled_runs(np.concatenate([by_group[whole], by_group[~whole]]), run, random)


def order_by_length(lengths: Indices, run: int, random: np.random.Generator) -> Indices:
    """A random order in which `run` examples of similar length follow each other.

    Examples are sorted by length within random blocks of fifty runs.
    """
    blocks = np.split(random.permutation(len(lengths)), range(50 * run, len(lengths), 50 * run))
    ordered = [block[np.argsort(lengths[block], kind="stable")] for block in blocks]
    return _shuffled_runs(np.concatenate(ordered), run, random)


def _shuffled_runs(indices: Indices, run: int, random: np.random.Generator) -> Indices:
    """Shuffle whole runs; an incomplete last run stays last, so that runs start where steps do."""
    end = len(indices) // run * run
    runs = random.permutation(indices[:end].reshape(-1, run))
    return np.concatenate([runs.ravel(), indices[end:]])
