"""A store in an S3 bucket, with multipart uploads and ranged downloads that resume.

boto3's own transfers do not resume, and their checksums of multipart uploads are not those of the file. Here the sha256
of the whole file is kept in the object's metadata and verified on every read. Not every store keeps metadata, lets us
list unfinished uploads or supports conditional writes: then a warning says what is lost, and the work continues.
"""

import hashlib
import os
import re
import time
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, cast

import urllib3
from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError

from chatmetrics.components import console
from chatmetrics.components.console import Progress
from chatmetrics.components.errors import InputError, StorageError
from chatmetrics.components.responder import UnexpectedAnswer
from chatmetrics.components.storage.files import (
    BLOCK,
    MIB,
    UNFINISHED,
    AlreadyThereError,
    check_key,
    check_size,
    disk_errors,
    flush_to_disk,
    sha256_of,
    too_large,
)
from chatmetrics.components.storage.s3_client import (
    CONCURRENCY,
    attempts,
    error_code,
    explained,
    pause,
    retried,
    s3_client,
)

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef, PartTypeDef

MAX_PARTS = 10_000
MIN_RATE = "CHATMETRICS_S3_MIN_KIB_PER_SECOND"  # environment variable: a slower download is an error
DEFAULT_KIB_PER_SECOND = 256
SECONDS_BESIDES = 900.0  # of a download, for repeated requests
# Statuses of stores without support for If-None-Match: some refuse the header, others its value; the codes differ.
NO_CONDITIONS = {400, 405, 501}
TAKEN = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}
_SHA256 = re.compile(r"(?<![0-9a-z])[0-9a-f]{64}(?![0-9a-z])")
Item = TypeVar("Item")
Done = TypeVar("Done")


class _Object(TypedDict):
    Bucket: str
    Key: str


@dataclass(frozen=True, slots=True)
class _Upload:
    """An unfinished multipart upload: its id, and the ETags of the parts sent so far, by part number (from 1)."""

    id: str
    sent: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class _Head:
    """What a store tells about an object; `sha256` is empty if the store does not keep metadata or another program
    stored the object, and `modified` is in seconds since 1970."""

    size: int
    etag: str
    sha256: str
    modified: float


