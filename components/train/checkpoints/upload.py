"""Uploads complete checkpoints to a store, so that a run survives its pod."""

import hashlib
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from chatmetrics.components.console import warning
from chatmetrics.components.errors import StorageError
from chatmetrics.components.storage.mirror import pull_folder
from chatmetrics.components.storage.store import Store, local_path, open_store
from chatmetrics.components.train.checkpoints.checksums import IDENTITY, SEAL, is_complete, sealed_files, stage

POLL_SECONDS = 2.0
STAGING = ".upload"  # folder for the checkpoint that is being uploaded, next to the checkpoints
MUTABLE_FILES = (IDENTITY, "progress.jsonl")  # these change; a sealed checkpoint does not


@contextmanager
def durable_checkpoints(uri: str, resumed: str = "", keep: int = 2) -> Iterator[Path]:
    """Yield the folder of a run's checkpoints: a local folder itself, or a copy that is synchronized with a store.

    The copy starts with the store's newest intact checkpoint or, if the store has none, with that of `resumed`. A
    checkpoint that training seals is uploaded within seconds, also when the block is left by an exception or SIGTERM.
    While a slow store takes one, training may seal and remove others; then the newest one is next, and a warning names
    the steps that are not in the store.

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
    threads = [threading.Thread(target=work, args=(ended,), daemon=True) for work in (uploads.follow, uploads.watch)]
    for thread in threads:
        thread.start()
    try:
        yield folder
    finally:
        ended.set()
        for thread in threads:
            thread.join()
        shutil.rmtree(folder, ignore_errors=True)


class _UploadedCheckpoints:
    """The complete checkpoints in a store, as `checkpoint-<step>.<hash of its seal>/`; the seal is written last."""

    def __init__(self, store: Store, folder: Path, keep: int) -> None:
        self._store, self._folder, self._keep = store, folder, keep
        self._known: set[str] = set()  # names of those believed to be intact
        self._stored_step = 0  # that of the newest of them
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
        self._stored_step = max(map(_step, complete), default=0)
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
        """Upload new checkpoints, the newest first, and when the block ends those that are left."""
        while not ended.wait(POLL_SECONDS):
            self._upload_next()
        while self._upload_next():
            pass

    def watch(self, ended: threading.Event) -> None:
        """Warn when uploads are behind: a checkpoint was sealed while earlier ones were still not in the store."""
        waiting: set[int] = set()
        while not ended.wait(POLL_SECONDS):
            stored = self._stored_step
            sealed = {step for step in map(_step, self._sealed()) if step > stored}
            waiting = {step for step in waiting if step > stored}
            if waiting and sealed - waiting:
                missing = waiting | sealed
                warning(
                    f"the store is behind: {self._newest_stored()}, and the {len(missing)} sealed since, of steps "
                    f"{min(missing)} to {max(missing)}, are not in it; if this pod ended now, all steps after {stored} "
                    "would be repeated"
                )
            waiting |= sealed

    def _newest_stored(self) -> str:
        return f"its newest checkpoint is of step {self._stored_step}" if self._stored_step else "it has no checkpoint"

    def _upload_next(self) -> bool:
        """Upload the newest checkpoint that is not in the store, if there is one; return whether there was one."""
        staging = self._folder / STAGING
        try:
            checkpoint = self._stage_next(staging)
            # Before the checkpoint: a run that resumes from one needs the progress of all steps before it.
            self._upload_mutable()
            if checkpoint:
                self._upload(checkpoint)
            return checkpoint is not None
        except (OSError, StorageError) as error:
            warning(f"the newest checkpoints are not in the store yet ({self._newest_stored()}): {error}")
            return False
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _stage_next(self, staging: Path) -> Path | None:
        """Put the newest checkpoint that is not in the store where training does not remove it; None: there is none."""
        for name in self._sealed():
            with suppress(FileNotFoundError):  # training is removing it, because there are newer ones
                if self._is_wanted(_stored_name(self._folder / name)):
                    stage(self._folder / name, staging / name)
                    return staging / name
        return None

    def _is_wanted(self, name: str) -> bool:
        """Whether a checkpoint is missing in the store and would be one of those that are kept there."""
        steps = sorted(map(_step, self._known))
        return name not in self._known and (len(steps) < self._keep or _step(name) > steps[0])

    def _sealed(self) -> list[str]:
        """The names of the sealed checkpoints in the folder, the newest first."""
        names = [seal.parent.name for seal in self._folder.glob(f"checkpoint-*/{SEAL}")]
        return sorted(names, key=_step, reverse=True)

    def _upload_mutable(self) -> None:
        for name in filter(lambda name: (self._folder / name).is_file(), MUTABLE_FILES):
            data = (self._folder / name).read_bytes()
            if data != self._mutable.get(name):
                self._store.put_bytes(data, name, overwrite=True)
                self._mutable[name] = data

    def _upload(self, checkpoint: Path) -> None:
        name = _stored_name(checkpoint)
        for path in sealed_files(checkpoint):
            self._store.put_file(path, f"{name}/{path.relative_to(checkpoint).as_posix()}")
        self._known.add(name)
        self._stored_step = max(map(_step, self._known))
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


def _stored_name(checkpoint: Path) -> str:
    return f"{checkpoint.name}.{hashlib.sha256((checkpoint / SEAL).read_bytes()).hexdigest()[:12]}"


def _step(name: str) -> int:
    return int(name.partition("-")[2].partition(".")[0])
