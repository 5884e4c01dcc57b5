"""A training process uses one GPU, however many the machine has."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import AutoModelForCausalLM

from chatmetrics.components.train import fine_tune
from chatmetrics.components.train.data.trees import tree_pack
from chatmetrics.components.train.job import TrainingJob
from chatmetrics.components.train.launch import _command, gpus_for
from chatmetrics.components.train.model.answer_loss import give_answer_loss
from chatmetrics.components.train.model.device import DeviceSettings
from chatmetrics.components.train.settings import TrainSettings
from tests.models import tiny_base
from tests.train.test_trees import random_examples


@pytest.mark.parametrize(
    ("visible", "processes", "expected"),
    [
        (None, 1, "0"),
        (None, 2, "0,1"),
        ("0,1", 1, "0"),
        ("3,1", 1, "3"),
        ("2, 5,7", 2, "2,5"),
        ("GPU-1d2c, GPU-77aa", 1, "GPU-1d2c"),
        ("MIG-4b/1/0,MIG-4b/2/0", 1, "MIG-4b/1/0"),
        ("MIG-4b,MIG-5c", 2, "MIG-4b,MIG-5c"),
        ("1", 1, "1"),
        ("", 1, ""),
        ("-1", 1, "-1"),
        ("", 2, "all"),
        ("5", 2, "all"),
    ],
)
def test_training_processes_see_one_gpu_each(
    visible: str | None, processes: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpus_for(processes, visible) == expected
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    command = _command(Path("job.json"), processes)
    assert command[command.index("--gpu_ids") + 1] == expected


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that sees two GPUs, as far as torch reports them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda *_: None)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_one_process_trains_on_one_of_two_gpus(two_gpus: None, tmp_path: Path) -> None:
    job = TrainingJob(
        settings=TrainSettings(precision="fp32"),
        dataset=tmp_path,
        dataset_sha256="",
        base_model="base",
        base_fingerprint="",
        base_folder=tmp_path,
        output=tmp_path,
        checkpoints=tmp_path,
        ending=tmp_path,
        ends_with_launcher=False,
    )
    arguments = fine_tune.training_arguments(job, DeviceSettings(has_gpu=True, precision="fp32", attention="sdpa"))
    assert arguments.device.type == "cuda"
    assert arguments.n_gpu == 1
    # An item of the loader is a whole optimizer step, and one is taken at a time.
    assert arguments.train_batch_size == 1


def test_data_parallel_would_lose_most_of_a_pack(tmp_path: Path) -> None:
    """What the scatter of DataParallel, which cuts every tensor along its first dimension, makes of a pack."""
    model = AutoModelForCausalLM.from_pretrained(tiny_base(tmp_path))
    give_answer_loss(model)
    pack = tree_pack(random_examples(0))
    scattered = {name: tensor.chunk(2) for name, tensor in pack.items()}  # type: ignore[attr-defined]
    replicas = list(zip(*scattered.values(), strict=False))  # DataParallel zips them, up to the shortest
    assert len(replicas) == 1  # the row of token ids cannot be cut
    losses = torch.cat([model(**dict(zip(scattered, replica, strict=True))) for replica in replicas])
    assert len(losses) <= len(pack["targets"]) / 2 + 1
    assert len(model(**pack)) == len(pack["targets"])
