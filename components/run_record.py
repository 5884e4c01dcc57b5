"""What a step leaves behind of itself in the run's folder, where it is found when the pod is long gone."""

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

from chatmetrics.components.errors import EXIT_INTERRUPTED, GateError, InputError, StorageError, UserError
from chatmetrics.components.storage.store import open_store

RUN = "CHATMETRICS_RUN"  # environment variables that a pod of a pipeline gets
NODE = "CHATMETRICS_NODE"
PLACEHOLDER = "{run}"
SECONDS_BETWEEN_COPIES = 5.0
LOG_BYTES = 4 * 2**20
REASON_CHARACTERS = 500
# What a second attempt cannot mend, unless somebody has mended the input in the meantime.
MINUTES_FINAL = 30
FINAL: dict[str, type[UserError]] = {kind.__name__: kind for kind in (InputError, GateError)}


def with_run_id(uri: str) -> str:
    """Put the id of the KFP run into a URI that has `{run}` in it.

    The id is not a parameter of the pipeline because it would be part of every cache key.

    Raises:
        InputError: this is no pod of a run, so that runs would share the folder.
    """
    if PLACEHOLDER not in uri:
        return uri
    if not os.environ.get(RUN):
        raise InputError(f"{uri}: {RUN} is not set, so there is no run to name the folder after")
    return uri.replace(PLACEHOLDER, os.environ[RUN])


def with_round(name: str, round: int, separator: str = "-") -> str:
    """A step's name, or a folder, of one of several rounds; 0 is the last or only round, which has the plain name."""
    return f"{name}{separator}round-{round}" if round else name


@contextmanager
def recorded(step: str, run_uri: str) -> Iterator[dict[str, str]]:
    """Keep the log of a step, and how it ended, in the run's folder while the block lasts.

    Written are steps/<step>.log, every few seconds, and steps/<step>.json: state, times, node and, when the block
    raises, the reason in one line; its state is then `failed`, or `interrupted` for what SIGTERM ended. The block gets
    a dict for what else is to stand there when it has ended well: under `summary`, a line for whoever reads how the run
    went. A second attempt adds to the log of the first, and ends at once when the first one failed for an input that is
    still the same. A store that does not answer is said and otherwise ignored: it must not end a step that works.

    Args:
        step: file name of both.
        run_uri: the run's folder, with `{run}` for the id of the KFP run; empty leaves all this out.

    Raises:
        InputError: an earlier attempt raised it, or its GateError.
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
    for noisy in ("botocore", "boto3", "httpx"):  # KFP's executor has everybody tell of every request
        logging.getLogger(noisy).setLevel(logging.WARNING)
    with record.logging():
        try:
            yield further
        except BaseException as error:
            interrupted = isinstance(error, SystemExit) and error.code == EXIT_INTERRUPTED
            # KFP's executor would print it only after the log is closed.
            if isinstance(error, UserError):
                print(f"error: {error}", file=sys.stderr)
            elif not interrupted:
                traceback.print_exc()
            how = {"state": "interrupted" if interrupted else "failed", "kind": _kind(error), "reason": _reason(error)}
            record.write({**state, **how, "ended": _now()})
            raise
    record.write({**state, **further, "state": "succeeded", "ended": _now()})


class _Record:
    def __init__(self, run_uri: str, step: str) -> None:
        self._store = open_store(run_uri)
        self._log, self._json = f"steps/{step}.log", f"steps/{step}.json"

    def read(self) -> dict[str, str]:
        """What an earlier attempt left; empty where there was none."""
        found: list[bytes] = []
        self._try(lambda: found.append(self._store.read_bytes(self._json) if self._store.exists(self._json) else b"{}"))
        return dict(json.loads(b"".join(found) or b"{}"))

    def write(self, state: dict[str, str]) -> None:
        """Put the state in the store."""
        self._try(lambda: self._store.put_bytes(json.dumps(state, indent=2).encode(), self._json, overwrite=True))

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Copy everything that this process and its children print to the store as well."""
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
            print(f"warning: the run's record is incomplete: {error}", file=sys.__stderr__, flush=True)


@contextmanager
def _teed(log: Path) -> Iterator[None]:
    """Send what is written to standard output and error, also by child processes, to a file as well."""
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
        # A child process that is left behind may still hold the pipe: what it says no longer counts.
        thread.join(timeout=1)
        for descriptor in terminal:
            os.close(descriptor)


def _pass_on(reader: int, terminal: int, log: Path) -> None:
    with log.open("ab", buffering=0) as file, os.fdopen(reader, "rb", buffering=0) as pipe:
        while data := pipe.read(1 << 16):
            os.write(terminal, data)
            file.write(data)


def _reason(error: BaseException) -> str:
    said = " ".join(str(error).split())[:REASON_CHARACTERS]
    if isinstance(error, UserError):
        return said
    if isinstance(error, SystemExit) and error.code == EXIT_INTERRUPTED:
        return "interrupted by SIGTERM, to be continued"
    if isinstance(error, SystemExit):
        return f"ended with exit status {error.code}"
    return f"{type(error).__name__}: {said}"


def _kind(error: BaseException) -> str:
    """Of an error that a person sees, the class that says which exit status it has."""
    known = (kind.__name__ for kind in type(error).__mro__ if kind.__module__ == UserError.__module__)
    return next(known, type(error).__name__)


def _age_in_minutes(time: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds() / 60


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
