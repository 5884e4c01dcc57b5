"""Ends training when the result on dev questions no longer improves, and keeps the best adapter."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from chatmetrics.components.console import info, note
from chatmetrics.components.train.model.dev_questions import DevMetric
from chatmetrics.components.train.settings import TrainSettings
from chatmetrics.components.train.watch.loss_curve import DevPoint

POINTS, BEST = "early_stopping.json", "best_adapter.safetensors"


class EarlyStopping(TrainerCallback):
    """Measures the adapter every `evaluation_steps`; ends training after `patience` measurements without improvement.

    Attributes:
        points: the measurements so far.
        best: the first of the best measurements; None before the first one.
        by: loss or accuracy.
    """

    def __init__(self, settings: TrainSettings, measure: DevMetric) -> None:
        self.points: list[DevPoint] = []
        self.best: DevPoint | None = None
        self.by = settings.early_stopping
        self._measure, self._every, self._patience = measure, settings.evaluation_steps, settings.patience
        self._weights: dict[str, torch.Tensor] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # A run that had ended when it was interrupted ends again at once.
        control.should_training_stop = self._patience_is_exhausted()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        if state.global_step % self._every and state.global_step < state.max_steps:
            return
        adapted = getattr(model, "module", model)  # DDP wraps it
        point = DevPoint(step=state.global_step, value=_of_first_process(self._measure(adapted), args))
        self.points.append(point)
        control.should_log = True
        if self.best is None or self._is_better(point, self.best):
            self.best = point
            self._weights = {
                name: weight.detach().cpu().clone() for name, weight in get_peft_model_state_dict(adapted).items()
            }
        if state.is_world_process_zero:
            best = f"best {self.best['value']:.4f} at step {self.best['step']}"
            info(f"dev {self.by} {point['value']:.4f} at step {point['step']}, {best}")
        if self._patience_is_exhausted() and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
            if state.is_world_process_zero:
                note(f"dev {self.by} has not improved in {self._patience} measurements, so training ends")

    def measured_at(self, step: int) -> dict[str, float]:
        """The measurement after this step, by transformers' name for it; empty if there was none."""
        is_newest = bool(self.points) and self.points[-1]["step"] == step
        return {f"eval_{self.by}": self.points[-1]["value"]} if is_newest else {}

    def save(self, folder: Path) -> None:
        """Write the measurements and the best adapter into a checkpoint folder."""
        (folder / POINTS).write_text(json.dumps(self.points), encoding="utf-8")
        if self._weights:
            save_file(self._weights, folder / BEST)

    def load(self, folder: Path) -> None:
        """Continue with the measurements and the best adapter of a checkpoint."""
        self.points, self.best = json.loads((folder / POINTS).read_bytes()), None
        for point in self.points:
            if self.best is None or self._is_better(point, self.best):
                self.best = point
        if self.best:
            self._weights = load_file(folder / BEST)

    def restore_best(self, model: PeftModel) -> None:
        """Load the best adapter's weights into the model."""
        if self._weights:
            set_peft_model_state_dict(model, self._weights)

    def _is_better(self, point: DevPoint, than: DevPoint) -> bool:
        return point["value"] < than["value"] if self.by == "loss" else point["value"] > than["value"]

    def _patience_is_exhausted(self) -> bool:
        return self.best is not None and len(self.points) - 1 - self.points.index(self.best) >= self._patience


def _of_first_process(value: float, args: TrainingArguments) -> float:
    """The first process's value, so that all processes decide the same."""
    if args.world_size == 1:
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=args.device)
    torch.distributed.broadcast(shared, 0)
    return float(shared)
