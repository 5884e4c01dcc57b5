"""Identify what answered in place of the expected service: a redirect, a login page, a console, another program.

Any program behind an address can answer with status 200. So the answer itself is checked, and the error says what
answered, in words that lead to the cause.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping
from html import unescape
from typing import Any
from urllib.parse import urlsplit

from chatmetrics.components.redaction import one_line

TITLE_LENGTH = 60
KEYS_SHOWN = 5
_TITLE = re.compile(rb"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)
_PAGE = re.compile(
    rb"\s*(<\?.*?\?>\s*)?(<!--.*?-->\s*)*<(!doctype html|html|head|body|title|form)\b", re.IGNORECASE | re.DOTALL
)
_XML = re.compile(rb"\s*(<\?.*?\?>\s*)?(<!--.*?-->\s*)*<([A-Za-z][\w:.-]*)", re.DOTALL)
_PASSWORD_FIELD = re.compile(rb"<input[^>]*type\s*=\s*[\"']?password", re.IGNORECASE)
_LOGIN = re.compile(r"\b(log-?in|sign-?in|log in|sign in|logon|oauth2?|oidc|saml2?|sso|dex|auth|authorize)\b", re.I)
_MARK = b"\xef\xbb\xbf"  # of UTF-8, which some servers send before a page


class UnexpectedAnswer(Exception):
    """Another program than the expected one answered; the text says what: `a web page titled "Console"`."""


def checked_json(
    status: int, headers: Mapping[str, str], body: bytes, expected: Collection[str] = ()
) -> dict[str, Any]:
    """Return the JSON object in a service's answer.

    Args:
        status: the answer's HTTP status.
        headers: the answer's headers.
        body: the answer's body.
        expected: fields that the object has if the expected service sent it.

    Raises:
        UnexpectedAnswer: it is a redirect, or no JSON object with these fields.
    """
    found = None if 300 <= status < 400 else _json(body)
    if not isinstance(found, dict) or not set(expected) <= found.keys():
        raise UnexpectedAnswer(what_answered(status, headers, body))
    return found


def is_login(status: int, headers: Mapping[str, str], body: bytes) -> bool:
    """Whether an answer asks a person to log in: status 401, a redirect to a login page, or such a page."""
    return status == 401 or "login page" in what_answered(status, headers, body)


def what_answered(status: int, headers: Mapping[str, str], body: bytes) -> str:
    """Describe an answer that is not the expected service's, as an object: `a redirect to https://host`.

    Of a redirect only scheme and host are shown, of a page its title, of JSON its keys: no more, because the rest may
    repeat what was sent.
    """
    fields = {name.lower(): value for name, value in headers.items()}
    kind = fields.get("content-type", "").partition(";")[0].strip().lower()
    location = fields.get("location", "")
    if 300 <= status < 400 and location:
        return _redirect(location)
    suffix = "" if status == 200 else f" (status {status})"
    if not body.strip():
        return f"an empty answer{suffix}"
    if _PAGE.match(body.removeprefix(_MARK)) or (kind == "text/html" and b"<" in body):
        return _page(body) + suffix
    found = _json(body)
    if found is not None:
        return _shape(found) + suffix
    xml = _XML.match(body.removeprefix(_MARK))
    if xml:
        return f"XML ({_shown(xml[3])}){suffix}"
    if b"\0" in body or not _is_text(body):
        return f"binary data{f' ({one_line(kind, TITLE_LENGTH)})' if kind else ''}{suffix}"
    return f"{'JSON that is cut off' if body.lstrip()[:1] in (b'{', b'[') else 'plain text'}{suffix}"


def _redirect(location: str) -> str:
    try:
        url = urlsplit(location)
        host = url.netloc.rpartition("@")[2]
        target = f"{url.scheme}://{host}" if url.scheme and host else host or "another path of the same host"
        path = url.path
    except ValueError:
        return "a redirect to an address that is not a URL"
    page = "a login page at " if _LOGIN.search(f"{host} {path}".replace("/", " ").replace("_", " ")) else ""
    return f"a redirect to {page}{_shown(target.encode())}"


def _page(body: bytes) -> str:
    title = _TITLE.search(body)
    text = _shown(title[1]) if title else ""
    is_login_page = _PASSWORD_FIELD.search(body) or _LOGIN.search(text)
    page = "a login page" if is_login_page else "a web page"
    return f'{page} titled "{text}"' if text else f"{page} without a title"


def _shape(found: Any) -> str:
    if isinstance(found, dict):
        keys = ", ".join(_shown(str(key).encode()) for key in list(found)[:KEYS_SHOWN])
        return f"JSON without the expected fields (it has {keys or 'none'})"
    return f"JSON that is {'a list' if isinstance(found, list) else 'a single value'} instead of an object"


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # ValueError also for bytes that are not UTF-8
        return None


def _shown(text: bytes) -> str:
    """The text in one short line without control characters, which a terminal would execute."""
    line = one_line(unescape(text.decode("utf-8", "replace")), TITLE_LENGTH)
    return "".join(character for character in line if character.isprintable())


def _is_text(body: bytes) -> bool:
    # The end of what was read may be inside a character.
    try:
        text = body[:1000].decode("utf-8")
    except UnicodeDecodeError as error:
        return len(body[:1000]) - error.start < 4 and error.start > 0
    return all(character.isprintable() or character.isspace() for character in text)


class CheckedPool:
    """A urllib3 pool for generated API clients (KFP's, Kubernetes') that passes on only what the API can have sent.

    These clients follow redirects to a login page, and turn the page into an object without content.

    Args:
        pool: the client's own pool.
        failure: returns the error to raise for an answer: its status, headers and body.
        expected: returns the fields that an answer to the URL has; None if it is not JSON.
    """

    def __init__(
        self,
        pool: Any,
        failure: Callable[[int, Mapping[str, str], bytes], Exception],
        expected: Callable[[str], Collection[str] | None] = lambda url: (),
    ) -> None:
        self._pool, self._failure, self._expected = pool, failure, expected

    def request(self, method: str, url: str, **options: Any) -> Any:
        """Send a request without following redirects.

        Raises:
            Exception: the error that `failure` returned; also what urllib3 raises.
        """
        answer = self._pool.request(method, url, redirect=False, **options)
        expected = self._expected(url)
        if answer.status >= 400:
            # Errors have fields of their own. An error that is no JSON was sent by something in front of the API.
            if not isinstance(_json(answer.data), dict):
                raise self._failure(answer.status, answer.headers, answer.data)
        elif expected is not None:
            try:
                checked_json(answer.status, answer.headers, answer.data, expected)
            except UnexpectedAnswer as error:
                raise self._failure(answer.status, answer.headers, answer.data) from error
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)
