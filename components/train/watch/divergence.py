"""Whether a loss curve is one that nobody should wait for: it diverges, or it does not move."""

import sys
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SMOOTHING = 0.8
POINTS = 10  # of the curve, that must agree
FARTHER = 1.5  # times the lowest smoothed loss, and
HIGHER = 0.2  # more than it, is a loss that diverges
MOVED = 0.01  # of itself, by which a loss must have fallen
POINTS_TO_MOVE = 40


def loss_warnings(losses: Sequence[float]) -> list[str]:
    """What is wrong with the curve so far, a sentence each.

    Args:
        losses: the points of the loss curve.
    """
    found = []
    if losses and (since := _diverges(losses)):
        found.append(
            f"the loss diverges: its smoothed curve has been above {FARTHER:g} times its lowest for {since} points; "
            "lower train.learning_rate or add train.warmup_steps"
        )
    elif len(losses) >= POINTS_TO_MOVE and _stands_still(losses):
        found.append(
            f"the loss does not move: {_mean(losses[:POINTS]):.4g} at first, {_mean(losses[-POINTS:]):.4g} after "
            f"{len(losses)} points; raise train.learning_rate, or look whether the answers can be told from the prompts"
        )
    return found


def _diverges(losses: Sequence[float]) -> int:
    """For how many points at the end the curve is far above its lowest; 0 where that is fewer than `POINTS`."""
    smoothed = list(accumulate(losses, lambda mean, loss: SMOOTHING * mean + (1 - SMOOTHING) * loss))
    lowest = list(accumulate(smoothed, min))
    far = [it > max(FARTHER * low, low + HIGHER) for it, low in zip(smoothed, lowest, strict=True)]
    since = next((count for count, is_far in enumerate(reversed(far)) if not is_far), len(far))
    return since if since >= POINTS else 0


def _stands_still(losses: Sequence[float]) -> bool:
    return _mean(losses[-POINTS:]) > (1 - MOVED) * _mean(losses[:POINTS])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


class LossMonitor(TrainerCallback):
    """Warns of a curve that `loss_warnings`, once of each kind."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Look at the curve with its newest point."""
        if not state.is_world_process_zero:
            return
        for worry in loss_warnings([record["loss"] for record in state.log_history if "loss" in record]):
            kind = worry.partition(":")[0]
            if kind not in self._said:
                self._said.add(kind)
                print(f"warning: at step {state.global_step} {worry}", file=sys.stderr, flush=True)
