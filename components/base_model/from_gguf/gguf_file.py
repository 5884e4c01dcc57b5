"""Reads a GGUF file: its metadata as Python values, and its tensors. Format: llama.cpp, gguf-py/gguf/gguf_reader.py."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import gguf

from chatmetrics.components.base_model.files import check_kind
from chatmetrics.components.errors import InputError
from chatmetrics.components.storage.files import disk_errors

Value = TypeVar("Value")

MAGIC = b"GGUF"
# What the library raises for a file that is truncated or damaged: slices end early, and numbers mean nothing.
DAMAGED = (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, AttributeError, struct.error)


class _Reader(gguf.GGUFReader):
    """The library's reader. By itself it does not notice that a file ends before a list does, and counts for hours."""

    def _get(self, offset: int, dtype: Any, count: int = 1, *order: Any, **options: Any) -> Any:
        found = super()._get(offset, dtype, count, *order, **options)
        if len(found) < int(count):
            raise ValueError("it ends too early")
        return found


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file that was read.

    Attributes:
        path: the file.
        metadata: its keys and values; numbers, strings, booleans, and lists of them.
        tensors: its tensors by name; their data are mapped into memory, not read.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, gguf.ReaderTensor]

    def value(self, key: str, kind: type[Value], default: Value | None = None) -> Value:
        """The value of a key.

        Raises:
            InputError: it is missing and has no default, or is of another type.
        """
        found = self.metadata.get(key, default)
        if found is None:
            raise InputError(f"{self.path}: it lacks the key {key}; convert the model again with a newer llama.cpp")
        if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
            raise InputError(f"{self.path}: its key {key} is not {kind.__name__}; such models are not supported")
        return found

    def strings(self, key: str) -> list[str]:
        """The value of a key that is a list of strings.

        Raises:
            InputError: it is missing, or of another type.
        """
        found = self.value(key, list)
        if not all(isinstance(item, str) for item in found):
            raise InputError(f"{self.path}: its key {key} is not a list of strings; download the file again")
        return found


def read_gguf(path: Path) -> GgufFile:
    """Read a GGUF file. Its tensors' data are only mapped into memory.

    Raises:
        InputError: it is missing, no GGUF file, truncated or damaged.
        StorageError: it cannot be read.
    """
    with disk_errors(path):
        if not path.is_file():
            raise InputError(f"{path}: no such file; check the path")
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
    if start != MAGIC:
        check_kind(path)  # says what it is instead, if that can be seen
        raise InputError(f"{path}: not a GGUF file; download it again")
    try:
        with disk_errors(path):
            reader = _Reader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
    except DAMAGED as error:
        detail = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: a truncated or damaged GGUF file ({detail}); download it again") from error
    return GgufFile(path, metadata, tensors)
