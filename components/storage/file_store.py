"""A store in a folder: a local disk or a mounted volume."""

from pathlib import Path

from chatmetrics.components.errors import StorageError
from chatmetrics.components.storage.files import (
    UNFINISHED,
    AlreadyThereError,
    atomic_file,
    copy,
    disk_errors,
    path_below,
    read_bounded,
    sha256_of,
)

HASHED_SIZE = 64 * 2**20


class FileStore:
    """Keys are paths below `root`. See `Store` for the methods."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put_file(self, path: Path, key: str) -> None:
        """Copy a file into the store."""
        target = self._path(key)
        if not target.exists():
            try:
                with atomic_file(target, overwrite=False) as file:
                    copy(path, file)
                return
            except AlreadyThereError:
                pass  # Another writer was faster. That is an error only if it wrote other content.
        if sha256_of(target) != sha256_of(path):
            raise AlreadyThereError(f"{target} has other content than {path}; delete it or choose another version")

    def put_bytes(self, data: bytes, key: str, overwrite: bool) -> None:
        """Write a small file."""
        with atomic_file(self._path(key), overwrite) as file:
            file.write(data)

    def get_file(self, key: str, path: Path, sha256: str = "", size: int | None = None) -> None:
        """Copy a file out of the store and verify its size and checksum."""
        if sha256 and path.is_file() and sha256_of(path) == sha256:
            return
        with atomic_file(path) as file:
            found = copy(self._path(key), file, size)
            if sha256 and found != sha256:
                raise StorageError(f"{self.uri(key)} is damaged: sha256 {found} instead of {sha256}; publish it again")

    def read_bytes(self, key: str, most: int | None = None) -> bytes:
        """Read a small file."""
        return read_bounded(self._path(key), most)

    def exists(self, key: str) -> bool:
        """Whether the file exists."""
        return self._path(key).is_file()

    def list(self, prefix: str) -> list[str]:
        """Keys of the files below the root."""
        with disk_errors(self._root):
            paths = [path.relative_to(self._root) for path in self._root.rglob("*") if path.is_file()]
        visible = (path for path in paths if path.suffix != UNFINISHED and not any(n[0] == "." for n in path.parts))
        return sorted(path.as_posix() for path in visible if path.as_posix().startswith(prefix))

    def delete(self, key: str) -> None:
        """Delete the file."""
        with disk_errors(self._path(key)):
            self._path(key).unlink(missing_ok=True)

    def stamp(self, key: str) -> str:
        """The sha256 of a file below 64 MiB; size and modification time of a larger one."""
        path = self._path(key)
        with disk_errors(path):
            status = path.stat()
        return sha256_of(path) if status.st_size < HASHED_SIZE else f"{status.st_size} {status.st_mtime_ns}"

    def uri(self, key: str) -> str:
        """A file:// URI."""
        return self._path(key).as_uri()

    def _path(self, key: str) -> Path:
        return path_below(self._root, key) if key else self._root
