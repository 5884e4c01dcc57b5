"""The interface of artifact stores: a folder or an S3 bucket."""

from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from chatmetrics.components.errors import InputError
from chatmetrics.components.storage.file_store import FileStore

PART_SIZE = 64 * 2**20
S3_ADDRESSING = "CHATMETRICS_S3_ADDRESSING"  # environment variable: where requests name the bucket, see open_store


class Store(Protocol):
    """Files under keys such as `hotel/1/manifest.json`. Every method raises StorageError if the store fails."""

    def put_file(self, path: Path, key: str) -> None:
        """Store a file. Does nothing if the key has the same content; raises AlreadyThereError if it has other."""

    def put_bytes(self, data: bytes, key: str, overwrite: bool) -> None:
        """Store a small file. If `overwrite` is false, an existing key raises AlreadyThereError."""

    def get_file(self, key: str, path: Path, sha256: str = "", size: int | None = None) -> None:
        """Fetch a file to `path`, complete and verified or not at all. Does nothing if it is already there.

        A file that does not have the `size` in bytes is not fetched.
        """

    def read_bytes(self, key: str, most: int | None = None) -> bytes:
        """Read a small file. One with more than `most` bytes is not read."""

    def exists(self, key: str) -> bool:
        """Whether a file is stored under exactly this key."""

    def list(self, prefix: str) -> list[str]:
        """The sorted keys that begin with `prefix`, without hidden and unfinished files."""

    def delete(self, key: str) -> None:
        """Delete a file. Does nothing if it does not exist."""

    def stamp(self, key: str) -> str:
        """A short text that changes with the file: its sha256, or metadata that is known without reading it."""

    def uri(self, key: str) -> str:
        """The URI under which another process finds this key."""


def open_store(uri: str, part_size: int = PART_SIZE) -> Store:
    """Open the store at a folder, a `file://` URI or `s3://bucket/prefix`.

    S3's endpoint, region, CA bundle and credentials come from the standard AWS_* environment variables and files, the
    addressing style (auto, path or virtual) from CHATMETRICS_S3_ADDRESSING, and the least rate of downloads in KiB per
    second from CHATMETRICS_S3_MIN_KIB_PER_SECOND.

    Args:
        uri: location of the store.
        part_size: bytes per part of a multipart upload or ranged download; S3 requires at least 5 MiB.

    Raises:
        InputError: the URI has another scheme or lacks a bucket, or a variable cannot be used.
        StorageError: the AWS environment is unusable.
    """
    if uri.startswith("s3://"):
        # boto3 takes a third of a second to import.
        from chatmetrics.components.storage.s3_store import S3Store

        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not bucket:
            raise InputError(f"{uri}: the bucket is missing; write s3://bucket/prefix")
        return S3Store(bucket, prefix.strip("/"), part_size)
    return FileStore(local_path(uri))


def local_path(uri: str) -> Path:
    """The path of a `file://` URI or of a plain path.

    Raises:
        InputError: the URI is empty, has another scheme or names another machine.
    """
    if not uri:
        raise InputError("the storage location is empty; write a folder, file:///folder or s3://bucket/prefix")
    if "://" not in uri:
        return Path(uri).expanduser().absolute()
    parts = urlsplit(uri)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise InputError(f"{uri}: cannot be used as storage; write a folder, file:///folder or s3://bucket/prefix")
    return Path(unquote(parts.path))
