"""A step's log and state, kept in the run's folder so that they outlive the pod."""

import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from chatmetrics.components import console
from chatmetrics.components.errors import EXIT_INTERRUPTED, GateError, InputError, StorageError, UserError
from chatmetrics.components.redaction import one_line
from chatmetrics.components.storage.files import full_disk
from chatmetrics.components.storage.store import open_store

RUN = "CHATMETRICS_RUN"  # environment variables of a pipeline's pods
NODE = "CHATMETRICS_NODE"
PLACEHOLDER = "{run}"
SECONDS_BETWEEN_COPIES = 5.0
LOG_BYTES = 4 * 2**20
REASON_CHARACTERS = 500
# Errors that a retry cannot fix. After these minutes a retry runs again, since the input may have been corrected.
MINUTES_FINAL = 30
FINAL: dict[str, type[UserError]] = {kind.__name__: kind for kind in (InputError, GateError)}


def with_run_id(uri: str) -> str:
    """Replace `{run}` in a URI by the id of the KFP run.

    The id is not a pipeline parameter, because it would then be part of every cache key.

    Raises:
        InputError: this process is not a pod of a run, and without an id runs would share the folder.
    """
    if PLACEHOLDER not in uri:
        return uri
    if not os.environ.get(RUN):
        raise InputError(f"{uri}: {RUN} is not set, so the run's id is unknown; use a URI without {PLACEHOLDER}")
    return uri.replace(PLACEHOLDER, os.environ[RUN])


def with_round(name: str, round: int, separator: str = "-") -> str:
    """Append the round to a step's name or to a folder. Round 0 is the last or only round and appends nothing."""
    return f"{name}{separator}round-{round}" if round else name


@contextmanager
def recorded(step: str, run_uri: str) -> Iterator[dict[str, str]]:
    """Keep a step's log and state in the run's folder while the block runs.

    Two files are written. `steps/<step>.log` is updated every few seconds. `steps/<step>.json` holds the state, times
    and node and, when the block raises, the reason in one line. The state is `running`, `succeeded`, `failed` or, after
    SIGTERM, `interrupted`. The block gets a dict whose entries are added to the JSON when it succeeds; `summary` is a
    line for the run's summary.

    A retry appends to the earlier log. It fails at once when an earlier attempt failed less than half an hour ago with
    an error that a retry cannot fix. A store that does not answer is reported and otherwise ignored, since it must not
    fail a working step.

    Args:
        step: name of both files.
        run_uri: the run's folder, with `{run}` for the id of the KFP run. Empty writes nothing.

    Raises:
        InputError: an earlier attempt raised it.
        GateError: an earlier attempt raised it.
    """
    further: dict[str, str] = {}
    if not run_uri:
        yield further
        return
    record = _Record(with_run_id(run_uri), step)
    earlier = record.read()
    if earlier.get("kind") in FINAL and _age_in_minutes(earlier["ended"]) < MINUTES_FINAL:
        raise FINAL[earlier["kind"]](earlier["reason"])
    state = {
        "step": step,
        "state": "running",
        "started": earlier.get("started", _now()),
        "node": os.environ.get(NODE, ""),
    }
    record.write(state)
    for noisy in ("botocore", "boto3", "httpx"):  # KFP's executor sets the level to INFO, which logs every request
        logging.getLogger(noisy).setLevel(logging.WARNING)
    with record.logging():
        try:
            yield further
        except BaseException as raised:
            error = full_disk(raised) or raised  # whatever a library made of it
            interrupted = isinstance(error, SystemExit) and error.code == EXIT_INTERRUPTED
            # KFP's executor prints the error too, but only after the log is closed.
            if isinstance(error, UserError):
                console.error(error)
            elif not interrupted:
                console.info(traceback.format_exc())
            end = {"state": "interrupted" if interrupted else "failed", "kind": _kind(error), "reason": _reason(error)}
            record.write({**state, **end, "ended": _now()})
            if error is raised:
                raise
            raise error from raised
    record.write({**state, **further, "state": "succeeded", "ended": _now()})


class _Record:
    def __init__(self, run_uri: str, step: str) -> None:
        self._store = open_store(run_uri)
        self._log, self._json = f"steps/{step}.log", f"steps/{step}.json"

    def read(self) -> dict[str, str]:
        """Read the state that an earlier attempt wrote; empty for the first attempt."""
        found: list[bytes] = []
        self._try(lambda: found.append(self._store.read_bytes(self._json) if self._store.exists(self._json) else b"{}"))
        return dict(json.loads(b"".join(found) or b"{}"))

    def write(self, state: dict[str, str]) -> None:
        """Write the state to the store."""
        self._try(lambda: self._store.put_bytes(json.dumps(state, indent=2).encode(), self._json, overwrite=True))

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Also copy everything that this process and its children print to the store."""
        with TemporaryDirectory(prefix="log-") as folder:
            log = Path(folder) / "log"
            log.write_bytes(self._earlier())
            ended = threading.Event()
            copier = threading.Thread(target=self._copy, args=(log, ended), daemon=True)
            copier.start()
            try:
                with _teed(log):
                    yield
            finally:
                ended.set()
                copier.join()

    def _earlier(self) -> bytes:
        earlier: list[bytes] = []
        self._try(lambda: earlier.append(self._store.read_bytes(self._log) if self._store.exists(self._log) else b""))
        return b"".join(earlier) + b"--- next attempt ---\n" if any(earlier) else b""

    def _copy(self, log: Path, ended: threading.Event) -> None:
        copied = 0
        while True:
            is_last = ended.wait(SECONDS_BETWEEN_COPIES)
            if log.stat().st_size != copied:
                data = log.read_bytes()
                copied = len(data)
                self._try(partial(self._store.put_bytes, data[-LOG_BYTES:], self._log, overwrite=True))
            if is_last:
                return

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except StorageError as error:
            console.warning(f"the run's record is incomplete: {error}")


@contextmanager
def _teed(log: Path) -> Iterator[None]:
    """Also write standard output and standard error, including that of child processes, to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    terminal = os.dup(1), os.dup(2)
    os.dup2(writer, 1)
    os.dup2(writer, 2)
    os.close(writer)
    thread = threading.Thread(target=_pass_on, args=(reader, terminal[1], log), daemon=True)
    thread.start()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(terminal[0], 1)
        os.dup2(terminal[1], 2)
        # A child process that is still running may hold the pipe open; its output is no longer copied.
        thread.join(timeout=1)
        for descriptor in terminal:
            os.close(descriptor)


def _pass_on(reader: int, terminal: int, log: Path) -> None:
    with log.open("ab", buffering=0) as file, os.fdopen(reader, "rb", buffering=0) as pipe:
        while data := pipe.read(1 << 16):
            os.write(terminal, data)
            file.write(data)


def _reason(error: BaseException) -> str:
    message = one_line(error, REASON_CHARACTERS)
    if isinstance(error, UserError):
        return message
    if isinstance(error, SystemExit) and error.code == EXIT_INTERRUPTED:
        return "interrupted by SIGTERM; resumes when it is started again"
    if isinstance(error, SystemExit):
        return f"ended with exit status {error.code}"
    return f"{type(error).__name__}: {message}"


def _kind(error: BaseException) -> str:
    """The name of the class in `errors` that decides the exit status, or of the error's own class."""
    known = (kind.__name__ for kind in type(error).__mro__ if kind.__module__ == UserError.__module__)
    return next(known, type(error).__name__)


def _age_in_minutes(time: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds() / 60


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
