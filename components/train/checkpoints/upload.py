"""Uploads complete checkpoints to a store, so that a run survives its pod."""

import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from chatmetrics.components.console import warning
from chatmetrics.components.errors import StorageError
from chatmetrics.components.storage.files import sha256_of
from chatmetrics.components.storage.mirror import pull_folder
from chatmetrics.components.storage.store import Store, local_path, open_store
from chatmetrics.components.train.checkpoints.checksums import IDENTITY, SEAL, is_complete, sealed_files

POLL_SECONDS = 2.0
MUTABLE_FILES = (IDENTITY, "progress.jsonl")  # these change; a sealed checkpoint does not


@contextmanager
def durable_checkpoints(uri: str, resumed: str = "", keep: int = 2) -> Iterator[Path]:
    """Yield the folder of a run's checkpoints: a local folder itself, or a copy that is synchronized with a store.

    The copy starts with the store's newest intact checkpoint or, if the store has none, with that of `resumed`. Each
    checkpoint that training seals is uploaded within seconds, also when the block is left by an exception or SIGTERM.

    Args:
        uri: folder, file:// or s3:// URI of the run's checkpoints.
        resumed: s3:// URI of an earlier run's checkpoints, which are only read.
        keep: how many of the newest checkpoints are kept in the store.

    Raises:
        StorageError: the store did not answer at the start, or none of its checkpoints is intact. A failed upload is
            only a warning, and training continues.
    """
    if not uri.startswith("s3://"):
        yield local_path(uri)
        return
    folder = Path(tempfile.mkdtemp(prefix="checkpoints-"))
    uploads = _UploadedCheckpoints(open_store(uri), folder, keep)
    if not uploads.restore(uri) and resumed:
        _UploadedCheckpoints(open_store(resumed), folder, keep).restore(resumed)
    ended = threading.Event()
    uploader = threading.Thread(target=uploads.follow, args=(ended,), daemon=True)
    uploader.start()
    try:
        yield folder
    finally:
        ended.set()
        uploader.join()
        shutil.rmtree(folder, ignore_errors=True)


class _UploadedCheckpoints:
    """The complete checkpoints in a store, as `checkpoint-<step>.<hash of its seal>/`; the seal is written last."""

    def __init__(self, store: Store, folder: Path, keep: int) -> None:
        self._store, self._folder, self._keep = store, folder, keep
        self._known: set[str] = set()  # names of those believed to be intact
        self._mutable: dict[str, bytes] = {}

    def restore(self, uri: str) -> bool:
        """Download the newest intact checkpoint and the mutable files; return whether there is a checkpoint."""
        complete = sorted(_complete(self._store.list("")), key=_step)
        failure: StorageError | None = None
        while complete:
            failure = self._download(uri, complete[-1])
            if failure is None:
                break
            warning(f"{uri}/{complete.pop()} is skipped: {failure}")
        if failure:
            raise failure
        self._known = set(complete)
        for name in MUTABLE_FILES:
            if self._store.exists(name):
                (self._folder / name).write_bytes(self._store.read_bytes(name))
        return bool(complete)

    def _download(self, uri: str, name: str) -> StorageError | None:
        """Download a checkpoint; return why it cannot be used, or None."""
        checkpoint = self._folder / name.partition(".")[0]
        try:
            pull_folder(f"{uri.rstrip('/')}/{name}", checkpoint)
        except StorageError as error:
            shutil.rmtree(checkpoint, ignore_errors=True)
            return error
        if is_complete(checkpoint):
            return None
        shutil.rmtree(checkpoint)
        return StorageError(f"{uri}/{name} is incomplete or damaged")

    def follow(self, ended: threading.Event) -> None:
        """Upload new checkpoints every few seconds, and once more at the end."""
        while not ended.wait(POLL_SECONDS):
            self._upload_new()
        self._upload_new()

    def _upload_new(self) -> None:
        try:
            sealed = [seal.parent for seal in self._folder.glob(f"checkpoint-*/{SEAL}")]
            # Before the checkpoints: a run that resumes from one needs the progress of all steps before it.
            for name in filter(lambda name: (self._folder / name).is_file(), MUTABLE_FILES):
                data = (self._folder / name).read_bytes()
                if data != self._mutable.get(name):
                    self._store.put_bytes(data, name, overwrite=True)
                    self._mutable[name] = data
            for checkpoint in sorted(sealed, key=lambda path: _step(path.name), reverse=True):
                self._upload_unless_removed(checkpoint)
        except (OSError, StorageError) as error:
            warning(f"the newest checkpoints are not in the store yet: {error}")

    def _upload_unless_removed(self, checkpoint: Path) -> None:
        """Upload a checkpoint, unless training removes it meanwhile because there are newer ones."""
        files: list[Path] = []
        try:
            files = sealed_files(checkpoint)
            self._upload(checkpoint, files)
        except (OSError, StorageError):
            if files and all(path.exists() for path in files):
                raise

    def _upload(self, checkpoint: Path, files: Sequence[Path]) -> None:
        name = f"{checkpoint.name}.{sha256_of(checkpoint / SEAL)[:12]}"
        if name in self._known:
            return
        for path in files:
            self._store.put_file(path, f"{name}/{path.relative_to(checkpoint).as_posix()}")
        self._known.add(name)
        self._remove_others()

    def _remove_others(self) -> None:
        """Remove all but the newest intact checkpoints, also those that an earlier pod left incomplete or damaged."""
        self._known = set(sorted(self._known, key=_step)[-self._keep :])
        # The seals first, so that a partly removed checkpoint does not look complete.
        for key in sorted(self._store.list("checkpoint-"), key=lambda key: not key.endswith(SEAL)):
            if key.partition("/")[0] not in self._known:
                self._store.delete(key)


def _complete(keys: list[str]) -> set[str]:
    return {key.removesuffix(f"/{SEAL}") for key in keys if key.endswith(f"/{SEAL}")}


def _step(name: str) -> int:
    return int(name.partition("-")[2].partition(".")[0])
