"""A store in an S3 bucket, with multipart uploads and ranged downloads that resume.

boto3's own transfers do not resume, and their checksums of multipart uploads are not those of the file. Here the sha256
of the whole file is kept in the object's metadata and verified on every read.
"""

import hashlib
import os
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as NoConnectionError

from chatmetrics.components import console
from chatmetrics.components.console import Progress
from chatmetrics.components.errors import StorageError
from chatmetrics.components.storage.files import (
    BLOCK,
    MIB,
    UNFINISHED,
    AlreadyThereError,
    disk_errors,
    flush_to_disk,
    sha256_of,
)

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import PartTypeDef

CONCURRENCY = 8
MAX_PARTS = 10_000
Item = TypeVar("Item")
Done = TypeVar("Done")

CONFIG = Config(
    # S3-compatible stores do not support AWS's newer checksum headers.
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
    # In a cluster, AWS_MAX_ATTEMPTS is 30, so that a job survives a minute without S3. A user at a terminal should see
    # the error within seconds.
    retries={"mode": "standard", "total_max_attempts": int(os.environ.get("AWS_MAX_ATTEMPTS", "4"))},
    connect_timeout=10,
    read_timeout=60,
    max_pool_connections=CONCURRENCY,
)


class _Object(TypedDict):
    Bucket: str
    Key: str


@dataclass(frozen=True, slots=True)
class _Upload:
    """An unfinished multipart upload: its id, and the ETags of the parts sent so far, by part number (from 1)."""

    id: str
    sent: Mapping[int, str]


