"""Warns of a loss curve that is not worth waiting for: it diverges, or it does not move."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from chatmetrics.components.console import warning

SMOOTHING = 0.8  # weight of the previous value in the exponential moving average
POINTS = 10  # points of the curve that must agree
# A loss diverges if it is this many times the lowest smoothed loss and this much above it.
RELATIVE_RISE = 1.5
ABSOLUTE_RISE = 0.2
RELATIVE_FALL = 0.01  # a loss that has fallen by less after POINTS_TO_MOVE points does not move
POINTS_TO_MOVE = 40


def loss_warnings(losses: Sequence[float]) -> list[str]:
    """Return a sentence for each thing that is wrong with the curve so far.

    Args:
        losses: the points of the loss curve.
    """
    diverging = _diverging_points(losses)
    if diverging:
        return [
            f"the loss diverges: its smoothed curve has been above {RELATIVE_RISE:g} times its minimum for {diverging} "
            "points; lower train.learning_rate or add train.warmup_steps"
        ]
    if len(losses) >= POINTS_TO_MOVE and _stands_still(losses):
        return [
            f"the loss does not move: {_mean(losses[:POINTS]):.4g} at first, {_mean(losses[-POINTS:]):.4g} after "
            f"{len(losses)} points; raise train.learning_rate, or check that the answers follow from the prompts"
        ]
    return []


def _diverging_points(losses: Sequence[float]) -> int:
    """How many points at the end of the curve are far above its minimum; 0 if they are fewer than `POINTS`."""
    smoothed = list(accumulate(losses, lambda mean, loss: SMOOTHING * mean + (1 - SMOOTHING) * loss))
    lowest = list(accumulate(smoothed, min))
    far = [value > max(RELATIVE_RISE * low, low + ABSOLUTE_RISE) for value, low in zip(smoothed, lowest, strict=True)]
    since = next((count for count, is_far in enumerate(reversed(far)) if not is_far), len(far))
    return since if since >= POINTS else 0


def _stands_still(losses: Sequence[float]) -> bool:
    return _mean(losses[-POINTS:]) > (1 - RELATIVE_FALL) * _mean(losses[:POINTS])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


class LossMonitor(TrainerCallback):
    """Prints each kind of `loss_warnings` once."""

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        for text in loss_warnings([record["loss"] for record in state.log_history if "loss" in record]):
            kind = text.partition(":")[0]
            if kind not in self._warned:
                self._warned.add(kind)
                warning(f"at step {state.global_step} {text}")
