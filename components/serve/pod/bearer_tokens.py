"""Who may ask: bearer tokens from a Secret that is mounted as a folder, a file a client."""

import hashlib
import logging
import time
from pathlib import Path

from chatmetrics.components.errors import InputError, ServiceError

SECONDS_BETWEEN_LOOKS = 1.0
ANYBODY = "anybody"
log = logging.getLogger(__name__)


class BearerTokens:
    """The tokens in a folder, read again when Kubernetes has changed them; no pod is started for a new one.

    Args:
        folder: file name: the client's; content: its token. None lets everybody in.

    Raises:
        InputError: there is no such folder.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._looked, self._state = 0.0, object()
        self._clients: dict[str, str] | None = None  # by their token's hash; None while they cannot be read
        if folder and not folder.is_dir():
            raise InputError(f"{folder}: no such folder of tokens; mount the Secret there")

    def client_of(self, authorization: str) -> str:
        """The client that an Authorization header belongs to; the empty string when it is nobody's.

        Args:
            authorization: as HTTP has it, a character a byte.

        Raises:
            ServiceError: the tokens cannot be read now.
        """
        if self._folder is None:
            return ANYBODY
        self._look(self._folder)
        if self._clients is None:
            raise ServiceError("nobody can be let in, for the tokens cannot be read; try again later")
        scheme, _, token = authorization.partition(" ")
        # Looked up by hash, so that the time it takes tells nothing about how much of a token was right.
        return self._clients.get(_hash(token.encode("latin-1")), "") if scheme.lower() == "bearer" else ""

    def _look(self, folder: Path) -> None:
        if time.monotonic() - self._looked < SECONDS_BETWEEN_LOOKS:
            return
        self._looked = time.monotonic()
        try:
            # The kubelet puts a new folder in place by this link.
            link = folder / "..data"
            state = link.readlink() if link.is_symlink() else folder.stat().st_mtime_ns
            if state != self._state:
                files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
                read = {path.name: path.read_bytes().strip() for path in files}
                self._clients = {_hash(token): name for name, token in read.items() if token}
                self._state = state
        except OSError as error:
            # Not those of before: whoever takes the Secret away wants nobody to be let in.
            self._clients, self._state = None, object()
            log.warning("%s: the tokens cannot be read (%s); mount the Secret there", folder, error.strerror)


def _hash(token: bytes) -> str:
    return hashlib.sha256(token.strip()).hexdigest()
