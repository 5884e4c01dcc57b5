"""Ollama's API in front of llama.cpp's server, which offers OpenAI's API itself. The gateway only translates."""

import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from types import TracebackType
from typing import Any, Self

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from chatmetrics.components.errors import ServiceError
from chatmetrics.components.inference.process import bound_socket
from chatmetrics.components.serve.error_responses import json_object, refusal
from chatmetrics.components.serve.local.same_machine import SameMachine
from chatmetrics.components.serve.messages import checked_messages
from chatmetrics.components.serve.model import ServedModel
from chatmetrics.components.serve.settings import ServeSettings

START_TIMEOUT = 30.0
# Fields of Ollama that the gateway does not support. They are refused, because ignoring them would change the answer.
UNSUPPORTED = ("suffix", "images", "format", "template", "context", "tools", "think", "logprobs")
# Ollama's options and their names in llama.cpp.
OPTIONS = {name: name for name in ("temperature", "top_k", "top_p", "min_p", "seed", "stop", "repeat_penalty")}
OPTIONS |= {"num_predict": "n_predict"}
OPENAI_POSTS = ("/v1/chat/completions", "/v1/completions")

Json = dict[str, Any]
Wrap = Callable[[str], Json]  # how /api/generate or /api/chat shows the text of an answer


def _as_generated(text: str) -> Json:
    return {"response": text}


def _as_chat(text: str) -> Json:
    return {"message": {"role": "assistant", "content": text}}


class Gateway:
    """Context manager for the gateway, which runs in a thread of this process.

    Args:
        backend: Endpoint of the llama.cpp server, which has loaded `model` with its chat template.
        model: The served model.
        settings: Host and maximum size of a request.
        port: The port; 0 is a free one.

    Raises:
        ServiceError: The port is already in use.
    """

    def __init__(self, backend: str, model: ServedModel, settings: ServeSettings, port: int = 0) -> None:
        self._socket = bound_socket(port, settings.host)
        self.endpoint = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        application = create_application(backend, model, settings)
        config = uvicorn.Config(application, log_level="warning", timeout_graceful_shutdown=2)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        deadline = time.monotonic() + START_TIMEOUT
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise ServiceError(f"the gateway at {self.endpoint} did not start; see its log above")
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


