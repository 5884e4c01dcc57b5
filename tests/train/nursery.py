"""Pods of the train step, started by forking a process that has all imports behind it: twenty starts in seconds.

    python -m tests.train.nursery < pods, one JSON object a line

Each pod is a process of its own, and so is the training process that its launcher starts; only `accelerate launch`,
which hands one process nothing but environment variables, is left out. Of each pod, its id is printed.
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

from chatmetrics.components.train import durable, fine_tune, launch
from chatmetrics.components.train.component import train

TRAINER = "trainer"


class Forked:
    """What `subprocess.Popen` is to the launcher."""

    def __init__(self, command: list[str], **_: Any) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.setsid()
            os.dup2(reader, 0)
            os.closerange(reader, writer + 1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            sys.argv = command[-2:]
            end_after(fine_tune.main)
        os.close(reader)
        self.stdin = os.fdopen(writer, "wb")
        (Path(tempfile.gettempdir()) / TRAINER).write_text(str(self.pid))

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


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
    tempfile.tempdir = folder
    artifacts = {name: SimpleNamespace(path=f"{folder}/{name}", metadata={}) for name in ("adapter", "curve")}
    metrics = SimpleNamespace(path=f"{folder}/metrics", log_metric=lambda *_: None)
    data = SimpleNamespace(path=dataset)
    train.python_func(settings, data, base, checkpoints, metrics=metrics, logs_uri=run, **artifacts)


def main() -> None:
    launch.subprocess = SimpleNamespace(Popen=Forked, PIPE=subprocess.PIPE)  # type: ignore[assignment]
    durable.SECONDS_BETWEEN_LOOKS = 0.2
    gc.collect()
    gc.freeze()  # else every child's first collection copies all of the memory that they share
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            os.setsid()
            log = os.open(f"{request['folder']}/log", os.O_WRONLY | os.O_CREAT)
            os.dup2(log, 1)
            os.dup2(log, 2)
            end_after(lambda: pod(**request))  # noqa: B023  # the loop is over for this process
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    os._exit(0)  # there is nothing to tidy up


if __name__ == "__main__":
    main()
