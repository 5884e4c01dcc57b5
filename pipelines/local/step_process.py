"""One step as a child process: its output goes to a log, its end and its error come back, and it never outlives us."""

import os
import re
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from pydoc import locate

from chatmetrics.components.errors import StorageError, UserError

GRACE_SECONDS = 30  # what training gets to save a checkpoint after SIGTERM

# Waits for the other end of its standard input to close, which happens when we close it or die in whatever way, and
# then ends the step's whole process group.
GUARD = """
exec 3<&0
(trap "" TERM; read -r _ <&3; kill -TERM 0; sleep "$0"; kill -KILL 0) >/dev/null 2>&1 &
exec 3<&- </dev/null
exec "$@"
"""

ERROR_LINES = 100  # the end of a log in which its error is looked for; what stands before may have been survived
USER_ERROR = re.compile(r"^(?:\[rank\d+\]: ?)?(chatmetrics(?:\.\w+)+): (.+)$")
OS_ERROR = re.compile(r"^(?:\[rank\d+\]: ?)?\w*Error: \[Errno \d+\] (.+)$")
OTHER_ERROR = re.compile(r"^(?:\[rank\d+\]: ?)?((?:\w+\.)*\w+(?:Error|Exception|Exit)\b.*)$")


class StepError(UserError):
    """A step ended in a way that it did not foresee itself."""


def run_child(command: Sequence[str], log: Path, on_line: Callable[[str], None]) -> int:
    """Run a command to its end and return its exit status, or minus the signal that ended it.

    Standard output and error are written to `log` and handed to `on_line`, line by line. When we are interrupted,
    or killed, the command and all its children are told to end, and killed if they have not after `GRACE_SECONDS`.
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
            file.writelines(process.stdout)  # until all of them are gone
            raise
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def error_of(step: str, log: Path, exit_status: int) -> UserError:
    """Make the one-line error of a failed step from the traceback at the end of its log.

    A step's own `UserError` comes back as the same class with the same text, so that its exit status is kept.
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
        return StepError(f"{step} was killed by {signal.Signals(-exit_status).name}, perhaps for memory ({where})")
    return StepError(f"{step} ended with exit status {exit_status} ({where})")
