"""What the files of a model's folder are, and what they only seem to be."""

import json
from pathlib import Path
from typing import Any

from chatmetrics.components.errors import InputError
from chatmetrics.components.storage.files import disk_errors

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# First bytes of a file that was copied, downloaded or named wrongly, and what it is.
KINDS = {
    LFS_POINTER: "a git-lfs pointer, not the file itself; run `git lfs pull`, or download the model again",
    b"GGUF": "a GGUF file; name it with its ending .gguf, or the folder of the original model",
    b"PK\x03\x04": "a zip archive, such as torch.save writes; save the model with save_pretrained",
    b"\x80\x02": "a Python pickle; save the model with save_pretrained",
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"<": "an HTML or XML page, perhaps a login or error page; download the model again",
}
TEXT = (".json", ".jinja", ".txt", ".safetensors")  # the last for a page in its place


def present(path: Path) -> bool:
    """Whether the folder lists the file, even if it is a link to a file that does not exist."""
    return path.is_symlink() or path.exists()


def check_kind(path: Path) -> None:
    """Check that a file can be read and is not obviously something else than its name says.

    Raises:
        InputError: it is missing, empty, a folder, a dangling link, or of one of the `KINDS`.
        StorageError: it cannot be read.
    """
    if not present(path):
        raise InputError(f"{path}: no such file; copy or download the model again")
    if not path.exists():
        raise InputError(f"{path}: a link to a file that does not exist ({path.readlink()}); download the model again")
    if not path.is_file():
        raise InputError(f"{path}: not a file; copy or download the model again")
    with disk_errors(path), path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise InputError(f"{path}: an empty file; copy or download the model again")
    if path.suffix == ".safetensors" and start[8:9] == b"{":
        return  # its first 8 bytes are a number, which may look like anything
    begin = start.lstrip() if path.suffix in TEXT else start
    if kind := next((kind for first, kind in KINDS.items() if begin.startswith(first)), ""):
        raise InputError(f"{path}: {kind}")


def read_object(path: Path) -> dict[str, Any]:
    """Read a file with a JSON object.

    Raises:
        InputError: it is missing, or not a JSON object in UTF-8.
        StorageError: it cannot be read.
    """
    check_kind(path)
    with disk_errors(path):
        content = path.read_bytes()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); copy or download the model again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object but {type(value).__name__}; copy or download the model again")
    return value


def optional_object(path: Path) -> dict[str, Any]:
    """`read_object`, or {} if the folder does not list the file."""
    return read_object(path) if present(path) else {}


def listed(names: list[str], limit: int = 3) -> str:
    """The first names in words, and how many more there are."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
