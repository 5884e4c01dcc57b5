"""Bearer tokens of clients, from a Secret that is mounted as a folder with one file per client."""

import hashlib
import logging
import time
from pathlib import Path

from chatmetrics.components.credentials import read_secret_file
from chatmetrics.components.errors import InputError, ServiceError

SECONDS_BETWEEN_CHECKS = 1.0
ANONYMOUS = "anonymous"
log = logging.getLogger(__name__)


class BearerTokens:
    """The tokens in a folder. They are read again when Kubernetes changes them, without a restart of the pod.

    Args:
        folder: Folder with one file per client: the file's name is the client's name, its content is the token. None
            disables authentication.

    Raises:
        InputError: The folder does not exist.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._checked, self._version = 0.0, object()
        self._clients: dict[str, str] | None = None  # by hash of their token; None while the folder cannot be read
        if folder and not folder.is_dir():
            raise InputError(f"{folder}: no such folder; mount the Secret with the tokens there")

    def client_of(self, authorization: str) -> str:
        """Name of the client that sent an Authorization header; empty if the token is unknown.

        Args:
            authorization: The header's value, with one character per byte (Latin-1).

        Raises:
            ServiceError: The tokens cannot be read at the moment.
        """
        if self._folder is None:
            return ANONYMOUS
        self._refresh(self._folder)
        if self._clients is None:
            raise ServiceError("all requests are refused, because the tokens cannot be read; try again later")
        scheme, _, token = authorization.partition(" ")
        # Tokens are looked up by hash, so that the duration does not reveal how much of a token is correct.
        return self._clients.get(_hash(token.strip()), "") if scheme.lower() == "bearer" else ""

    @property
    def has_several_clients(self) -> bool:
        """Whether more than one client has a token."""
        return len(set((self._clients or {}).values())) > 1

    def _refresh(self, folder: Path) -> None:
        if time.monotonic() - self._checked < SECONDS_BETWEEN_CHECKS:
            return
        self._checked = time.monotonic()
        try:
            # The kubelet replaces this link when the Secret changes.
            link = folder / "..data"
            version = link.readlink() if link.is_symlink() else folder.stat().st_mtime_ns
            if version != self._version:
                files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
                self._clients = {_hash(token): path.name for path in sorted(files) if (token := _usable_token(path))}
                self._version = version
        except OSError as error:
            # The previous tokens are not kept: removing the Secret must revoke them.
            self._clients, self._version = None, object()
            log.warning("%s: the tokens cannot be read (%s); mount the Secret there", folder, error.strerror)


def _usable_token(file: Path) -> str:
    """A client's token; empty, with a warning, if no client can send it."""
    try:
        token = read_secret_file(file)
    except InputError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        log.warning("%s; requests of this client are refused", error)
        return ""
    if not token:
        log.warning("%s is empty; requests of this client are refused", file)
    return token


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("latin-1", "replace")).hexdigest()
