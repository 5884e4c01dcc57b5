"""The volume on which pods keep fetched models, so that a restart does not need the object store."""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from chatmetrics.components.console import info, warning
from chatmetrics.components.errors import InputError, StorageError
from chatmetrics.components.storage.files import (
    MIB,
    UNFINISHED,
    atomic_file,
    disk_errors,
    read_bounded,
    sha256_of,
)
from chatmetrics.components.storage.manifest import (
    CANDIDATE,
    MANIFEST,
    MAX_BYTES,
    Manifest,
    ModelFile,
    fetch,
    manifest_bytes,
    parse_manifest,
    signature_bytes,
)
from chatmetrics.components.storage.signature import verify

SECONDS_BETWEEN_TRIES = 1.0
SECONDS_BETWEEN_MARKS = 600.0
SIGNED = ".sig"  # of an index's signature
SECONDS_IN_USE = 3 * SECONDS_BETWEEN_MARKS  # a version with an older mark is not in use


@dataclass(frozen=True)
class _Version:
    """A version on the volume, with the times at which a pod last fetched it and last served it (0 is never)."""

    index: Path
    folder: Path
    fetched: float
    served: float


class ModelStore:
    """A folder for each version of each model, named after its content, and an index by URI.

    Several pods may share the volume: each version has a lock.

    Args:
        folder: The volume.
        served: Folder of empty files whose modification time records when a version was last served. It is the
            only folder that a serving pod writes to. None is `served` on the volume.
        public_key: Key with which every manifest must be signed; empty accepts any manifest.
    """

    def __init__(self, folder: Path, served: Path | None = None, public_key: str = "") -> None:
        self._folder = folder
        self._served = served or folder / "served"
        self._public_key = public_key

    def manifest(self, uri: str, sha256: str = "") -> Manifest:
        """Return the manifest of a published version, from the volume if possible.

        Args:
            uri: The version's folder, or its manifest.
            sha256: That of the manifest that passed the gate; empty accepts any.

        Raises:
            InputError: The URI names a candidate.
            StorageError: The manifest is neither on the volume nor in the object store, is another one, or not signed.
        """
        return parse_manifest(self._signed_manifest(uri, sha256)[0], uri, sha256)

    def _signed_manifest(self, uri: str, sha256: str) -> tuple[bytes, bytes]:
        """The bytes of a manifest and of its signature, which is verified if a key is given, and else empty."""
        if uri.endswith(f"/{CANDIDATE}"):
            raise InputError(f"{uri} is a candidate that did not pass the gate; give a published model's {MANIFEST}")
        index = self._index(uri)
        if not index.is_file():
            return self._from_store(uri)
        try:
            content = read_bounded(index, MAX_BYTES)
            parse_manifest(content, str(index), sha256)
            signed = index.with_suffix(SIGNED)
            signature = read_bounded(signed, MAX_BYTES) if self._public_key and signed.is_file() else b""
            self._check_signature(content, signature, str(index))
        except StorageError as error:
            try:
                return self._from_store(uri)
            except StorageError:
                raise error from None
        return content, signature

    def _from_store(self, uri: str) -> tuple[bytes, bytes]:
        content = manifest_bytes(uri)
        signature = signature_bytes(uri) if self._public_key else b""
        self._check_signature(content, signature, uri)
        return content, signature

    def _check_signature(self, content: bytes, signature: bytes, where: str) -> None:
        if self._public_key:
            verify(content, signature, self._public_key, where)

    def fetch(self, uri: str, sha256: str = "") -> Path:
        """Fetch a published version, verify its files, and return its folder.

        Versions are immutable, so a complete one on the volume is not fetched again. `sha256` is as for `manifest`.

        Raises:
            StorageError: Reading from the object store or writing to the volume failed, or a file is damaged or another
                one than passed the gate.
        """
        content, signature = self._signed_manifest(uri, sha256)
        manifest = parse_manifest(content, uri, sha256)
        folder = self.folder(manifest)
        with disk_errors(self._served):
            self._served.mkdir(parents=True, exist_ok=True)  # before a proxy mounts it
        # A pod whose version is complete waits only for pods that fetch the same version.
        with self._locked(folder, fcntl.LOCK_SH):
            if _is_complete(folder, manifest):
                self._note_fetched(uri, content, signature)
                return folder
        with self._locked(folder, fcntl.LOCK_EX):
            if not _is_complete(folder, manifest):
                self._check_space(folder, manifest)
                fetch(uri, folder, hashlib.sha256(content).hexdigest())
            self._note_fetched(uri, content, signature)
        return folder

    def verify(self, manifest: Manifest) -> None:
        """Compare the files on the volume, which other pods can write to, with the manifest.

        Raises:
            StorageError: A file is missing or another one.
        """
        folder = self.folder(manifest)
        if not _is_complete(folder, manifest):
            raise StorageError(
                f"{folder}: the files are not those of the manifest; restart the pod, which fetches them again, and "
                "find out who can write to the volume"
            )

    def folder(self, manifest: Manifest) -> Path:
        """Folder of a version on the volume, whether it exists or not."""
        digest = hashlib.sha256("".join(file.sha256 for file in manifest.files).encode()).hexdigest()
        return self._folder / manifest.name / f"{manifest.version}-{digest[:12]}"

    def mark_served(self, manifest: Manifest) -> None:
        """Record that a version is served now. To be called again every `SECONDS_BETWEEN_MARKS`.

        Raises:
            StorageError: Writing to the volume failed.
        """
        mark = self._mark(manifest)
        with disk_errors(mark):
            mark.touch()

    def prune(self, keep: int, wanted: Sequence[Manifest] = ()) -> None:
        """Delete versions that are not in use, and what is left of versions that were never complete.

        A version that never passed its acceptance test does not count as served, so it does not displace an older one.

        Args:
            keep: Number of last served versions of each model to keep.
            wanted: Versions that are fetched next, whose incomplete files are kept.

        Raises:
            StorageError: Deleting failed.
        """
        unused_since = time.time() - SECONDS_IN_USE
        known: set[Path] = set()
        for versions in self._versions().values():
            served = sorted((version for version in versions if version.served), key=lambda each: -each.served)
            for version in versions:
                known.add(version.folder)
                if version not in served[:keep] and max(version.served, version.fetched) < unused_since:
                    self._delete(version.folder, "which is not served any more", version.index)
        with disk_errors(self._folder):
            for folder in self._folder.glob("*/*-*"):
                if folder.is_dir() and folder not in known | {self.folder(manifest) for manifest in wanted}:
                    self._delete(folder, "which was never complete")

    def _delete(self, folder: Path, why: str, index: Path | None = None) -> None:
        """Delete a version, unless a pod verifies or fetches it."""
        with disk_errors(folder), suppress(BlockingIOError), self._locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
            info(f"deleting {folder}, {why}")
            if index:
                index.unlink(missing_ok=True)
                index.with_suffix(SIGNED).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)

    def _check_space(self, folder: Path, manifest: Manifest) -> None:
        begun = sum(path.stat().st_size for path in folder.glob(f".*{UNFINISHED}")) if folder.is_dir() else 0
        missing = (file for file in manifest.files if not (folder / file.name).is_file())
        needed, free = sum(file.size for file in missing) - begun, shutil.disk_usage(self._folder).free
        if needed > free:
            raise StorageError(
                f"{manifest.name}:{manifest.version} needs {needed // MIB + 1} MiB on the volume, but {free // MIB} "
                "MiB are free; raise storage.size, or lower storage.keepVersions"
            )

    def _note_fetched(self, uri: str, content: bytes, signature: bytes) -> None:
        """Write the signature, if there is one, and the index, whose modification time is that of the last fetch.

        They are not written again if they are the same, so that a full volume does not keep a complete version from
        serving.
        """
        index = self._index(uri)
        signed = index.with_suffix(SIGNED)
        if signature and not (signed.is_file() and read_bounded(signed, None) == signature):
            with atomic_file(signed) as file:
                file.write(signature)
        with disk_errors(index):
            if index.is_file() and index.stat().st_size == len(content) and index.read_bytes() == content:
                os.utime(index)
                return
        with atomic_file(index) as file:
            file.write(content)

    def _versions(self) -> dict[str, list["_Version"]]:
        """Versions on the volume, by model."""
        found: dict[str, list[_Version]] = {}
        for index in sorted((self._folder / "index").glob("*.json")):
            try:
                manifest = Manifest.model_validate_json(read_bounded(index, MAX_BYTES))
            except (ValidationError, StorageError):  # for example written by a later version of ChatMetrics
                warning(f"{index} cannot be read and is ignored")
                continue
            mark = self._mark(manifest)
            served = mark.stat().st_mtime if mark.exists() else 0.0
            version = _Version(index, self.folder(manifest), index.stat().st_mtime, served)
            found.setdefault(manifest.name, []).append(version)
        return found

    def _mark(self, manifest: Manifest) -> Path:
        return self._served / self.folder(manifest).relative_to(self._folder).as_posix().replace("/", "-")

    def _index(self, uri: str) -> Path:
        address = uri.removesuffix(f"/{MANIFEST}").rstrip("/")
        return self._folder / "index" / f"{hashlib.sha256(address.encode()).hexdigest()[:24]}.json"

    @contextmanager
    def _locked(self, folder: Path, mode: int) -> Iterator[None]:
        """Lock a version's folder. The lock is released even if the process is killed.

        Args:
            folder: The folder, which may not exist.
            mode: LOCK_SH to verify it, LOCK_EX to change it; LOCK_NB raises `BlockingIOError` instead of waiting.
        """
        locks = self._folder / "locks"
        with disk_errors(locks):
            locks.mkdir(parents=True, exist_ok=True)
            lock = (locks / f"{folder.parent.name}-{folder.name}").open("a")
        with lock:
            reported = False
            while True:
                try:
                    fcntl.flock(lock, mode | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if mode & fcntl.LOCK_NB:
                        raise
                    if not reported:
                        info(f"waiting for another pod that is fetching {folder.name}")
                    reported = True
                    time.sleep(SECONDS_BETWEEN_TRIES)
            yield


def _is_complete(folder: Path, manifest: Manifest) -> bool:
    try:
        return all(_holds(folder / file.name, file) for file in manifest.files)
    except (StorageError, OSError):
        return False


def _holds(path: Path, file: ModelFile) -> bool:
    return path.stat().st_size == file.size and sha256_of(path) == file.sha256
