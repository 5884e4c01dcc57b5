"""What can go wrong with a request, and what the client's errors say of it."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import aiohttp
import httpx2 as httpx  # what openai 3 speaks HTTP with
import openai

NEVER_BEGUN = (
    *(aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL),
    *(httpx.UnsupportedProtocol, httpx.InvalidURL),
)


class UnavailableError(Exception):
    """No answer this time, perhaps the next.

    Attributes:
        reason: one line.
        is_free: whether the teacher certainly bills nothing.
    """

    def __init__(self, reason: str, is_free: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.is_free = reason, is_free


class BusyError(Exception):
    """The teacher has too much to do, and bills nothing.

    Attributes:
        reason: one line.
        wait: seconds that it wants to be left alone; None where it did not say.
    """

    def __init__(self, reason: str, wait: float | None) -> None:
        super().__init__(reason)
        self.reason, self.wait = reason, wait


class RefusedError(Exception):
    """The teacher does not take this very request; the message says why."""


def was_never_sent(error: openai.APIConnectionError) -> bool:
    """Whether the teacher certainly knows nothing of the request.

    The client's transport calls a lost connection a timeout of connecting; only what it came from tells them apart.
    """
    return any(isinstance(cause, NEVER_BEGUN) for cause in causes(error))


def causes(error: BaseException) -> list[BaseException]:
    """What an error comes from, the nearest first; the error itself where it comes from nothing."""
    causes = [error]
    while causes[-1].__cause__:
        causes.append(causes[-1].__cause__)
    return causes[1:] or causes


def said(error: openai.APIStatusError) -> object:
    """What the body says, which the client shows only where it looks like OpenAI's own."""
    if isinstance(error.body, dict):
        return error.body.get("message") or error.body
    return error.body or error.response.reason_phrase


def wanted_wait(headers: httpx.Headers) -> float | None:
    """Seconds of a Retry-After header (RFC 9110, 10.2.3), or of OpenAI's own in milliseconds."""
    try:
        if milliseconds := headers.get("retry-after-ms"):
            return max(0.0, float(milliseconds) / 1000)
        said = headers.get("retry-after", "")
        if not said:
            return None
        if said.replace(".", "", 1).isdigit():
            return float(said)
        return max(0.0, (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