class S3Store:
    """Keys are below `prefix` in `bucket`. See `Store` for the methods."""

    def __init__(self, bucket: str, prefix: str, part_size: int) -> None:
        self._bucket, self._prefix, self._part_size = bucket, prefix, part_size
        self._has_conditions = True
        try:
            self._client = s3_client()
        except StorageError as error:
            raise StorageError(f"s3://{bucket}: {error}") from error

    def put_file(self, path: Path, key: str) -> None:
        """Upload a file, in parts if it is large."""
        digest = sha256_of(path)
        with self._explained(key), disk_errors(path):
            if self._holds(path, key, digest):
                return
            try:
                if path.stat().st_size > self._part_size:
                    self._put_parts(path, key, digest)
                else:
                    self._put(path.read_bytes(), key, digest, overwrite=False)
            except AlreadyThereError:
                # Another writer was faster. `_holds` raises if it wrote other content.
                self._holds(path, key, digest)

    def put_bytes(self, data: bytes, key: str, overwrite: bool) -> None:
        """Upload a small file in one request."""
        with self._explained(key):
            self._put(data, key, hashlib.sha256(data).hexdigest(), overwrite)

    def get_file(self, key: str, path: Path, sha256: str = "", size: int | None = None) -> None:
        """Download a file to `path` + ".part", from which a later call resumes, and rename it once it is verified."""
        with self._explained(key), disk_errors(path):
            head = self._head(key)
            if size is not None:
                check_size(self.uri(key), head.size, size)
            expected = sha256 or head.sha256
            if _is_there(path, expected, head.size, head.modified):
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(path.name + UNFINISHED)
            if not expected:
                part.unlink(missing_ok=True)  # Without a checksum, it is unknown whether a part belongs to this object.
            if not self._fetched(key, part, head.size, head.etag, expected):
                raise StorageError(f"{self.uri(key)} is damaged: its sha256 is not {expected}; publish it again")
            if not expected:
                os.utime(part, (head.modified, head.modified))
            part.replace(path)

    def read_bytes(self, key: str, most: int | None = None) -> bytes:
        """Download a small object and verify its checksum."""
        deadline = _deadline(0)
        with self._explained(key):
            data, expected = retried(lambda: self._whole(key, most, deadline))
        if expected and hashlib.sha256(data).hexdigest() != expected:
            raise StorageError(f"{self.uri(key)} is damaged: its sha256 is not {expected}; publish it again")
        return data

    def exists(self, key: str) -> bool:
        """Whether the object exists."""
        with self._explained(key):
            return self._found(key) is not None

    def list(self, prefix: str) -> list[str]:
        """Keys that begin with `prefix`, in pages of a thousand per request."""
        start = self._object("")["Key"]
        paginator = self._client.get_paginator("list_objects_v2")

        def keys() -> list[str]:
            pages = paginator.paginate(Bucket=self._bucket, Prefix=start + prefix)
            return sorted(entry["Key"].removeprefix(start) for page in pages for entry in page.get("Contents", []))

        with self._explained(prefix):
            found = retried(keys)
        for key in found:
            check_key(key, self.uri(prefix))
        return found

    def delete(self, key: str) -> None:
        """Delete the object."""
        with self._explained(key):
            retried(lambda: self._client.delete_object(**self._object(key)))

    def stamp(self, key: str) -> str:
        """The sha256 in the metadata, or the ETag of an object that another program stored."""
        with self._explained(key):
            head = self._head(key)
            return head.sha256 or head.etag

    def uri(self, key: str) -> str:
        """An s3:// URI."""
        return f"s3://{self._bucket}/{self._object(key)['Key']}"

    def why_not_resumable(self, key: str) -> str:
        """Why an interrupted upload to this key would start again; empty if it resumes. Leaves nothing in the store."""
        where = self._object(key)
        with self._explained(key):
            upload = retried(lambda: self._client.create_multipart_upload(**where))["UploadId"]
            try:
                found = self._unfinished_uploads(key)
                if upload not in found:
                    return "the store does not list them"
                self._sent_parts(key, upload)
            except (ClientError, UnexpectedAnswer) as error:
                return _what(error)
            finally:
                retried(lambda: self._client.abort_multipart_upload(**where, UploadId=upload))
        return ""

    def _object(self, key: str) -> _Object:
        return {"Bucket": self._bucket, "Key": f"{self._prefix}/{key}" if self._prefix else key}

    def _explained(self, key: str) -> AbstractContextManager[None]:
        return explained(self._client, self._bucket, self._object(key)["Key"], self.uri(key))

    def _head(self, key: str) -> _Head:
        answer = retried(lambda: self._client.head_object(**self._object(key)))
        if "ContentLength" not in answer:
            raise StorageError(f"{self.uri(key)}: the store does not tell its size; check for a proxy that compresses")
        modified = answer["LastModified"].timestamp() if "LastModified" in answer else 0.0
        return _Head(answer["ContentLength"], _strong(answer["ETag"]), _sha256_in(answer["Metadata"]), modified)

    def _found(self, key: str) -> _Head | None:
        try:
            return self._head(key)
        except ClientError as error:
            # A missing bucket gives the same answer; the write or list that follows reports it.
            if error_code(error) in ("404", "NoSuchKey"):
                return None
            raise

    def _holds(self, path: Path, key: str, digest: str) -> bool:
        """Whether the key has the content of the file; raises AlreadyThereError if it has other content."""
        head = self._found(key)
        if head is not None and not self._is_same(path, key, digest, head):
            raise AlreadyThereError(f"{self.uri(key)} has other content; delete it or choose another version")
        return head is not None

    def _is_same(self, path: Path, key: str, digest: str, head: _Head) -> bool:
        """Whether an object has the content of a file.

        Without a checksum in the metadata, size and ETag are compared. An ETag that is neither the MD5 of the content
        nor that of our parts proves nothing, since stores form it in several ways: then the object is read.
        """
        if head.sha256:
            return head.sha256 == digest
        if head.size != path.stat().st_size:
            return False
        if head.etag.strip('"') in (self._etag(path, is_in_parts=False), self._etag(path, is_in_parts=True)):
            return True
        console.warning(f"{self.uri(key)} has no checksum in its metadata: the object is read to compare it")
        read, deadline = hashlib.sha256(), _deadline(head.size)
        begins = range(0, head.size, self._part_size)
        for data in _run_concurrently(lambda begin: self._part(key, begin, head, deadline), begins):
            read.update(data)
        return read.hexdigest() == digest

    def _etag(self, path: Path, is_in_parts: bool) -> str:
        """The ETag that S3 gives a file that is uploaded whole or in our parts, without server-side encryption."""
        if not is_in_parts:
            digest = hashlib.md5(usedforsecurity=False)
            with path.open("rb") as file:
                while block := file.read(BLOCK):
                    digest.update(block)
            return digest.hexdigest()
        parts = self._parts(path).values()
        digests = b"".join(bytes.fromhex(_md5(_read(path, offset, length))[0]) for offset, length in parts)
        return f"{_md5(digests)[0]}-{len(parts)}"

    def _put(self, data: bytes, key: str, digest: str, overwrite: bool) -> None:
        tries = 0

        def put(condition: dict[str, Any]) -> None:
            nonlocal tries
            tries += 1
            self._client.put_object(
                **self._object(key), Body=data, ContentMD5=_md5(data)[1], Metadata={"sha256": digest}, **condition
            )

        if overwrite:
            retried(lambda: put({}))
            return
        try:
            self._write_once(key, put)
        except AlreadyThereError:
            # If the answer to an earlier try was lost, the object is ours.
            head = self._found(key) if tries > 1 else None
            if head is None or (head.sha256 or head.etag.strip('"')) not in (digest, _md5(data)[0]):
                raise

    def _write_once(self, key: str, write: Callable[[dict[str, Any]], None]) -> None:
        """Call `write` with the condition that the key does not exist, if the store supports that, else check before.

        Raises:
            AlreadyThereError: the key exists.
        """
        try:
            if self._has_conditions:
                try:
                    retried(lambda: write({"IfNoneMatch": "*"}))
                except ClientError as error:
                    if (
                        error_code(error) in TAKEN
                        or error.response["ResponseMetadata"]["HTTPStatusCode"] not in NO_CONDITIONS
                    ):
                        raise
                else:
                    return
            if self._found(key) is not None:
                raise AlreadyThereError(f"{self.uri(key)} already exists and is never overwritten")
            retried(lambda: write({}))
        except ClientError as error:
            if error_code(error) in TAKEN:
                raise AlreadyThereError(f"{self.uri(key)} already exists and is never overwritten") from error
            raise
        if self._has_conditions:
            self._has_conditions = False
            console.warning(
                f"{self.uri(key)}: the store does not support If-None-Match: of two writers at the same instant, one "
                "would overwrite the other"
            )

    def _put_parts(self, path: Path, key: str, digest: str) -> None:
        for may_resume in (True, False):
            upload = self._unfinished_upload(path, key) if may_resume else None
            # The upload disappears if another process that feeds it completes or aborts it.
            with suppress(self._client.exceptions.NoSuchUpload):
                self._complete(path, key, upload or self._new_upload(key, digest), overwrite=not may_resume)
            # An upload's metadata cannot be read before it is completed. An upload left behind by a longer or shorter
            # file has the wrong sha256, and is then replaced by a new upload.
            head = self._found(key)
            if head is not None and self._is_same(path, key, digest, head):
                return
        raise StorageError(
            f"{self.uri(key)}: after two complete uploads the store has other content; check for processes that write "
            "this key, and run again"
        )

    def _new_upload(self, key: str, digest: str) -> _Upload:
        create = self._client.create_multipart_upload
        answer = retried(lambda: create(**self._object(key), Metadata={"sha256": digest}))
        return _Upload(answer["UploadId"], {})

    def _unfinished_upload(self, path: Path, key: str) -> _Upload | None:
        """The newest unfinished upload of this key whose parts are all parts of this file; None if there is none."""
        try:
            for upload in self._unfinished_uploads(key):
                with suppress(self._client.exceptions.NoSuchUpload):
                    parts = self._sent_parts(key, upload)
                    if parts and all(self._is_part_of(path, part) for part in parts):
                        console.info(f"upload of {path.name}: resumes after {len(parts)} parts")
                        return _Upload(upload, {part["PartNumber"]: part["ETag"] for part in parts})
        except (ClientError, UnexpectedAnswer) as error:
            if _what(error) == "NoSuchBucket":
                raise
            console.warning(
                f"{self.uri(key)}: unfinished uploads cannot be listed ({_what(error)}), so the upload starts "
                "from the beginning; grant s3:ListBucketMultipartUploads and s3:ListMultipartUploadParts"
            )
        return None

    def _unfinished_uploads(self, key: str) -> Sequence[str]:
        """The ids of this key's unfinished uploads, the newest first."""
        where = self._object(key)
        paginator = self._client.get_paginator("list_multipart_uploads")
        pages = retried(lambda: tuple(paginator.paginate(Bucket=self._bucket, Prefix=where["Key"])))
        uploads = [entry for page in pages for entry in page.get("Uploads", []) if entry["Key"] == where["Key"]]
        return [entry["UploadId"] for entry in sorted(uploads, key=lambda entry: entry["Initiated"], reverse=True)]

    def _sent_parts(self, key: str, upload: str) -> Sequence["PartTypeDef"]:
        paginator = self._client.get_paginator("list_parts")
        pages = retried(lambda: tuple(paginator.paginate(**self._object(key), UploadId=upload)))
        return [part for page in pages for part in page.get("Parts", [])]

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

    def _complete(self, path: Path, key: str, upload: _Upload, overwrite: bool) -> None:
        expected = self._parts(path)

        def send(number: int) -> tuple[int, str]:
            data = _read(path, *expected[number])
            answer = retried(
                lambda: self._client.upload_part(
                    **self._object(key), UploadId=upload.id, PartNumber=number, Body=data, ContentMD5=_md5(data)[1]
                )
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

        def complete(condition: dict[str, Any]) -> None:
            self._client.complete_multipart_upload(
                **self._object(key), UploadId=upload.id, MultipartUpload={"Parts": parts}, **condition
            )

        if overwrite:
            retried(lambda: complete({}))
        else:
            self._write_once(key, complete)

    def _fetched(self, key: str, part: Path, size: int, etag: str, expected: str) -> bool:
        """Download the missing bytes of the object to `part`. If the checksum is wrong, delete it and return false."""
        head = _Head(size, etag, expected, 0.0)
        with part.open("a+b") as file:
            digest = hashlib.sha256()
            file.seek(0)
            while block := file.read(BLOCK):
                digest.update(block)
            there = file.tell()
            if 0 < there < size:
                console.info(f"download of {part.stem}: resumes after {there // MIB} of {size // MIB} MiB")
            progress = Progress(f"downloading {part.stem}", size // MIB, "MiB")
            begins, deadline = range(there, size, self._part_size), _deadline(size - there)
            for data in _run_concurrently(lambda begin: self._part(key, begin, head, deadline), begins):
                file.write(data)
                digest.update(data)
                progress.update(file.tell() // MIB)
            flush_to_disk(file)
        if not expected or digest.hexdigest() == expected:
            return True
        part.unlink()
        # The part of an earlier run may belong to another object. Only a download from the first byte proves damage.
        return there > 0 and self._fetched(key, part, size, etag, expected)

    def _part(self, key: str, begin: int, head: _Head, deadline: float) -> bytes:
        """The part of an object that begins at a byte. After a cut connection, only the missing bytes are requested."""
        end = min(begin + self._part_size, head.size)

        def request(received: int) -> "GetObjectOutputTypeDef":
            wanted = f"bytes={begin + received}-{end - 1}"
            answer = self._client.get_object(**self._object(key), Range=wanted, IfMatch=head.etag)
            is_whole = answer["ResponseMetadata"]["HTTPStatusCode"] == 200
            if is_whole and (begin + received, end) != (0, head.size):
                raise StorageError(
                    f"{self.uri(key)}: the store ignores Range and sends the whole object for each part; check for a "
                    "proxy in front of it"
                )
            return answer

        return self._received(key, request, deadline, end - begin)

    def _whole(self, key: str, most: int | None, deadline: float) -> tuple[bytes, str]:
        """The content of an object and the sha256 in its metadata. After a cut connection, the rest is requested."""
        first: GetObjectOutputTypeDef | None = None

        def request(received: int) -> "GetObjectOutputTypeDef":
            nonlocal first
            if first and received:
                try:
                    return self._client.get_object(
                        **self._object(key), Range=f"bytes={received}-", IfMatch=_strong(first["ETag"])
                    )
                except ClientError as error:
                    if error_code(error) not in TAKEN:
                        raise  # else the object was replaced, and is read from its first byte
            first = self._client.get_object(**self._object(key))
            return first

        data = self._received(key, request, deadline, most=most)
        if first and "ContentLength" not in first and len(data) < (size := self._head(key).size):
            raise IncompleteReadError(actual_bytes=len(data), expected_bytes=size)
        return data, _sha256_in(first["Metadata"]) if first else ""

    def _received(
        self,
        key: str,
        request: Callable[[int], "GetObjectOutputTypeDef"],
        deadline: float,
        size: int | None = None,
        most: int | None = None,
    ) -> bytes:
        """The bytes of answers to `request`, which gets the number of bytes received so far, until all have arrived.

        botocore's retries end with the headers; here the body belongs to the request. Tries are counted from the last
        byte that arrived, so that a download of any length ends if the connection makes progress and is fast enough.

        Args:
            key: the key, for errors.
            request: sends a request.
            deadline: of the whole download, on the monotonic clock.
            size: number of bytes, if it is known.
            most: more bytes are refused.
        """
        received, tries = bytearray(), 0
        while True:
            before = len(received)
            answer = retried(lambda before=before: request(before))  # type: ignore[misc]
            if answer["ResponseMetadata"]["HTTPStatusCode"] == 200:
                received.clear()  # the store sent the object from its first byte
            announced = answer.get("ContentLength")
            total = size if size is not None or announced is None else announced + len(received)
            if most is not None and (total or 0) > most:
                answer["Body"].close()
                raise too_large(self.uri(key), most)
            problem: Exception | None = None
            try:
                # botocore's body would wait for all bytes that are asked for; urllib3's gives those that are there.
                with answer["Body"] as body:
                    while data := cast("urllib3.HTTPResponse", body).read1(MIB):
                        received += data
                        if most is not None and len(received) > most:
                            raise too_large(self.uri(key), most)
                        if total is not None and len(received) > total:
                            break
                        if time.monotonic() > deadline:
                            raise self._too_slow(key)
            except (HTTPClientError, IncompleteReadError, urllib3.exceptions.HTTPError, OSError) as error:
                problem = error
            if len(received) == total or (total is None and problem is None):
                return bytes(received)
            if total is not None and len(received) > total:
                raise StorageError(f"{self.uri(key)}: the store sent more bytes than were requested; run again")
            if time.monotonic() > deadline:
                raise self._too_slow(key)
            tries = 1 if len(received) > before else tries + 1
            if tries >= attempts():
                raise problem or IncompleteReadError(actual_bytes=len(received), expected_bytes=total or 0)
            pause(tries)

    def _too_slow(self, key: str) -> StorageError:
        return StorageError(
            f"{self.uri(key)} arrives with less than {_kib_per_second()} KiB per second on average; check the network, "
            f"or lower {MIN_RATE}, for pods the chart's s3.minKibPerSecond; then run again: finished parts are kept"
        )


def _deadline(size: int) -> float:
    """When a download of `size` bytes must have ended, on the monotonic clock.

    It is a bound on the whole download, and not only on its pauses: a store that sends a byte a minute would otherwise
    keep a pod from starting, and the lock that other pods wait for. It grows with the size, so that it need not be
    chosen for the largest model.
    """
    return time.monotonic() + SECONDS_BESIDES + size / (_kib_per_second() * 1024)


def _kib_per_second() -> int:
    given = os.environ.get(MIN_RATE, "").strip()
    if given and not (given.isdecimal() and int(given)):
        raise InputError(f"{MIN_RATE}: write a positive number, not {given!r}")
    return int(given or DEFAULT_KIB_PER_SECOND)


def _sha256_in(metadata: Mapping[str, str]) -> str:
    """Our checksum; empty if there is none. Stores change the letter case of names, and quote, repeat or cut values."""
    value = {name.lower(): value for name, value in metadata.items()}.get("sha256", "").lower()
    found = set(_SHA256.findall(value))
    return found.pop() if len(found) == 1 else ""


def _strong(etag: str) -> str:
    """The ETag that the store gave an object. Proxies that compress mark it as weak, which If-Match never fits."""
    return etag.removeprefix("W/")


def _what(error: ClientError | UnexpectedAnswer) -> str:
    return error_code(error) if isinstance(error, ClientError) else str(error)


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