def create_application(backend: str, model: ServedModel, settings: ServeSettings) -> Starlette:
    """Create the gateway as an ASGI application."""
    translator = _Translator(backend, model, settings.request_kib * 1024)
    routes = [
        Route("/", lambda _: PlainTextResponse("Ollama is running")),
        Route("/health", translator.health),
        Route("/api/version", lambda _: JSONResponse({"version": version("chatmetrics")})),
        Route("/api/tags", translator.tags),
        Route("/api/ps", translator.loaded),
        Route("/api/show", translator.show, methods=["POST"]),
        Route("/api/generate", translator.generate, methods=["POST"]),
        Route("/api/chat", translator.chat, methods=["POST"]),
        *(Route(path, partial(translator.openai, path), methods=["POST"]) for path in OPENAI_POSTS),
        Route("/v1/models", partial(translator.openai, "/v1/models")),
        Route("/v1/models/{name}", translator.openai_model),
    ]
    protection = [
        Middleware(CORSMiddleware, allow_origins=settings.origins, allow_methods=["GET", "POST"], allow_headers=["*"]),
        Middleware(SameMachine, host=settings.host, origins=settings.origins),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with translator.http:
            yield

    handlers: Any = {HTTPException: refusal, httpx.TransportError: _unreachable}
    return Starlette(routes=routes, middleware=protection, lifespan=lifespan, exception_handlers=handlers)


class _Translator:
    def __init__(self, backend: str, model: ServedModel, max_request: int) -> None:
        # llama.cpp closes idle connections; on a busy machine a request could meet that end. A new one takes 0.1 ms.
        limits = httpx.Limits(max_keepalive_connections=0)
        self.http = httpx.AsyncClient(base_url=backend, timeout=None, trust_env=False, limits=limits)
        self._model = model
        self._max_request = max_request

    async def health(self, _: Request) -> Response:
        response = await self.http.get("/health")
        return Response(response.content, response.status_code, media_type="application/json")

    async def tags(self, _: Request) -> Response:
        return JSONResponse({"models": [await self._entry()]})

    async def loaded(self, _: Request) -> Response:
        entry = await self._entry() | {"context_length": self._model.context_length, "size_vram": 0}
        return JSONResponse({"models": [entry | {"expires_at": "9999-12-31T23:59:59Z"}]})

    async def show(self, request: Request) -> Response:
        self._check_model(await self._body(request))
        entry, meta = await self._entry(), await self._meta()
        return JSONResponse(
            {
                "parameters": f"num_ctx {self._model.context_length}\ntemperature 0",
                "template": self._model.template.go(),
                "details": entry["details"],
                "model_info": {"general.parameter_count": meta["n_params"], "context_length": meta["n_ctx"]},
                "capabilities": ["completion"],
                "modified_at": entry["modified_at"],
            }
        )

    async def generate(self, request: Request) -> Response:
        body = await self._body(request)
        self._check_supported(body)
        prompt, system = _text(body, "prompt"), _text(body, "system")
        if not prompt:  # a request to load the model, which is already loaded
            return JSONResponse(self._line(_as_generated(""), done=True, done_reason="load"))
        if not body.get("raw"):
            turns = [
                {"role": "system", "content": self._model.template.content(system)},
                {"role": "user", "content": self._model.template.content(prompt)},
            ]
            prompt = await self._render(turns)
        return await self._complete(prompt, body, _as_generated)

    async def chat(self, request: Request) -> Response:
        body = await self._body(request)
        self._check_supported(body)
        messages = body.get("messages")
        if not messages:
            return JSONResponse(self._line(_as_chat(""), done=True, done_reason="load"))
        return await self._complete(
            await self._render(checked_messages(messages, self._model.template.content)), body, _as_chat
        )

    async def openai_model(self, request: Request) -> Response:
        """Describe the served model, by its name or the name without its version."""
        self._check_model({"model": request.path_params["name"]})
        models = (await self.http.get("/v1/models")).json()
        return JSONResponse(models["data"][0])

    async def openai(self, path: str, request: Request) -> Response:
        """Pass a request to a path of llama.cpp, which has OpenAI's API and renders our template."""
        content = b""
        if request.method == "POST":
            body = await self._body(request)
            self._check_model(body, required=False)
            if "messages" in body:
                body["messages"] = checked_messages(body["messages"], self._model.template.content)
            content = json.dumps({"stop": list(self._model.stop), **body}).encode()
        headers = {"content-type": "application/json"}
        upstream = self.http.build_request(request.method, path, content=content, headers=headers)
        response = await self.http.send(upstream, stream=True)
        return StreamingResponse(
            _closing(response, response.aiter_raw()),
            response.status_code,
            media_type=response.headers.get("content-type"),
        )

    async def _complete(self, prompt: str, body: Json, wrap: Wrap) -> Response:
        stream = body.get("stream", True) is not False
        request = {"prompt": prompt, "stream": stream, "cache_prompt": True, **self._options(body)}
        response = await self.http.send(self.http.build_request("POST", "/completion", json=request), stream=True)
        if not response.is_success:
            await response.aread()
            await response.aclose()
            raise HTTPException(response.status_code, _message(response.json()))
        if stream:
            return StreamingResponse(_closing(response, self._lines(response, wrap)), media_type="application/x-ndjson")
        await response.aread()
        answer = response.json()
        return JSONResponse(self._line(wrap(answer["content"]), **_ending(answer)))

    async def _lines(self, response: httpx.Response, wrap: Wrap) -> AsyncIterator[str]:
        """Translate llama.cpp's server-sent events to Ollama's lines of JSON."""
        async for line in response.aiter_lines():
            kind, _, data = line.partition(": ")
            if kind == "error":
                yield json.dumps({"error": _message({"error": json.loads(data)})}) + "\n"
            if kind != "data":
                continue
            event = json.loads(data)
            if "error" in event:
                yield json.dumps({"error": _message(event)}) + "\n"
            else:
                ending = _ending(event) if event["stop"] else {"done": False}
                yield json.dumps(self._line(wrap(event["content"]), **ending), ensure_ascii=False) + "\n"

    async def _render(self, messages: list[Json]) -> str:
        """Render the prompt with the template that llama.cpp also uses for /v1."""
        response = await self.http.post("/apply-template", json={"messages": messages})
        if not response.is_success:
            raise HTTPException(response.status_code, _message(response.json()))
        return str(response.json()["prompt"])

    def _options(self, body: Json) -> Json:
        options = body.get("options") or {}
        if not isinstance(options, dict):
            raise HTTPException(400, "'options' must be an object")
        if isinstance(options.get("num_ctx"), int) and options["num_ctx"] > self._model.context_length:
            raise HTTPException(400, f"num_ctx must be at most {self._model.context_length}")
        translated = {OPTIONS[name]: value for name, value in options.items() if name in OPTIONS}
        return {"stop": list(self._model.stop), **translated}

    def _line(self, content: Json, **rest: Any) -> Json:
        return {"model": self._model.name, "created_at": datetime.now(UTC).isoformat(), **content, **rest}

    def _check_supported(self, body: Json) -> None:
        self._check_model(body)
        refused = [name for name in UNSUPPORTED if body.get(name)]
        if refused:
            raise HTTPException(400, f"not supported: {', '.join(refused)}")

    def _check_model(self, body: Json, required: bool = True) -> None:
        name = body.get("model", body.get("name"))
        if name is None and not required:
            return
        if name not in (self._model.name, self._model.name.partition(":")[0]):
            raise HTTPException(404, f"model {name!r} not found; this server has {self._model.name!r}")

    async def _body(self, request: Request) -> Json:
        return await json_object(request, self._max_request)

    async def _meta(self) -> Json:
        models = (await self.http.get("/v1/models")).json()
        meta: Json = models["data"][0]["meta"]
        return meta

    async def _entry(self) -> Json:
        meta, status = await self._meta(), self._model.gguf.stat()
        return {
            "name": self._model.name,
            "model": self._model.name,
            "modified_at": datetime.fromtimestamp(status.st_mtime, UTC).isoformat(),
            "size": status.st_size,
            "digest": self._model.sha256,
            "details": {
                "parent_model": "",
                "format": "gguf",
                "family": "",
                "families": [],
                "parameter_size": f"{meta['n_params'] / 1e6:.1f}M",
                "quantization_level": meta["ftype"],
            },
        }


def _ending(answer: Json) -> Json:
    timings = answer["timings"]
    prompt_time, answer_time = (int(timings[name] * 1e6) for name in ("prompt_ms", "predicted_ms"))
    return {
        "done": True,
        "done_reason": "length" if answer["stop_type"] == "limit" else "stop",
        "total_duration": prompt_time + answer_time,  # nanoseconds, as in Ollama
        "load_duration": 0,
        "prompt_eval_count": answer["tokens_evaluated"],
        "prompt_eval_duration": prompt_time,
        "eval_count": answer["tokens_predicted"],
        "eval_duration": answer_time,
    }


def _text(body: Json, name: str) -> str:
    value = body.get(name) or ""
    if not isinstance(value, str):
        raise HTTPException(400, f"{name!r} must be a string")
    return value


def _message(body: Any) -> str:
    error = body.get("error", body) if isinstance(body, dict) else body
    return str(error.get("message", error) if isinstance(error, dict) else error)


async def _closing(response: httpx.Response, items: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Pass the items on. Closing the response stops llama.cpp when the client disconnects."""
    try:
        async for item in items:
            yield item
    finally:
        await response.aclose()


async def _unreachable(request: Request, error: httpx.TransportError) -> Response:
    return await refusal(request, HTTPException(502, f"llama.cpp's server does not respond: {error}"))
