"""How training ends at a signal: after a step that all its processes agree on, with a checkpoint."""

import signal
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StopAtSignal(TrainerCallback):
    """On SIGTERM, saves a checkpoint after the step that is going on and ends training.

    The signal reaches several processes in different steps, or only one of them; they tell each other after each step.

    Attributes:
        stopped: whether training was ended so.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._received = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Begin to listen."""
        signal.signal(signal.SIGTERM, self._receive)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Save a checkpoint and end training if the signal came."""
        if self._anywhere(args):
            control.should_save = control.should_training_stop = self.stopped = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End training with the checkpoint that was just saved if the signal came meanwhile."""
        if self._anywhere(args):
            control.should_training_stop = self.stopped = True

    def _anywhere(self, args: TrainingArguments) -> bool:
        if args.world_size == 1:
            return self._received
        received = torch.tensor(int(self._received), device=args.device)
        torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX)
        return bool(received.item())

    def _receive(self, *_: Any) -> None:
        self._received = True


def ignore_sigterm(*_: Any) -> None:
    """Make a data loader's process outlive a signal to its whole group: its parent needs it for the step's end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
