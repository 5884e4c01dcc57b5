"""The /ask API: a question in, SQL and rows out, so that applications do not have to build prompts."""

import asyncio
import hashlib
import json
import logging
import math
import re
import time
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from pydantic import ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response

from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.components.inference.client import Client, ollama_request
from chatmetrics.components.nl2sql.answers.extraction import sql_from_answer
from chatmetrics.components.nl2sql.binding.binder import BoundQuery, bind_names
from chatmetrics.components.nl2sql.databases.execution import FailureMode, Result
from chatmetrics.components.nl2sql.databases.stored_values import StoredValues
from chatmetrics.components.nl2sql.descriptions import Descriptions
from chatmetrics.components.nl2sql.linking.found_values import FoundValue
from chatmetrics.components.nl2sql.schema import Schema
from chatmetrics.components.serve.ask import Prompt, PromptBuilder, published_settings
from chatmetrics.components.serve.error_responses import error_message
from chatmetrics.components.serve.pod.admission import Admitted
from chatmetrics.components.serve.pod.asked_databases import AskedDatabase, open_all
from chatmetrics.components.serve.pod.engine.client import EngineError
from chatmetrics.components.serve.pod.engine.engine import TIMED_OUT, Engine, in_time, turn
from chatmetrics.components.serve.pod.engine.queue import Place
from chatmetrics.components.serve.pod.metrics import Metrics
from chatmetrics.components.serve.pod.paths import DATABASE, PAGE
from chatmetrics.components.serve.pod.pod_request import Handlers, PodRequest
from chatmetrics.components.serve.pod.pod_state import PodState
from chatmetrics.components.serve.pod.proxy import INCOMPLETE
from chatmetrics.components.serve.pod.relay import EventStream
from chatmetrics.components.serve.release import Release
from chatmetrics.components.serve.settings import AskSettings
from chatmetrics.components.settings import Settings
from chatmetrics.components.storage.manifest import Manifest

PAGE_FILE = Path(__file__).parents[1] / "ask.html"
ROWS_PER_EVENT = 100
LARGEST_INTEGER = 2**53 - 1  # the largest that every JSON parser reads exactly (RFC 7493)
NO_ANSWER = "the model's server failed, see its log; try again later"

Json = dict[str, Any]
log = logging.getLogger(__name__)


class _Question(Settings):
    model_config = ConfigDict(strict=True)

    question: str = Field(min_length=1)
    evidence: str = ""
    database: str = ""
    model: str = ""
    stream: bool = False


