"""A model's answers as they come, so that a run that was interrupted resumes with the missing ones."""

import json
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from chatmetrics.components import console
from chatmetrics.components.errors import StorageError
from chatmetrics.components.storage.files import disk_errors
from chatmetrics.components.storage.store import open_store

SECONDS_BETWEEN_COPIES = 20.0


class AnswerLog:
    """An append-only file with one answer per line, and a copy of it that outlives this machine.

    The file is copied every 20 seconds and at the end of the block. A store that does not answer is reported and
    otherwise ignored, since the answers are not lost as long as this process runs.

    Attributes:
        model: what identifies the model, as a part of the answers' keys.
        answered: all answers by key, those of earlier attempts included.

    Args:
        path: the file.
        model: identity of the model: the hash of a file, or an endpoint and a name.
        folder: folder or s3:// URI for the copy, which has the file's name; empty for no copy.
    """

    def __init__(self, path: Path, model: str, folder: str = "") -> None:
        self.model = model
        self.answered: dict[str, dict[str, Any]] = {}
        self._path, self._folder = path, folder
        self._writing, self._ended = threading.Lock(), threading.Event()
        self._copied = 0
        self._copier = threading.Thread(target=self._copy_regularly, daemon=True)

    def __enter__(self) -> Self:
        with disk_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._folder and not self._path.exists():
                self._path.write_bytes(self._earlier_copy())
        self._read()
        if self._folder:
            self._copier.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder:
            self._ended.set()
            self._copier.join()

    def append(self, key: str, record: Mapping[str, Any]) -> None:
        """Append an answer. Thread-safe.

        Raises:
            StorageError: the disk is full or not writable.
        """
        with self._writing, disk_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            self.answered[key] = dict(record)
            file.write(json.dumps({"key": key, **record}) + "\n")

    def delete(self) -> None:
        """Delete the file, but not its copy."""
        self._path.unlink(missing_ok=True)

    def _read(self) -> None:
        """Read the answers of earlier attempts. A line that is incomplete is ignored."""
        if not self._path.exists():
            return
        with disk_errors(self._path):
            lines = self._path.read_text("utf-8", "replace").split("\n")
        for line in lines:
            with suppress(ValueError, KeyError, TypeError, AttributeError):
                record = json.loads(line)
                self.answered[record.pop("key")] = record
        # The next answer must not be appended to an incomplete last line.
        if lines[-1]:
            with disk_errors(self._path), self._path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def _earlier_copy(self) -> bytes:
        try:
            store = open_store(self._folder)
            return store.read_bytes(self._path.name) if store.exists(self._path.name) else b""
        except StorageError as error:
            console.warning(f"answers of an earlier attempt cannot be read, so all questions are asked: {error}")
            return b""

    def _copy_regularly(self) -> None:
        while True:
            is_last = self._ended.wait(SECONDS_BETWEEN_COPIES)
            if self._path.exists() and self._path.stat().st_size != self._copied:
                self._copy()
            if is_last:
                return

    def _copy(self) -> None:
        with self._writing:
            content = self._path.read_bytes()
        try:
            open_store(self._folder).put_bytes(content, self._path.name, overwrite=True)
            self._copied = len(content)
        except StorageError as error:
            console.warning(f"the answers so far are not copied to {self._folder}: {error}")
