"""Stops training at SIGTERM: after a step that all processes agree on, with a checkpoint."""

import signal
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StopAtSignal(TrainerCallback):
    """On SIGTERM, saves a checkpoint after the current step and ends training.

    The signal may reach several processes in different steps, or only one of them; they exchange it after each step.

    Attributes:
        stopped: whether the signal ended training.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._received = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        signal.signal(signal.SIGTERM, self._receive)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._received_by_any(args):
            control.should_save = control.should_training_stop = self.stopped = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # A signal that arrived while a checkpoint was saved: that checkpoint is enough.
        if self._received_by_any(args):
            control.should_training_stop = self.stopped = True

    def _received_by_any(self, args: TrainingArguments) -> bool:
        return true_in_any_process(self._received, args)

    def _receive(self, *_: Any) -> None:
        self._received = True


def true_in_any_process(value: bool, args: TrainingArguments) -> bool:
    """Whether the value is true in any training process. All of them must call it."""
    if args.world_size == 1:
        return value
    shared = torch.tensor(int(value), device=args.device)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
    return bool(shared.item())


def ignore_sigterm(*_: Any) -> None:
    """Make a data loader process ignore a signal to its process group: its parent needs it to finish the step."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
