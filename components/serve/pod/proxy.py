"""The proxy to Ollama: paths for inference and lists of models, but none for managing models."""

import asyncio
import json
import logging
from collections.abc import Awaitable
from functools import partial
from typing import Any, TypeVar

import aiohttp
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from chatmetrics.components.serve.error_responses import error_message, error_response, json_object
from chatmetrics.components.serve.pod import openai_api
from chatmetrics.components.serve.pod.admission import Admitted
from chatmetrics.components.serve.pod.engine_queue import PLACE, Place
from chatmetrics.components.serve.pod.metrics import Metrics
from chatmetrics.components.serve.pod.paths import MODEL
from chatmetrics.components.serve.pod.pod_state import PodState
from chatmetrics.components.serve.pod.relay import TIMED_OUT, Relay, ollama_errors, opened, until_disconnected
from chatmetrics.components.serve.pod.request_checks import FIXED_FIELDS, check_fields, check_names
from chatmetrics.components.serve.pod.request_log import client_of, note
from chatmetrics.components.serve.release import Release

Json = dict[str, Any]

INCOMPLETE = "Ollama stopped the answer before its end: it repeats itself, or is not valid text"
MANIFEST_HEADER = "X-Manifest-Sha256"
Result = TypeVar("Result")
log = logging.getLogger(__name__)


class Proxy:
    """Handlers of Ollama's paths and of OpenAI's chat completions.

    Args:
        release: Limits of requests.
        state: The served models.
        metrics: Where tokens are counted.
        http: Session with Ollama's endpoint as the base URL.
    """

    def __init__(self, release: Release, state: PodState, metrics: Metrics, http: aiohttp.ClientSession) -> None:
        self._release, self._state, self._metrics, self._http = release, state, metrics, http

    def routes(self) -> list[Route]:
        """Routes that are passed on to Ollama, and the acceptance test's."""
        inference = ("/api/generate", "/api/chat", openai_api.PATH)
        return [
            *(Route(path, self._answer, methods=["POST"]) for path in inference),
            Route("/api/version", self._version, methods=["GET"]),
            Route("/api/tags", self._tags, methods=["GET"]),
            Route("/api/show", self._show, methods=["POST"]),
            Route("/v1/models", self._models, methods=["GET"]),
            Route(MODEL, self._described_model, methods=["GET"]),
            Route("/acceptance-test", self._acceptance_test, methods=["GET"]),
        ]

    async def _version(self, request: Request) -> Response:
        return JSONResponse(await self._ollama("GET", "/api/version"))

    async def _tags(self, request: Request) -> Response:
        """The models under their stable names, which stay valid when a version is replaced, and with their versions."""
        listed = {entry["name"]: entry for entry in (await self._ollama("GET", "/api/tags"))["models"]}
        entries = [
            listed[admitted.model.name] | {"name": name, "model": name}
            for short, admitted in self._state.admitted.items()
            for name in dict.fromkeys((f"{short}:latest", admitted.model.name))
            if admitted.model.name in listed
        ]
        return JSONResponse({"models": entries})

    async def _show(self, request: Request) -> Response:
        """What clients read about a model: its context length, what it is capable of, and its template."""
        body = await json_object(request, self._release.request_kib * 1024)
        admitted = self._model({"model": body.get("model") or body.get("name")})
        shown = await self._ollama("POST", "/api/show", {"model": admitted.model.name})
        length = admitted.model.context_length
        about = {
            name: length if name.endswith(".context_length") else value
            for name, value in shown.get("model_info", {}).items()
        }
        return JSONResponse(
            {name: shown[name] for name in ("details", "template", "modified_at") if name in shown}
            | {"parameters": f"num_ctx {length}", "model_info": about, "capabilities": ["completion"]}
        )

    async def _models(self, request: Request) -> Response:
        names = (name for short, admitted in self._state.admitted.items() for name in (short, admitted.model.name))
        return JSONResponse({"object": "list", "data": list(map(openai_api.model_object, names))})

    async def _described_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        self._model({"model": name})
        return JSONResponse(openai_api.model_object(name))

    async def _ollama(self, method: str, path: str, body: Json | None = None) -> Json:
        with ollama_errors():
            async with self._http.request(method, path, json=body) as answer:
                content = await answer.read()
        if answer.status != 200:
            raise HTTPException(502, f"Ollama refused {path} ({answer.status}); see its log")
        found: Json = json.loads(content)
        return found

    async def _acceptance_test(self, request: Request) -> Response:
        """Questions and answers of the models' acceptance tests, for the smoke test."""
        if client_of(request.scope) in self._release.client_databases:
            raise HTTPException(403, "only a client that may use all databases can read the acceptance test")
        return JSONResponse([asked for admitted in self._state.admitted.values() for asked in _questions(admitted)])

    async def _answer(self, request: Request) -> Response:
        path = request.url.path
        body = await json_object(request, self._release.request_kib * 1024)
        check_names(body)
        streamed = bool(body.get("stream", path != openai_api.PATH))
        translated = openai_api.Chunks(openai_api.wants_usage(body)) if path == openai_api.PATH else None
        if translated:
            path, body = "/api/chat", openai_api.chat_request(body)
        admitted = self._model(body)
        note(request.scope, model=admitted.model.name)
        headers = check_fields(body, admitted.model.context_length) | manifest_header(admitted)
        body |= {**FIXED_FIELDS, "model": admitted.model.name, "stream": streamed}
        deadline, place = asyncio.get_running_loop().time() + self._release.request_seconds, place_of(request)
        await turn(place, deadline)
        if streamed:
            answer = await opened(response_of(self._http.post(path, json=body)), deadline, place, self._state)
            if translated and answer.status != 200:
                return await _refused(answer, deadline)
            ending = partial(self._ending, admitted.model.name)
            return Relay(answer, deadline, ending, place, self._state, translated, headers)
        asking = asyncio.ensure_future(self._complete(path, body, admitted.model.name, deadline, bool(translated)))
        await cancel_on_disconnect(request, asking)
        response = await asking
        response.headers.update(headers)
        return response

    async def _complete(self, path: str, body: Json, model: str, deadline: float, translated: bool) -> Response:
        answer = await in_time(self._http.post(path, json=body), deadline)
        if translated and answer.status != 200:
            return await _refused(answer, deadline)
        async with answer:
            content = await in_time(answer.read(), deadline)
        if answer.status == 200:
            self._state.note_answer()
            whole = self._counted(model, content)
            if translated:
                return JSONResponse(openai_api.completion(whole))
        return Response(content, answer.status, media_type=answer.content_type)

    def _ending(self, model: str, end: bytes) -> str:
        """Count the tokens of a streamed answer from its end. Returns an error message if the answer is incomplete."""
        self._state.note_answer()
        try:
            self._counted(model, end.strip().rpartition(b"\n")[2])
        except HTTPException as error:
            return error.detail
        return ""

    def _counted(self, model: str, end: bytes) -> Json:
        """Parse an answer, or the last line of a streamed one, and count its tokens.

        Raises:
            HTTPException: The answer is incomplete.
        """
        try:
            answer: Json = json.loads(end)
            complete = answer["done"]
        except (ValueError, KeyError, TypeError):
            complete = False
        if not complete:
            raise HTTPException(502, INCOMPLETE)
        self._metrics.count_tokens(model, answer)
        return answer

    def _model(self, body: Json) -> Admitted:
        if admitted := self._state.find(body.get("model")):
            return admitted
        names = ", ".join(sorted(admitted.model.name for admitted in self._state.admitted.values()))
        raise HTTPException(404, f"model {body.get('model')!r} not found; served here: {names}")


