"""The trainer: a step is the loss of its answers' tokens over all its packs."""

import json
from contextlib import nullcontext
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback

from chatmetrics.components.train.checkpoints.checksums import seal
from chatmetrics.components.train.data.steps import StepShare
from chatmetrics.components.train.data.trees import Pack
from chatmetrics.components.train.model.answer_loss import check_trees
from chatmetrics.components.train.model.early_stopping import EarlyStopping
from chatmetrics.components.train.model.nan_loss import NanLossReporter, plain_losses
from chatmetrics.components.train.model.stop_signal import ignore_sigterm
from chatmetrics.components.train.watch.throughput import ThroughputMeter, TrainingCounts

# A GradScaler leaves out steps whose gradients overflow, and lowers its scale: from 65,536 to 1 in sixteen.
SKIPPED_STEPS = 20
SINCE_LAST_LOG = "since_last_log.json"


class CheckTrees(TrainerCallback):
    """Tries the model with `check_trees` when its weights have been dealt out."""

    def on_train_begin(self, *_: Any, model: PreTrainedModel, **__: Any) -> None:
        """Try it."""
        check_trees(model)


class AnswerTrainer(Trainer):
    """Trains a model whose forward is `give_answer_loss`'s on `OptimizerSteps`; stops at a loss that is not a number.

    The loss of a step is the mean over the answers' tokens of all its examples, however those are packed and dealt out
    to processes. Checkpoints are sealed.

    Args:
        counts: of what is computed.
        speed: the same, by time.
        not_a_number: what makes the error when the loss is none.
        early_stopping: what measures and keeps the best adapter, if that was asked for.
        arguments: Trainer's.
    """

    def __init__(
        self,
        counts: TrainingCounts,
        speed: ThroughputMeter,
        not_a_number: NanLossReporter,
        early_stopping: EarlyStopping | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self._counts, self._speed, self._not_a_number = counts, speed, not_a_number
        self._early_stopping = early_stopping
        self._indices: list[int] = []
        self._pack: Pack | None = None
        self._skipped = 0

    def training_step(self, model: nn.Module, inputs: StepShare, num_items_in_batch: Any = None) -> torch.Tensor:
        """Add up the gradients of a step; see Trainer.training_step.

        Raises:
            InputError: the loss is NaN or infinite; names the step, its examples and the last good checkpoint.
        """
        model.train()
        self._indices = inputs["indices"]
        weight = self.accelerator.num_processes / inputs["answer_tokens"]  # processes' gradients are averaged
        total = torch.zeros((), device=self.args.device)
        packs = [(pack, weight) for pack in inputs["packs"]]
        packs += [(inputs["packs"][0], 0.0)] * self._packs_of_others(len(packs))
        for left, (pack, share) in zip(reversed(range(len(packs))), packs, strict=True):
            self._pack = pack
            with self.accelerator.no_sync(model) if left else nullcontext():
                with self.compute_loss_context_manager():
                    loss = model(**pack).sum() * share
                self.accelerator.backward(loss)
            total += loss.detach()
        # Of all processes: all end in the same place, where weights that are dealt out come together, and say the same.
        if not torch.isfinite(of_all := self.accelerator.reduce(total)):
            raise self._error(f"the loss is {of_all.item()}")
        self._counts.tokens += inputs["tokens"]
        answers = sum(pack["targets"].numel() for pack in inputs["packs"])
        self._speed.count([pack["input_ids"].numel() for pack in inputs["packs"]], answers)
        return total

    def doing(self) -> str:
        """What is being computed, for an error to say."""
        step = f"at step {self.state.global_step + 1}"
        if self._pack is None:
            return step
        # Each ends with the one EOS that it has.
        examples = int((self._pack["targets"].cpu() == self.processing_class.eos_token_id).sum())
        return f"{step}, with a pack of {self._pack['input_ids'].numel():,} tokens of {examples} examples"

    def _error(self, what: str) -> Exception:
        losses = plain_losses(self.model)
        with self.compute_loss_context_manager():
            return self._not_a_number.error(what, self.state.global_step + 1, self._indices, losses)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """See Trainer._get_grad_norm; gradients that are no numbers stop training too."""
        norm = super()._get_grad_norm(model, grad_norm)
        self._skipped = 0 if isfinite(norm) else self._skipped + 1
        if self._skipped > (SKIPPED_STEPS if self.accelerator.scaler else 0):
            raise self._error(f"the norm of the gradients is {float(norm)}")
        return norm

    def _packs_of_others(self, own: int) -> int:
        """How many packs more another process has: weights that are dealt out come together for each of them."""
        if not self.is_fsdp_enabled:
            return 0
        return int(self.accelerator.gather(torch.tensor([own], device=self.args.device)).max()) - own

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the tokens so far of the examples, those that this process computed for them, its speed, and what dev
        questions were just measured at."""
        counts = {"num_tokens": self._counts.tokens, "computed_tokens": self._counts.computed_tokens}
        dev = self._early_stopping.measured_at(self.state.global_step) if self._early_stopping else {}
        super().log({**logs, **counts, **self._speed.measures(), **dev}, *args, **kwargs)

    def get_train_dataloader(self) -> DataLoader[StepShare]:
        """See Trainer.get_train_dataloader."""
        loader = super().get_train_dataloader()
        loader.worker_init_fn = ignore_sigterm
        return loader

    def adapter_weights(self) -> dict[str, torch.Tensor] | None:
        """Of weights that are dealt out, the adapter's, together on the first process; all processes must ask."""
        if not self.is_fsdp_enabled:
            return None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        weights: dict[str, Any] = get_model_state_dict(self.model, options=options)
        return weights

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """See Trainer.save_model, which would bring all of a base together that is dealt out."""
        self._save(output_dir, self.adapter_weights())

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Else a run that was killed between its last checkpoint and its adapter would learn from one step more.
        if self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self._speed.paused():
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
        """Go on with what the trainer adds up from one point of the loss curve to the next, too.

        The sums of other processes than those that began are shared out evenly.
        """
        super()._load_rng_state(checkpoint)
        losses, self._globalstep_last_logged, self._counts.tokens, self._counts.computed_tokens = json.loads(
            (Path(checkpoint) / SINCE_LAST_LOG).read_bytes()
        )
        self._speed.start()
        same = len(losses) == self.args.world_size
        self._tr_loss.fill_(losses[self.args.process_index] if same else sum(losses) / len(losses))
