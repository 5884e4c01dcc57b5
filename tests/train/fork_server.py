"""Pods of the train step, forked from a process that has all imports behind it: a start takes a second, not fifteen.

    python -m tests.train.fork_server < pods, one JSON object a line

A pod is a process of its own, and so are the training processes that its launcher starts. In the place of `accelerate
launch`, which gives them nothing but environment variables, there is `ForkedAccelerate`. Printed is the id of a pod, and how it
ended.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import transformers.models.qwen2.modeling_qwen2  # noqa: F401  # it would be imported at the first use

from chatmetrics.components.train import fine_tune, launch
from chatmetrics.components.train.checkpoints import upload as durable
from chatmetrics.components.train.component import train
from chatmetrics.components.train.model import answer_loss
from tests.storage.s3 import free_port

TRAINERS = "trainers"


class ForkedAccelerate:
    """What `subprocess.Popen` of `accelerate launch` is to the launcher: the training processes, which it ends with.

    Their ids are in a file of the pod's disk.
    """

    def __init__(self, command: list[str], **_: Any) -> None:
        self._processes = int(command[command.index("--num_processes") + 1])
        reader, writer = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.setsid()
            os.dup2(reader, 0)
            os.closerange(reader, writer + 1)
            sys.argv = command[-2:]
            end_after(self._run)
        os.close(reader)
        self.stdin = os.fdopen(writer, "wb")

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _run(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        environment = {"WORLD_SIZE": self._processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        trainers: list[int] = []
        for rank in range(self._processes):
            trainers.append(os.fork())
            if not trainers[-1]:
                if self._processes > 1:
                    ranked = {**environment, "RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": self._processes}
                    os.environ.update({name: str(value) for name, value in ranked.items()})
                end_after(fine_tune.main)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (Path(tempfile.gettempdir()) / TRAINERS).write_text(json.dumps(trainers))
        for _ in trainers:
            ended, status = os.wait()
            trainers.remove(ended)
            if status:
                for trainer in trainers:
                    os.kill(trainer, signal.SIGTERM)
                sys.exit(1)


def end_after(work: Callable[[], None]) -> None:
    """End this process as Python would after its main program."""
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


def pod(settings: dict[str, Any], dataset: str, base: str, checkpoints: str, run: str, folder: str) -> None:
    """The train step's component in a pod whose disk is `folder`."""
    log = os.open(f"{folder}/log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    tempfile.tempdir = folder
    artifacts = {name: SimpleNamespace(path=f"{folder}/{name}", metadata={}) for name in ("adapter", "curve")}
    metrics = SimpleNamespace(path=f"{folder}/metrics", log_metric=lambda *_: None)
    data = SimpleNamespace(path=dataset)
    train.python_func(settings, data, base, checkpoints, metrics=metrics, logs_uri=run, **artifacts)


def main() -> None:
    launch.subprocess = SimpleNamespace(Popen=ForkedAccelerate, PIPE=subprocess.PIPE)  # type: ignore[assignment]
    durable.POLL_SECONDS = 0.2
    answer_loss.LOGITS_AT_ONCE = 2**13  # several pieces, as of a vocabulary that is not tiny
    gc.collect()
    gc.freeze()  # else every child's first collection copies all of the memory that they share
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            os.setsid()
            end_after(lambda: pod(**request))  # noqa: B023  # a child does not go on with the loop
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    os._exit(0)  # there is nothing to tidy up


if __name__ == "__main__":
    main()
