"""One attempt of one request to a teacher, by OpenAI's protocol."""

import asyncio
import json
import os
import ssl
import time
from dataclasses import replace
from functools import cache
from ipaddress import ip_address
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
import httpx2 as httpx  # what openai 3 speaks HTTP with
import openai

from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.distill.teacher.failures import (
    BusyError,
    RefusedError,
    UnavailableError,
    causes,
    said,
    wanted_wait,
    was_never_sent,
)
from chatmetrics.components.distill.teacher.request import Request, TeacherAnswer
from chatmetrics.components.errors import ServiceError

# Posted and read as JSON: the client's own types of requests and chunks take four times the processor time.
PATH = "/chat/completions"
CONNECT_SECONDS = 10.0
REASON_CHARACTERS = 300
NO_PROTOCOL = (ValueError, TypeError, LookupError, AttributeError)  # of JSON that is none, or lacks something
KEY_CHARACTERS = 8  # what is shorter is no secret, and part of other words
TRY_AGAIN = frozenset({408, 409, 425})
TOO_MANY = 429
OF_A_GATEWAY = frozenset({502, 504})  # behind which the teacher may be answering
TO_BE_PAID = 402
FORBIDDEN = frozenset({401, 403})
NOT_THERE = 404


class Teacher:
    """Context manager: a client of the endpoint, for one request at a time: a pool of connections that is shared looks
    through all of them at each request. What it raises and returns never holds the key.

    Args:
        endpoint: base URL, ending in the protocol's version.
        settings: of the step.
    """

    def __init__(self, endpoint: str, settings: DistillSettings) -> None:
        self._endpoint, self._settings = endpoint.rstrip("/"), settings
        self._key = os.environ.get(settings.api_key_variable, "").strip()

    async def __aenter__(self) -> Self:
        settings = self._settings
        self._client = openai.AsyncOpenAI(
            base_url=self._endpoint,
            api_key=self._key or "none",
            max_retries=0,
            timeout=httpx.Timeout(settings.request_seconds, connect=min(CONNECT_SECONDS, settings.request_seconds)),
            # A proxy for the outside world would be asked for 127.0.0.1 too.
            http_client=openai.DefaultAioHttpClient(verify=_trust(), trust_env=not _is_local(self._endpoint)),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def ask(self, request: Request) -> TeacherAnswer:
        """Send a request and wait for the whole answer.

        Raises:
            BusyError: the teacher wants to be left alone for a while.
            UnavailableError: it was not answered, timed out, broke off, or was answered with nothing.
            RefusedError: the teacher says that this request is wrong.
            ServiceError: the teacher lets nobody in with this key, wants to be paid, or has no such model.
        """
        try:
            async with asyncio.timeout(self._settings.request_seconds):
                answer = await (self._stream(request) if self._settings.stream else self._whole(request))
        except TimeoutError as error:
            raise UnavailableError(f"no answer within {self._settings.request_seconds:g} s") from error
        except openai.APIStatusError as error:
            raise self._of_status(error) from None  # a traceback would show the request's headers
        except openai.APIConnectionError as error:
            raise self._of_connection(error) from None
        except (openai.OpenAIError, httpx.HTTPError, aiohttp.ClientError, *NO_PROTOCOL) as error:
            raise UnavailableError(f"an answer that is none of the protocol: {self._line(error)}") from None
        return self._checked(answer)

    async def _whole(self, request: Request) -> TeacherAnswer:
        started = time.monotonic()
        response = await self._client.post(PATH, body=request.body(self._settings), cast_to=httpx.Response)
        completion = response.json()
        if completion.get("error"):
            raise ValueError(completion["error"])
        choice, usage = completion["choices"][0], completion.get("usage")
        seconds = time.monotonic() - started
        return _answer(
            choice["message"].get("content") or "",
            _reasoning(choice["message"]),
            choice.get("finish_reason") or "stop",
            _tokens(usage),
            (seconds, seconds),
        )

    async def _stream(self, request: Request) -> TeacherAnswer:
        started = time.monotonic()
        texts: list[str] = []
        thoughts: list[str] = []
        first_token, finish, usage = 0.0, "", (0, 0)
        body = {**request.body(self._settings), "stream": True, "stream_options": {"include_usage": True}}
        stream = await self._client.post(
            PATH, body=body, cast_to=object, stream=True, stream_cls=openai.AsyncStream[object]
        )
        async for line in stream.response.aiter_lines():
            event = line.removeprefix("data:").strip() if line.startswith("data:") else ""
            if not event or event == "[DONE]":
                continue
            first_token = first_token or time.monotonic() - started
            chunk = json.loads(event)
            if chunk.get("error"):
                raise ValueError(chunk["error"])
            for choice in (chunk.get("choices") or [])[:1]:
                texts.append(choice["delta"].get("content") or "")
                thoughts.append(_reasoning(choice["delta"]))
                finish = choice.get("finish_reason") or finish
            usage = _tokens(chunk["usage"]) if chunk.get("usage") else usage
        if not finish:
            raise UnavailableError("the answer broke off")
        seconds = time.monotonic() - started
        return _answer("".join(texts), "".join(thoughts), finish, usage, (seconds, first_token))

    def _checked(self, answer: TeacherAnswer) -> TeacherAnswer:
        """The answer without the key, should the teacher repeat it."""
        if not answer.text and not answer.reasoning:
            raise UnavailableError("an empty answer")
        return replace(answer, text=self._without_key(answer.text), reasoning=self._without_key(answer.reasoning))

    def _of_connection(self, error: openai.APIConnectionError) -> UnavailableError:
        if was_never_sent(error):
            return UnavailableError(self._line(causes(error)[0]), is_free=True)
        return UnavailableError(f"the connection was lost ({type(causes(error)[-1]).__name__})")

    def _of_status(self, error: openai.APIStatusError) -> Exception:
        status, line = error.status_code, self._line(said(error))
        wait = wanted_wait(error.response.headers)
        if status == TOO_MANY or (status >= 500 and wait is not None):
            return BusyError(f"{status}: {line}", wait)
        if status in TRY_AGAIN or status >= 500:
            return UnavailableError(f"{status}: {line}", is_free=status not in OF_A_GATEWAY)
        if status in FORBIDDEN:
            variable = self._settings.api_key_variable
            what = f"the key in {variable} is refused" if self._key else f"it wants a key: set {variable}"
            return ServiceError(f"{self._endpoint}: {what} ({status}: {line})")
        if status == TO_BE_PAID:
            return ServiceError(
                f"{self._endpoint} wants to be paid first ({status}: {line}); what was answered is kept"
            )
        if status == NOT_THERE:
            return ServiceError(f"{self._endpoint} has no {self._settings.model}, or is no such address ({line})")
        return RefusedError(f"{status}: {line}")

    def _line(self, text: object) -> str:
        line = self._without_key(" ".join(str(text).split())) or type(text).__name__
        return line[:REASON_CHARACTERS]

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if len(self._key) >= KEY_CHARACTERS else text


def _answer(
    text: str, reasoning: str, finish: str, usage: tuple[int, int], seconds: tuple[float, float]
) -> TeacherAnswer:
    if not reasoning:
        text, reasoning = _apart(text)
    return TeacherAnswer(
        text=text,
        reasoning=reasoning.strip(),
        prompt_tokens=usage[0],
        completion_tokens=usage[1],
        is_cut=finish == "length",
        seconds=round(seconds[0], 4),
        first_token=round(seconds[1], 4),
    )


def _apart(text: str) -> tuple[str, str]:
    """What was said, and what was thought before; a thought that was never ended is no answer."""
    thought, ended, said = text.rpartition("</think>")
    if ended:
        return said.strip(), thought.partition("<think>")[2] or thought
    said, _, thought = text.partition("<think>")
    return said.strip(), thought


def _reasoning(message: dict[str, Any]) -> str:
    """A field that OpenAI's protocol does not have: DeepSeek and vLLM call it so, others otherwise."""
    return str(message.get("reasoning_content") or message.get("reasoning") or "")


def _tokens(usage: dict[str, Any] | None) -> tuple[int, int]:
    """Of what was sent and what was received; zeros where the endpoint does not count."""
    counted = usage or {}
    return int(counted.get("prompt_tokens") or 0), int(counted.get("completion_tokens") or 0)


@cache
def _trust() -> ssl.SSLContext:
    """Whom to trust, read once: that takes a twentieth of a second."""
    return httpx.create_ssl_context()


def _is_local(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
