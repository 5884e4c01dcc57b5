"""Starts the training processes as a GPU node would, follows them and answers for what they leave."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from chatmetrics.components.errors import InputError, ServiceError, StorageError, UserError
from chatmetrics.components.storage.files import sha256_of
from chatmetrics.components.storage.models import fingerprint, local_model
from chatmetrics.components.train.checkpoints import claim, locked
from chatmetrics.components.train.job import TrainJob
from chatmetrics.components.train.settings import TrainSettings

GRACE_SECONDS = 25
ENVIRONMENT = {
    # Threads that spin while they wait cost two thirds of the speed as soon as another program wants a core.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Else glibc gives the memory of larger tensors back to the kernel and gets it again, zeroed, at every step. 32 MiB
    # is as high as its threshold goes.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
}
FAILURES: dict[str, type[UserError]] = {kind.__name__: kind for kind in (InputError, ServiceError, StorageError)}


def train(
    settings: TrainSettings, dataset: Path, base_model: str, output: Path, checkpoints: Path, revision: str = ""
) -> None:
    """Train an adapter of the base on the dataset, going on from the newest complete checkpoint.

    SIGTERM and SIGINT are passed on; training then saves a checkpoint and ends.

    Args:
        settings: the recipe's `train` section.
        dataset: folder with train.jsonl.
        base_model: a folder, URI or Hub name; see `local_model`.
        output: the adapter folder, which appears whole at the end or not at all.
        checkpoints: folder of this one run.
        revision: branch, tag or commit of a Hub name.

    Raises:
        InputError: the dataset, the base or the checkpoints cannot be used, or the loss became NaN.
        ServiceError: training ended without an adapter.
        StorageError: the disk refused.
    """
    examples = dataset / "train.jsonl"
    if not examples.is_file():
        raise InputError(f"{examples}: no such file; give the folder that preprocess wrote")
    base_folder = local_model(base_model, revision)
    with locked(checkpoints) as lock, tempfile.TemporaryDirectory(prefix="chatmetrics-train-") as folder:
        job = TrainJob(
            settings=settings,
            dataset=dataset.resolve(),
            dataset_sha256=sha256_of(examples),
            base_model=base_model,
            base_fingerprint=fingerprint(base_model, revision),
            base_folder=base_folder.resolve(),
            output=output.resolve(),
            checkpoints=checkpoints.resolve(),
            failure=Path(folder) / "failure.json",
            ends_with_launcher=True,
        )
        claim(checkpoints, job.identity())
        config = Path(folder) / "job.json"
        config.write_text(job.model_dump_json(indent=2), encoding="utf-8")
        status = _run(_command(config, settings.processes), lock)
        if status:
            raise _failure(job, status)


def _command(config: Path, processes: int) -> list[str]:
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
    # All that a machine-wide accelerate configuration could change is named; the precision that the device allows is
    # found out by the training process itself.
    launcher += [
        "--num_machines",
        "1",
        "--num_processes",
        str(processes),
        "--num_cpu_threads_per_process",
        str(threads),
    ]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    if processes > 1:
        launcher += ["--multi_gpu", "--main_process_port", "0"]
    return [*launcher, "-m", "chatmetrics.components.train.fine_tune", str(config)]


def _run(command: list[str], lock: int) -> int:
    """Run the command in a process group of its own and return its exit status."""
    # The pipe is never written to. It closes when this process dies, of whatever, and training ends with it.
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        start_new_session=True,
        pass_fds=(lock,),
        env={**ENVIRONMENT, **os.environ},
    )
    with _passing_signals_on(process.pid) as received:
        status = process.wait()
        _end_group(process.pid)
    if received:
        print("note: training was stopped; the same command goes on from its newest checkpoint", file=sys.stderr)
        raise SystemExit(128 + received[0])
    return status


@contextmanager
def _passing_signals_on(group: int) -> Iterator[list[int]]:
    """Pass SIGTERM and SIGINT on as SIGTERM to a process group; yields the list of those received."""
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGTERM)

    # Python lets only the main thread have handlers; elsewhere the signals are the caller's.
    is_main = threading.current_thread() is threading.main_thread()
    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT) if is_main}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _end_group(group: int) -> None:
    """Wait until all processes of a group are gone, and kill them if they take too long.

    `accelerate launch` dies of SIGTERM at once, while the training process is still saving a checkpoint.
    """
    end = time.monotonic() + GRACE_SECONDS
    with suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.killpg(group, 0)
            time.sleep(0.05)
        os.killpg(group, signal.SIGKILL)


def _failure(job: TrainJob, status: int) -> UserError:
    try:
        failure = json.loads(job.failure.read_bytes())
    except FileNotFoundError:
        return ServiceError(f"training ended with exit status {status} and no adapter; its output says why")
    return FAILURES[failure["kind"]](failure["message"])
