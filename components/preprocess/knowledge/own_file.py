"""Reads `knowledge.yaml`, our own form of knowledge; docs/knowledge.md describes it."""

from collections.abc import Mapping
from typing import Annotated, Any, Self, TypeVar

from pydantic import BeforeValidator, Field, StringConstraints, ValidationError, model_validator

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.descriptions import Descriptions
from chatmetrics.components.preprocess.knowledge.texts import description
from chatmetrics.components.preprocess.readers import TRAIN, Record
from chatmetrics.components.settings import Settings

KEYS = ("databases", "terms")

Value = TypeVar("Value")


def _described(value: Any) -> Any:
    """A table or column of which only the description is given."""
    return {"description": value} if isinstance(value, str) else value


def _no_text(value: Any) -> Any:
    """A key without a value is read as an empty text."""
    return {} if value == "" else value


def _no_examples(value: Any) -> Any:
    return [] if value == "" else value


Line = Annotated[str, StringConstraints(strip_whitespace=True)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Term = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]
By = Annotated[dict[Text, Value], BeforeValidator(_no_text)]


class _Column(Settings):
    description: Line = ""
    values: By[Text] = Field({})
    private: bool = False

    @model_validator(mode="after")
    def _shows_no_private_value(self) -> Self:
        if self.private and self.values:
            raise ValueError("is private, so leave out its `values`: prompts would show them")
        return self


class _Table(Settings):
    description: Line = ""
    columns: By[Annotated[_Column, BeforeValidator(_described)]] = Field({})


class _Example(Settings):
    question: Text
    sql: Text
    evidence: Line = ""


class _Database(Settings):
    tables: By[Annotated[_Table, BeforeValidator(_described)]] = Field({})
    terms: By[Term] = Field({})
    examples: Annotated[list[_Example], BeforeValidator(_no_examples)] = Field([])


class _Knowledge(Settings):
    databases: By[Annotated[_Database, BeforeValidator(_no_text)]] = Field({})
    terms: By[Term] = Field({}, description="Terms of all databases")


def parse_own(content: Mapping[str, Any], name: str) -> tuple[dict[str, Descriptions], dict[str, str], list[Record]]:
    """Parse the content of a knowledge file.

    Args:
        content: what the file contains, with all values as text.
        name: the file, for messages.

    Returns:
        Descriptions by database, the terms of all databases, and the examples as training questions.

    Raises:
        InputError: a key does not exist or has a value of another kind; names the file and the key.
    """
    try:
        read = _Knowledge.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        message = {"extra_forbidden": "there is no such key", "missing": "is missing"}.get(first["type"], first["msg"])
        raise InputError(f"{name}: {'.'.join(map(str, first['loc']))}: {message}") from error
    described = {db_id: _descriptions(database) for db_id, database in read.databases.items()}
    examples = [
        Record(
            id=f"knowledge:{db_id}:{number}",
            db_id=db_id,
            question=example.question,
            sql=example.sql,
            split=TRAIN,
            where=f"{name}: databases.{db_id}.examples, number {number}",
            evidence=example.evidence,
        )
        for db_id, database in read.databases.items()
        for number, example in enumerate(database.examples, start=1)
    ]
    return described, _terms(read.terms), examples


def _descriptions(database: _Database) -> Descriptions:
    columns: dict[str, dict[str, str]] = {}
    values: dict[str, dict[str, str]] = {}
    for table, known in database.tables.items():
        for name, column in known.columns.items():
            codes = ", ".join(f"{code} = {meaning}" for code, meaning in column.values.items())
            if text := description(name, column.description):
                columns.setdefault(table, {})[name] = text
            if text := description(name, codes):
                values.setdefault(table, {})[name] = text
    tables = {table: description(table, known.description) for table, known in database.tables.items()}
    private = {
        table: tuple(name for name, column in known.columns.items() if column.private)
        for table, known in database.tables.items()
    }
    return Descriptions(
        columns,
        tables={table: text for table, text in tables.items() if text},
        terms=_terms(database.terms),
        private={table: names for table, names in private.items() if names},
        values=values,
    )


def _terms(terms: Mapping[str, str]) -> dict[str, str]:
    return {term: " ".join(text.split()) for term, text in terms.items()}
