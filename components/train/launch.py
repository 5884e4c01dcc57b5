"""Starts the training processes with `accelerate launch`, waits for them, and raises the error that ended them."""

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

from chatmetrics.components.base_model.check import check_base_model
from chatmetrics.components.base_model.references import fingerprint, local_model
from chatmetrics.components.console import note
from chatmetrics.components.errors import EXIT_INTERRUPTED, InputError, ServiceError, StorageError, UserError
from chatmetrics.components.openmp import SHORT_SPIN
from chatmetrics.components.storage.files import sha256_of
from chatmetrics.components.train.checkpoints.checksums import (
    claim,
    locked,
    newest_complete,
    remove_newer,
    sealed_after,
)
from chatmetrics.components.train.job import FINISHED, TrainingJob
from chatmetrics.components.train.settings import TrainSettings
from chatmetrics.components.train.watch.out_of_memory import killed_for_memory, out_of_memory_error

GRACE_SECONDS = 25
ENVIRONMENT = {
    **SHORT_SPIN,
    # Otherwise glibc returns the memory of larger tensors to the kernel and gets it again, zeroed, in every step.
    # 32 MiB is the maximum of the first threshold.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
}
# Packs differ in length, so that a GPU's allocator with fixed segments soon holds much memory in pieces that no tensor
# fits into. torch 2.7 reads the first name, newer versions the second.
ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
ALLOCATOR = "expandable_segments:True"
FAILURES: dict[str, type[UserError]] = {kind.__name__: kind for kind in (InputError, ServiceError, StorageError)}


def train(
    settings: TrainSettings, dataset: Path, base_model: str, output: Path, checkpoints: Path, revision: str = ""
) -> None:
    """Train an adapter of the base model on the dataset; an interrupted run resumes from its newest checkpoint.

    SIGTERM and SIGINT are forwarded to all processes; training then saves a checkpoint and ends, unless it has just
    finished.

    Args:
        settings: the recipe's `train` section.
        dataset: folder with train.jsonl.
        base_model: a folder, URI or Hub name; see `local_model`.
        output: the adapter folder, which appears complete at the end or not at all.
        checkpoints: this run's checkpoint folder.
        revision: branch, tag or commit of a Hub name.

    Raises:
        InputError: the dataset, the base, the targets of the adapter, the checkpoints or the number of processes cannot
            be used, or the loss became NaN.
        ServiceError: training ended without an adapter, or ran out of memory after a new checkpoint.
        StorageError: a file could not be written.
        SystemExit: a signal arrived; the status of a run that can be resumed is 128 plus the signal's number.
    """
    _check_processes(settings)
    examples = dataset / "train.jsonl"
    if not examples.is_file():
        raise InputError(f"{examples}: no such file; give the folder that preprocess wrote")
    base_folder = local_model(base_model, revision)
    check_base_model(base_folder)
    _check_targets(base_folder, settings)
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
        job = job.model_copy(update={"resume_from": _checkpoint_to_resume_from(job.checkpoints)})
        config = Path(folder) / "job.json"
        config.write_text(job.model_dump_json(indent=2), encoding="utf-8")
        killed_before = killed_for_memory()
        status, signal_number = _run(_command(config, settings.processes), lock)
        _check_ending(job, status, signal_number, killed_before)


