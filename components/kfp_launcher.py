"""Time for a step to end after SIGTERM, which KFP's launcher, the step's parent in a pod, does not leave it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chatmetrics.components import console

LAUNCHER = b"/kfp-launcher/launch"  # its path in each pod of KFP, which its first argument names
PROCESSES = Path("/proc")


@contextmanager
def launcher_held() -> Iterator[None]:
    """Stop KFP's launcher while the block runs, so that a step has the pod's grace period to end after SIGTERM.

    A pod that is deleted sends SIGTERM to the launcher and to its child processes. The launcher does not handle it and
    ends, and with it the container, about a second later. While it is stopped, it does not get the signal. A guard
    process continues it when the block ends, or this process, however it ends: the container must not wait for a
    launcher that nobody continues.

    A launcher that publishes logs copies what a step prints. In the block the output goes where the launcher's own
    goes, so that nothing waits for it; KFP's log artifact then lacks it, and the pod's log does not.

    Nothing happens outside KFP's pods.
    """
    launcher = _launcher()
    output = _output_of(launcher) if launcher else ()
    if launcher and not output:
        console.warning("KFP's launcher cannot be held: after SIGTERM this step has about a second to end")
    if not launcher or not output:
        yield
        return
    # In a session of its own, so that SIGTERM does not reach it. `read` returns when the pipe is closed.
    command = ["sh", "-c", f"read -r _; kill -CONT {launcher}"]
    with _printing_to(output), subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):
        os.kill(launcher, signal.SIGSTOP)
        yield


@contextmanager
def _printing_to(output: tuple[int, ...]) -> Iterator[None]:
    """Print to these files instead of standard output and standard error, and close them."""
    before = os.dup(1), os.dup(2)
    try:
        _replace_output(output)
        yield
    finally:
        _replace_output(before)


def _replace_output(files: tuple[int, ...]) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    for standard, file in zip((1, 2), files, strict=True):
        os.dup2(file, standard)
        os.close(file)


def _launcher() -> int | None:
    """The process id of the launcher that started this process; None if it was started by something else."""
    process = os.getppid()
    while process:
        try:
            arguments = (PROCESSES / str(process) / "cmdline").read_bytes()
            # After the name, which is in brackets and may contain any character: the state, and the parent.
            parent = (PROCESSES / str(process) / "stat").read_bytes().rpartition(b")")[2].split()[1]
        except OSError:
            return None
        if arguments.partition(b"\0")[0] == LAUNCHER:
            return process
        process = int(parent)
    return None


def _output_of(process: int) -> tuple[int, ...]:
    """Open a process's standard output and standard error; empty if this is not permitted."""
    opened: list[int] = []
    try:
        for standard in (1, 2):
            opened.append(os.open(PROCESSES / str(process) / "fd" / str(standard), os.O_WRONLY))
    except OSError:
        for file in opened:
            os.close(file)
        return ()
    return tuple(opened)
