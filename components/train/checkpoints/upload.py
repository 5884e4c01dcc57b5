"""Checkpoints that outlive the pod: copies in a store of those that are complete."""

import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chatmetrics.components.errors import StorageError
from chatmetrics.components.storage.files import sha256_of
from chatmetrics.components.storage.mirror import pull_folder
from chatmetrics.components.storage.store import Store, local_path, open_store
from chatmetrics.components.train.checkpoints.checksums import IDENTITY, SEAL, is_complete

POLL_SECONDS = 2.0
MUTABLE_FILES = (IDENTITY, "progress.jsonl")  # they change; a checkpoint does not once it is sealed


@contextmanager
def durable_checkpoints(uri: str, resumed: str = "", keep: int = 2) -> Iterator[Path]:
    """Give the folder of a run's checkpoints: a local one itself, of a store a copy that is kept in step with it.

    The newest intact checkpoint of the store is there at the start; where it has none, that of `resumed`, the folder of
    an earlier run, which is only read. Each that training seals goes to the store within seconds, also when the block
    is left by an exception or SIGTERM, and only the newest `keep` stay there.

    Raises:
        StorageError: the store did not answer at the start, or none of its checkpoints is intact. Later it is only
            said: training goes on without.
    """
    if not uri.startswith("s3://"):
        yield local_path(uri)
        return
    folder = Path(tempfile.mkdtemp(prefix="checkpoints-"))
    copies = _UploadedCheckpoints(open_store(uri), folder, keep)
    if not copies.restore(uri) and resumed:
        _UploadedCheckpoints(open_store(resumed), folder, keep).restore(resumed)
    ended = threading.Event()
    follower = threading.Thread(target=copies.follow, args=(ended,), daemon=True)
    follower.start()
    try:
        yield folder
    finally:
        ended.set()
        follower.join()
        shutil.rmtree(folder, ignore_errors=True)


class _UploadedCheckpoints:
    """The complete checkpoints in a store, as `checkpoint-<step>.<hash of its seal>/`, the seal written last."""

    def __init__(self, store: Store, folder: Path, keep: int) -> None:
        self._store, self._folder, self._keep = store, folder, keep
        self._known: set[str] = set()  # those that are intact, as far as we know
        self._loose: dict[str, bytes] = {}

    def restore(self, uri: str) -> bool:
        """Bring the newest intact checkpoint and the loose files; false where there is no checkpoint."""
        complete = sorted(_complete(self._store.list("")), key=_step)
        failure: StorageError | None = None
        while complete and (failure := self._pull(uri, complete[-1])):
            print(f"warning: {uri}/{complete.pop()} is passed over: {failure}", file=sys.stderr, flush=True)
        if failure:
            raise failure
        self._known = set(complete)
        for name in MUTABLE_FILES:
            if self._store.exists(name):
                (self._folder / name).write_bytes(self._store.read_bytes(name))
        return bool(complete)

    def _pull(self, uri: str, name: str) -> StorageError | None:
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
        """Copy what is new, every few seconds and once more at the end."""
        while not ended.wait(POLL_SECONDS):
            self._copy_new()
        self._copy_new()

    def _copy_new(self) -> None:
        try:
            sealed = [seal.parent for seal in self._folder.glob(f"checkpoint-*/{SEAL}")]
            # Before the checkpoints: a run that goes on from one must know of all the steps before it.
            for name in filter(lambda name: (self._folder / name).is_file(), MUTABLE_FILES):
                data = (self._folder / name).read_bytes()
                if data != self._loose.get(name):
                    self._store.put_bytes(data, name, overwrite=True)
                    self._loose[name] = data
            for checkpoint in sorted(sealed, key=lambda path: _step(path.name), reverse=True):
                self._copy_unless_removed(checkpoint)
        except (OSError, StorageError) as error:
            print(f"warning: checkpoints are not in the store yet: {error}", file=sys.stderr, flush=True)

    def _copy_unless_removed(self, checkpoint: Path) -> None:
        """Copy a checkpoint, unless training removes it meanwhile, which it does once there are newer ones."""
        try:
            self._copy(checkpoint)
        except (OSError, StorageError):
            if checkpoint.exists():
                raise

    def _copy(self, checkpoint: Path) -> None:
        seal = checkpoint / SEAL
        name = f"{checkpoint.name}.{sha256_of(seal)[:12]}"
        if name in self._known:
            return
        files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path != seal]
        for path in [*files, seal]:
            self._store.put_file(path, f"{name}/{path.relative_to(checkpoint).as_posix()}")
        self._known.add(name)
        self._drop_others()

    def _drop_others(self) -> None:
        """Remove what is not among the newest intact ones, also what an earlier pod left half-written or damaged."""
        self._known = set(sorted(self._known, key=_step)[-self._keep :])
        # The seals first: what is left of a checkpoint must not look complete.
        for key in sorted(self._store.list("checkpoint-"), key=lambda key: not key.endswith(SEAL)):
            if key.partition("/")[0] not in self._known:
                self._store.delete(key)


def _complete(keys: list[str]) -> set[str]:
    return {key.removesuffix(f"/{SEAL}") for key in keys if key.endswith(f"/{SEAL}")}


def _step(name: str) -> int:
    return int(name.partition("-")[2].partition(".")[0])
