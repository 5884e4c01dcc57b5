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
from chatmetrics.components.train.checkpoints import IDENTITY, SEAL

SECONDS_BETWEEN_LOOKS = 2.0
KEPT = 2
LOOSE_FILES = (IDENTITY, "progress.jsonl")  # they change; a checkpoint does not once it is sealed


@contextmanager
def durable_checkpoints(uri: str, resumed: str = "") -> Iterator[Path]:
    """Give the folder of a run's checkpoints: a local one itself, of a store a copy that is kept in step with it.

    The newest complete checkpoints of the store are there at the start; where it has none, those of `resumed`, the
    folder of an earlier run, which is only read. Each that training seals goes to the store within seconds, also when
    the block is left by an exception or SIGTERM, and only the newest stay there.

    Raises:
        StorageError: the store did not answer at the start. Later it is only said: training goes on without.
    """
    if not uri.startswith("s3://"):
        yield local_path(uri)
        return
    folder = Path(tempfile.mkdtemp(prefix="checkpoints-"))
    copies = _Copies(open_store(uri), folder)
    if not copies.restore(uri) and resumed:
        _Copies(open_store(resumed), folder).restore(resumed)
    ended = threading.Event()
    follower = threading.Thread(target=copies.follow, args=(ended,), daemon=True)
    follower.start()
    try:
        yield folder
    finally:
        ended.set()
        follower.join()
        shutil.rmtree(folder, ignore_errors=True)


class _Copies:
    """The complete checkpoints in a store, as `checkpoint-<step>.<hash of its seal>/`, the seal written last."""

    def __init__(self, store: Store, folder: Path) -> None:
        self._store, self._folder = store, folder
        self._known: set[str] = set()
        self._loose: dict[str, bytes] = {}

    def restore(self, uri: str) -> bool:
        """Bring the newest complete checkpoints and the loose files; false where there is no checkpoint."""
        complete = sorted(_complete(self._store.list("")), key=_step)
        self._known = set(complete)
        one_a_step = {_step(name): name for name in complete}
        for name in list(one_a_step.values())[-KEPT:]:
            pull_folder(f"{uri.rstrip('/')}/{name}", self._folder / name.partition(".")[0])
        for name in LOOSE_FILES:
            if self._store.exists(name):
                (self._folder / name).write_bytes(self._store.read_bytes(name))
        return bool(complete)

    def follow(self, ended: threading.Event) -> None:
        """Copy what is new, every few seconds and once more at the end."""
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            self._copy_new()
        self._copy_new()

    def _copy_new(self) -> None:
        try:
            sealed = [seal.parent for seal in self._folder.glob(f"checkpoint-*/{SEAL}")]
            for checkpoint in sorted(sealed, key=lambda path: _step(path.name), reverse=True):
                self._copy_unless_removed(checkpoint)
            for name in filter(lambda name: (self._folder / name).is_file(), LOOSE_FILES):
                data = (self._folder / name).read_bytes()
                if data != self._loose.get(name):
                    self._store.put_bytes(data, name, overwrite=True)
                    self._loose[name] = data
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
        self._drop_old()

    def _drop_old(self) -> None:
        for name in sorted(self._known, key=_step)[:-KEPT]:
            # The seal first: what is left of a checkpoint must not look complete.
            for key in sorted(self._store.list(f"{name}/"), key=lambda key: not key.endswith(SEAL)):
                self._store.delete(key)
            self._known.discard(name)


def _complete(keys: list[str]) -> set[str]:
    return {key.removesuffix(f"/{SEAL}") for key in keys if key.endswith(f"/{SEAL}")}


def _step(name: str) -> int:
    return int(name.partition("-")[2].partition(".")[0])
