"""Checkpoints by time: a run that is killed without a signal repeats minutes of work, and not `checkpoint_steps`."""

import os
import signal
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from chatmetrics.components.train.model import timed_checkpoints
from chatmetrics.components.train.model.timed_checkpoints import TimedCheckpoints
from chatmetrics.components.train.settings import TrainSettings
from tests.models import tiny_base
from tests.train.simulated_pods import ForkServer, StartPod, pod_starter
from tests.train.small_dataset import write_dataset
from tests.train.test_train import is_free
from tests.waiting import wait_until

SETTINGS = TrainSettings(
    max_steps=40,
    checkpoint_steps=1000,
    checkpoint_minutes=1e-6,  # after each step
    logging_steps=1,
    batch_size=4,
    gradient_accumulation=2,
)


@pytest.fixture
def start(fork_server: ForkServer, tmp_path: Path) -> StartPod:
    return pod_starter(fork_server, tmp_path, tiny_base(tmp_path / "base"), write_dataset(tmp_path / "dataset"))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_resumes_from_a_checkpoint_by_time(start: StartPod, tmp_path: Path, processes: int) -> None:
    settings = SETTINGS.model_copy(update={"processes": processes, "batch_size": 4 // processes})
    pod = start(settings, str(tmp_path / "run"))
    wait_until(lambda: pod.last_step() >= 5, 60)
    os.kill(pod.id, signal.SIGKILL)
    pod.exit_status()
    wait_until(lambda: is_free(tmp_path / "run"), 120)
    again = start(settings, str(tmp_path / "run"))
    assert again.exit_status() == 0, again.log()
    resumed = int(again.log().partition("resuming from ")[2].partition("\n")[0].rpartition("-")[2])
    assert resumed >= 4


def test_without_minutes_only_steps_count(start: StartPod, tmp_path: Path) -> None:
    pod = start(SETTINGS.model_copy(update={"checkpoint_minutes": 0, "max_steps": 6}), str(tmp_path / "run"))
    assert pod.exit_status() == 0, pod.log()
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-6"]


def test_minutes_are_counted_from_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(timed_checkpoints, "monotonic", lambda: clock[0])
    arguments, state = TrainingArguments(output_dir=str(tmp_path), use_cpu=True), TrainerState()
    callback = TimedCheckpoints(10)
    clock[0] = 3600.0  # while the base model was loaded
    callback.on_train_begin(arguments, state, TrainerControl())
    saved = []
    for _ in range(10):
        clock[0] += 4 * 60
        control = TrainerControl()
        callback.on_step_end(arguments, state, control)
        if control.should_save:
            saved.append((clock[0] - 3600) / 60)
            clock[0] += 60  # writing it
            callback.on_save(arguments, state, control)
    assert saved == [12, 25, 38]


def test_minutes_are_ten_by_default_and_do_not_identify_a_run() -> None:
    from chatmetrics.components.train.job import NOT_IN_IDENTITY

    assert TrainSettings().checkpoint_minutes == 10
    assert "checkpoint_minutes" in NOT_IN_IDENTITY
