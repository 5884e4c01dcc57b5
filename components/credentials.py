"""The one way to read a secret: a token, a key, a password or cookies, from the environment or from a file."""

import os
import ssl
import unicodedata
from functools import cache
from pathlib import Path

from chatmetrics.components.errors import InputError
from chatmetrics.components.redaction import hide

ADVICE = "write it again without it, for example with printf instead of echo"
NAMES = {"\n": "a line break", "\r": "a carriage return", "\t": "a tab"}


def read_secret(variable: str, in_header: bool = True) -> str:
    """Return the secret in an environment variable; empty if it is not set or holds only white space.

    Raises:
        InputError: as `checked_secret`.
    """
    return checked_secret(os.environ.get(variable, ""), variable, in_header)


def read_secret_file(path: Path, in_header: bool = True) -> str:
    """Return the secret in a file; empty if the file holds only white space.

    Raises:
        InputError: the file cannot be read; also as `checked_secret`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: the secret cannot be read ({error.strerror}); check that it is mounted") from error
    return checked_secret(content.decode(errors="surrogateescape"), str(path), in_header)


def checked_secret(text: str, name: str, in_header: bool = True) -> str:
    """Return a secret without white space around it, such as the line break that `echo` appends.

    Args:
        text: the secret as it was read.
        name: where it was read, for the message: the variable, option or file.
        in_header: whether it is sent in an HTTP header, which allows only printable ASCII. A password in a form may
            have other characters, but no control characters.

    Raises:
        InputError: a character cannot be sent. The message names the character, but never shows the secret.
    """
    hide(text)
    secret = text.strip()
    for position, character in enumerate(secret, start=1):
        allowed = character.isprintable() and (character.isascii() or not in_header)
        if not allowed:
            where = "an HTTP header" if in_header else "a login"
            raise InputError(f"{name}: character {position} is {_name(character)}, which {where} cannot hold; {ADVICE}")
    return secret


def bearer(token: str) -> dict[str, str]:
    """Return the header that sends a checked token; none for an empty one."""
    return {"Authorization": f"Bearer {token}"} if token else {}


@cache
def tls_context(ca_file: str = "", name: str = "") -> ssl.SSLContext:
    """Return the certificates to trust when a server is called. Loaded once, because that takes about 50 ms.

    Args:
        ca_file: file with certificates; empty uses SSL_CERT_FILE, else the ones that Python packages bring.
        name: variable or setting that names the file, for the message.

    Raises:
        InputError: the file does not exist, or holds no certificate.
    """
    if not ca_file and os.environ.get("SSL_CERT_FILE"):
        ca_file, name = os.environ["SSL_CERT_FILE"], "SSL_CERT_FILE"
    path = checked_ca_file(ca_file, name)
    if not path:
        import certifi

        path = certifi.where()
    return ssl.create_default_context(cafile=path)


def checked_ca_file(path: str, name: str) -> str:
    """Return the path of a file with certificates of authorities, without white space around it; empty if it is empty.

    Raises:
        InputError: the file does not exist, or holds no certificate.
    """
    stripped = path.strip()
    if not stripped:
        return ""
    try:
        _read_certificates(stripped, Path(stripped).stat().st_mtime_ns)
    except ssl.SSLError as error:
        raise InputError(f"{name}: {stripped} holds no certificate in PEM format; name a CA bundle") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise InputError(f"{name}: {stripped}: {reason}; name a file with certificates in PEM format") from error
    return stripped


@cache
def _read_certificates(path: str, changed: int) -> None:
    """Read a file with certificates; once, because a store is opened often and a bundle takes a tenth of a second."""
    ssl.create_default_context(cafile=path)


def _name(character: str) -> str:
    """Return the name of a character that is invisible or not ASCII."""
    if "\udc80" <= character <= "\udcff":
        return "a byte that is not UTF-8"
    code = f"U+{ord(character):04X}"
    return NAMES.get(character) or f"{code} ({unicodedata.name(character, 'a control character')})"
