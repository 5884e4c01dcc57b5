"""A server that forks the processes of training tests from one that has imported everything: they start at once.

    python -m tests.train.fork_server SOCKET

Starting Python, torch and transformers takes about ten seconds of CPU time; a fork takes none of it. The server reads
requests from a Unix socket, one at a time, and answers each with the id of the new process and later its exit status:

- a *pod* runs the train step's component, with the launcher in it;
- a *launch* is what `accelerate launch` starts for a launcher that runs in the test's own process.

In both, `ForkedLaunch` or `launch` replaces the program `accelerate launch`, which gives its training processes only
environment variables.
"""

import gc
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bitsandbytes.functional  # noqa: F401  # imported here and not at their first use
import transformers.models.qwen2.modeling_qwen2  # noqa: F401

from chatmetrics.components.train import fine_tune
from chatmetrics.components.train import launch as launcher
from chatmetrics.components.train.checkpoints import upload
from chatmetrics.components.train.component import train
from chatmetrics.components.train.model import answer_loss
from tests.ports import free_port
from tests.train.simulated_pods import TRAINING_PROCESSES

MAX_REQUEST = 2**20


class ForkedLaunch:
    """Replaces `subprocess.Popen` of `accelerate launch` in a pod: forks the training processes."""

    def __init__(self, command: list[str], **_: Any) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.setsid()
            os.dup2(reader, 0)
            os.closerange(reader, writer + 1)
            exit_after(lambda: launch(command, Path(tempfile.gettempdir()) / TRAINING_PROCESSES))
        os.close(reader)
        self.stdin = os.fdopen(writer, "wb")

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def launch(command: list[str], ids: Path | None = None) -> None:
    """Do what `accelerate launch` does with this command; the ids of the training processes are written to a file."""
    processes = int(command[command.index("--num_processes") + 1])
    sys.argv = command[-2:]
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    environment = {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    children: list[int] = []
    for rank in range(processes):
        children.append(os.fork())
        if not children[-1]:
            if processes > 1:
                ranked = {**environment, "RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": processes}
                os.environ.update({name: str(value) for name, value in ranked.items()})
            exit_after(fine_tune.main)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if ids:
        ids.write_text(json.dumps(children))
    for _ in children[:]:
        ended, status = os.wait()
        children.remove(ended)
        if status:
            for child in children:
                os.kill(child, signal.SIGTERM)
            sys.exit(1)


def exit_after(work: Callable[[], None]) -> None:
    """Run the work and end this process as Python would after its main program."""
    status = 1
    try:
        work()
        status = 0
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run_pod(settings: dict[str, Any], dataset: str, base: str, checkpoints: str, run: str, folder: str) -> None:
    """Run the train step's component in a pod whose disk is `folder`."""
    log = os.open(f"{folder}/log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    tempfile.tempdir = folder
    launcher.subprocess = SimpleNamespace(Popen=ForkedLaunch, PIPE=subprocess.PIPE)  # type: ignore[assignment]
    upload.POLL_SECONDS = 0.2
    answer_loss.LOGITS_AT_ONCE = 2**13  # several pieces, as with a vocabulary that is not tiny
    artifacts = {name: SimpleNamespace(path=f"{folder}/{name}", metadata={}) for name in ("adapter", "curve")}
    metrics = SimpleNamespace(path=f"{folder}/metrics", log_metric=lambda *_: None)
    data = SimpleNamespace(path=dataset)
    train.python_func(settings, data, base, checkpoints, metrics=metrics, logs_uri=run, **artifacts)


def run_launch(command: list[str], limits: dict[str, list[int]], files: list[int]) -> None:
    """Run the command of a launcher in another process, with its limits, its standard streams and its lock file."""
    for number, file in enumerate(files[:3]):
        os.dup2(file, number)
    for name, values in limits.items():
        resource.setrlimit(getattr(resource, name), (values[0], values[1]))
    launch(command)


def serve(connection: socket.socket) -> None:
    connection.sendall(b"ready\n")
    while True:
        data, files, _, _ = socket.recv_fds(connection, MAX_REQUEST, 16)
        if not data:
            return
        request = json.loads(data)
        child = os.fork()
        if not child:
            os.setsid()
            connection.close()
            os.environ.clear()
            os.environ.update(request["environment"])
            work = run_pod if request["kind"] == "pod" else lambda **options: run_launch(files=files, **options)  # noqa: B023
            exit_after(lambda: work(**request["options"]))  # noqa: B023  # the child leaves the loop
        for file in files:
            os.close(file)
        connection.sendall(f"{child}\n".encode())
        connection.sendall(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n".encode())


if __name__ == "__main__":
    gc.collect()
    gc.freeze()  # otherwise the first collection of each child would copy all the memory that they share
    serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)  # nothing to clean up
