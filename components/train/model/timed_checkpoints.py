"""Saves checkpoints by time, so that a run whose steps are slow loses little when its machine is taken away."""

from time import monotonic
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from chatmetrics.components.train.model.stop_signal import true_in_any_process


class TimedCheckpoints(TrainerCallback):
    """Saves a checkpoint after the first step that ends `minutes` or more after the previous checkpoint."""

    def __init__(self, minutes: float) -> None:
        self._seconds = 60 * minutes
        self._saved = monotonic()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._saved = monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # The processes' clocks differ, and a checkpoint needs all of them.
        if true_in_any_process(monotonic() - self._saved >= self._seconds, args):
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._saved = monotonic()
