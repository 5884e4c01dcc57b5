"""A child process that ends with its parent, says what it is waiting for, and shows its log when it fails."""

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

from chatmetrics.components.console import SECONDS_BETWEEN_LINES
from chatmetrics.components.errors import ServiceError

PR_SET_PDEATHSIG = 1  # linux/prctl.h
STOP_TIMEOUT = 15.0
LOG_LINES = 8


class ChildProcess:
    """Context manager: runs `command` in a session of its own and ends it on leaving.

    The child also gets SIGTERM when this process dies, however that happens (Linux only). A session of its own keeps
    the terminal's Ctrl-C away from it, so that its owner decides when it ends.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._name = name
        self._command = [sys.executable, "-m", __name__, str(os.getpid()), *command]
        self._environment = environment

    def __enter__(self) -> Self:
        # A file and not a pipe: nobody has to read it while the child runs. It has no name, so nothing is left behind.
        # Opened to append, because parent and child share one file position.
        self._log = tempfile.TemporaryFile("a+b")
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
        """Whether the child is still there."""
        return self._process.poll() is None

    def wait_until(self, ready: Callable[[], bool], timeout: float) -> None:
        """Wait until `ready()`, printing a line every two seconds.

        Raises:
            ServiceError: the child ended first, or `timeout` seconds passed; the log's end goes to standard error.
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
                print(f"{self._name}: starting, {now - started:.0f} s", file=sys.stderr, flush=True)
            time.sleep(0.05)

    def failure(self, reason: str) -> ServiceError:
        """The error that says `reason`; prints the end of the child's log to standard error."""
        lines = self.log().splitlines()[-LOG_LINES:]
        print(*(f"  {self._name} | {line}" for line in lines), sep="\n", file=sys.stderr, flush=True)
        return ServiceError(f"{self._name} {reason}; the end of its log is above")

    def log(self) -> str:
        """What the child has written so far."""
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")


class ServerProcess(ABC):
    """Context manager: a child process that answers HTTP requests at `endpoint` from the moment it is entered."""

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
        """Wait until the started child can answer; what `stack` is given is closed before the child ends."""

    @property
    def running(self) -> bool:
        """Whether the server process is still there."""
        return self._child.running


def free_port(port: int = 0, host: str = "127.0.0.1") -> int:
    """`port` if nobody listens there, or for 0 one that the system picks.

    Raises:
        ServiceError: the port is taken or may not be used.
    """
    with bound_socket(port, host) as candidate:
        return int(candidate.getsockname()[1])


def bound_socket(port: int, host: str = "127.0.0.1") -> socket.socket:
    """A TCP socket bound to `host` and `port` (0: one that the system picks); it does not listen yet.

    Raises:
        ServiceError: the port is taken or may not be used.
    """
    # With the protocol named, without which asyncio leaves out TCP_NODELAY, and short answers wait for 40 ms.
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        reason = getattr(error, "strerror", None) or error
        raise ServiceError(
            f"cannot listen on {host}:{port}: {reason}; stop what runs there or take another port"
        ) from error
    return bound


def _reason(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    killed = f"was ended by {signal.Signals(-status).name}"
    return f"{killed}, probably for lack of memory" if -status == signal.SIGKILL else killed


def _become(parent: int, command: list[str]) -> None:
    """Tie this process to `parent` and become `command`: the signal set here survives exec."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before we asked to be told
        sys.exit(1)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