class S3Store:
    """Keys are below `prefix` in `bucket`. See `Store` for the methods."""

    def __init__(self, bucket: str, prefix: str, part_size: int) -> None:
        self._bucket, self._prefix, self._part_size = bucket, prefix, part_size
        try:
            # A new session: boto3.client() would keep using the credentials from the start of the process.
            self._client = boto3.Session().client("s3", config=CONFIG)
        except (BotoCoreError, ValueError) as error:
            raise StorageError(
                f"s3://{bucket}: the AWS environment is unusable ({type(error).__name__}); "
                "check AWS_ENDPOINT_URL_S3, AWS_REGION and AWS_PROFILE"
            ) from error

    def put_file(self, path: Path, key: str) -> None:
        """Upload a file, in parts if it is large."""
        digest = sha256_of(path)
        with self._explained(key), disk_errors(path):
            if self._holds(key, digest):
                return
            try:
                if path.stat().st_size > self._part_size:
                    self._put_parts(path, key, digest)
                else:
                    self._put(path.read_bytes(), key, digest, overwrite=False)
            except AlreadyThereError:
                # Another writer was faster. `_holds` raises if it wrote other content.
                self._holds(key, digest)

    def put_bytes(self, data: bytes, key: str, overwrite: bool) -> None:
        """Upload a small file in one request."""
        with self._explained(key):
            self._put(data, key, hashlib.sha256(data).hexdigest(), overwrite)

    def get_file(self, key: str, path: Path, sha256: str = "") -> None:
        """Download a file to `path` + ".part", from which a later call resumes, and rename it once it is verified."""
        with self._explained(key), disk_errors(path):
            head = self._client.head_object(**self._object(key))
            expected = sha256 or head["Metadata"].get("sha256", "")
            modified = head["LastModified"].timestamp()
            if _is_there(path, expected, head["ContentLength"], modified):
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(path.name + UNFINISHED)
            if not expected:
                part.unlink(missing_ok=True)  # Without a checksum, it is unknown whether a part belongs to this object.
            if not self._fetched(key, part, head["ContentLength"], head["ETag"], expected):
                raise StorageError(f"{self.uri(key)} is damaged: its sha256 is not {expected}; publish it again")
            if not expected:
                os.utime(part, (modified, modified))
            part.replace(path)

    def read_bytes(self, key: str) -> bytes:
        """Download a small object and verify its checksum."""
        with self._explained(key):
            answer = self._client.get_object(**self._object(key))
            data = answer["Body"].read()
        expected = answer["Metadata"].get("sha256", "")
        if expected and hashlib.sha256(data).hexdigest() != expected:
            raise StorageError(f"{self.uri(key)} is damaged: its sha256 is not {expected}; publish it again")
        return data

    def exists(self, key: str) -> bool:
        """Whether the object exists."""
        with self._explained(key):
            return self._metadata(key) is not None

    def list(self, prefix: str) -> list[str]:
        """Keys that begin with `prefix`, in pages of a thousand per request."""
        start = self._object("")["Key"]
        with self._explained(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=start + prefix)
            return sorted(entry["Key"].removeprefix(start) for page in pages for entry in page.get("Contents", []))

    def delete(self, key: str) -> None:
        """Delete the object."""
        with self._explained(key):
            self._client.delete_object(**self._object(key))

    def stamp(self, key: str) -> str:
        """The sha256 in the metadata, or the ETag of an object that another program stored."""
        with self._explained(key):
            head = self._client.head_object(**self._object(key))
            return head["Metadata"].get("sha256") or head["ETag"]

    def uri(self, key: str) -> str:
        """An s3:// URI."""
        return f"s3://{self._bucket}/{self._object(key)['Key']}"

    def _object(self, key: str) -> _Object:
        return {"Bucket": self._bucket, "Key": f"{self._prefix}/{key}" if self._prefix else key}

    def _metadata(self, key: str) -> dict[str, str] | None:
        try:
            return self._client.head_object(**self._object(key))["Metadata"]
        except ClientError as error:
            # A missing bucket gives the same answer; the write or list that follows reports it.
            if _code(error) in ("404", "NoSuchKey"):
                return None
            raise

    def _holds(self, key: str, digest: str) -> bool:
        metadata = self._metadata(key)
        if metadata is not None and metadata.get("sha256") != digest:
            raise AlreadyThereError(f"{self.uri(key)} has other content; delete it or choose another version")
        return metadata is not None

    def _put(self, data: bytes, key: str, digest: str, overwrite: bool) -> None:
        condition: dict[str, Any] = {} if overwrite else {"IfNoneMatch": "*"}
        with self._refused_when_taken(key):
            self._client.put_object(
                **self._object(key), Body=data, ContentMD5=_md5(data)[1], Metadata={"sha256": digest}, **condition
            )

    @contextmanager
    def _refused_when_taken(self, key: str) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            if _code(error) in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
                raise AlreadyThereError(f"{self.uri(key)} already exists and is never overwritten") from error
            raise

    def _put_parts(self, path: Path, key: str, digest: str) -> None:
        for may_resume in (True, False):
            upload = self._unfinished_upload(path, key) if may_resume else None
            condition: dict[str, Any] = {"IfNoneMatch": "*"} if may_resume else {}
            # The upload disappears if another process that feeds it completes or aborts it.
            with suppress(self._client.exceptions.NoSuchUpload):
                self._complete(path, key, upload or self._new_upload(key, digest), condition)
            # An upload's metadata cannot be read before it is completed. An upload left behind by a longer or shorter
            # file has the wrong sha256, and is then replaced by a new upload.
            metadata = self._metadata(key)
            if metadata is not None and metadata.get("sha256") == digest:
                return
        raise StorageError(f"{self.uri(key)}: the upload disappeared twice; check for processes that write this key")

    def _new_upload(self, key: str, digest: str) -> _Upload:
        answer = self._client.create_multipart_upload(**self._object(key), Metadata={"sha256": digest})
        return _Upload(answer["UploadId"], {})

    def _unfinished_upload(self, path: Path, key: str) -> _Upload | None:
        """The newest unfinished upload of this key whose parts are all parts of this file; None if there is none."""
        where = self._object(key)
        pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=where["Key"])
        uploads = [entry for page in pages for entry in page.get("Uploads", []) if entry["Key"] == where["Key"]]
        for entry in sorted(uploads, key=lambda entry: entry["Initiated"], reverse=True):
            part_pages = self._client.get_paginator("list_parts").paginate(**where, UploadId=entry["UploadId"])
            parts = [part for page in part_pages for part in page.get("Parts", [])]
            if parts and all(self._is_part_of(path, part) for part in parts):
                console.info(f"upload of {path.name}: resumes after {len(parts)} parts")
                return _Upload(entry["UploadId"], {part["PartNumber"]: part["ETag"] for part in parts})
        return None

    def _is_part_of(self, path: Path, part: "PartTypeDef") -> bool:
        offset, length = self._parts(path).get(part["PartNumber"], (0, -1))
        return part["Size"] == length and part["ETag"].strip('"') == _md5(_read(path, offset, length))[0]

    def _parts(self, path: Path) -> dict[int, tuple[int, int]]:
        """Offset and length in bytes of every part of the file, by part number."""
        size = path.stat().st_size
        part_size = max(self._part_size, -(-size // MAX_PARTS))
        return {
            number: (offset, min(part_size, size - offset))
            for number, offset in enumerate(range(0, size, part_size), start=1)
        }

    def _complete(self, path: Path, key: str, upload: _Upload, condition: dict[str, Any]) -> None:
        expected = self._parts(path)

        def send(number: int) -> tuple[int, str]:
            data = _read(path, *expected[number])
            answer = self._client.upload_part(
                **self._object(key), UploadId=upload.id, PartNumber=number, Body=data, ContentMD5=_md5(data)[1]
            )
            return number, answer["ETag"]

        etags = dict(upload.sent)
        missing = [number for number in expected if number not in etags]
        progress = Progress(f"uploading {path.name}", sum(expected[number][1] for number in missing) // MIB, "MiB")
        sent = 0
        for number, etag in _run_concurrently(send, missing):
            etags[number] = etag
            sent += expected[number][1]
            progress.update(sent // MIB)
        parts: Any = [{"PartNumber": number, "ETag": etags[number]} for number in sorted(etags)]
        with self._refused_when_taken(key):
            self._client.complete_multipart_upload(
                **self._object(key), UploadId=upload.id, MultipartUpload={"Parts": parts}, **condition
            )

    def _fetched(self, key: str, part: Path, size: int, etag: str, expected: str) -> bool:
        """Download the missing bytes of the object to `part`. If the checksum is wrong, delete it and return false."""

        def receive(offset: int) -> bytes:
            end = min(offset + self._part_size, size) - 1
            answer = self._client.get_object(**self._object(key), Range=f"bytes={offset}-{end}", IfMatch=etag)
            return answer["Body"].read()

        with part.open("a+b") as file:
            digest = hashlib.sha256()
            file.seek(0)
            while block := file.read(BLOCK):
                digest.update(block)
            there = file.tell()
            if 0 < there < size:
                console.info(f"download of {part.stem}: resumes after {there // MIB} of {size // MIB} MiB")
            progress = Progress(f"downloading {part.stem}", size // MIB, "MiB")
            for data in _run_concurrently(receive, range(there, size, self._part_size)):
                file.write(data)
                digest.update(data)
                progress.update(file.tell() // MIB)
            flush_to_disk(file)
        if not expected or digest.hexdigest() == expected:
            return True
        part.unlink()
        # The part of an earlier run may belong to another object. Only a download from the first byte proves damage.
        return there > 0 and self._fetched(key, part, size, etag, expected)

    @contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        """Convert boto's errors to a StorageError with one line. Their own text may contain credentials or headers."""
        try:
            yield
        except ClientError as error:
            raise StorageError(f"{self.uri(key)}: {self._advice(_code(error))}") from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise StorageError(
                f"{self.uri(key)}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE"
            ) from error
        except (NoConnectionError, HTTPClientError) as error:
            raise StorageError(
                f"{self.uri(key)}: {self._endpoint()} does not answer ({type(error).__name__}); "
                "check AWS_ENDPOINT_URL_S3 and the network, then run again: finished parts are kept"
            ) from error
        except BotoCoreError as error:
            raise StorageError(f"{self.uri(key)}: the request failed ({type(error).__name__})") from error

    def _advice(self, code: str) -> str:
        match code:
            case "NoSuchBucket":
                return f"the bucket {self._bucket} does not exist at {self._endpoint()}; create it or correct the URI"
            case "NoSuchKey" | "404":
                return f"the object does not exist at {self._endpoint()}; check the URI"
            case "AccessDenied" | "403" | "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "ExpiredToken":
                return f"{self._endpoint()} refused the credentials ({code}); check AWS_ACCESS_KEY_ID and its rights"
            case _:
                return f"{self._endpoint()} answered {code}"

    def _endpoint(self) -> str:
        # An endpoint's URL may contain a password before the host.
        return self._client.meta.endpoint_url.split("@")[-1]


def _code(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "an unknown error")


def _read(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def _md5(data: bytes) -> tuple[str, str]:
    """The MD5 of some bytes in hexadecimal, as in an ETag, and in Base64, as in the Content-MD5 header."""
    digest = hashlib.md5(data, usedforsecurity=False)
    return digest.hexdigest(), b64encode(digest.digest()).decode()


def _is_there(path: Path, expected: str, size: int, modified: float) -> bool:
    """Whether the file is up to date. Without a sha256, size and time are compared, as rsync does."""
    if not path.is_file():
        return False
    if expected:
        return sha256_of(path) == expected
    return path.stat().st_size == size and path.stat().st_mtime == modified


def _run_concurrently(function: Callable[[Item], Done], items: Iterable[Item]) -> Iterator[Done]:
    """Yield the results in order, with at most `CONCURRENCY` of them in memory or in progress."""
    pool = ThreadPoolExecutor(CONCURRENCY)
    pending: deque[Future[Done]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) == CONCURRENCY:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