class AskService:
    """Handlers of /ask, /databases and the page.

    Args:
        release: Databases and limits.
        manifests: The models' manifests, by released name. They contain the form of the schema in the prompt.
        descriptions: What each model's prompts show about a database that its file does not contain, by released name
            and database.
        state: The served models.
        metrics: Where tokens are counted.
        engine: Answers the requests.
        endpoint: Ollama's endpoint.

    Raises:
        InputError: A database cannot be read.
    """

    def __init__(
        self,
        release: Release,
        manifests: dict[str, Manifest],
        descriptions: Mapping[str, Mapping[str, Descriptions]],
        state: PodState,
        metrics: Metrics,
        engine: Engine,
        endpoint: str,
    ) -> None:
        self._release, self._manifests, self._state = release, manifests, state
        self._descriptions = descriptions
        self._metrics, self._engine, self._endpoint = metrics, engine, endpoint
        # By model and database; the first item is the version of the database file.
        self._builders: dict[tuple[str, str], tuple[object, PromptBuilder]] = {}
        self._building = asyncio.Lock()
        self._databases = open_all(release)

    def handlers(self) -> Handlers:
        """Handlers of the paths for people and applications."""
        return {
            ("GET", PAGE): self._page,
            ("POST", "/ask"): self._ask,
            ("GET", "/databases"): self._list,
            ("GET", DATABASE): self._database,
        }

    async def _page(self, request: PodRequest) -> Response:
        page = PAGE_FILE.read_text("utf-8")
        return HTMLResponse(page, headers={"Content-Security-Policy": _policy(page)})

    async def _list(self, request: PodRequest) -> Response:
        models = [admitted.model.name.split(":") for admitted in self._state.admitted.values()]
        return JSONResponse(
            {
                "databases": [{"name": name} for name in self._permitted(request)],
                "models": [{"name": name, "version": version} for name, version in models],
            }
        )

    async def _database(self, request: PodRequest) -> Response:
        database = self._find(request, request.name)
        with _database_errors(database):
            schema = await asyncio.to_thread(database.schema)
        tables = [
            {"name": table.name, "columns": [{"name": column.name, "type": column.type} for column in table.columns]}
            for table in schema.tables
        ]
        return JSONResponse({"name": schema.db_id, "ddl": schema.render("ddl"), "tables": tables})

    async def _ask(self, request: PodRequest) -> Response:
        asked = _parsed(request.json(), self._release.question_characters)
        admitted = self._state.find(asked.model)
        if admitted is None:
            names = ", ".join(sorted(self._state.admitted))
            raise HTTPException(404, f"model {asked.model!r} not found; served here: {names}")
        name = next(name for name, other in self._state.admitted.items() if other is admitted)
        database = self._find(request, asked.database)
        request.note(model=admitted.model.name, database=database.name, question=asked.question)
        descriptions = self._descriptions.get(name, {}).get(database.name)
        events = self._events(asked, admitted, database, self._settings(name), descriptions, request)
        if asked.stream:
            return EventStream(events, request.peer)
        return await request.unless_gone(_collected(events))

    async def _events(
        self,
        asked: _Question,
        admitted: Admitted,
        database: AskedDatabase,
        settings: AskSettings,
        descriptions: Descriptions | None,
        request: PodRequest,
    ) -> AsyncGenerator[Json, None]:
        """Parts of the answer, as soon as each is known."""
        deadline, place = self._engine.deadline(), request.place
        await turn(place, admitted.model.name, deadline)
        started, text = time.monotonic(), ""
        prompt, schema = await self._prompt(asked, admitted, database, settings, descriptions, deadline)
        body = ollama_request(admitted.model.name, prompt.text, settings.max_tokens) | {"stream": asked.stream}
        # Closed before the place is left, because a late answer keeps the place.
        if prompt.condensed:
            yield {"condensed_question": prompt.condensed}
        async with aclosing(self._generated(body, deadline, place)) as parts:
            async for part in parts:
                text += part
                yield {"text": part}
        place.release_slot()
        answer, answered = sql_from_answer(text), time.monotonic()
        bound = BoundQuery(answer)
        if self._release.bind_names:
            bound = (await asyncio.to_thread(bind_names, answer, schema))[0]
        sql, repairs = bound.sql, [{"kind": repair.kind, "message": repair.message} for repair in bound.repairs]
        request.note(sql=sql)
        yield {"sql": sql, "answered": answer, "repairs": repairs}
        with _database_errors(database):
            result = await database.execute(sql)
        request.note(outcome=str(result.failure), rows=len(result.rows))
        yield {"columns": list(result.columns)}
        for first in range(0, len(result.rows), ROWS_PER_EVENT):
            yield {"rows": [list(map(_plain, row)) for row in result.rows[first : first + ROWS_PER_EVENT]]}
        timing = {"model_ms": _milliseconds(answered - started), "database_ms": _milliseconds(result.seconds)}
        model = {"model": admitted.model.name, "manifest_sha256": admitted.model.manifest_sha256}
        yield {"done": True, **model, "failure": _failure(result), "timing": timing}

    async def _generated(self, body: Json, deadline: float, place: Place) -> AsyncGenerator[str, None]:
        """Parts of the model's answer. A streamed one that is late is read to its end in the background."""
        event: Json = {}
        async with aclosing(self._engine.lines("/api/generate", body, deadline, place)) as lines:
            async for status, line in lines:
                self._state.note_answer(body["model"])
                event = json.loads(line)
                if "error" in event:
                    raise _failed(status, error_message(line))
                if event["response"]:
                    yield event["response"]
        if not event.get("done"):
            raise HTTPException(502, INCOMPLETE)
        self._metrics.count_tokens(body["model"], event)

    async def _prompt(
        self,
        asked: _Question,
        admitted: Admitted,
        database: AskedDatabase,
        settings: AskSettings,
        descriptions: Descriptions | None,
        deadline: float,
    ) -> tuple[Prompt, Schema]:
        """The prompt, and the schema that it shows all or a part of."""

        async def built() -> tuple[Prompt, Schema]:
            try:
                async with self._building:  # requests that come meanwhile wait, instead of reading the same schema
                    builder = await asyncio.to_thread(
                        self._builder, admitted.model.name, database, settings, descriptions
                    )
                return await asyncio.to_thread(builder.prompt, asked.question, asked.evidence), builder.schema
            except InputError as error:
                raise HTTPException(400, str(error)) from error
            except ServiceError as error:
                match error.__cause__:
                    case httpx.TimeoutException():
                        raise HTTPException(504, TIMED_OUT) from error
                    case httpx.TransportError():  # its tokens could not be counted
                        raise EngineError(type(error.__cause__).__name__) from error
                raise _failed(502, str(error)) from error

        return await in_time(self._engine.retried(built, deadline), deadline)

    def _builder(
        self, model: str, database: AskedDatabase, settings: AskSettings, descriptions: Descriptions | None
    ) -> PromptBuilder:
        """Return the prompt builder for a model and a database; it is replaced when the database changes."""
        with _database_errors(database):
            version = database.version()
        known, builder = self._builders.get((model, database.name), (None, None))
        if builder is None or known != version:
            with _database_errors(database):
                schema = database.schema(settings.sample_values, descriptions)
                values = database.values(schema)
            count_tokens = Client(self._endpoint, model, "", self._release.request_seconds).count_tokens
            builder = PromptBuilder(schema, settings, count_tokens, descriptions, partial(_found, database, values))
            self._builders[model, database.name] = version, builder
        return builder

    def _settings(self, name: str) -> AskSettings:
        """Prompt settings that the model with this released name was trained with.

        Raises:
            HTTPException: They are missing in its manifest.
        """
        query = self._release.query
        bounds = {"query_seconds": query.seconds, "memory_mib": query.memory_mib, "max_rows": query.max_rows}
        try:
            return published_settings(self._manifests[name]).model_copy(update=bounds)
        except InputError as error:
            log.warning("%s does not support /ask: %s", name, error)
            raise HTTPException(501, f"{name} does not support /ask, only the other paths: {error}") from error

    def _permitted(self, request: PodRequest) -> dict[str, AskedDatabase]:
        """The databases that the client may use, by name."""
        permitted = self._release.client_databases.get(request.client)
        return {name: each for name, each in self._databases.items() if permitted is None or name in permitted}

    def _find(self, request: PodRequest, name: str) -> AskedDatabase:
        databases = self._permitted(request)
        if not name and len(databases) == 1:
            return next(iter(databases.values()))
        if name not in databases:
            raise HTTPException(404, f"database {name!r} not found; available: {', '.join(databases) or 'none'}")
        return databases[name]


