"""Pods of the train step, simulated as local processes, and launches of training processes in place of accelerate's.

Both are started by the fork server.
"""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from chatmetrics.components.train.settings import TrainSettings
from tests.waiting import wait_until

TRAINING_PROCESSES = "training-processes"  # file on a pod's disk with their ids

StartPod = Callable[..., "SimulatedPod"]


class ForkServer:
    """A running fork server, and the one process that it has started and not yet reported the end of."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._running = 0
        assert self._connection.recv(100) == b"ready\n"

    def start(
        self, kind: str, options: dict[str, Any], environment: dict[str, str], files: tuple[int, ...] = ()
    ) -> int:
        """Start a process and return its id. A process that a failed test left behind is killed first."""
        if self._running:
            with suppress(ProcessLookupError):
                os.killpg(self._running, signal.SIGKILL)
            self.exit_status()
        request = {"kind": kind, "options": options, "environment": environment}
        socket.send_fds(self._connection, [json.dumps(request).encode()], files)
        self._running = int(self._connection.recv(100))
        return self._running

    def exit_status(self) -> int:
        """Wait for the process to end."""
        status = int(self._connection.recv(100))
        self._running = 0
        return status


# Limits of launched processes only. The process of the tests may have more memory than a test allows, and a thread that
# gets none never starts, so that its creator waits forever.
LIMITS: dict[str, tuple[int, int]] = {}


@contextmanager
def running_fork_server() -> Iterator[ForkServer]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "tests.train.fork_server", str(theirs.fileno())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with ours, subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment) as process:
        theirs.close()
        yield ForkServer(ours)
        ours.close()
        process.wait(60)


def forked_launch(server: ForkServer) -> type:
    """A class that replaces `subprocess.Popen` of `accelerate launch` for a launcher in this process."""

    class RemoteLaunch:
        def __init__(
            self, command: list[str], env: dict[str, str] | None = None, pass_fds: tuple[int, ...] = (), **_: Any
        ) -> None:
            inherited = {name: resource.getrlimit(getattr(resource, name)) for name in ("RLIMIT_AS", "RLIMIT_FSIZE")}
            limits = {**inherited, **LIMITS}
            reader, writer = os.pipe()
            options = {"command": command, "limits": limits}
            self.pid = server.start("launch", options, env or dict(os.environ), (reader, 1, 2, *pass_fds))
            os.close(reader)
            self.stdin = os.fdopen(writer, "wb")

        def wait(self) -> int:
            return server.exit_status()

    return RemoteLaunch


@dataclass
class SimulatedPod:
    """A pod; its disk is a folder of its own, and its checkpoints are in a store or in a folder that outlives it."""

    id: int
    folder: Path
    checkpoints: str
    server: ForkServer

    def has_started(self) -> bool:
        """Whether its training processes are running, or have."""
        return (self.folder / TRAINING_PROCESSES).exists()

    def training_processes(self) -> list[int]:
        """Their ids."""
        return list(json.loads((self.folder / TRAINING_PROCESSES).read_text()))

    def last_step(self) -> int:
        """The last step in the run's progress log."""
        records = [record for path in self._checkpoint_files("progress.jsonl") for record in complete_records(path)]
        return max((int(record["step"]) for record in records), default=0)

    def is_writing_checkpoint(self) -> bool:
        return any(not (path / "sealed.json").exists() for path in self._checkpoint_files("checkpoint-*"))

    def _checkpoint_files(self, pattern: str) -> list[Path]:
        folder = Path(self.checkpoints)
        return list(folder.glob(pattern) if folder.is_absolute() else self.folder.glob(f"checkpoints-*/{pattern}"))

    def exit_status(self) -> int:
        """Wait for the pod and its training processes to end."""
        status = self.server.exit_status()
        if self.has_started():
            wait_until(lambda: all(map(has_ended, self.training_processes())), 120)
        return status

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def adapter_weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "adapter" / "adapter_model.safetensors")

    def loss_curve(self) -> list[tuple[float, ...]]:
        """Steps, losses and token counts of the run that ended in this pod."""
        names = ("step", "loss", "tokens", "computed_tokens")
        records = complete_records(self.folder / "adapter" / "progress.jsonl")
        return [tuple(record[name] for name in names) for record in records]


def complete_records(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def has_ended(process: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return True


def pod_starter(server: ForkServer, folder: Path, base: Path, dataset: Path) -> StartPod:
    """A function that starts one pod after the other.

    It takes the settings, the location of the checkpoints and of the run record and, if they are not the ones given
    here, the base model and dataset.
    """
    count = iter(range(1000))

    def start(settings: TrainSettings, checkpoints: str, run: str = "", **inputs: str) -> SimulatedPod:
        disk = folder / f"pod-{next(count)}"
        disk.mkdir()
        options = {"settings": settings.model_dump(), "checkpoints": checkpoints, "run": run, "folder": str(disk)}
        options |= {"dataset": str(dataset), "base": str(base), **inputs}
        environment = {**os.environ, "XDG_CACHE_HOME": f"{folder}/cache"}
        return SimulatedPod(server.start("pod", options, environment), disk, checkpoints, server)

    return start
