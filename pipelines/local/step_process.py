"""One step as a child process: its output goes to a log, its exit status is returned, it never outlives us."""

import os
import re
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from pydoc import locate

from chatmetrics.components.errors import StorageError, UserError
from chatmetrics.pipelines.steps_view import StepError

GRACE_SECONDS = 30  # time for training to save a checkpoint after SIGTERM

# A background shell waits until the other end of its standard input is closed, which happens when we close it or die,
# even by SIGKILL. Then it ends the step's whole process group: SIGTERM first, SIGKILL after the grace period.
GUARD = """
exec 3<&0
(trap "" TERM; read -r _ <&3; kill -TERM 0; sleep "$0"; kill -KILL 0) >/dev/null 2>&1 &
exec 3<&- </dev/null
exec "$@"
"""

ERROR_LINES = 100  # lines at the end of a log that are searched for an error; earlier errors may have been handled
USER_ERROR = re.compile(r"^(?:\[rank\d+\]: ?)?(chatmetrics(?:\.\w+)+): (.+)$")
OS_ERROR = re.compile(r"^(?:\[rank\d+\]: ?)?\w*Error: \[Errno \d+\] (.+)$")
OTHER_ERROR = re.compile(r"^(?:\[rank\d+\]: ?)?((?:\w+\.)*\w+(?:Error|Exception|Exit)\b.*)$")


def run_child(command: Sequence[str], log: Path, on_line: Callable[[str], None]) -> int:
    """Run a command to its end and return its exit status, or minus the number of the signal that ended it.

    Standard output and error are appended to `log` and passed to `on_line`, line by line. If we are interrupted or
    killed, the command and all its children get SIGTERM, and SIGKILL after `GRACE_SECONDS`.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("a", encoding="utf-8", buffering=1) as file,
        subprocess.Popen(
            ["sh", "-c", GUARD, str(GRACE_SECONDS), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                on_line(line.rstrip("\n"))
            return process.wait()
        except KeyboardInterrupt:
            process.stdin.close()
            file.writelines(process.stdout)  # until all processes of the group have ended
            raise
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def step_error(step: str, log: Path, exit_status: int) -> UserError:
    """Return the error of a failed step in one line, from the traceback at the end of its log.

    A `UserError` raised in the step is returned as the same class with the same text, which keeps its exit status.
    """
    lines = log.read_text("utf-8", errors="replace").splitlines() if log.exists() else []
    where = f"log: {log}"
    for line in reversed(lines[-ERROR_LINES:]):
        if match := USER_ERROR.match(line):
            found = locate(match[1])
            kind = found if isinstance(found, type) and issubclass(found, UserError) else StepError
            return kind(f"{step}: {match[2]} ({where})")
        if match := OS_ERROR.match(line):
            return StorageError(f"{step}: {match[1]} ({where})")
        if match := OTHER_ERROR.match(line):
            return StepError(f"{step} failed: {match[1][:300]} ({where})")
    if exit_status < 0:
        return StepError(f"{step} was killed by {signal.Signals(-exit_status).name}, perhaps out of memory ({where})")
    return StepError(f"{step} ended with exit status {exit_status} ({where})")
