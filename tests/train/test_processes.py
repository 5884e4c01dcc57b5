"""Several training processes in one pod: what they learn together is what one learns alone."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from chatmetrics.components.errors import InputError
from chatmetrics.components.train.launch import train
from chatmetrics.components.train.settings import TrainSettings
from tests.models import tiny_base
from tests.storage import s3
from tests.train.simulated_pods import SimulatedPod, StartPod, pod_starter
from tests.train.small_dataset import write_dataset
from tests.train.test_train import PROGRAM

ONE = TrainSettings(
    max_steps=11, checkpoint_steps=4, logging_steps=1, batch_size=4, gradient_accumulation=2, learning_rate=2e-3
)
TWO = ONE.model_copy(update={"batch_size": 2, "processes": 2, "pack_tokens": 100})


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartPod]:
    folder = tmp_path_factory.mktemp("pods")
    with pod_starter(folder, tiny_base(folder / "base"), write_dataset(folder / "dataset")) as start:
        yield start


@pytest.fixture(scope="module")
def alone(start: StartPod, tmp_path_factory: pytest.TempPathFactory) -> SimulatedPod:
    """The run of one process that nothing disturbed."""
    pod = start(ONE, str(tmp_path_factory.mktemp("alone")))
    assert pod.status() == 0, pod.log()
    return pod


def interrupted(start: StartPod, settings: TrainSettings, checkpoints: Path, step: int = 3) -> None:
    """A run that SIGTERM ended in its course."""
    pod = start(settings, str(checkpoints))
    s3.wait_until(lambda: pod.steps() >= step, 60)
    os.kill(pod.id, signal.SIGTERM)
    assert pod.status() == 143, pod.log()
    assert pod.steps() < settings.max_steps
    assert (checkpoints / f"checkpoint-{pod.steps()}" / "sealed.json").exists()
    assert not (pod.folder / "adapter").exists()


def check_same(pod: SimulatedPod, expected: SimulatedPod) -> None:
    """Equal but for the order of additions."""
    assert [loss for _, loss, *_ in pod.curve()] == pytest.approx([loss for _, loss, *_ in expected.curve()], rel=1e-5)
    torch.testing.assert_close(pod.weights(), expected.weights(), rtol=1e-4, atol=1e-5)


def test_two_learn_what_one_learns_and_go_on_exactly(start: StartPod, alone: SimulatedPod, tmp_path: Path) -> None:
    together = start(TWO, str(tmp_path / "undisturbed"))
    assert together.status() == 0, together.log()
    check_same(together, alone)
    interrupted(start, TWO.model_copy(update={"workers": 1}), tmp_path / "stopped")
    finished = start(TWO, str(tmp_path / "stopped"))
    assert finished.status() == 0, finished.log()
    assert "going on from" in finished.log()
    assert all(torch.equal(weight, together.weights()[name]) for name, weight in finished.weights().items())
    assert finished.curve() == together.curve()


def test_a_run_of_accelerate_s_processes_goes_on_on_another_pool(
    start: StartPod, alone: SimulatedPod, tmp_path: Path
) -> None:
    inputs = alone.folder.parent
    arguments = [TWO.model_dump_json(), inputs / "dataset", inputs / "base", tmp_path / "adapter", tmp_path / "run"]
    with subprocess.Popen([sys.executable, "-c", PROGRAM, *map(str, arguments)]) as launcher:
        s3.wait_until(lambda: len(list(tmp_path.glob("run/checkpoint-4/sealed.json"))) or launcher.poll(), 200)
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait() == 143
    assert not (tmp_path / "adapter").exists()
    finished = start(ONE.model_copy(update={"batch_size": 8, "gradient_accumulation": 1}), str(tmp_path / "run"))
    assert finished.status() == 0, finished.log()
    assert "going on from" in finished.log()
    check_same(finished, alone)


def test_a_signal_that_comes_when_all_is_learnt_changes_nothing(
    start: StartPod, alone: SimulatedPod, tmp_path: Path
) -> None:
    pod = start(ONE, str(tmp_path))
    s3.wait_until((tmp_path / "checkpoint-11").exists, 60)
    os.kill(pod.id, signal.SIGTERM)
    assert pod.status() == 0, pod.log()
    assert pod.curve() == alone.curve()


def test_a_run_that_was_killed_before_its_adapter_was_there_learns_no_more(
    start: StartPod, alone: SimulatedPod
) -> None:
    again = start(ONE, alone.checkpoints)
    assert again.status() == 0, again.log()
    assert "going on from" in again.log()
    assert again.curve() == alone.curve()
    assert all(torch.equal(weight, alone.weights()[name]) for name, weight in again.weights().items())


def test_more_processes_than_gpus_are_refused(
    tmp_path: Path, alone: SimulatedPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    inputs = alone.folder.parent
    with pytest.raises(InputError, match=r"train\.processes is 2, but this machine has 1 GPU;"):
        train(TWO, inputs / "dataset", str(inputs / "base"), tmp_path / "adapter", tmp_path / "checkpoints")
    assert not list(tmp_path.iterdir())


def test_weights_that_are_dealt_out_learn_the_same(start: StartPod, alone: SimulatedPod, tmp_path: Path) -> None:
    dealt_out = TWO.model_copy(update={"fsdp": True})
    interrupted(start, dealt_out, tmp_path)
    finished = start(dealt_out.model_copy(update={"gradient_checkpointing": True}), str(tmp_path))
    assert finished.status() == 0, finished.log()
    assert "going on from" in finished.log()
    check_same(finished, alone)
    assert (tmp_path / "checkpoint-11" / "pytorch_model_fsdp.bin").exists()


def test_fsdp_wants_several_processes(tmp_path: Path, alone: SimulatedPod) -> None:
    inputs = alone.folder.parent
    settings = ONE.model_copy(update={"fsdp": True})
    with pytest.raises(InputError, match=r"set train\.processes to the number of GPUs, or train\.fsdp to false"):
        train(settings, inputs / "dataset", str(inputs / "base"), tmp_path / "adapter", tmp_path / "checkpoints")
