"""Finds the joins of all databases of a source."""

from dataclasses import replace
from functools import partial

from chatmetrics.components import console
from chatmetrics.components.nl2sql.descriptions import Descriptions, KnownDatabases
from chatmetrics.components.preprocess.build import Database, OpenDatabases
from chatmetrics.components.preprocess.joins.discovery import MAX_JOINS, discover
from chatmetrics.components.preprocess.joins.used import with_uses
from chatmetrics.components.preprocess.readers import TRAIN, Record, Source


def with_joins(source: Source, query_seconds: float) -> KnownDatabases:
    """What is known about the databases of a source, with the joins that no foreign key declares.

    Only the queries of training questions are counted: those of others would tell what they ask.

    Args:
        source: the questions and their databases.
        query_seconds: time limit of a query.

    Raises:
        InputError: a database cannot be read.
    """
    by_database: dict[str, list[Record]] = {}
    for record in source.records:
        by_database.setdefault(record.db_id, []).append(record)
    known = dict(source.known.by_name)
    number = 0
    with OpenDatabases(query_seconds) as opened:
        for db_id, records in by_database.items():
            database = Database.named_by(source, records[0])
            schema = opened.schema(database, 0)
            found = discover(schema, partial(opened.execute, database) if database.can_run else None)
            joins = with_uses(found, schema, (record.sql for record in records if record.split == TRAIN))[:MAX_JOINS]
            if joins:
                known[db_id] = replace(known.get(db_id, Descriptions()), joins=tuple(joins))
            number += len(joins)
    if number:
        console.info(f"preprocess: joins that no foreign key declares: {number:,}")
    return KnownDatabases(known, source.known.everywhere)
