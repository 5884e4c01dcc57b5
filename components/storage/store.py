"""One small interface over the places where artifacts are kept: a folder or an S3 bucket."""

from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from chatmetrics.components.errors import InputError
from chatmetrics.components.storage.file_store import FileStore

PART_SIZE = 64 * 2**20


class Store(Protocol):
    """Files under keys such as `hotel/1/manifest.json`. Every method raises StorageError when the store refuses."""

    def put_file(self, path: Path, key: str) -> None:
        """Store a file; nothing happens when the same bytes are there. Other bytes raise AlreadyThereError."""

    def put_bytes(self, data: bytes, key: str, overwrite: bool) -> None:
        """Store a few bytes at once; with `overwrite` false a key that is taken raises AlreadyThereError."""

    def get_file(self, key: str, path: Path, sha256: str = "") -> None:
        """Bring a file to `path`, whole and with the right checksum or not at all; skipped when it is there."""

    def read_bytes(self, key: str) -> bytes:
        """The bytes of a small file."""

    def exists(self, key: str) -> bool:
        """Whether something is stored under exactly this key."""

    def list(self, prefix: str) -> list[str]:
        """The keys that begin with `prefix`, sorted; hidden and unfinished files are left out."""

    def delete(self, key: str) -> None:
        """Remove a file; nothing happens when there is none."""

    def stamp(self, key: str) -> str:
        """A short text that changes when the file does: its sha256, or what the store knows without reading it."""

    def uri(self, key: str) -> str:
        """The address under which another process finds this key."""


def open_store(uri: str, part_size: int = PART_SIZE) -> Store:
    """The store at a folder, a `file://` URI or `s3://bucket/prefix`.

    S3's endpoint, region and credentials come from the standard AWS_* environment variables and files.

    Args:
        uri: where the keys live.
        part_size: bytes per part of a multipart upload or ranged download; S3 wants at least 5 MiB.

    Raises:
        InputError: the URI has another scheme or lacks its bucket.
        StorageError: the AWS environment is unusable.
    """
    if uri.startswith("s3://"):
        # boto3 takes a third of a second to import.
        from chatmetrics.components.storage.s3_store import S3Store

        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not bucket:
            raise InputError(f"{uri}: no bucket named; write s3://bucket/prefix")
        return S3Store(bucket, prefix.strip("/"), part_size)
    return FileStore(local_path(uri))


def local_path(uri: str) -> Path:
    """The path of a `file://` URI or of a plain path.

    Raises:
        InputError: the URI is empty, has another scheme or names another machine.
    """
    if not uri:
        raise InputError("no storage address given; write a folder, file:///folder or s3://bucket/prefix")
    if "://" not in uri:
        return Path(uri).expanduser().absolute()
    parts = urlsplit(uri)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise InputError(f"{uri}: cannot be used as storage; write a folder, file:///folder or s3://bucket/prefix")
    return Path(unquote(parts.path))
