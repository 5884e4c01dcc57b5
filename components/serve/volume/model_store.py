"""The volume on which pods keep fetched models, so that a restart does not need the object store."""

import fcntl
import hashlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from chatmetrics.components.console import info, warning
from chatmetrics.components.errors import InputError, StorageError
from chatmetrics.components.storage.files import atomic_file, disk_errors, sha256_of
from chatmetrics.components.storage.manifest import CANDIDATE, MANIFEST, Manifest, fetch, manifest_bytes, parse_manifest

SECONDS_BETWEEN_TRIES = 1.0
SECONDS_BETWEEN_MARKS = 600.0
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

    Several pods may share the volume: fetching and pruning lock it.

    Args:
        folder: The volume.
        served: Folder of empty files whose modification time records when a version was last served. It is the
            only folder that a serving pod writes to. None is `served` on the volume.
    """

    def __init__(self, folder: Path, served: Path | None = None) -> None:
        self._folder = folder
        self._served = served or folder / "served"

    def manifest(self, uri: str, sha256: str = "") -> Manifest:
        """Return the manifest of a published version, from the volume if possible.

        Args:
            uri: The version's folder, or its manifest.
            sha256: That of the manifest that passed the gate; empty accepts any.

        Raises:
            InputError: The URI names a candidate.
            StorageError: The manifest is neither on the volume nor in the object store, or is another one.
        """
        return parse_manifest(self._manifest_bytes(uri, sha256), uri, sha256)

    def _manifest_bytes(self, uri: str, sha256: str) -> bytes:
        if uri.endswith(f"/{CANDIDATE}"):
            raise InputError(f"{uri} is a candidate that did not pass the gate; give a published model's {MANIFEST}")
        try:
            content = self._index(uri).read_bytes()
        except OSError:
            return manifest_bytes(uri)
        try:
            parse_manifest(content, str(self._index(uri)), sha256)
        except StorageError as error:
            try:
                return manifest_bytes(uri)
            except StorageError:
                raise error from None
        return content

    def fetch(self, uri: str, sha256: str = "") -> Path:
        """Fetch a published version, verify its files, and return its folder.

        Versions are immutable, so a complete one on the volume is not fetched again. `sha256` is as for `manifest`.

        Raises:
            StorageError: Reading from the object store or writing to the volume failed, or a file is damaged or another
                one than passed the gate.
        """
        with self._locked():
            self._served.mkdir(exist_ok=True)  # before a proxy mounts it
            content = self._manifest_bytes(uri, sha256)
            manifest = parse_manifest(content, uri, sha256)
            folder = self.folder(manifest)
            if not _is_complete(folder, manifest):
                fetch(uri, folder, sha256)
            with atomic_file(self._index(uri)) as index:  # its modification time is when the version was last fetched
                index.write(content)
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

    def prune(self, keep: int) -> None:
        """Delete versions that are not in use, except the `keep` last served versions of each model.

        A version that never passed its acceptance test does not count as served, so it does not displace an older one.

        Raises:
            StorageError: Deleting failed.
        """
        unused_since = time.time() - SECONDS_IN_USE
        with self._locked(), disk_errors(self._folder):
            for versions in self._versions().values():
                served = sorted((version for version in versions if version.served), key=lambda each: -each.served)
                for version in versions:
                    if version not in served[:keep] and max(version.served, version.fetched) < unused_since:
                        info(f"deleting {version.folder}, which is not served any more")
                        version.index.unlink()
                        shutil.rmtree(version.folder, ignore_errors=True)

    def _versions(self) -> dict[str, list["_Version"]]:
        """Versions on the volume, by model."""
        found: dict[str, list[_Version]] = {}
        for index in sorted((self._folder / "index").glob("*.json")):
            try:
                manifest = Manifest.model_validate_json(index.read_bytes())
            except ValidationError:  # for example written by a later version of ChatMetrics
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
    def _locked(self) -> Iterator[None]:
        """Lock the volume. The lock is released even if the process is killed."""
        with disk_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = (self._folder / ".lock").open("w")
        with lock:
            reported = False
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not reported:
                        info("waiting for another pod that is fetching models")
                    reported = True
                    time.sleep(SECONDS_BETWEEN_TRIES)
            yield


def _is_complete(folder: Path, manifest: Manifest) -> bool:
    try:
        return all(sha256_of(folder / file.name) == file.sha256 for file in manifest.files)
    except StorageError:
        return False
