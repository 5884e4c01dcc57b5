"""Child processes that end with their parent, report progress while they start, and show their log if they fail."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from chatmetrics.components import console
from chatmetrics.components.console import SECONDS_BETWEEN_LINES
from chatmetrics.components.errors import ServiceError

PR_SET_PDEATHSIG = 1  # linux/prctl.h
STOP_TIMEOUT = 15.0
LOG_LINES = 8


class ChildProcess:
    """Context manager that runs `command` in a new session and ends it on exit.

    The child also gets SIGTERM if this process dies for any reason (Linux only). In a new session it does not receive
    the terminal's Ctrl-C, so that this process decides when it ends.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._name = name
        self._command = [sys.executable, "-m", __name__, str(os.getpid()), *command]
        self._environment = environment

    def __enter__(self) -> Self:
        # A file instead of a pipe, so that it need not be read while the child runs. It has no name, so it disappears
        # with the process.
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._log.close()

    @property
    def running(self) -> bool:
        """Whether the child is still running."""
        return self._process.poll() is None

    def wait_until(self, ready: Callable[[], bool], timeout: float) -> None:
        """Wait until `ready()` is true, and print a line every two seconds.

        Raises:
            ServiceError: the child ended first, or `timeout` seconds passed. The end of its log is printed.
        """
        started = printed = time.monotonic()
        while not ready():
            now = time.monotonic()
            if not self.running:
                raise self.failure(_reason(self._process.returncode))
            if now - started > timeout:
                raise self.failure(f"was not ready after {timeout:.0f} s")
            if now - printed >= SECONDS_BETWEEN_LINES:
                printed = now
                console.info(f"{self._name}: starting, {now - started:.0f} s")
            time.sleep(0.05)

    def failure(self, reason: str) -> ServiceError:
        """Print the end of the child's log, and return an error with `reason`."""
        for line in self.log().splitlines()[-LOG_LINES:]:
            console.info(f"  {self._name} | {line}")
        return ServiceError(f"{self._name} {reason}; the end of its log is above")

    def log(self) -> str:
        """The child's output so far."""
        # Without moving the file position, at which the child writes.
        content = os.pread(self._log.fileno(), os.fstat(self._log.fileno()).st_size, 0)
        return content.decode("utf-8", "replace")


class ServerProcess(ABC):
    """Context manager of a child process that serves HTTP at `endpoint`. Once entered, it answers requests."""

    def __init__(self, child: ChildProcess, endpoint: str) -> None:
        self._child = child
        self.endpoint = endpoint

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._child)
            self._make_ready(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @abstractmethod
    def _make_ready(self, stack: ExitStack) -> None:
        """Wait until the child can answer. Contexts that are added to `stack` are exited before the child ends."""

    @property
    def running(self) -> bool:
        """Whether the server process is still running."""
        return self._child.running


def free_port(port: int = 0, host: str = "127.0.0.1") -> int:
    """Check that a port is free; for 0, return a free port.

    Raises:
        ServiceError: the port is in use or not permitted.
    """
    with bound_socket(port, host) as candidate:
        return int(candidate.getsockname()[1])


def bound_socket(port: int, host: str = "127.0.0.1") -> socket.socket:
    """A TCP socket that is bound to `host` and `port` (0 for any free port) but does not listen yet.

    Raises:
        ServiceError: the port is in use or not permitted.
    """
    # The protocol is explicit, because asyncio otherwise does not set TCP_NODELAY, which delays short answers by 40 ms.
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        reason = getattr(error, "strerror", None) or error
        raise ServiceError(
            f"cannot listen on {host}:{port}: {reason}; stop the program that uses the port, or choose another port"
        ) from error
    return bound


def _reason(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    killed = f"was ended by {signal.Signals(-status).name}"
    return f"{killed}, probably because it ran out of memory" if -status == signal.SIGKILL else killed


def _become(parent: int, command: list[str]) -> None:
    """Replace this process by `command`, which gets SIGTERM when `parent` dies: the setting survives exec."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # the parent died before the signal was set
        sys.exit(1)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
