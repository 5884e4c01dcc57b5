"""Who may ask: bearer tokens from a Secret that is mounted as a folder, a file a client."""

import hashlib
import time
from pathlib import Path

from chatmetrics.components.errors import InputError

SECONDS_BETWEEN_LOOKS = 1.0
ANYBODY = "anybody"


class Tokens:
    """The tokens in a folder, read again when Kubernetes has changed them; no pod is started for a new one.

    Args:
        folder: file name: the client's; content: its token. None lets everybody in.

    Raises:
        InputError: there is no such folder.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._looked, self._state = 0.0, object()
        self._clients: dict[str, str] = {}
        if folder and not folder.is_dir():
            raise InputError(f"{folder}: no such folder of tokens; mount the Secret there")

    def client_of(self, authorization: str) -> str:
        """The client that an Authorization header belongs to; the empty string when it is nobody's."""
        if self._folder is None:
            return ANYBODY
        self._look(self._folder)
        scheme, _, token = authorization.partition(" ")
        # Looked up by hash, so that the time it takes tells nothing about how much of a token was right.
        return self._clients.get(_hash(token.strip()), "") if scheme.lower() == "bearer" else ""

    def _look(self, folder: Path) -> None:
        if time.monotonic() - self._looked < SECONDS_BETWEEN_LOOKS:
            return
        self._looked = time.monotonic()
        # The kubelet puts a new folder in place by this link.
        link = folder / "..data"
        state = link.readlink() if link.is_symlink() else folder.stat().st_mtime_ns
        if state != self._state:
            files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
            read = {path.name: path.read_text("utf-8", errors="replace").strip() for path in files}
            self._clients = {_hash(token): name for name, token in read.items() if token}
            self._state = state


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
