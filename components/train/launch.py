"""Starts the training processes as a GPU node would, follows them and answers for what they leave."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from chatmetrics.components.errors import EXIT_INTERRUPTED, InputError, ServiceError, StorageError, UserError
from chatmetrics.components.storage.files import sha256_of
from chatmetrics.components.storage.models import fingerprint, local_model
from chatmetrics.components.train.checkpoints.checksums import claim, locked, newest_complete, remove_newer
from chatmetrics.components.train.estimate.memory import REMEDIES, kills_for_memory
from chatmetrics.components.train.job import FINISHED, TrainingJob
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

    SIGTERM and SIGINT are passed on to all processes; training then saves a checkpoint and ends, unless it was just
    finished.

    Args:
        settings: the recipe's `train` section.
        dataset: folder with train.jsonl.
        base_model: a folder, URI or Hub name; see `local_model`.
        output: the adapter folder, which appears whole at the end or not at all.
        checkpoints: folder of this one run.
        revision: branch, tag or commit of a Hub name.

    Raises:
        InputError: the dataset, the base, the checkpoints or so many processes cannot be used, or the loss became NaN.
        ServiceError: training ended without an adapter.
        StorageError: the disk refused.
        SystemExit: a signal came; 128 and its number is the status of a run that is to be continued.
    """
    _check_processes(settings)
    examples = dataset / "train.jsonl"
    if not examples.is_file():
        raise InputError(f"{examples}: no such file; give the folder that preprocess wrote")
    base_folder = local_model(base_model, revision)
    with locked(checkpoints) as lock, tempfile.TemporaryDirectory(prefix="chatmetrics-train-") as folder:
        job = TrainingJob(
            settings=settings,
            dataset=dataset.resolve(),
            dataset_sha256=sha256_of(examples),
            base_model=base_model,
            base_fingerprint=fingerprint(base_model, revision),
            base_folder=base_folder.resolve(),
            output=output.resolve(),
            checkpoints=checkpoints.resolve(),
            ending=Path(folder) / "ending.json",
            ends_with_launcher=True,
        )
        claim(checkpoints, job.identity())
        job = job.model_copy(update={"resume_from": _checkpoint_to_go_on_from(job.checkpoints)})
        config = Path(folder) / "job.json"
        config.write_text(job.model_dump_json(indent=2), encoding="utf-8")
        kills = kills_for_memory()
        status, signal_number = _run(_command(config, settings.processes), lock)
        _answer_for(job, status, signal_number, kills)


@contextmanager
def exiting_at_sigterm() -> Iterator[None]:
    """Leave the block by SystemExit with the status of what is to be continued when SIGTERM comes.

    `train` has its own way with the signal while there are processes to pass it on to.
    """
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _check_processes(settings: TrainSettings) -> None:
    if settings.fsdp and settings.processes == 1:
        raise InputError(
            "train.fsdp deals the base out to several processes, and train.processes is 1; "
            "set train.processes to the number of GPUs, or train.fsdp to false"
        )
    together = [name for name in ("early_stopping", "quantize_base") if getattr(settings, name) != "none"]
    if settings.fsdp and together:
        raise InputError(f"train.fsdp does not go together with train.{together[0]}; set one of them to its default")
    if settings.processes > 1:
        import torch  # takes seconds

        gpus = torch.cuda.device_count()
        if 0 < gpus < settings.processes:
            raise InputError(
                f"train.processes is {settings.processes}, but this machine has {gpus} GPU{'s' * (gpus > 1)}; "
                "set train.processes to as many at most, or take another pool"
            )


def _checkpoint_to_go_on_from(checkpoints: Path) -> Path | None:
    newest = newest_complete(checkpoints)
    remove_newer(checkpoints, newest)
    if newest:
        print(f"note: going on from {newest}", file=sys.stderr, flush=True)
    return newest


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


def _run(command: list[str], lock: int) -> tuple[int, int]:
    """Run the command in a process group of its own; returns its exit status and the signal that came, or 0."""
    # The pipe is never written to. It closes when this process dies, of whatever, and training ends with it.
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        start_new_session=True,
        pass_fds=(lock,),
        env={**ENVIRONMENT, **os.environ},
    )
    with _passing_signals_on(process) as received:
        status = process.wait()
        _wait_for_all(process)
    return status, received[0] if received else 0


@contextmanager
def _passing_signals_on(process: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    """Pass SIGTERM and SIGINT on as SIGTERM to a process group; yields the list of those received.

    `accelerate launch` passes it on to several training processes, which have groups of their own. What is still there
    `GRACE_SECONDS` after the first is killed.
    """
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        if not received:
            signal.alarm(GRACE_SECONDS)
        received.append(number)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)

    handlers = {signal.SIGTERM: pass_on, signal.SIGINT: pass_on, signal.SIGALRM: lambda *_: _kill_all(process)}
    # Python lets only the main thread have handlers; elsewhere the signals are the caller's.
    is_main = threading.current_thread() is threading.main_thread()
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items() if is_main}
    try:
        yield received
    finally:
        if is_main:
            signal.alarm(0)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait_for_all(process: "subprocess.Popen[bytes]") -> None:
    """Wait until all that the command started is gone, and kill what takes too long.

    `accelerate launch` dies of SIGTERM at once, while a training process is still saving a checkpoint.
    """
    assert process.stdin is not None
    poll = select.poll()
    with suppress(ValueError):  # closed, so all were killed
        poll.register(process.stdin, 0)  # reported is only that nobody is left who could read the pipe
        poll.poll(1000 * GRACE_SECONDS)
    _kill_all(process)


def _kill_all(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    process.stdin.close()  # which ends training processes in whatever group
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _answer_for(job: TrainingJob, status: int, signal_number: int, kills: int) -> None:
    """Return if there is an adapter, else raise what ended training."""
    word = json.loads(job.ending.read_bytes()) if job.ending.exists() else {"kind": ""}
    if word["kind"] == FINISHED:
        return
    if word["kind"]:
        raise FAILURES[word["kind"]](word["message"])
    if signal_number:
        print("note: training was stopped; the same command goes on from its newest checkpoint", file=sys.stderr)
        raise SystemExit(128 + signal_number)
    if kills_for_memory() > kills:
        raise InputError(
            f"training was killed because the container has no more memory; {REMEDIES}, or with more memory"
        )
    raise ServiceError(f"training ended with exit status {status} and no adapter; its output says why")
