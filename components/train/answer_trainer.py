"""The trainer: a step is the loss of its answers' tokens over all its packs."""

import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from chatmetrics.components.errors import InputError
from chatmetrics.components.train.checkpoints import seal
from chatmetrics.components.train.steps import Share


class AnswerTrainer(Trainer):
    """Trains a model whose forward is `give_answer_loss`'s on `Steps`; stops at a loss that is not a number.

    The loss of a step is the mean over the answers' tokens of all its examples, however those are packed and dealt out
    to processes. Checkpoints are sealed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tokens, self._computed_tokens = 0, 0

    def training_step(self, model: nn.Module, inputs: Share, num_items_in_batch: Any = None) -> torch.Tensor:
        """Add up the gradients of a step; see Trainer.training_step.

        Raises:
            InputError: the loss is NaN or infinite; names the step.
        """
        model.train()
        weight = self.accelerator.num_processes / inputs["answer_tokens"]  # processes' gradients are averaged
        total = torch.zeros((), device=self.args.device)
        for left, pack in zip(reversed(range(len(inputs["packs"]))), inputs["packs"], strict=True):
            with self.accelerator.no_sync(model) if left else nullcontext():
                with self.compute_loss_context_manager():
                    loss = model(**pack).sum() * weight
                self.accelerator.backward(loss)
            total += loss.detach()
        if not torch.isfinite(total):
            raise InputError(
                f"the loss is {total.item()} at step {self.state.global_step + 1}; lower train.learning_rate, choose "
                "another train.precision, or check the base's weights"
            )
        self._tokens += inputs["tokens"]
        self._computed_tokens += sum(pack["input_ids"].numel() for pack in inputs["packs"])
        return total

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the tokens so far of the examples, and those that this process computed for them."""
        counts = {"num_tokens": self._tokens, "computed_tokens": self._computed_tokens}
        super().log({**logs, **counts}, *args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            seal(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}")


class StopAtSignal(TrainerCallback):
    """On SIGTERM, saves a checkpoint after the step that is going on and ends training.

    Several processes would not agree on the step, so there the signal has its usual effect.
    """

    def __init__(self) -> None:
        self._received = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Begin to listen."""
        if args.world_size == 1:
            signal.signal(signal.SIGTERM, self._receive)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End training if the signal came."""
        if self._received:
            control.should_save = control.should_training_stop = True

    def _receive(self, *_: Any) -> None:
        self._received = True
