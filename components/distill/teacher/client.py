"""HTTP client of an OpenAI-compatible endpoint; sends each request once, without retries."""

import asyncio
import json
import time
from dataclasses import replace
from ipaddress import ip_address
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
import httpx2 as httpx  # the HTTP library of openai 3
import openai

from chatmetrics.components.credentials import read_secret, tls_context
from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.distill.teacher.failures import (
    BusyError,
    RefusedError,
    UnavailableError,
    causes,
    error_message,
    retry_after,
    was_never_sent,
)
from chatmetrics.components.distill.teacher.request import Request, TeacherAnswer
from chatmetrics.components.errors import ServiceError
from chatmetrics.components.redaction import HIDDEN, MIN_LENGTH, one_line
from chatmetrics.components.responder import UnexpectedAnswer, checked_json, what_answered

# Requests and responses are plain JSON: the client's typed models take four times the CPU time.
PATH = "/chat/completions"
CONNECT_SECONDS = 10.0
REASON_CHARACTERS = 300
MALFORMED = (ValueError, TypeError, LookupError, AttributeError)  # raised by invalid JSON and missing fields

# HTTP status codes.
RETRYABLE = frozenset({408, 409, 425})
TOO_MANY_REQUESTS = 429
GATEWAY_ERRORS = frozenset({502, 504})  # the teacher behind the gateway may have answered, and bill it
PAYMENT_REQUIRED = 402
FORBIDDEN = frozenset({401, 403})
NOT_FOUND = 404


class Teacher:
    """Client of the endpoint, for one request at a time; an asynchronous context manager.

    Concurrent workers use one client each, because a shared connection pool searches all of its connections for every
    request. Answers and errors never contain the API key.

    Args:
        endpoint: base URL, ending in the version, as in https://HOST/v1.
        settings: the recipe's `distill` section.

    Raises:
        InputError: the key cannot be sent.
    """

    def __init__(self, endpoint: str, settings: DistillSettings) -> None:
        self._endpoint, self._settings = endpoint.rstrip("/"), settings
        self._key = read_secret(settings.api_key_variable)

    async def __aenter__(self) -> Self:
        settings = self._settings
        self._client = openai.AsyncOpenAI(
            base_url=self._endpoint,
            api_key=self._key or "none",
            max_retries=0,
            timeout=httpx.Timeout(settings.request_seconds, connect=min(CONNECT_SECONDS, settings.request_seconds)),
            # trust_env would send requests to 127.0.0.1 through the configured proxy, too.
            http_client=openai.DefaultAioHttpClient(verify=tls_context(), trust_env=not _is_local(self._endpoint)),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def ask(self, request: Request) -> TeacherAnswer:
        """Send a request and wait for the complete answer.

        Raises:
            BusyError: the teacher is overloaded.
            UnavailableError: there is no answer: a timeout, a lost connection, a server error, or an invalid or empty
                response.
            RefusedError: the teacher refuses this request as invalid.
            ServiceError: no request can succeed: the API key is refused, payment is required, or the model or address
                does not exist.
        """
        try:
            async with asyncio.timeout(self._settings.request_seconds):
                answer = await (self._stream(request) if self._settings.stream else self._whole(request))
        except TimeoutError as error:
            raise UnavailableError(f"no answer within {self._settings.request_seconds:g} s") from error
        except openai.APIStatusError as error:
            raise self._from_status(error) from None  # a traceback would show the request's headers
        except openai.APIConnectionError as error:
            raise self._from_connection(error) from None
        except UnexpectedAnswer as error:
            raise UnavailableError(f"it sent {error}; check distill.base_url") from None
        except (openai.OpenAIError, httpx.HTTPError, aiohttp.ClientError, *MALFORMED) as error:
            raise UnavailableError(f"invalid response: {self._line(error)}") from None
        return self._checked(answer)

    async def _whole(self, request: Request) -> TeacherAnswer:
        started = time.monotonic()
        response = await self._client.post(PATH, body=request.body(self._settings), cast_to=httpx.Response)
        completion = checked_json(response.status_code, response.headers, response.content)
        if completion.get("error"):
            raise ValueError(completion["error"])
        if "choices" not in completion:
            raise UnexpectedAnswer(what_answered(response.status_code, response.headers, response.content))
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
        reasonings: list[str] = []
        first_token, finish, usage = 0.0, "", (0, 0)
        body = {**request.body(self._settings), "stream": True, "stream_options": {"include_usage": True}}
        stream = await self._client.post(
            PATH, body=body, cast_to=object, stream=True, stream_cls=openai.AsyncStream[object]
        )
        if "event-stream" not in stream.response.headers.get("Content-Type", "event-stream"):
            page = await stream.response.aread()
            raise UnexpectedAnswer(what_answered(stream.response.status_code, stream.response.headers, page))
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
                reasonings.append(_reasoning(choice["delta"]))
                finish = choice.get("finish_reason") or finish
            usage = _tokens(chunk["usage"]) if chunk.get("usage") else usage
        if not finish:
            raise UnavailableError("the stream ended before the answer was complete")
        seconds = time.monotonic() - started
        return _answer("".join(texts), "".join(reasonings), finish, usage, (seconds, first_token))

    def _checked(self, answer: TeacherAnswer) -> TeacherAnswer:
        """The answer, with the API key redacted in case the teacher repeats it."""
        if not answer.text and not answer.reasoning:
            raise UnavailableError("empty answer")
        return replace(answer, text=self._without_key(answer.text), reasoning=self._without_key(answer.reasoning))

    def _from_connection(self, error: openai.APIConnectionError) -> UnavailableError:
        if was_never_sent(error):
            return UnavailableError(self._line(causes(error)[0]), is_free=True)
        return UnavailableError(f"the connection was lost ({type(causes(error)[-1]).__name__})")

    def _from_status(self, error: openai.APIStatusError) -> Exception:
        status, line = error.status_code, self._line(error_message(error))
        wait = retry_after(error.response.headers)
        if status == TOO_MANY_REQUESTS or (status >= 500 and wait is not None):
            return BusyError(f"{status}: {line}", wait)
        if status in RETRYABLE or status >= 500:
            return UnavailableError(f"{status}: {line}", is_free=status not in GATEWAY_ERRORS)
        if status in FORBIDDEN:
            variable = self._settings.api_key_variable
            problem = (
                f"the API key in {variable} is refused" if self._key else f"an API key is required: set {variable}"
            )
            return ServiceError(f"{self._endpoint}: {problem} ({status}: {line})")
        if status == PAYMENT_REQUIRED:
            return ServiceError(
                f"{self._endpoint} requires payment ({status}: {line}); the answers received so far are kept"
            )
        if status == NOT_FOUND:
            return ServiceError(
                f"{self._endpoint}: the model {self._settings.model} or the address does not exist ({line}); check "
                "distill.model and distill.base_url"
            )
        return RefusedError(f"{status}: {line}")

    def _line(self, text: object) -> str:
        return self._without_key(one_line(text, REASON_CHARACTERS)) or type(text).__name__

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, HIDDEN) if len(self._key) >= MIN_LENGTH else text