def _check_targets(base_folder: Path, settings: TrainSettings) -> None:
    # These take seconds to import.
    from chatmetrics.components.base_model.adapter_targets import check_targets
    from chatmetrics.components.train.model.base import lora_config

    check_targets(base_folder, lora_config(settings))


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Exit the block with SystemExit and the status of an interrupted run when SIGTERM arrives.

    `train` replaces this handler while there are processes to forward the signal to.
    """
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _check_processes(settings: TrainSettings) -> None:
    if settings.fsdp and settings.processes == 1:
        raise InputError(
            "train.fsdp shards the base across several processes, and train.processes is 1; "
            "set train.processes to the number of GPUs, or train.fsdp to false"
        )
    conflicting = [name for name in ("early_stopping", "quantize_base") if getattr(settings, name) != "none"]
    if settings.fsdp and conflicting:
        raise InputError(f"train.fsdp cannot be combined with train.{conflicting[0]}; set one of them to its default")
    if settings.processes > 1:
        import torch  # takes seconds

        gpus = torch.cuda.device_count()
        if 0 < gpus < settings.processes:
            raise InputError(
                f"train.processes is {settings.processes}, but this machine has {gpus} GPU{'s' * (gpus > 1)}; "
                "lower train.processes to that, or take another pool"
            )


def _checkpoint_to_resume_from(checkpoints: Path) -> Path | None:
    newest = newest_complete(checkpoints)
    remove_newer(checkpoints, newest)
    if newest:
        note(f"resuming from {newest}")
    return newest


def _command(config: Path, processes: int) -> list[str]:
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
    # Every option that a machine-wide accelerate configuration could change is given. The training process itself
    # determines the precision.
    launcher += ["--num_machines", "1", "--num_processes", str(processes)]
    launcher += ["--num_cpu_threads_per_process", str(threads)]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    launcher += ["--gpu_ids", gpus_for(processes, os.environ.get("CUDA_VISIBLE_DEVICES"))]
    if processes > 1:
        launcher += ["--multi_gpu", "--main_process_port", "0"]
    return [*launcher, "-m", "chatmetrics.components.train.fine_tune", str(config)]


def gpus_for(processes: int, visible: str | None) -> str:
    """The GPUs that training processes may see, as `CUDA_VISIBLE_DEVICES` lists them: one for each.

    transformers would use every GPU that a single process sees, and give each a part of the same pack.

    Args:
        processes: number of training processes.
        visible: this process's own `CUDA_VISIBLE_DEVICES`: indices, UUIDs or ids of MIG instances.
    """
    gpus = [str(index) for index in range(processes)] if visible is None else visible.split(",")
    return ",".join(gpu.strip() for gpu in gpus[:processes]) if len(gpus) >= processes else "all"


def _run(command: list[str], lock: int) -> tuple[int, int]:
    """Run the command in its own process group; return its exit status and the number of the signal received, or 0."""
    # Nothing is written to the pipe. It closes when this process dies, for whatever reason, and then training ends.
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        start_new_session=True,
        pass_fds=(lock,),
        env=_environment(),
    )
    with _forwarding_signals(process) as received:
        status = process.wait()
        _wait_for_all(process)
    return status, received[0] if received else 0


def _environment() -> dict[str, str]:
    """The environment of the training processes; what a user has set stays, and goes before our defaults."""
    allocator = {} if os.environ.keys() & set(ALLOCATOR_VARIABLES) else dict.fromkeys(ALLOCATOR_VARIABLES, ALLOCATOR)
    return {**ENVIRONMENT, **allocator, **os.environ}


@contextmanager
def _forwarding_signals(process: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    """Forward SIGTERM and SIGINT as SIGTERM to a process group; yields the list of the signals received.

    `accelerate launch` forwards it to its training processes if there are several, which have their own groups.
    Processes that still run `GRACE_SECONDS` after the first signal are killed.
    """
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        if not received:
            signal.alarm(GRACE_SECONDS)
        received.append(number)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)

    handlers = {signal.SIGTERM: forward, signal.SIGINT: forward, signal.SIGALRM: lambda *_: _kill_all(process)}
    # Only the main thread can set signal handlers; in another thread the caller handles signals.
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
    """Wait until all processes that the command started have ended, and kill those that take too long.

    `accelerate launch` ends at once at SIGTERM, while a training process is still saving a checkpoint.
    """
    assert process.stdin is not None
    poll = select.poll()
    with suppress(ValueError):  # already closed by `_kill_all`
        poll.register(process.stdin, 0)  # reports only that no process has the other end of the pipe any more
        poll.poll(1000 * GRACE_SECONDS)
    _kill_all(process)


def _kill_all(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    process.stdin.close()  # ends the training processes, whatever group they are in
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _check_ending(job: TrainingJob, status: int, signal_number: int, killed_before: int) -> None:
    """Return if the adapter was written, else raise the error that ended training."""
    ending = json.loads(job.ending.read_bytes()) if job.ending.exists() else {"kind": ""}
    if ending["kind"] == FINISHED:
        return
    if ending["kind"]:
        raise FAILURES[ending["kind"]](ending["message"])
    if signal_number:
        note("training was stopped; the same command resumes from its newest checkpoint")
        raise SystemExit(128 + signal_number)
    if killed_for_memory() > killed_before:
        raise out_of_memory_error(
            "training was killed because the container ran out of memory, of which cluster.requests can give it more",
            sealed_after(job.checkpoints, job.resume_from),
        )
    raise ServiceError(f"training ended with exit status {status} and no adapter; its output says why")
