"""The volume on which pods keep the models that they have fetched, so that a restart does without the store."""

import fcntl
import hashlib
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from chatmetrics.components.errors import InputError, StorageError
from chatmetrics.components.storage.files import atomic_file, disk_errors, sha256_of
from chatmetrics.components.storage.manifest import CANDIDATE, MANIFEST, NAME, Manifest, fetch, read_manifest

SECONDS_BETWEEN_TRIES = 1.0
SECONDS_BETWEEN_MARKS = 600.0
SECONDS_IN_USE = 3 * SECONDS_BETWEEN_MARKS


@dataclass(frozen=True)
class _Version:
    """A version on the volume: when a pod last fetched it, and when one last served it (0: never)."""

    index: Path
    folder: Path
    wanted: float
    served: float


class ModelStore:
    """A folder for each version of each model, named for its content, and an index of the URIs they came from.

    Several pods may share it: whoever fetches or clears away is alone.

    Args:
        folder: the volume.
        served: folder of the marks that say when a version was served, the one part that a serving pod writes to; None
            is `served` on the volume.
    """

    def __init__(self, folder: Path, served: Path | None = None) -> None:
        self._folder = folder
        self._served = served or folder / "served"

    def manifest(self, uri: str) -> Manifest:
        """The manifest of a published version, from the volume where it is known there.

        Raises:
            InputError: the URI names a candidate.
            StorageError: it is neither here nor in the store.
        """
        if uri.endswith(f"/{CANDIDATE}"):
            raise InputError(f"{uri} is a candidate that did not pass the gate; give a published model's {MANIFEST}")
        try:
            return Manifest.model_validate_json(self._index(uri).read_bytes())
        except (OSError, ValidationError):
            return read_manifest(uri)

    def fetch(self, uri: str) -> Path:
        """Bring a published version here, each file verified, and return its folder; what is here and right stays.

        A version is never rewritten, so one that is here whole is not asked for again.

        Raises:
            StorageError: the store or the disk refused, or a file is damaged.
        """
        with self._locked():
            self._served.mkdir(exist_ok=True)  # before a proxy mounts it
            manifest = self.manifest(uri)
            folder = self.folder(manifest)
            if not _is_complete(folder, manifest):
                fetch(uri, folder)
            with atomic_file(self._index(uri)) as index:  # its time says when the version was last wanted
                index.write(manifest.model_dump_json(indent=2).encode())
        return folder

    def folder(self, manifest: Manifest) -> Path:
        """Where a version is, or would be.

        Raises:
            InputError: name or version is not one, and would lead elsewhere.
        """
        if not all(NAME.fullmatch(part) for part in (manifest.name, manifest.version)):
            raise InputError(f"manifest of {manifest.name!r}, version {manifest.version!r}: not a name; publish anew")
        digest = hashlib.sha256("".join(file.sha256 for file in manifest.files).encode()).hexdigest()
        return self._folder / manifest.name / f"{manifest.version}-{digest[:12]}"

    def mark_served(self, manifest: Manifest) -> None:
        """Note that a version is served now; to be said again every ten minutes.

        Raises:
            StorageError: the disk refused.
        """
        mark = self._mark(manifest)
        with disk_errors(mark):
            mark.touch()

    def prune(self, keep: int) -> None:
        """Remove what nobody has wanted for long; the `keep` versions of each model that were served last stay.

        A version that never passed its acceptance test does not count among them: it must not displace the one before.

        Raises:
            StorageError: the disk refused.
        """
        long_ago = time.time() - SECONDS_IN_USE
        with self._locked(), disk_errors(self._folder):
            for versions in self._versions().values():
                served = sorted((version for version in versions if version.served), key=lambda each: -each.served)
                for version in versions:
                    if version not in served[:keep] and max(version.served, version.wanted) < long_ago:
                        print(f"removing {version.folder}: not served any more", file=sys.stderr, flush=True)
                        version.index.unlink()
                        shutil.rmtree(version.folder, ignore_errors=True)

    def _versions(self) -> dict[str, list["_Version"]]:
        """What is here, by model."""
        found: dict[str, list[_Version]] = {}
        for index in sorted((self._folder / "index").glob("*.json")):
            try:
                manifest = Manifest.model_validate_json(index.read_bytes())
            except ValidationError:  # half written, or by a later version of ours
                print(f"{index} cannot be read and is left alone", file=sys.stderr, flush=True)
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
        """Hold the volume; the lock goes with the process, however that ends."""
        with disk_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = (self._folder / ".lock").open("w")
        with lock:
            said = False
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not said:
                        print("waiting for another pod that is fetching", file=sys.stderr, flush=True)
                    said = True
                    time.sleep(SECONDS_BETWEEN_TRIES)
            yield


def _is_complete(folder: Path, manifest: Manifest) -> bool:
    try:
        return all(sha256_of(folder / file.name) == file.sha256 for file in manifest.files)
    except StorageError:
        return False