def _questions(admitted: Admitted) -> list[Json]:
    if admitted.acceptance_test is None or admitted.score is None:
        return []
    wrong = {mistake.id for mistake in admitted.score.wrong}
    return [
        {
            "model": admitted.model.name,
            "id": question.id,
            "prompt": admitted.model.template.prompt(question.system, question.instruction, question.input),
            "max_tokens": admitted.acceptance_test.max_tokens,
            "answer": admitted.score.answers[question.id],
            "right": question.id not in wrong,
        }
        for question in admitted.acceptance_test.questions
    ]


async def _refused(answer: aiohttp.ClientResponse, deadline: float) -> Response:
    """An error of Ollama in OpenAI's format."""
    async with answer:
        return error_response(openai_api.PATH, answer.status, error_message(await in_time(answer.read(), deadline)))


def manifest_header(admitted: Admitted) -> dict[str, str]:
    """A header that names the manifest of the model that answers; empty if it is not known."""
    return {MANIFEST_HEADER: admitted.model.manifest_sha256} if admitted.model.manifest_sha256 else {}


def place_of(request: Request) -> Place:
    """The request's place in the queue, which the access control has taken."""
    place: Place = request.scope[PLACE]
    return place


async def turn(place: Place, deadline: float) -> None:
    """Wait for a slot of the engine.

    Raises:
        HTTPException: The deadline passed.
    """
    try:
        async with asyncio.timeout_at(deadline):
            await place.slot()
    except TimeoutError as error:
        message = "too many requests are being answered; try again later"
        raise HTTPException(503, message, {"Retry-After": "1"}) from error


async def response_of(request: Awaitable[aiohttp.ClientResponse]) -> aiohttp.ClientResponse:
    """A request as a coroutine, which aiohttp's own object is not."""
    return await request


async def in_time(action: Awaitable[Result], deadline: float) -> Result:
    """Await a response of Ollama until `deadline`, a time of the event loop's clock.

    Raises:
        HTTPException: The deadline passed, or the connection failed.
    """
    try:
        async with asyncio.timeout_at(deadline):
            with ollama_errors():
                return await action
    except TimeoutError as error:
        raise HTTPException(504, TIMED_OUT) from error


async def cancel_on_disconnect(request: Request, asking: "asyncio.Future[Any]") -> None:
    """Wait for an answer, and cancel it when the client disconnects, so that other requests do not wait for it.

    Raises:
        HTTPException: The client disconnected.
    """
    gone: asyncio.Future[Any] = asyncio.ensure_future(until_disconnected(request.receive))
    try:
        await asyncio.wait([asking, gone], return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            raise HTTPException(499, "the client disconnected")
    finally:
        gone.cancel()
        asking.cancel()  # no effect if it is done
