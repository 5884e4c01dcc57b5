"""Reports to TensorBoard and MLflow."""

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event
from transformers import TrainerControl, TrainerState, TrainingArguments

from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.components.train.launch import train
from chatmetrics.components.train.settings import TrainSettings
from chatmetrics.components.train.watch.trackers import tracker_callbacks
from tests.models import tiny_base
from tests.train.small_dataset import write_dataset

SETTINGS = TrainSettings(max_steps=4, logging_steps=1, checkpoint_steps=2, report_to=("tensorboard", "mlflow"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    return write_dataset(folder / "dataset"), tiny_base(folder / "base")


def events(file: Path) -> Iterator[Event]:
    """The records of a TensorBoard file: length, checksum of the length, data, checksum of the data."""
    data = file.read_bytes()
    while data:
        [length] = struct.unpack("<Q", data[:8])
        yield Event.FromString(data[12 : 12 + length])
        data = data[12 + length + 4 :]


@pytest.mark.usefixtures("quick_launch")
def test_tensorboard_and_mlflow_get_the_loss_curve(
    inputs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    dataset, base = inputs
    settings = SETTINGS.model_copy(update={"mlflow_uri": (tmp_path / "mlflow").as_uri()})
    train(settings, dataset, str(base), tmp_path / "adapter", tmp_path / "checkpoints")
    [file] = (tmp_path / "adapter" / "tensorboard").rglob("events.*")
    losses = {
        event.step: value.simple_value
        for event in events(file)
        for value in event.summary.value
        if value.tag == "train/loss"
    }
    assert list(losses) == [1, 2, 3, 4]
    [metric] = (tmp_path / "mlflow").rglob("metrics/loss")
    _, values, steps = zip(*(line.split()[:3] for line in metric.read_text().splitlines()), strict=True)
    assert {int(step): float(value) for step, value in zip(steps, values, strict=True)} == pytest.approx(losses)
    assert next((tmp_path / "mlflow").rglob("metrics/tokens_per_second")).exists()


def test_mlflow_without_a_server_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(InputError, match=r"set train\.mlflow_uri or MLFLOW_TRACKING_URI"):
        tracker_callbacks(SETTINGS, tmp_path)


def test_an_mlflow_server_that_does_not_answer_is_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # restored afterwards
    settings = SETTINGS.model_copy(update={"mlflow_uri": "http://127.0.0.1:9", "report_to": ("mlflow",)})
    [mlflow] = tracker_callbacks(settings, tmp_path)
    state = TrainerState(is_world_process_zero=True)
    with pytest.raises(ServiceError, match=r"MLflow at http://127\.0\.0\.1:9: "):
        mlflow.on_train_begin(TrainingArguments(str(tmp_path), report_to="none"), state, TrainerControl())
