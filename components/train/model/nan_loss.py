"""Explains a loss or a gradient that is NaN or infinite: the step, the examples, and the last good checkpoint."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.example import read_examples
from chatmetrics.components.train.checkpoints.checksums import newest_complete
from chatmetrics.components.train.data.trees import Pack, TokenizedExample, padded_pack

MAX_NAMED = 8


class NanLossReporter:
    """Makes the error that names the step, its examples and the last good checkpoint.

    Args:
        dataset: folder of train.jsonl, which contains the examples' ids.
        checkpoints: the run's checkpoint folder.
        examples: the tokenized examples.
    """

    def __init__(self, dataset: Path, checkpoints: Path, examples: Sequence[TokenizedExample]) -> None:
        self._dataset, self._checkpoints, self._examples = dataset, checkpoints, examples

    def error(self, what: str, step: int, indices: Sequence[int], losses: Callable[[Pack], torch.Tensor]) -> InputError:
        """Return the error to raise.

        Args:
            what: what is not a finite number, and its value, for example "the loss is nan".
            step: number of the optimizer step, from 1.
            indices: indices of the step's examples.
            losses: computes the losses of a pack.
        """
        with torch.no_grad():
            failing = [i for i in indices if not math.isfinite(losses(padded_pack([self._examples[i]])).sum().item())]
        examples = read_examples(self._dataset / "train.jsonl")
        named = failing or list(indices)
        ids = ", ".join(examples[index].id for index in named[:MAX_NAMED])
        if len(named) > MAX_NAMED:
            ids += ", ..."
        which = f"not finite for {len(failing)} of its {len(indices)} examples: {ids}" if failing else f"examples {ids}"
        last = newest_complete(self._checkpoints)
        return InputError(
            f"{what} at step {step} ({which}); the last good checkpoint is {last or 'none yet'}; lower "
            "train.learning_rate, choose another train.precision, or check those examples and the base's weights"
        )


def plain_losses(model: nn.Module) -> Callable[[Pack], torch.Tensor]:
    """Return a function that computes a pack's losses outside of a training step."""
    device = next(model.parameters()).device

    def losses(pack: Pack) -> torch.Tensor:
        found: torch.Tensor = model(**{name: tensor.to(device) for name, tensor in pack.items()})  # type: ignore[attr-defined]
        return found

    return losses
