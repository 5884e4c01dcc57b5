"""Generates questions about databases, evenly over query types, tables and foreign keys."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.distill.synthesis.one_database import DatabaseReport, DatabaseSynthesis
from chatmetrics.components.distill.teacher.request import Request, TeacherAnswer
from chatmetrics.components.distill.teacher_schemas import TeacherSchemas
from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.databases.addresses import is_address, listed_at, name_at
from chatmetrics.components.nl2sql.databases.databases import open_databases
from chatmetrics.components.nl2sql.descriptions import Descriptions
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.prompts.fitting import bare_example
from chatmetrics.components.nl2sql.sql.canonical import canonical
from chatmetrics.components.nl2sql.sql.query_type import QUERY_TYPES
from chatmetrics.components.storage.dataset_databases import sqlite_files

MAX_BATCHES = 5
TRAIN = "train"
HELD_OUT = "synthesized"

Ask = Callable[[Sequence[Request]], Mapping[str, TeacherAnswer]]


def synthesize(
    where: str | Path,
    known: Sequence[Example],
    ask: Ask,
    settings: DistillSettings,
    hold_out: bool,
    descriptions: Mapping[str, Descriptions] = MappingProxyType({}),
    count_tokens: Callable[[str], int] = len,
) -> tuple[list[Example], dict[str, DatabaseReport]]:
    """Let the teacher generate questions about the databases that the settings name, or all databases in the folder.

    The teacher is asked in batches. Each batch requests the questions that are still missing, for all databases at
    once, until nothing is missing, nothing is answered, or the maximum number of batches is reached. The same answers
    lead to the same requests, so an interrupted run pays for no request twice.

    Args:
        where: folder of SQLite files, or the address of the databases.
        known: the dataset's own questions; neither they nor their queries are repeated.
        ask: sends requests and returns the answers received, by `Request.key`.
        settings: the recipe's `distill` section.
        hold_out: whether the fraction `dev_fraction` gets the split "synthesized"; all others get "train".
        descriptions: what prompts show about the databases that their files do not contain.
        count_tokens: counts the tokens of a text; by default its characters.

    Returns:
        Examples without a schema, all with different queries, and a report by database.

    Raises:
        InputError: a database is missing or cannot be read, or a query type does not exist.
    """
    unknown = set(settings.synthesis.query_types) - set(QUERY_TYPES)
    if unknown:
        raise InputError(
            f"distill.synthesis.query_types: {min(unknown)!r} does not exist; use some of {', '.join(QUERY_TYPES)}"
        )
    with open_databases(str(where), settings.query_seconds, descriptions) as databases:
        schemas = TeacherSchemas(
            settings, lambda db_id: databases.structure(db_id, settings.sample_values), count_tokens
        )
        syntheses = [
            DatabaseSynthesis(
                databases,
                db_id,
                schemas,
                [example for example in known if example.db_id == db_id],
                settings,
                descriptions.get(db_id, Descriptions()).terms,
            )
            for db_id in settings.synthesis.databases or _names(str(where))
        ]
        for batch in range(MAX_BATCHES):
            asked = {synthesis.db_id: list(synthesis.requests(batch)) for synthesis in syntheses}
            requests = [request for requested in asked.values() for request, _ in requested]
            answers = ask(requests) if requests else {}
            for synthesis in syntheses:
                requested = asked[synthesis.db_id]
                synthesis.take([(answers.get(request.key(settings)), cells) for request, cells in requested])
            if not answers:
                break
    for synthesis in syntheses:
        synthesis.finish()
    examples = list(_examples(syntheses, settings.synthesis.dev_fraction if hold_out else 0, descriptions))
    return examples, {synthesis.db_id: synthesis.report() for synthesis in syntheses}


def _names(where: str) -> list[str]:
    """The names of all databases in a folder, or of the one at an address."""
    if not is_address(where):
        return sorted(sqlite_files(Path(where)))
    if listed := listed_at(where):
        return list(listed)
    if not (name := name_at(where)):
        raise InputError(
            "distill.synthesis.databases is empty: name the databases of the server that you want questions on"
        )
    return [name]


def _examples(
    syntheses: Sequence[DatabaseSynthesis], dev_fraction: float, known: Mapping[str, Descriptions]
) -> Iterator[Example]:
    found = [
        (synthesis.db_id, number, pair)
        for synthesis in syntheses
        for number, pair in enumerate(synthesis.pairs, start=1)
    ]
    dialects = {synthesis.db_id: synthesis.dialect for synthesis in syntheses}
    ids = [f"synthesized:{db_id}:{number}" for db_id, number, _ in found]
    held_out = _drawn([f"{db_id} {canonical(pair.sql)}" for db_id, _, pair in found], dev_fraction)
    for id, (db_id, _, pair), is_held_out in zip(ids, found, held_out, strict=True):
        split = HELD_OUT if is_held_out else TRAIN
        evidence = known.get(db_id, Descriptions()).evidence(pair.question)
        yield bare_example(
            *(id, db_id, pair.question, pair.sql, split, pair.cell.query_type, evidence), dialect=dialects[db_id]
        )


def _drawn(queries: Sequence[str], fraction: float) -> list[bool]:
    """Which queries are held out: at least one if there are several.

    They are drawn by hash, so that an additional question hardly changes the selection.
    """
    count = max(round(len(queries) * fraction), 1) if fraction and len(queries) > 1 else 0
    by_hash = sorted(queries, key=lambda query: hashlib.sha256(query.encode()).digest())
    drawn = set(by_hash[:count])
    return [query in drawn for query in queries]
