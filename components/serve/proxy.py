"""The way to Ollama from outside the pod: the paths that answer questions, and none that manages models."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import aiohttp
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from chatmetrics.components.nl2sql.prompt import render_prompt
from chatmetrics.components.serve.admission import Admitted
from chatmetrics.components.serve.metrics import Metrics
from chatmetrics.components.serve.refusal import json_object
from chatmetrics.components.serve.release import Release
from chatmetrics.components.serve.served import Served

Json = dict[str, Any]

# Fields that Ollama knows and that change nothing for other clients. What is not here is refused rather than ignored:
# keep_alive, for one, would unload the model, and template would answer by another prompt than was examined.
FIELDS = {"model", "prompt", "messages", "system", "raw", "stream", "format", "options", "suffix", "think"}
FIELDS |= {"logprobs", "top_logprobs", "tools"}
OURS = {"keep_alive": -1, "truncate": False}  # truncated, a prompt would be cut in silence
# Options of a request that do not make Ollama load the model anew.
OPTIONS = {"temperature", "top_k", "top_p", "min_p", "typical_p", "seed", "stop", "num_predict"}
OPTIONS |= {"repeat_penalty", "repeat_last_n", "presence_penalty", "frequency_penalty"}
BROKEN_OFF = "the model broke its answer off: it repeats itself, or is not text"
LATE = "the answer is not there in time: ask for less, or have the limit raised"
FORMAT_CHARACTERS = 8192
KEPT_BYTES = 1 << 16  # of the end of a streamed answer, where its counts are
Result = TypeVar("Result")
log = logging.getLogger(__name__)


class Proxy:
    """Handlers of Ollama's own paths.

    Args:
        release: the bounds.
        served: the models.
        metrics: where tokens are counted.
        http: session whose base is Ollama.
    """

    def __init__(self, release: Release, served: Served, metrics: Metrics, http: aiohttp.ClientSession) -> None:
        self._release, self._served, self._metrics, self._http = release, served, metrics, http

    def routes(self) -> list[Route]:
        """The paths that are passed on."""
        answering = ("/api/generate", "/api/chat", "/v1/chat/completions")
        listing = ("/api/tags", "/api/version", "/v1/models")
        return [
            *(Route(path, self._answer, methods=["POST"]) for path in answering),
            *(Route(path, self._list, methods=["GET"]) for path in listing),
            Route("/examination", self._examination, methods=["GET"]),
        ]

    async def _list(self, request: Request) -> Response:
        async with ollama_errors(), self._http.get(request.url.path) as answer:
            return Response(await answer.read(), answer.status, media_type=answer.content_type)

    async def _examination(self, request: Request) -> Response:
        """What the models were asked and what they said, for whoever wants to ask once more."""
        return JSONResponse([asked for admitted in self._served.admitted.values() for asked in _questions(admitted)])

    async def _answer(self, request: Request) -> Response:
        path = request.url.path
        body = await json_object(request, self._release.request_kib * 1024)
        admitted = self._model(body)
        context = admitted.model.context_length
        _check_names_and_format(body)
        if path.startswith("/api/"):
            _check(body, context)
            # An answer has an end even where the model finds none: Ollama would shift its context for ever.
            body |= {**OURS, "options": {"num_predict": context, **(body.get("options") or {})}}
        elif not body.get("max_tokens"):
            body["max_tokens"] = context
        streamed = bool(body.get("stream", path.startswith("/api/")))
        body |= {"model": admitted.model.name, "stream": streamed}
        deadline = asyncio.get_running_loop().time() + self._release.seconds
        if streamed:
            answer = await in_time(self._http.post(path, json=body), deadline)
            return _Relay(answer, deadline, partial(self._ending, admitted.model.name), self._served.note_late)
        asking = asyncio.ensure_future(self._whole(path, body, admitted.model.name, deadline))
        await unless_gone(request, asking)
        return await asking

    async def _whole(self, path: str, body: Json, model: str, deadline: float) -> Response:
        answer = await in_time(self._http.post(path, json=body), deadline)
        async with answer:
            content = await in_time(answer.read(), deadline)
        if answer.status == 200:
            self._served.note_answer()
            self._count(model, content)
            if _broken_off(content):
                raise HTTPException(502, BROKEN_OFF)
        return Response(content, answer.status, media_type=answer.content_type)

    def _ending(self, model: str, lines: bool, end: bytes) -> bytes:
        """Count the tokens of a streamed answer by its end; returns what is still to be said."""
        last = end.strip().rpartition(b"\n")[2] if lines else _last_event(end)
        self._served.note_answer()
        self._count(model, last)
        whole = not _broken_off(last) if lines else b"[DONE]" in end
        return b"" if whole else _last_line(BROKEN_OFF, lines)

    def _model(self, body: Json) -> Admitted:
        if admitted := self._served.find(body.get("model")):
            return admitted
        names = ", ".join(sorted(admitted.model.name for admitted in self._served.admitted.values()))
        raise HTTPException(404, f"model {body.get('model')!r} not found; served here: {names}")

    def _count(self, model: str, content: bytes) -> None:
        with contextlib.suppress(ValueError, AttributeError):
            answer = json.loads(content)
            usage = answer.get("usage") or {}
            read = answer.get("prompt_eval_count", usage.get("prompt_tokens", 0))
            written = answer.get("eval_count", usage.get("completion_tokens", 0))
            self._metrics.tokens.labels(model, "prompt").inc(read or 0)
            self._metrics.tokens.labels(model, "answer").inc(written or 0)


class _Relay(Response):
    """A streamed answer of Ollama's, passed on part by part; Starlette's own streaming would add half a millisecond.

    Args:
        answer: whose beginning is there.
        deadline: of its end, by the loop's clock.
        ending: gets whether it consists of lines, and its end; returns what is still to be said.
        late: called when the deadline is missed.
    """

    def __init__(
        self,
        answer: aiohttp.ClientResponse,
        deadline: float,
        ending: Callable[[bool, bytes], bytes],
        late: Callable[[], None],
    ) -> None:
        super().__init__(status_code=answer.status, media_type=answer.content_type)
        del self.headers["content-length"]
        self._answer, self._deadline, self._ending, self._late = answer, deadline, ending, late
        self._lines = "text/event-stream" not in answer.content_type

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all parts; what goes wrong after the status was sent is a last line that says it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        gone: asyncio.Future[None] = asyncio.ensure_future(_gone(receive))
        last = b""
        try:
            async with asyncio.timeout_at(self._deadline):
                end = await self._pass_on(send, gone)
            last = self._ending(self._lines, end) if self._answer.status == 200 else b""
        except TimeoutError:
            self._late()
            last = _last_line(LATE, self._lines)
        except aiohttp.ClientError as error:
            last = _last_line(f"Ollama broke off ({type(error).__name__}); try again later", self._lines)
        finally:
            gone.cancel()
            self._answer.close()
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _pass_on(self, send: Send, gone: "asyncio.Future[None]") -> bytes:
        """Read to the end, also when the client has gone.

        When a streamed answer's connection is closed between two tokens, Ollama 0.34.0 goes on waiting for somebody to
        take the next one, and answers nobody any more (GenerateHandler and ChatHandler send to a channel that
        streamResponse no longer reads).
        """
        end = b""
        while part := await self._answer.content.readany():
            end = (end + part)[-KEPT_BYTES:]
            if not gone.done():
                await send({"type": "http.response.body", "body": part, "more_body": True})
        return end


def _questions(admitted: Admitted) -> list[Json]:
    if admitted.examination is None or admitted.marks is None:
        return []
    return [
        {
            "model": admitted.model.name,
            "id": question.id,
            "prompt": render_prompt(question.system, question.instruction, question.input),
            "max_tokens": admitted.examination.max_tokens,
            "answer": admitted.marks.answers[question.id],
        }
        for question in admitted.examination.questions
    ]


def _check_names_and_format(body: Json) -> None:
    """Refuse what Ollama would read as another field, and grammars that keep everybody waiting.

    Raises:
        HTTPException: names the field.
    """
    # Go matches names without regard to case, so that "Model" would take the place of the model that was looked up.
    if odd := next((name for name in body if name != name.lower()), None):
        raise HTTPException(400, f"the field {odd!r} is not accepted: names are in lower case")
    for name in ("format", "response_format"):
        if len(json.dumps(body.get(name))) > FORMAT_CHARACTERS:
            raise HTTPException(400, f"the field {name!r} is longer than {FORMAT_CHARACTERS} characters")


def _check(body: Json, context_length: int) -> None:
    """Refuse what would change the loaded model, or the prompt that was examined.

    Raises:
        HTTPException: names the field.
    """
    for name in OURS:
        body.pop(name, None)
    if unknown := sorted(body.keys() - FIELDS):
        raise HTTPException(400, f"the field {unknown[0]!r} is not accepted; accepted: {', '.join(sorted(FIELDS))}")
    options = body.get("options") or {}
    if not isinstance(options, dict):
        raise HTTPException(400, "'options' must be an object")
    last = options.get("repeat_last_n", 0)
    if not isinstance(last, int) or last > context_length:  # Ollama sets aside memory for as many as it is told
        raise HTTPException(400, f"the option 'repeat_last_n' is at most {context_length} here")
    if options.get("num_ctx") == context_length:
        options.pop("num_ctx")
    if unknown := sorted(options.keys() - OPTIONS):
        raise HTTPException(
            400, f"the option {unknown[0]!r} is not accepted here: it would load the model anew for everybody, or is "
            f"unknown; accepted: {', '.join(sorted(OPTIONS))}"
        )  # fmt: skip


def _broken_off(content: bytes) -> bool:
    """Whether an answer, or the last line of one, says itself that it is not whole."""
    try:
        answer = json.loads(content)
        unfinished = [choice for choice in answer.get("choices", []) if not choice.get("finish_reason")]
        return answer.get("done") is False or bool(unfinished)
    except (ValueError, AttributeError):
        return True


def _last_event(end: bytes) -> bytes:
    """The last of OpenAI's events that has counts."""
    events = [line.removeprefix(b"data: ") for line in end.split(b"\n") if line.startswith(b"data: {")]
    return events[-1] if events else b"{}"


