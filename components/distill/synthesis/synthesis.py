"""Questions that the teacher makes up about databases, evenly over kinds of query, tables and foreign keys."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from chatmetrics.components.distill.answers.similarity import canonical
from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.distill.synthesis.one_database import DatabaseReport, DatabaseSynthesis
from chatmetrics.components.distill.teacher.request import Request, TeacherAnswer
from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.databases import SqliteDatabases
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.fitting import bare_example
from chatmetrics.components.nl2sql.query_type import QUERY_TYPES

MAX_BATCHES = 5
TRAIN = "train"
HELD_OUT = "synthesized"

Ask = Callable[[Sequence[Request]], Mapping[str, TeacherAnswer]]


def synthesize(
    folder: Path, known: Sequence[Example], ask: Ask, settings: DistillSettings, hold_out: bool
) -> tuple[list[Example], dict[str, DatabaseReport]]:
    """Have questions made up about the databases that the settings name, or all in the folder.

    The same answers lead to the same requests, so that an interrupted run is asked for nothing twice.

    Args:
        folder: of SQLite files.
        known: the dataset's own questions, none of which is to come again, nor its query.
        ask: sends requests and returns the answers that came, by `Request.key`.
        settings: how many, and in which languages.
        hold_out: whether `dev_fraction` of them gets the split "synthesized"; all others get "train".

    Returns:
        Examples without a schema, no two of which have the same query, and a report by database.

    Raises:
        InputError: a database is missing or cannot be read, or a query type does not exist.
    """
    if unknown := set(settings.synthesis.query_types) - set(QUERY_TYPES):
        raise InputError(f"distill.synthesis.query_types: {sorted(unknown)[0]!r} is none of {', '.join(QUERY_TYPES)}")
    with SqliteDatabases(folder, settings.query_seconds) as databases:
        all_made_up = [
            DatabaseSynthesis(
                databases, folder, db_id, [example for example in known if example.db_id == db_id], settings
            )
            for db_id in settings.synthesis.databases or database_names(folder)
        ]
        for batch in range(MAX_BATCHES):
            asked = {made_up.db_id: list(made_up.requests(batch)) for made_up in all_made_up}
            requests = [request for requested in asked.values() for request, _ in requested]
            answers = ask(requests) if requests else {}
            for made_up in all_made_up:
                requested = asked[made_up.db_id]
                made_up.take([(answers.get(request.key(settings)), cells) for request, cells in requested])
            if not answers:
                break
    for made_up in all_made_up:
        made_up.finish()
    examples = list(_examples(all_made_up, settings.synthesis.dev_fraction if hold_out else 0))
    return examples, {made_up.db_id: made_up.report() for made_up in all_made_up}


def database_names(folder: Path) -> list[str]:
    """The names of all databases in a folder, as `database_path` finds them."""
    nested = {path.stem for path in folder.glob("*/*.sqlite") if path.stem == path.parent.name}
    return sorted(nested | {path.stem for path in folder.glob("*.sqlite")})


def _examples(all_made_up: Sequence[DatabaseSynthesis], dev_fraction: float) -> Iterator[Example]:
    found = [
        (made_up.db_id, number, pair) for made_up in all_made_up for number, pair in enumerate(made_up.pairs, start=1)
    ]
    ids = [f"synthesized:{db_id}:{number}" for db_id, number, _ in found]
    held_out = _drawn([f"{db_id} {canonical(pair.sql)}" for db_id, _, pair in found], dev_fraction)
    for id, (db_id, _, pair), is_held_out in zip(ids, found, held_out, strict=True):
        split = HELD_OUT if is_held_out else TRAIN
        yield bare_example(id, db_id, pair.question, pair.sql, split, pair.cell.query_type)


def _drawn(queries: Sequence[str], fraction: float) -> list[bool]:
    """Which of the queries are held out: by a hash, so that a new question changes little; at least one of several."""
    count = max(round(len(queries) * fraction), 1) if fraction and len(queries) > 1 else 0
    by_hash = sorted(queries, key=lambda query: hashlib.sha256(query.encode()).digest())
    drawn = set(by_hash[:count])
    return [query in drawn for query in queries]
