"""What to say when a loss or a gradient is no longer a number."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.example import read_examples
from chatmetrics.components.train.checkpoints.checksums import newest_complete
from chatmetrics.components.train.data.trees import Pack, TokenizedExample, padded_pack

NAMED = 8


class NanLossReporter:
    """Makes the error that names step, examples and the last good checkpoint.

    Args:
        dataset: folder of train.jsonl, which has the examples' ids.
        checkpoints: of the run.
        examples: by index.
    """

    def __init__(self, dataset: Path, checkpoints: Path, examples: Sequence[TokenizedExample]) -> None:
        self._dataset, self._checkpoints, self._examples = dataset, checkpoints, examples

    def error(self, what: str, step: int, indices: Sequence[int], losses: Callable[[Pack], torch.Tensor]) -> InputError:
        """The error to raise.

        Args:
            what: is not a number, and its value.
            step: of the optimizer, from 1.
            indices: of the step's examples.
            losses: computes those of an example.
        """
        with torch.no_grad():
            guilty = [i for i in indices if not math.isfinite(losses(padded_pack([self._examples[i]])).sum().item())]
        examples = read_examples(self._dataset / "train.jsonl")
        named = guilty or list(indices)
        ids = ", ".join(examples[index].id for index in named[:NAMED]) + (", ..." if len(named) > NAMED else "")
        which = f"the losses of {len(guilty)} of its {len(indices)} examples are: {ids}" if guilty else f"of {ids}"
        last = newest_complete(self._checkpoints)
        return InputError(
            f"{what} at step {step} ({which}); the last good checkpoint is {last or 'none yet'}; lower "
            "train.learning_rate, choose another train.precision, or check those examples and the base's weights"
        )


def plain_losses(model: nn.Module) -> Callable[[Pack], torch.Tensor]:
    """What computes a pack's losses outside of a training step."""
    device = next(model.parameters()).device

    def losses(pack: Pack) -> torch.Tensor:
        found: torch.Tensor = model(**{name: tensor.to(device) for name, tensor in pack.items()})  # type: ignore[attr-defined]
        return found

    return losses
