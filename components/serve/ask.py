"""Ask a served model a question about a database: build the prompt as in training and run the SQL of the answer."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from chatmetrics.components import console
from chatmetrics.components.errors import InputError, UserError
from chatmetrics.components.inference.client import Client
from chatmetrics.components.nl2sql.answers.extraction import sql_from_answer
from chatmetrics.components.nl2sql.binding.binder import BoundQuery, bind_names
from chatmetrics.components.nl2sql.binding.edit import Repair
from chatmetrics.components.nl2sql.databases.addresses import PLACEHOLDER, is_address, name_at
from chatmetrics.components.nl2sql.databases.databases import open_databases
from chatmetrics.components.nl2sql.databases.execution import Executor, FailureMode, Result
from chatmetrics.components.nl2sql.databases.stored_values import StoredValues
from chatmetrics.components.nl2sql.descriptions import FILE as DESCRIPTIONS
from chatmetrics.components.nl2sql.descriptions import Descriptions, read_descriptions
from chatmetrics.components.nl2sql.linking.found_values import FindValues, no_values
from chatmetrics.components.nl2sql.prompts.prompt import instruction, with_evidence
from chatmetrics.components.nl2sql.prompts.prompt_fitter import PromptFitter
from chatmetrics.components.nl2sql.prompts.template import DEEPSEEK3, PromptTemplate
from chatmetrics.components.nl2sql.schema import Schema
from chatmetrics.components.serve.settings import AskSettings
from chatmetrics.components.storage.manifest import Manifest, fetch_file

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class AskResult:
    """A query and its result.

    Attributes:
        sql: the query that ran.
        result: its result.
        seconds: time that the model took.
        answered: the model's SQL.
        repairs: what was repaired in it so that all its names resolve.
        condensed: what the model was shown of a question that is too long; empty if all of it.
        is_longer: whether the prompt has more tokens than those of training, because the question is long.
    """

    sql: str
    result: Result
    seconds: float
    answered: str = ""
    repairs: tuple[Repair, ...] = ()
    condensed: str = ""
    is_longer: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, with `condensed` and `is_longer` as in `AskResult`."""

    text: str
    condensed: str = ""
    is_longer: bool = False


def published_settings(manifest: Manifest) -> AskSettings:
    """Prompt settings that a published model was trained with.

    Raises:
        InputError: The manifest does not contain them.
    """
    for name in ("schema_form", "cutoff_length"):
        if not getattr(manifest, name):
            raise InputError(f"the manifest of {manifest.name} has no {name}: publish the model again, or set --schema")
    return AskSettings.model_validate(
        {
            "schema": manifest.schema_form,
            "prompt_template": manifest.prompt_template or DEEPSEEK3.text,
            "sample_values": manifest.sample_values,
            "cutoff_length": manifest.cutoff_length,
            "context_length": manifest.context_length,
        }
    )


def published_descriptions(manifest_uri: str) -> Mapping[str, Descriptions]:
    """What prompts show about each database that its file does not contain, as published with a model.

    Raises:
        InputError: The published file is malformed.
        StorageError: The manifest or the file is missing or damaged.
    """
    with TemporaryDirectory(prefix="model-") as folder:
        fetch_file(manifest_uri, DESCRIPTIONS, Path(folder))
        return read_descriptions(Path(folder))


def ask(
    question: str,
    database: Path | str,
    endpoint: str,
    model: str = "",
    settings: AskSettings | None = None,
    token: str = "",
    descriptions: Descriptions | None = None,
    evidence: str = "",
) -> AskResult:
    """Have the model at `endpoint` translate `question` to SQL, and run the SQL read-only on `database`.

    Names in the SQL that do not resolve are bound to the schema first, see `bind_names`.

    Args:
        question: The question, in any language that the model supports.
        database: An SQLite file, or the address of a database on a server or of a DuckDB file. The last part of its
            path is the database's name in the prompt, as in training. Or a list of one, see `databases/addresses.py`.
        endpoint: Base URL of an Ollama-compatible server or of llama.cpp's server.
        model: The model's name on the server; may be empty if the server has only one.
        settings: Form of the prompt and limits of the query.
        token: Bearer token for an endpoint in a cluster.
        descriptions: What the prompts of training show about the database that its file does not contain.
        evidence: What is known about the question's words, as in training.

    Raises:
        InputError: The database cannot be read, or no table of its schema fits into the prompt.
        ServiceError: The endpoint cannot be reached or refused the request.
    """
    settings = settings or AskSettings()
    with _opened(database, settings, descriptions) as (schema, execute):
        for item in schema.omitted:
            console.warning(f"{schema.db_id}: {item.message}")
        client = Client(endpoint, model, token, template=PromptTemplate.parse(settings.prompt_template))
        started = time.monotonic()
        values = StoredValues(schema, database)
        builder = PromptBuilder(schema, settings, client.count_tokens, descriptions, values.find)
        prompt = builder.prompt(question, evidence)
        answer = client.generate(prompt.text, settings.max_tokens)
        seconds = time.monotonic() - started
        answered = sql_from_answer(answer.text)
        bound = bind_names(answered, schema)[0] if settings.bind_names else BoundQuery(answered)
        result = execute(bound.sql)
        return AskResult(bound.sql, result, seconds, answered, bound.repairs, prompt.condensed, prompt.is_longer)


def database_name(database: Path | str) -> str:
    """The name in prompts of an SQLite file, or of the database at an address.

    Raises:
        InputError: the address is of several databases.
    """
    if not is_address(str(database)):
        return Path(database).stem
    if name := name_at(str(database)):
        return name
    raise InputError(f"{database}: write the name of a database for {PLACEHOLDER}")


