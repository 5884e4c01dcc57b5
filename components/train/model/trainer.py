"""The trainer: computes an optimizer step pack by pack, logs what it computed, and seals checkpoints."""

import json
from contextlib import nullcontext
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from chatmetrics.components.train.checkpoints.checksums import seal
from chatmetrics.components.train.data.steps import StepShare
from chatmetrics.components.train.data.trees import Pack
from chatmetrics.components.train.model.early_stopping import EarlyStopping
from chatmetrics.components.train.model.nan_loss import NanLossReporter, plain_losses
from chatmetrics.components.train.model.own_forward import check_training
from chatmetrics.components.train.model.stop_signal import ignore_sigterm
from chatmetrics.components.train.settings import TrainSettings
from chatmetrics.components.train.watch.throughput import ThroughputMeter, TrainingCounts

# A GradScaler skips steps whose gradients overflow, and lowers its scale: from 65,536 to 1 in sixteen steps.
MAX_SKIPPED_STEPS = 20
SINCE_LAST_LOG = "since_last_log.json"


class CheckTraining(TrainerCallback):
    """Runs `check_training` once FSDP has sharded the model's weights."""

    def __init__(self, settings: TrainSettings) -> None:
        self._settings = settings

    def on_train_begin(self, *_: Any, model: PeftModel, **__: Any) -> None:
        check_training(model, self._settings)


class AnswerTrainer(Trainer):
    """Trains a model prepared by `give_answer_loss` on `OptimizerSteps`; stops if the loss or a gradient is not finite.

    The loss of a step is the mean over the answer tokens of all its examples, however those are packed and sharded
    across processes. Checkpoints are sealed.

    Args:
        counts: counts of what was computed, which the trainer increases.
        throughput: measures the speed by those counts.
        nan_loss: makes the error if a loss or gradient is not finite.
        early_stopping: the callback that measures dev questions, if any.
        arguments: Trainer's arguments.
    """

    def __init__(
        self,
        counts: TrainingCounts,
        throughput: ThroughputMeter,
        nan_loss: NanLossReporter,
        early_stopping: EarlyStopping | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self._counts, self._throughput, self._nan_loss = counts, throughput, nan_loss
        self._early_stopping = early_stopping
        self._indices: list[int] = []
        self._pack: Pack | None = None
        self._skipped = 0

    def training_step(self, model: nn.Module, inputs: StepShare, num_items_in_batch: Any = None) -> torch.Tensor:
        """Accumulate the gradients of a step over its packs and return its loss; Trainer then calls the optimizer.

        Raises:
            InputError: the loss is NaN or infinite; names the step, its examples and the last good checkpoint.
        """
        model.train()
        self._indices = inputs["indices"]
        # The sum of the losses is divided by the step's answer tokens; DDP then averages the processes' gradients.
        weight = self.accelerator.num_processes / inputs["answer_tokens"]
        weighted = [(pack, weight) for pack in inputs["packs"]]
        weighted += [(inputs["packs"][0], 0.0)] * self._missing_packs(len(weighted))
        total = torch.zeros((), device=self.args.device)
        for number, (pack, pack_weight) in enumerate(weighted, start=1):
            self._pack = pack
            is_last = number == len(weighted)  # only then do processes exchange gradients
            with nullcontext() if is_last else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    loss = model(**pack).sum() * pack_weight
                self.accelerator.backward(loss)
            total += loss.detach()
        # Reduced, so that all processes fail in the same place, where they gather sharded weights, with the same error.
        step_loss = self.accelerator.reduce(total)
        if not torch.isfinite(step_loss):
            raise self._error(f"the loss is {step_loss.item()}")
        self._counts.tokens += inputs["tokens"]
        answers = sum(pack["targets"].numel() for pack in inputs["packs"])
        self._throughput.count([pack["input_ids"].numel() for pack in inputs["packs"]], answers)
        return total

    def doing(self) -> str:
        """The step and pack that are being computed, for an error message."""
        step = f"at step {self.state.global_step + 1}"
        if self._pack is None:
            return step
        # Each example has exactly one EOS, as the last token of its answer.
        examples = int((self._pack["targets"].cpu() == self.processing_class.eos_token_id).sum())
        return f"{step}, with a pack of {self._pack['input_ids'].numel():,} tokens of {examples} examples"

    def _error(self, what: str) -> Exception:
        losses = plain_losses(self.model)
        with self.compute_loss_context_manager():
            return self._nan_loss.error(what, self.state.global_step + 1, self._indices, losses)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        # Gradients that are not finite stop training too.
        norm = super()._get_grad_norm(model, grad_norm)
        self._skipped = 0 if isfinite(norm) else self._skipped + 1
        if self._skipped > (MAX_SKIPPED_STEPS if self.accelerator.scaler else 0):
            raise self._error(f"the norm of the gradients is {float(norm)}")
        return norm

    def _missing_packs(self, own: int) -> int:
        """How many more packs another process has: FSDP gathers sharded weights for each, in all processes together."""
        if not self.is_fsdp_enabled:
            return 0
        return int(self.accelerator.gather(torch.tensor([own], device=self.args.device)).max()) - own

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the token counts so far, the throughput, and the result on dev questions if it was just measured."""
        counts = {"num_tokens": self._counts.tokens, "computed_tokens": self._counts.computed_tokens}
        dev = self._early_stopping.measured_at(self.state.global_step) if self._early_stopping else {}
        super().log({**logs, **counts, **self._throughput.measures(), **dev}, *args, **kwargs)

    def get_train_dataloader(self) -> DataLoader[StepShare]:
        loader = super().get_train_dataloader()
        loader.worker_init_fn = ignore_sigterm
        return loader

    def adapter_weights(self) -> dict[str, torch.Tensor] | None:
        """With FSDP, the adapter's weights, gathered on the first process; else None. All processes must call it."""
        if not self.is_fsdp_enabled:
            return None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        weights: dict[str, Any] = get_model_state_dict(self.model, options=options)
        return weights

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # With FSDP, Trainer's own method would gather the whole base.
        self._save(output_dir, self.adapter_weights())

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Otherwise a run that was killed between its last checkpoint and its adapter would train for one more step.
        if self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self._throughput.paused():
            self._save_and_seal(*args, **kwargs)

    def _save_and_seal(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)
        losses = self.accelerator.gather(self._tr_loss.reshape(1)).tolist()
        if self.is_world_process_zero():
            checkpoint = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
            counts = [self._globalstep_last_logged, self._counts.tokens, self._counts.computed_tokens]
            (checkpoint / SINCE_LAST_LOG).write_text(json.dumps([losses, *counts]), encoding="utf-8")
            if self._early_stopping:
                self._early_stopping.save(checkpoint)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            seal(checkpoint)

    def _load_rng_state(self, checkpoint: str) -> None:
        """Restore, too, what the trainer has summed up since the last point of the loss curve.

        If the number of processes has changed, each gets the mean of the previous processes' sums.
        """
        super()._load_rng_state(checkpoint)
        losses, last_logged, tokens, computed_tokens = json.loads((Path(checkpoint) / SINCE_LAST_LOG).read_bytes())
        self._globalstep_last_logged = last_logged
        self._counts.tokens, self._counts.computed_tokens = tokens, computed_tokens
        self._throughput.start()
        same = len(losses) == self.args.world_size
        self._tr_loss.fill_(losses[self.args.process_index] if same else sum(losses) / len(losses))
