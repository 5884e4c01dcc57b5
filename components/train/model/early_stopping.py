"""Ends training when dev questions no longer get better, and keeps the adapter that did best."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from chatmetrics.components.train.model.dev_questions import DevMetric
from chatmetrics.components.train.settings import TrainSettings
from chatmetrics.components.train.watch.loss_curve import DevPoint

POINTS, BEST = "early_stopping.json", "best_adapter.safetensors"


class EarlyStopping(TrainerCallback):
    """Measures the adapter every `evaluation_steps`, and ends training after `patience` of them without a better one.

    Attributes:
        points: what was measured.
        best: of them, the first of the best; None before there is one.
    """

    def __init__(self, settings: TrainSettings, measure: DevMetric) -> None:
        self.points: list[DevPoint] = []
        self.best: DevPoint | None = None
        self.by = settings.early_stopping
        self._measure, self._every, self._patience = measure, settings.evaluation_steps, settings.patience
        self._weights: dict[str, torch.Tensor] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End at once what had ended when it was interrupted."""
        control.should_training_stop = self._has_waited_enough()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Measure, if it is time."""
        if state.global_step % self._every and state.global_step < state.max_steps:
            return
        adapted = getattr(model, "module", model)  # in DDP
        point = DevPoint(step=state.global_step, value=_of_first_process(self._measure(adapted), args))
        self.points.append(point)
        control.should_log = True
        if self.best is None or self._is_better(point, self.best):
            self.best = point
            self._weights = {name: it.detach().cpu().clone() for name, it in get_peft_model_state_dict(adapted).items()}
        if state.is_world_process_zero:
            best = f"best {self.best['value']:.4f} at step {self.best['step']}"
            print(f"dev {self.by} {point['value']:.4f} at step {point['step']}, {best}", file=sys.stderr, flush=True)
        if self._has_waited_enough() and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
            if state.is_world_process_zero:
                print(f"note: dev {self.by} has not improved {self._patience} times: training ends", file=sys.stderr)

    def measured_at(self, step: int) -> dict[str, float]:
        """What was measured after a step, as transformers names it; nothing where that was another one."""
        is_newest = bool(self.points) and self.points[-1]["step"] == step
        return {f"eval_{self.by}": self.points[-1]["value"]} if is_newest else {}

    def save(self, folder: Path) -> None:
        """Put what is known into the folder of a checkpoint."""
        (folder / POINTS).write_text(json.dumps(self.points), encoding="utf-8")
        if self._weights:
            save_file(self._weights, folder / BEST)

    def load(self, folder: Path) -> None:
        """Go on from what a checkpoint knows."""
        self.points, self.best = json.loads((folder / POINTS).read_bytes()), None
        for point in self.points:
            if self.best is None or self._is_better(point, self.best):
                self.best = point
        if self.best:
            self._weights = load_file(folder / BEST)

    def restore_best(self, model: PeftModel) -> None:
        """Give the model the best adapter's weights."""
        if self._weights:
            set_peft_model_state_dict(model, self._weights)

    def _is_better(self, point: DevPoint, than: DevPoint) -> bool:
        return point["value"] < than["value"] if self.by == "loss" else point["value"] > than["value"]

    def _has_waited_enough(self) -> bool:
        return self.best is not None and len(self.points) - 1 - self.points.index(self.best) >= self._patience


def _of_first_process(value: float, args: TrainingArguments) -> float:
    """One value for all processes, so that they agree on what to do."""
    if args.world_size == 1:
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=args.device)
    torch.distributed.broadcast(shared, 0)
    return float(shared)
