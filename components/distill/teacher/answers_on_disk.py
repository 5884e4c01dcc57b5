"""The teacher's answers in a temporary file, because with reasoning they may not fit into memory."""

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

from chatmetrics.components.distill.teacher.request import TeacherAnswer
from chatmetrics.components.storage.files import disk_errors


class AnswersOnDisk(Mapping[str, TeacherAnswer]):
    """Answers by `Request.key`; each is read from the file when it is used."""

    def __init__(self) -> None:
        with disk_errors(Path(tempfile.gettempdir())):
            self._file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 (closed and deleted with this object)
        self._places: dict[str, tuple[int, int]] = {}

    def add(self, key: str, answer: dict[str, Any]) -> None:
        """Add an answer as `TeacherAnswer.record` gives it, or replace an earlier one.

        Raises:
            StorageError: the disk of the temporary folder is full.
        """
        data = json.dumps(answer).encode()
        with disk_errors(Path(tempfile.gettempdir())):
            offset = self._file.seek(0, 2)
            self._file.write(data)
        self._places[key] = offset, len(data)

    def only(self, keys: Iterable[str]) -> Self:
        """Those of the answers whose key is among these, without copying them."""
        part = object.__new__(type(self))
        part._file = self._file
        part._places = {key: self._places[key] for key in keys if key in self._places}
        return part

    def __getitem__(self, key: str) -> TeacherAnswer:
        offset, length = self._places[key]
        self._file.seek(offset)
        return TeacherAnswer(**json.loads(self._file.read(length)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
