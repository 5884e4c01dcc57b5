"""Worker processes for untrusted SQL: started, spoken to line by line, and killed."""

import json
import os
import select
import subprocess
import sys
from collections import deque
from pathlib import Path

from chatmetrics.components.errors import ServiceError

START_SECONDS = 10.0
PIPE_BYTES = 1 << 16


class WorkerProcess:
    """A process that runs a script, and the output of it that is not read yet.

    The script gets the limits as JSON in its argument, writes a line when it is ready, and then answers lines.

    Args:
        script: the script.
        limits: what it has to enforce.
        has_packages: whether it may import installed packages; without, it starts in 10 ms.
    """

    def __init__(self, script: Path, limits: dict[str, float], has_packages: bool = False) -> None:
        # Isolated (-I), without site-packages (-S). The environment may contain secrets. Packages are where this
        # process has them: in an image PYTHONPATH names their folders, which -I would ignore.
        options = ["-P", "-s"] if has_packages else ["-I", "-S"]
        folders = [folder for folder in sys.path if Path(folder).is_absolute()]
        environment = {"PYTHONPATH": os.pathsep.join(folders)} if has_packages else {}
        command = [sys.executable, *options, str(script), json.dumps(limits)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment
        )
        self._lines: deque[bytes] = deque()  # complete lines
        self._begun: list[bytes] = []  # parts of the line that is not complete
        try:
            self.read_line(START_SECONDS)
        except (TimeoutError, EOFError) as error:
            self.kill()
            raise ServiceError(
                f"the SQL worker process did not start, status {self._process.returncode}: {command[:-1]}"
            ) from error

    def write_line(self, line: bytes) -> None:
        """Send a request. Raises `BrokenPipeError` if the worker has ended."""
        assert self._process.stdin is not None
        rest = memoryview(line + b"\n")
        while rest:
            rest = rest[self._process.stdin.write(rest) :]

    def read_line(self, seconds: float) -> bytes:
        """Read a line. Raises `TimeoutError` if none begins in time, `EOFError` if the worker has ended."""
        assert self._process.stdout is not None
        if not self._lines and not self._begun:
            poll = select.poll()
            poll.register(self._process.stdout, select.POLLIN)
            if not poll.poll(seconds * 1000):
                raise TimeoutError
        while not self._lines:
            part = self._process.stdout.read(PIPE_BYTES)
            if not part:
                raise EOFError
            *complete, rest = part.split(b"\n")
            if complete:
                complete[0] = b"".join([*self._begun, complete[0]])
                self._begun.clear()
                self._lines.extend(complete)
            if rest:
                self._begun.append(rest)
        return self._lines.popleft()

    def wait(self) -> int:
        """The exit status of a worker that has ended."""
        return self._process.wait()

    def kill(self) -> None:
        """End the worker at once."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