def _answer(
    text: str, reasoning: str, finish: str, usage: tuple[int, int], seconds: tuple[float, float]
) -> TeacherAnswer:
    if not reasoning:
        text, reasoning = _split_reasoning(text)
    return TeacherAnswer(
        text=text,
        reasoning=reasoning.strip(),
        prompt_tokens=usage[0],
        completion_tokens=usage[1],
        is_cut=finish == "length",
        seconds=round(seconds[0], 4),
        first_token=round(seconds[1], 4),
    )


def _split_reasoning(text: str) -> tuple[str, str]:
    """Split a text into answer and reasoning, at the <think> tags; reasoning without an end tag has no answer."""
    reasoning, end_tag, answer = text.rpartition("</think>")
    if end_tag:
        # Some models omit the start tag, because their chat template has already written it.
        return answer.strip(), reasoning.partition("<think>")[2] or reasoning
    answer, _, reasoning = text.partition("<think>")
    return answer.strip(), reasoning


def _reasoning(message: dict[str, Any]) -> str:
    """The reasoning field, which is not part of OpenAI's protocol; DeepSeek and vLLM use the first of the two names."""
    return str(message.get("reasoning_content") or message.get("reasoning") or "")


def _tokens(usage: dict[str, Any] | None) -> tuple[int, int]:
    """Prompt and completion tokens; zeros if the endpoint does not count them."""
    counted = usage or {}
    return int(counted.get("prompt_tokens") or 0), int(counted.get("completion_tokens") or 0)


def _is_local(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
