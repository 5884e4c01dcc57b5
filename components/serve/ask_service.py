"""Questions in, SQL and rows out: for applications that need know nothing of prompts."""

import asyncio
import json
import queue
import time
from collections.abc import AsyncIterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from pydantic import ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.components.inference.client import Client, ollama_request
from chatmetrics.components.nl2sql.execution import Executor, FailureMode, Result
from chatmetrics.components.nl2sql.prompt import sql_from_answer
from chatmetrics.components.nl2sql.schema import Schema
from chatmetrics.components.serve.admission import Admitted
from chatmetrics.components.serve.ask import PromptBuilder, published_settings
from chatmetrics.components.serve.proxy import BROKEN_OFF, in_time, unless_gone
from chatmetrics.components.serve.refusal import json_object
from chatmetrics.components.serve.release import Release
from chatmetrics.components.serve.served import Served
from chatmetrics.components.serve.settings import AskSettings
from chatmetrics.components.settings import Settings
from chatmetrics.components.storage.manifest import Manifest

PAGE = Path(__file__).with_name("ask.html")
ROWS_AN_EVENT = 100

Json = dict[str, Any]


class _Question(Settings):
    model_config = ConfigDict(strict=True)

    question: str = Field(min_length=1, max_length=10_000)
    database: str = ""
    model: str = ""
    stream: bool = False


class AskService:
    """Handlers of /ask, /databases and the page.

    Args:
        release: the databases and the bounds.
        manifests: of the models, by released name: how each was trained to see a schema.
        served: the models.
        http: session whose base is Ollama.
        endpoint: Ollama's.

    Raises:
        InputError: a database cannot be read.
    """

    def __init__(
        self,
        release: Release,
        manifests: dict[str, Manifest],
        served: Served,
        http: aiohttp.ClientSession,
        endpoint: str,
    ) -> None:
        self._release, self._manifests, self._served = release, manifests, served
        self._http, self._endpoint = http, endpoint
        self._reading: set[asyncio.Task[None]] = set()
        self._builders: dict[tuple[str, str], PromptBuilder] = {}
        self._executors = _Executors(release)
        for name, path in release.databases.items():
            Schema.from_sqlite(path)
            if path.stem != name:
                raise InputError(f"database {name}: its file is called {path.name}; call both alike, prompts have it")

    def routes(self) -> list[Route]:
        """What people and applications open."""
        return [
            Route("/", self._page, methods=["GET"]),
            Route("/ask", self._ask, methods=["POST"]),
            Route("/databases", self._list, methods=["GET"]),
            Route("/databases/{name}", self._database, methods=["GET"]),
        ]

    async def _page(self, request: Request) -> Response:
        return HTMLResponse(PAGE.read_text("utf-8"), headers={"Content-Security-Policy": _POLICY})

    async def _list(self, request: Request) -> Response:
        models = [admitted.model.name.split(":") for admitted in self._served.admitted.values()]
        return JSONResponse(
            {
                "databases": [{"name": name} for name in self._release.databases],
                "models": [{"name": name, "version": version} for name, version in models],
            }
        )

    async def _database(self, request: Request) -> Response:
        path = self._path(request.path_params["name"])
        schema = await asyncio.to_thread(Schema.from_sqlite, path)
        tables = [
            {"name": table.name, "columns": [{"name": column.name, "type": column.type} for column in table.columns]}
            for table in schema.tables
        ]
        return JSONResponse({"name": schema.db_id, "ddl": schema.render("ddl"), "tables": tables})

    async def _ask(self, request: Request) -> Response:
        asked = _parsed(await json_object(request, self._release.request_kib * 1024))
        admitted = self._served.find(asked.model)
        if admitted is None:
            names = ", ".join(sorted(self._served.admitted))
            raise HTTPException(404, f"model {asked.model!r} not found; served here: {names}")
        path = self._path(asked.database)
        events = self._events(asked, admitted, path)
        if asked.stream:
            lines = (json.dumps(event, ensure_ascii=False) + "\n" async for event in _with_errors(events))
            return StreamingResponse(lines, media_type="application/x-ndjson")
        asking = asyncio.ensure_future(_collected(events))
        await unless_gone(request, asking)
        return await asking

    async def _events(self, asked: _Question, admitted: Admitted, path: Path) -> AsyncIterator[Json]:
        """What the answer consists of, in the order in which it is known."""
        started, text = time.monotonic(), ""
        settings = self._settings(admitted)
        prompt = await self._prompt(asked, admitted, path, settings)
        body = ollama_request(admitted.model.name, prompt, settings.max_tokens) | {"stream": asked.stream}
        async for part in self._written(body):
            text += part
            yield {"text": part}
        sql, answered = sql_from_answer(text), time.monotonic()
        yield {"sql": sql}
        result = await asyncio.to_thread(self._executors.execute, path, sql)
        yield {"columns": list(result.columns)}
        for first in range(0, len(result.rows), ROWS_AN_EVENT):
            yield {"rows": [list(map(_plain, row)) for row in result.rows[first : first + ROWS_AN_EVENT]]}
        timing = {"model_ms": _milliseconds(answered - started), "database_ms": _milliseconds(result.seconds)}
        yield {"done": True, "model": admitted.model.name, "failure": _failure(result), "timing": timing}

    async def _written(self, body: Json) -> AsyncIterator[str]:
        """The parts of the model's answer.

        They are read by a task of its own, which goes on to the end when the client has gone: see `proxy._Relay`.
        """
        parts: asyncio.Queue[str | HTTPException | None] = asyncio.Queue()
        reading = asyncio.create_task(self._read(body, parts))
        self._reading.add(reading)
        reading.add_done_callback(self._reading.discard)
        while (part := await parts.get()) is not None:
            if isinstance(part, HTTPException):
                raise part
            yield part

    async def _read(self, body: Json, parts: "asyncio.Queue[str | HTTPException | None]") -> None:
        deadline = asyncio.get_running_loop().time() + self._release.seconds
        event: Json = {}
        try:
            async with await in_time(self._http.post("/api/generate", json=body), deadline) as answer:
                while line := await in_time(answer.content.readline(), deadline):
                    event = json.loads(line)
                    if "error" in event:
                        raise HTTPException(answer.status if answer.status >= 400 else 502, str(event["error"]))
                    if event["response"]:
                        parts.put_nowait(event["response"])
            if not event.get("done"):
                raise HTTPException(502, BROKEN_OFF)
            self._served.note_answer()
            parts.put_nowait(None)
        except HTTPException as error:
            parts.put_nowait(error)

    async def _prompt(self, asked: _Question, admitted: Admitted, path: Path, settings: AskSettings) -> str:
        key = (admitted.model.name, path.stem)
        try:
            if key not in self._builders:
                schema = await asyncio.to_thread(Schema.from_sqlite, path, settings.sample_values)
                count = await asyncio.to_thread(Client, self._endpoint, admitted.model.name, "", self._release.seconds)
                self._builders[key] = PromptBuilder(schema, settings, count.count_tokens)
            return await asyncio.to_thread(self._builders[key].prompt, asked.question)
        except InputError as error:
            raise HTTPException(400, str(error)) from error
        except ServiceError as error:
            raise HTTPException(502, str(error)) from error

    def _settings(self, admitted: Admitted) -> AskSettings:
        name = next(name for name, other in self._served.admitted.items() if other is admitted)
        query = self._release.query
        bounds = {"timeout": query.seconds, "memory_mib": query.memory_mib, "max_rows": query.rows}
        return published_settings(self._manifests[name]).model_copy(update=bounds)

    def _path(self, name: str) -> Path:
        databases = self._release.databases
        if not name and len(databases) == 1:
            return next(iter(databases.values()))
        if name not in databases:
            raise HTTPException(404, f"database {name!r} not found; there are: {', '.join(databases) or 'none'}")
        return databases[name]