def opened_schema(database: Path | str, sample_values: int, descriptions: Descriptions | None = None) -> Schema:
    """The schema of a database, as `ask` shows it to a model.

    Raises:
        InputError: it cannot be read.
    """
    with _opened(database, AskSettings(sample_values=sample_values), descriptions) as (schema, _):
        return schema


@contextmanager
def _opened(
    database: Path | str, settings: AskSettings, descriptions: Descriptions | None
) -> Iterator[tuple[Schema, Callable[[str], Result]]]:
    """Context manager: the database's schema, and what runs untrusted queries on it."""
    name = database_name(database)
    if is_address(str(database)):
        known = {name: descriptions} if descriptions else {}
        with open_databases(str(database), settings.query_seconds, known, settings.max_rows) as opened:
            schema = opened.structure(name, settings.sample_values)
            yield schema, lambda sql: opened.execute(name, [sql])[0]
        return
    path = Path(database)
    schema = Schema.from_sqlite(path, settings.sample_values, descriptions)
    with Executor(settings.query_seconds, settings.memory_mib, settings.max_rows) as executor:
        yield schema, partial(executor.execute, path)


def note_repairs(answer: AskResult) -> None:
    """Say on standard error what was repaired in the model's SQL."""
    for repair in answer.repairs:
        console.note(f"the model's SQL was repaired, check it: {repair.message}")


def note_long_question(answer: AskResult) -> None:
    """Say on standard error that the model was shown less than the question, or more than in training."""
    if answer.condensed:
        console.note(f"the question is too long for the model, which was shown a part of it: {answer.condensed}")
    if answer.is_longer:
        console.note("the question is longer than those of training; it fits the context that the model is served with")


def table(answer: AskResult) -> "Table":
    """Format the rows as a rich table, which aligns Chinese characters, because they are two columns wide.

    Raises:
        UserError: The SQL failed.
    """
    from rich.table import Table
    from rich.text import Text

    if answer.result.failure is FailureMode.NO_SQL:
        raise UserError(
            "the model answered without any SQL: rephrase the question, or check that the model was trained for this "
            "database"
        )
    if answer.result.failure is not FailureMode.OK:
        raise UserError(f"the SQL failed, {answer.result.failure} ({answer.result.message}): {answer.sql}")
    rows = Table()
    for name in answer.result.columns:
        rows.add_column(Text(name))
    for row in answer.result.rows:
        rows.add_row(*(Text("NULL" if value is None else str(value)) for value in row))
    return rows


class PromptBuilder:
    """Builds prompts for questions about one database, as in training: see `PromptFitter`.

    Attributes:
        schema: The whole schema.

    Args:
        schema: The database's schema.
        settings: Form of the schema and maximum length of a prompt.
        count_tokens: Returns the number of tokens of a prompt, or None if it exceeds the model's context.
        descriptions: The terms that questions can name.
        find_values: Finds the values of the database that a text names; called if something does not fit.
    """

    def __init__(
        self,
        schema: Schema,
        settings: AskSettings,
        count_tokens: Callable[[str], int | None],
        descriptions: Descriptions | None = None,
        find_values: FindValues = no_values,
    ) -> None:
        self._known = descriptions or Descriptions()
        self.schema, self._settings, self._count_tokens = schema, settings, count_tokens
        self._template = PromptTemplate.parse(settings.prompt_template)
        form = None if settings.schema_form == "none" else settings.schema_form
        self._fitter = PromptFitter(schema, form, self._known, find_values)
        self._question_tokens: int | None = None  # available for a question in addition to the whole schema

    def prompt(self, question: str, evidence: str = "") -> Prompt:
        """Build the prompt for a question with its evidence and the terms that it names.

        A question that is too long may take what the context of the served model allows beyond the length of training.
        If that is not enough either, it is condensed.

        Raises:
            InputError: No table of the schema fits into the prompt, or the database is not available.
            ServiceError: The connection to the database was lost.
        """
        asked = with_evidence(question, self._known.evidence(question, evidence))
        # A question has at most as many tokens as bytes. If that many fit, which is the usual case, the server does
        # not have to count the tokens of every question.
        if len(asked.encode()) <= self._available_question_tokens():
            return Prompt(self._rendered(self._fitter.whole, asked))
        spare = max(0, self._settings.context_length - self._settings.cutoff_length)
        fitted = self._fitter.fit(question, evidence, self._excess, spare)
        if fitted is None:
            raise InputError(
                f"no table of {self.schema.db_id} fits into the {self._settings.cutoff_length} tokens that the model "
                "was trained with, together with this question: shorten the question, or serve a model that was "
                "trained with a larger preprocess.cutoff_length"
            )
        condensed = fitted.question if fitted.is_condensed else ""
        return Prompt(self._rendered(fitted.system, fitted.asked), condensed, fitted.is_longer)

    def _available_question_tokens(self) -> int:
        """Tokens available for a question in addition to the whole schema; -1 if the schema alone is too long."""
        if self._question_tokens is None:
            available = self._settings.cutoff_length - self._settings.max_tokens
            tokens = self._count_tokens(self._rendered(self._fitter.whole, ""))
            self._question_tokens = -1 if tokens is None else available - tokens
        return self._question_tokens

    def _excess(self, system: str, question: str) -> float:
        """By how many tokens a prompt is too long; infinite if the model's context is too short to count them."""
        tokens = self._count_tokens(self._rendered(system, question))
        return math.inf if tokens is None else tokens + self._settings.max_tokens - self._settings.cutoff_length

    def _rendered(self, system: str, question: str) -> str:
        return self._template.prompt(system, instruction(self.schema.db_id, self.schema.dialect), question)
