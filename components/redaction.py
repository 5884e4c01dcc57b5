"""Hide secrets in texts that people read: messages, logs, records.

Secrets are checked when they are read (see `credentials`), so that no library has a reason to quote one. This is the
second line of defense: everything that becomes an error or a line of the log passes through `redacted`.
"""

import json
import os
import re
from urllib.parse import quote, quote_plus

HIDDEN = "[hidden]"
MIN_LENGTH = 8  # a shorter text is not a secret, and would be found inside other words
LINE_LENGTH = 300
_SECRET_VARIABLE = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|COOKIES|CREDENTIALS|KEY|KEY_ID|_PWD)$", re.IGNORECASE)
# User and password in a URL. A password with a slash in it is not valid there, but people write it.
_IN_URL = re.compile(r"(?<!s3)(?<!file)://(?:[^\s/?#'\"<>]*|[^\s:/@'\"<>]*:(?!\d+/)[^\s'\"<>]*)@")
_IN_QUERY = re.compile(
    r"([?&][\w.-]*(?:token|key|secret|password|signature|credential|code)=)[^&\s'\"<>]+", re.IGNORECASE
)

_known: set[str] = set()


def hide(secret: str) -> None:
    """Hide a secret, and its parts between white space, in all later texts. One that is too short is ignored."""
    _known.update(part for part in (secret, secret.strip(), *secret.split()) if len(part) >= MIN_LENGTH)


def redacted(text: object) -> str:
    """Return a text without secrets: those passed to `hide`, those in the environment, and those in URLs."""
    shown = str(text)
    # Longer ones first, because a secret can contain another.
    for form in sorted(_forms(), key=len, reverse=True):
        shown = shown.replace(form, HIDDEN)
    shown = _IN_URL.sub(f"://{HIDDEN}@", shown)
    return _IN_QUERY.sub(rf"\g<1>{HIDDEN}", shown)


def one_line(text: object, length: int = LINE_LENGTH) -> str:
    """Return the text of a library's error in one line, without secrets; it is cut only after these are hidden."""
    return " ".join(redacted(text).split())[:length]


def _forms() -> set[str]:
    """The secrets as libraries print them: as they are, percent-encoded, or with escapes."""
    secrets = set(_known)
    for name, value in os.environ.items():
        if _SECRET_VARIABLE.search(name):
            secrets.update(part for part in (value, value.strip(), *value.split()) if len(part) >= MIN_LENGTH)
    return {form for secret in secrets for form in _encoded(secret)}


def _encoded(secret: str) -> set[str]:
    data = secret.encode(errors="surrogatepass")  # some libraries decode bytes that are not UTF-8 to surrogates
    return {
        secret,
        quote(data, safe=""),
        quote(data),
        quote_plus(data),
        repr(secret)[1:-1],
        repr(data)[2:-1],
        json.dumps(secret)[1:-1],
    }