class _Executors:
    """Executors for several threads, made when they are needed and used again."""

    def __init__(self, release: Release) -> None:
        self._bounds = release.query
        self._idle: queue.SimpleQueue[Executor] = queue.SimpleQueue()

    def execute(self, path: Path, sql: str) -> Result:
        """Run a query, in whichever thread this is.

        An executor is borrowed and given back here, by the thread that uses it: a client that leaves ends the waiting
        for the thread and not the thread, and nobody else may read the rows that still come.
        """
        with self._one() as executor:
            return executor.execute(path, sql)

    @contextmanager
    def _one(self) -> Any:
        """An executor that nobody else uses meanwhile."""
        try:
            executor = self._idle.get_nowait()
        except queue.Empty:
            executor = Executor(self._bounds.seconds, self._bounds.memory_mib, self._bounds.rows)
        try:
            yield executor
        finally:
            self._idle.put(executor)


_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"


def _parsed(body: Json) -> _Question:
    try:
        return _Question.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise HTTPException(400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


async def _collected(events: AsyncIterator[Json]) -> Response:
    answer: Json = {"model": "", "sql": "", "columns": [], "rows": []}
    async for event in events:
        event.pop("text", None)
        answer["rows"] += event.pop("rows", [])
        answer |= event
    answer.pop("done")
    return JSONResponse(answer)


async def _with_errors(events: AsyncIterator[Json]) -> AsyncIterator[Json]:
    """Say what went wrong as the last event: the status has been sent."""
    try:
        async for event in events:
            yield event
    except HTTPException as error:
        yield {"error": error.detail}


def _failure(result: Result) -> str | None:
    if result.failure is FailureMode.OK:
        return None
    return f"{result.failure}: {result.message}" if result.message else str(result.failure)


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


def _milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 1)