def _last_line(message: str, lines: bool) -> bytes:
    error = json.dumps({"error": message if lines else {"message": message, "type": "server_error"}})
    return f"{error}\n".encode() if lines else f"data: {error}\n\n".encode()


async def in_time(action: Awaitable[Result], deadline: float) -> Result:
    """What Ollama gives, before the loop's clock shows `deadline`.

    Raises:
        HTTPException: it gives nothing by then, or its connection fails.
    """
    try:
        async with asyncio.timeout_at(deadline), ollama_errors():
            return await action
    except TimeoutError as error:
        raise HTTPException(504, LATE) from error


async def unless_gone(request: Request, asking: "asyncio.Future[Any]") -> None:
    """Wait for an answer, and stop asking when the client has left: nobody else should wait behind it."""
    gone: asyncio.Future[Any] = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait([asking, gone], return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            raise HTTPException(499, "the client has gone")
    finally:
        gone.cancel()
        asking.cancel()  # which does nothing to what is done


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@contextlib.asynccontextmanager
async def ollama_errors() -> AsyncIterator[None]:
    """Turn a connection that fails into an answer that says so."""
    try:
        yield
    except aiohttp.ClientError as error:
        log.warning("Ollama: %s: %s", type(error).__name__, error)
        raise HTTPException(502, f"Ollama does not answer ({type(error).__name__}); try again later") from error
