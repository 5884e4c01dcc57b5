"""Ask a served model a question about a database: the prompt of training, the SQL, and its rows."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from chatmetrics.components.errors import InputError, UserError
from chatmetrics.components.inference.client import Client
from chatmetrics.components.nl2sql.execution import Executor, FailureMode, Result
from chatmetrics.components.nl2sql.prompt import instruction, render_prompt, sql_from_answer
from chatmetrics.components.nl2sql.schema import Schema, fit_schema
from chatmetrics.components.serve.settings import AskSettings
from chatmetrics.components.storage.manifest import Manifest

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class AskResult:
    """The model's SQL, what the database said to it, and the seconds that the model took."""

    sql: str
    result: Result
    seconds: float


def published_settings(manifest: Manifest) -> AskSettings:
    """The settings with which a published model was trained.

    Raises:
        InputError: the manifest does not say them.
    """
    if missing := next((name for name in ("schema_form", "cutoff_length") if not getattr(manifest, name)), None):
        raise InputError(
            f"the manifest of {manifest.name} does not say its {missing}: publish it anew, or give --schema"
        )
    return AskSettings.model_validate(
        {
            "schema": manifest.schema_form,
            "sample_values": manifest.sample_values,
            "cutoff_length": manifest.cutoff_length,
        }
    )


def ask(
    question: str, database: Path, endpoint: str, model: str = "", settings: AskSettings | None = None, token: str = ""
) -> AskResult:
    """Have the model at `endpoint` translate `question`, and run its SQL read-only on `database`.

    Args:
        question: in any language the model knows.
        database: an SQLite file; its stem is the database's name in the prompt, as in training.
        endpoint: base URL of any Ollama-compatible server or of llama.cpp's.
        model: the model's name there; may be empty when there is only one.
        settings: how the prompt is built and the query bounded.
        token: for an endpoint in a cluster.

    Raises:
        InputError: the database cannot be read, or no part of its schema fits the prompt.
        ServiceError: the endpoint is not reachable or refused.
    """
    settings = settings or AskSettings()
    schema = Schema.from_sqlite(database, settings.sample_values)
    client = Client(endpoint, model, token)
    started = time.monotonic()
    answer = client.generate(PromptBuilder(schema, settings, client.count_tokens).prompt(question), settings.max_tokens)
    seconds = time.monotonic() - started
    sql = sql_from_answer(answer.text)
    with Executor(settings.query_seconds, settings.memory_mib, settings.max_rows) as executor:
        return AskResult(sql, executor.execute(database, sql), seconds)


def table(answer: AskResult) -> "Table":
    """The rows as a table for rich to print, which counts a Chinese character as two columns.

    Raises:
        UserError: the SQL failed.
    """
    from rich.table import Table
    from rich.text import Text

    if answer.result.failure is FailureMode.NO_SQL:
        raise UserError("the model answered without any SQL: ask in other words, or check that it fits this database")
    if answer.result.failure is not FailureMode.OK:
        raise UserError(f"the SQL failed, {answer.result.failure} ({answer.result.message}): {answer.sql}")
    rows = Table()
    for name in answer.result.columns:
        rows.add_column(Text(name))
    for row in answer.result.rows:
        rows.add_row(*(Text("NULL" if value is None else str(value)) for value in row))
    return rows


class PromptBuilder:
    """Prompts for questions about one database, as in training: the schema, pruned where it is too long.

    Args:
        schema: of the database.
        settings: how the schema is shown and how long a prompt may be.
        count_tokens: tokens of a prompt; None when it is longer than the model can read.
    """

    def __init__(self, schema: Schema, settings: AskSettings, count_tokens: Callable[[str], int | None]) -> None:
        self._schema, self._settings, self._count_tokens = schema, settings, count_tokens
        self._whole = "" if settings.schema_form == "none" else schema.render(settings.schema_form)
        self._room: int | None = None  # tokens left for a question beside the whole schema

    def prompt(self, question: str) -> str:
        """The prompt for a question.

        Raises:
            InputError: no part of the schema fits beside it.
        """
        if self._settings.schema_form == "none":
            return self._rendered("", question)
        # Nearly always the whole schema fits, and a question has at most as many tokens as bytes: the model's server
        # is asked to count once and not for every question.
        if len(question.encode()) <= self._room_for_questions():
            return self._rendered(self._whole, question)
        system = fit_schema(self._schema, question, self._settings.schema_form, partial(self._fits, question))
        if system is None:
            raise InputError(
                f"no table of {self._schema.db_id} fits into {self._settings.cutoff_length} tokens: shorten the "
                "question, or raise cutoff_length if the model allows it"
            )
        return self._rendered(system, question)

    def _room_for_questions(self) -> int:
        if self._room is None:
            tokens = self._count_tokens(self._rendered(self._whole, ""))
            self._room = -1 if tokens is None else self._settings.cutoff_length - self._settings.max_tokens - tokens
        return self._room

    def _fits(self, question: str, system: str) -> bool:
        tokens = self._count_tokens(self._rendered(system, question))
        return tokens is not None and tokens + self._settings.max_tokens <= self._settings.cutoff_length

    def _rendered(self, system: str, question: str) -> str:
        return render_prompt(system, instruction(self._schema.db_id), question)
