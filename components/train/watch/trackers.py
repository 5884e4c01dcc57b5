"""Reports training to TensorBoard and MLflow, with transformers' own integrations."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import MLflowCallback, TensorBoardCallback

from chatmetrics.components.console import warning
from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.components.train.settings import TrainSettings

TENSORBOARD = "tensorboard"  # folder next to the checkpoints, and in the adapter folder
FOLDER_VARIABLE, SERVER_VARIABLE = "TENSORBOARD_LOGGING_DIR", "MLFLOW_TRACKING_URI"
PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "mlflow": ("mlflow",)}


def tracker_callbacks(settings: TrainSettings, checkpoints: Path) -> list[TrainerCallback]:
    """Return the callbacks of the trackers in `report_to`.

    TensorBoard's files are written next to the checkpoints, unless TENSORBOARD_LOGGING_DIR names another folder.

    Raises:
        InputError: a package is not installed, or MLflow's server is not configured.
    """
    for name in settings.report_to:
        if not any(map(find_spec, PACKAGES[name])):
            raise InputError(f"train.report_to: {PACKAGES[name][-1]} is not installed; install it or leave {name} out")
    chosen: list[TrainerCallback] = []
    if "tensorboard" in settings.report_to:
        os.environ.setdefault(FOLDER_VARIABLE, str(checkpoints / TENSORBOARD))
        chosen.append(TensorBoardCallback())
    if "mlflow" in settings.report_to:
        if settings.mlflow_uri:
            os.environ[SERVER_VARIABLE] = settings.mlflow_uri
        if not os.environ.get(SERVER_VARIABLE):
            raise InputError(
                f"train.report_to: MLflow has no server; set train.mlflow_uri or {SERVER_VARIABLE}, or leave mlflow out"
            )
        chosen.append(_MLflow())
    return chosen


class _MLflow(MLflowCallback):
    """transformers' callback, with errors of the server reported in one line."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start a run on the server.

        Raises:
            ServiceError: the server refused or does not answer.
        """
        from mlflow.exceptions import MlflowException

        try:
            super().on_train_begin(args, state, control, **_)
        except MlflowException as error:
            raise ServiceError(
                f"MLflow at {os.environ[SERVER_VARIABLE]}: {_first_line(error)}; check that it is running, "
                "or leave mlflow out of train.report_to"
            ) from error

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End the run on the server; a failure is only a warning, so that the adapter is not lost."""
        from mlflow.exceptions import MlflowException

        try:
            super().on_train_end(args, state, control, **_)
        except MlflowException as error:
            warning(f"MLflow's record is incomplete: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
