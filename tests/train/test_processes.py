"""Several training processes in one pod learn the same as one process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from chatmetrics.components.errors import InputError
from chatmetrics.components.train.launch import train
from chatmetrics.components.train.settings import TrainSettings
from tests.models import tiny_base
from tests.train.simulated_pods import ForkServer, SimulatedPod, StartPod, pod_starter
from tests.train.small_dataset import write_dataset
from tests.train.test_train import PROGRAM
from tests.waiting import wait_until

ONE = TrainSettings(
    precision="fp32",
    max_steps=11,
    checkpoint_steps=4,
    logging_steps=1,
    batch_size=4,
    gradient_accumulation=2,
    learning_rate=2e-3,
)
TWO = ONE.model_copy(update={"batch_size": 2, "processes": 2, "pack_tokens": 100})


@pytest.fixture(scope="module")
def start(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> StartPod:
    folder = tmp_path_factory.mktemp("pods")
    return pod_starter(fork_server, folder, tiny_base(folder / "base"), write_dataset(folder / "dataset"))


@pytest.fixture(scope="module")
def alone(start: StartPod, tmp_path_factory: pytest.TempPathFactory) -> SimulatedPod:
    """An undisturbed run of one process."""
    pod = start(ONE, str(tmp_path_factory.mktemp("alone")))
    assert pod.exit_status() == 0, pod.log()
    return pod


def interrupt_run(start: StartPod, settings: TrainSettings, checkpoints: Path, step: int = 3) -> None:
    """Start a run and end it with SIGTERM."""
    pod = start(settings, str(checkpoints))
    wait_until(lambda: pod.last_step() >= step, 60)
    os.kill(pod.id, signal.SIGTERM)
    assert pod.exit_status() == 143, pod.log()
    assert pod.last_step() < settings.max_steps
    assert (checkpoints / f"checkpoint-{pod.last_step()}" / "sealed.json").exists()
    assert not (pod.folder / "adapter").exists()


def assert_same(pod: SimulatedPod, expected: SimulatedPod) -> None:
    """Losses and weights are equal up to the order of additions."""
    assert [loss for _, loss, *_ in pod.loss_curve()] == pytest.approx(
        [loss for _, loss, *_ in expected.loss_curve()], rel=1e-5
    )
    torch.testing.assert_close(pod.adapter_weights(), expected.adapter_weights(), rtol=1e-4, atol=1e-5)


def test_two_processes_learn_what_one_learns_and_resume_exactly(
    start: StartPod, alone: SimulatedPod, tmp_path: Path
) -> None:
    together = start(TWO, str(tmp_path / "undisturbed"))
    assert together.exit_status() == 0, together.log()
    assert_same(together, alone)
    interrupt_run(start, TWO.model_copy(update={"workers": 1}), tmp_path / "stopped")
    finished = start(TWO, str(tmp_path / "stopped"))
    assert finished.exit_status() == 0, finished.log()
    assert "resuming from" in finished.log()
    assert all(
        torch.equal(weight, together.adapter_weights()[name]) for name, weight in finished.adapter_weights().items()
    )
    assert finished.loss_curve() == together.loss_curve()


def test_a_run_under_accelerate_resumes_on_another_pool(start: StartPod, alone: SimulatedPod, tmp_path: Path) -> None:
    inputs = alone.folder.parent
    arguments = [TWO.model_dump_json(), inputs / "dataset", inputs / "base", tmp_path / "adapter", tmp_path / "run"]
    with subprocess.Popen([sys.executable, "-c", PROGRAM, *map(str, arguments)]) as launcher:
        wait_until(lambda: len(list(tmp_path.glob("run/checkpoint-4/sealed.json"))) or launcher.poll(), 200)
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait() == 143
    assert not (tmp_path / "adapter").exists()
    finished = start(ONE.model_copy(update={"batch_size": 8, "gradient_accumulation": 1}), str(tmp_path / "run"))
    assert finished.exit_status() == 0, finished.log()
    assert "resuming from" in finished.log()
    assert_same(finished, alone)


def test_a_signal_after_the_last_step_changes_nothing(start: StartPod, alone: SimulatedPod, tmp_path: Path) -> None:
    pod = start(ONE, str(tmp_path))
    wait_until((tmp_path / "checkpoint-11").exists, 60)
    os.kill(pod.id, signal.SIGTERM)
    assert pod.exit_status() == 0, pod.log()
    assert pod.loss_curve() == alone.loss_curve()


def test_a_run_killed_before_its_adapter_was_written_trains_no_further(start: StartPod, alone: SimulatedPod) -> None:
    again = start(ONE, alone.checkpoints)
    assert again.exit_status() == 0, again.log()
    assert "resuming from" in again.log()
    assert again.loss_curve() == alone.loss_curve()
    assert all(torch.equal(weight, alone.adapter_weights()[name]) for name, weight in again.adapter_weights().items())


def test_more_processes_than_gpus_are_refused(
    tmp_path: Path, alone: SimulatedPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    inputs = alone.folder.parent
    with pytest.raises(InputError, match=r"train\.processes is 2, but this machine has 1 GPU;"):
        train(TWO, inputs / "dataset", str(inputs / "base"), tmp_path / "adapter", tmp_path / "checkpoints")
    assert not list(tmp_path.iterdir())


def test_sharded_weights_learn_the_same(start: StartPod, alone: SimulatedPod, tmp_path: Path) -> None:
    sharded = TWO.model_copy(update={"fsdp": True})
    interrupt_run(start, sharded, tmp_path)
    finished = start(sharded.model_copy(update={"gradient_checkpointing": True}), str(tmp_path))
    assert finished.exit_status() == 0, finished.log()
    assert "resuming from" in finished.log()
    assert_same(finished, alone)
    assert (tmp_path / "checkpoint-11" / "pytorch_model_fsdp.bin").exists()


def test_fsdp_needs_several_processes(tmp_path: Path, alone: SimulatedPod) -> None:
    inputs = alone.folder.parent
    settings = ONE.model_copy(update={"fsdp": True})
    with pytest.raises(InputError, match=r"set train\.processes to the number of GPUs, or train\.fsdp to false"):
        train(settings, inputs / "dataset", str(inputs / "base"), tmp_path / "adapter", tmp_path / "checkpoints")