def _found(database: AskedDatabase, values: StoredValues, question: str) -> list[FoundValue]:
    """The values that a question names. They are read and indexed at the first question that needs them."""
    with _database_errors(database):
        return values.find(question)


def _policy(page: str) -> str:
    """A policy that permits the page's own script and style, by their hashes, and nothing else."""

    def hashes(tag: str) -> str:
        texts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return " ".join(f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts)

    return (
        f"default-src 'none'; style-src {hashes('style')}; script-src {hashes('script')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _parsed(body: Json, most_characters: int) -> _Question:
    try:
        asked = _Question.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise HTTPException(400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    for name, text in (("question", asked.question), ("evidence", asked.evidence)):
        if len(text) > most_characters:
            raise HTTPException(
                400, f"{name}: {len(text):,} characters, at most {most_characters:,} are accepted here; shorten it"
            )
    return asked


async def _collected(events: AsyncIterator[Json]) -> Response:
    answer: Json = {"model": "", "sql": "", "columns": [], "rows": []}
    async for event in events:
        event.pop("text", None)
        answer["rows"] += event.pop("rows", [])
        answer |= event
    answer.pop("done")
    return JSONResponse(answer)


@contextmanager
def _database_errors(database: AskedDatabase) -> Iterator[None]:
    """Turn errors of a database into responses with status 503.

    Raises:
        HTTPException: The database cannot be used.
    """
    try:
        yield
    except (InputError, ServiceError, OSError) as error:
        log.warning("database %s: %s", database.name, error)
        reason = f": {error}" if database.errors_are_public else "; its administrator finds the reason in the pod's log"
        raise HTTPException(503, f"database {database.name!r} is not available{reason}") from error


def _failed(status: int, message: str) -> HTTPException:
    """Error for a failure of Ollama. The client sees messages about its request, but no addresses inside the pod."""
    if 400 <= status < 500:
        return HTTPException(status, message)
    log.warning("/ask: %s", message)
    return HTTPException(502, NO_ANSWER)


def _failure(result: Result) -> str | None:
    if result.failure is FailureMode.OK:
        return None
    return f"{result.failure}: {result.message}" if result.message else str(result.failure)


def _plain(value: Any) -> Any:
    """Convert a database value to one that JSON can represent."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        return str(value)
    return value


def _milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 1)
