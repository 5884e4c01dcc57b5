"""Where else training reports to, as transformers' own integrations do it: TensorBoard and MLflow."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import MLflowCallback, TensorBoardCallback

from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.components.train.settings import TrainSettings

TENSORBOARD = "tensorboard"  # folder beside the checkpoints, and in the adapter's
FOLDER, SERVER = "TENSORBOARD_LOGGING_DIR", "MLFLOW_TRACKING_URI"
PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "mlflow": ("mlflow",)}


def tracker_callbacks(settings: TrainSettings, checkpoints: Path) -> list[TrainerCallback]:
    """The callbacks that the recipe's `report_to` asks for.

    TensorBoard's events go beside the checkpoints, unless TENSORBOARD_LOGGING_DIR names a folder.

    Raises:
        InputError: a package is missing, or MLflow's server is not named.
    """
    for name in settings.report_to:
        if not any(map(find_spec, PACKAGES[name])):
            raise InputError(f"train.report_to: {PACKAGES[name][-1]} is not installed; install it or leave {name} out")
    chosen: list[TrainerCallback] = []
    if "tensorboard" in settings.report_to:
        os.environ.setdefault(FOLDER, str(checkpoints / TENSORBOARD))
        chosen.append(TensorBoardCallback())
    if "mlflow" in settings.report_to:
        if settings.mlflow_uri:
            os.environ[SERVER] = settings.mlflow_uri
        if not os.environ.get(SERVER):
            raise InputError(
                f"train.report_to: MLflow has no server; set train.mlflow_uri or {SERVER}, or leave mlflow out"
            )
        chosen.append(_MLflow())
    return chosen


class _MLflow(MLflowCallback):
    """transformers' own, whose server may be away when training ends."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start a run there.

        Raises:
            ServiceError: the server refused or is not there.
        """
        from mlflow.exceptions import MlflowException

        try:
            super().on_train_begin(args, state, control, **_)
        except MlflowException as error:
            raise ServiceError(
                f"MLflow at {os.environ[SERVER]}: {_first_line(error)}; see whether it is there, or leave mlflow out "
                "of train.report_to"
            ) from error

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End the run there; what was trained is not lost when that fails."""
        from mlflow.exceptions import MlflowException

        try:
            super().on_train_end(args, state, control, **_)
        except MlflowException as error:
            print(f"warning: MLflow's record is incomplete: {_first_line(error)}", file=sys.stderr, flush=True)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
