import resource
from pathlib import Path

import pytest
import torch

from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.components.nl2sql.example import write_examples
from chatmetrics.components.train import launch
from chatmetrics.components.train.checkpoints.checksums import seal
from chatmetrics.components.train.estimate.memory import memory_of
from chatmetrics.components.train.estimate.sizes import Sizes
from chatmetrics.components.train.settings import TrainSettings
from chatmetrics.components.train.watch.out_of_memory import explain_out_of_memory
from tests.models import tiny_base
from tests.train.simulated_pods import LIMITS
from tests.train.small_dataset import example, write_dataset

SMALL = Sizes(
    layers=4, hidden=512, intermediate=1408, heads=8, key_value_heads=2, head_width=64, vocabulary=50_000, tied=True
)
ESTIMATED = memory_of(SMALL, TrainSettings(precision="fp32"), gpu=False)


def test_the_error_contains_the_estimate_and_the_settings_that_help() -> None:
    with pytest.raises(InputError) as caught, explain_out_of_memory(ESTIMATED, lambda: "at step 3"):
        torch.empty(2**60, dtype=torch.int8)  # a real allocation that fails
    message = str(caught.value)
    assert message.startswith("out of memory at step 3: ") and "\n" not in message
    assert f"the estimate was {ESTIMATED.total / 2**30:.2f} GiB (" in message and "activations" in message
    assert "train.gradient_checkpointing=true" in message and "chatmetrics estimate" in message


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError(
            "NCCL error: unhandled cuda error\nLast error:\nFailed to CUDA calloc async 608 bytes: out of memory"
        ),
        MemoryError(),
    ],
)
def test_the_errors_of_a_gpu_are_recognized(error: Exception) -> None:
    with pytest.raises(InputError, match="out of memory"), explain_out_of_memory(ESTIMATED, lambda: "at step 3"):
        raise error


def test_other_errors_are_not_changed() -> None:
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory(ESTIMATED, lambda: "at step 3"):
        torch.ones(2, 3) @ torch.ones(2, 3)


def test_out_of_memory_after_a_checkpoint_can_be_retried(tmp_path: Path) -> None:
    with (
        pytest.raises(ServiceError, match=r"a retry resumes from checkpoint-3; .* train\.gradient_checkpointing=true"),
        explain_out_of_memory(ESTIMATED, lambda: "at step 5", lambda: tmp_path / "checkpoint-3"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LIMITS, "RLIMIT_AS", (8 * 2**30, resource.RLIM_INFINITY))  # less than the training's mask


@pytest.mark.usefixtures("quick_launch", "little_memory")
def test_a_run_that_reaches_no_further_checkpoint_is_not_retried_again(tmp_path: Path) -> None:
    base, dataset = tiny_base(tmp_path / "base"), write_dataset(tmp_path / "dataset")
    write_examples(dataset / "dev.jsonl", [example(0, "Rome " * 100_000)])  # a mask of 10 GB, after step 3
    settings = TrainSettings(
        max_steps=6,
        checkpoint_steps=1,
        batch_size=4,
        gradient_accumulation=2,
        early_stopping="loss",
        evaluation_steps=3,
    )

    def train(checkpoints: str) -> None:
        launch.train(settings, dataset, str(base), tmp_path / "adapter", tmp_path / checkpoints)

    with pytest.raises(ServiceError, match=r"^out of memory .* a retry resumes from checkpoint-2;"):
        train("checkpoints")
    with pytest.raises(InputError, match=r"^out of memory "):
        train("checkpoints")
    settings = settings.model_copy(update={"checkpoint_steps": 100})
    with pytest.raises(InputError, match=r"^out of memory "):
        train("never")


@pytest.mark.parametrize(("sealed", "kind"), [((), InputError), ((4,), InputError), ((4, 8), ServiceError)])
def test_a_container_killed_for_memory_is_retried_if_it_made_progress(
    tmp_path: Path, sealed: tuple[int, ...], kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an attempt that resumes from step 4, if there is such a checkpoint, and is killed as the kernel does."""
    base, dataset, checkpoints = tiny_base(tmp_path / "base"), write_dataset(tmp_path / "dataset"), tmp_path / "run"
    monkeypatch.setattr(launch, "killed_for_memory", iter([0, 1]).__next__)

    def killed(*_: object) -> tuple[int, int]:
        for step in sealed[1:]:
            _checkpoint(checkpoints, step)
        return 137, 0

    monkeypatch.setattr(launch, "_run", killed)
    for step in sealed[:1]:
        _checkpoint(checkpoints, step)
    with pytest.raises(kind, match="the container ran out of memory"):
        launch.train(TrainSettings(), dataset, str(base), tmp_path / "adapter", checkpoints)


def _checkpoint(checkpoints: Path, step: int) -> None:
    folder = checkpoints / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "optimizer.pt").write_text("")
    seal(folder)


SHOW = "import os, sys; print(*(os.environ.get(f'PYTORCH_{name}') for name in ('CUDA_ALLOC_CONF', 'ALLOC_CONF')))"


@pytest.mark.parametrize(
    ("own", "seen"),
    [
        ({}, "expandable_segments:True expandable_segments:True"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64 None"),
        ({"PYTORCH_ALLOC_CONF": "backend:native"}, "None backend:native"),
        ({"PYTORCH_ALLOC_CONF": ""}, "None "),
    ],
)
def test_training_processes_get_expandable_segments_unless_a_user_says_otherwise(
    own: dict[str, str], seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    base, dataset = tiny_base(tmp_path / "base"), write_dataset(tmp_path / "dataset")
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launch, "_command", lambda *_: [launch.sys.executable, "-c", SHOW])
    with pytest.raises(ServiceError, match="exit status 0 and no adapter"):
        launch.train(TrainSettings(), dataset, str(base), tmp_path / "adapter", tmp_path / "checkpoints")
    assert capfd.readouterr().out.splitlines() == [seen]
