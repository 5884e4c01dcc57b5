"""Errors of a request to a teacher, and helpers that interpret the HTTP client's errors."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import aiohttp
import httpx2 as httpx  # the HTTP library of openai 3
import openai

NEVER_SENT = (
    *(aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL),
    *(httpx.UnsupportedProtocol, httpx.InvalidURL),
)


class UnavailableError(Exception):
    """The request has no answer; another attempt may succeed.

    Attributes:
        reason: one line.
        is_free: whether the teacher certainly does not bill the request.
    """

    def __init__(self, reason: str, is_free: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.is_free = reason, is_free


class BusyError(Exception):
    """The teacher is overloaded; it does not bill the request.

    Attributes:
        reason: one line.
        wait: seconds to wait before the next request; None if the teacher did not say.
    """

    def __init__(self, reason: str, wait: float | None) -> None:
        super().__init__(reason)
        self.reason, self.wait = reason, wait


class RefusedError(Exception):
    """The teacher refuses this particular request; the message says why."""


def was_never_sent(error: openai.APIConnectionError) -> bool:
    """Whether the request certainly did not reach the teacher.

    The transport also reports a lost connection as a connection timeout; only the cause tells the two apart.
    """
    return any(isinstance(cause, NEVER_SENT) for cause in causes(error))


def causes(error: BaseException) -> list[BaseException]:
    """The chain of causes of an error, direct cause first; the error itself if it has no cause."""
    causes = [error]
    while causes[-1].__cause__:
        causes.append(causes[-1].__cause__)
    return causes[1:] or causes


def error_message(error: openai.APIStatusError) -> object:
    """The error message in the response body; the client itself only shows it in OpenAI's own format."""
    if isinstance(error.body, dict):
        return error.body.get("message") or error.body
    return error.body or error.response.reason_phrase


def retry_after(headers: httpx.Headers) -> float | None:
    """Seconds to wait, from Retry-After (RFC 9110, 10.2.3) or OpenAI's retry-after-ms; None if neither is valid."""
    try:
        if milliseconds := headers.get("retry-after-ms"):
            return max(0.0, float(milliseconds) / 1000)
        value = headers.get("retry-after", "")
        if not value:
            return None
        if value.replace(".", "", 1).isdigit():
            return float(value)
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
