"""Tables of other databases in the schemas of training prompts, so that a model learns to choose among more tables."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

from chatmetrics.components.nl2sql.schema import ForeignKey, Schema, Table


def choose_databases(db_id: str, candidates: Sequence[str], count: int, seed: int) -> list[str]:
    """Choose up to `count` databases, each of which gives at least one table; the same for all questions of `db_id`."""
    others = [name for name in candidates if name != db_id]
    return random.Random(f"{seed} {db_id}").sample(others, min(count, len(others)))


def add_noise(schema: Schema, others: Iterable[Schema], count: int, seed: int) -> Schema:
    """The schema with up to `count` tables of other databases at random places among its own.

    Neighboring tables of a database are taken together, with the foreign keys between them. Tables whose names the
    schema has already are left out. Equal arguments give equal schemas.
    """
    generator = random.Random(f"{seed} {schema.db_id}")
    tables, keys = list(schema.tables), list(schema.foreign_keys)
    names = {table.name.lower() for table in tables}
    for other in others:
        room = count + len(schema.tables) - len(tables)
        start = generator.randrange(len(other.tables) or 1)
        new = [table for table in _from(other.tables, start) if table.name.lower() not in names][:room]
        part = other.prune([table.name for table in new])
        for table in part.tables:
            tables.insert(generator.randint(0, len(tables)), table)
        keys += part.foreign_keys
        names |= {table.name.lower() for table in part.tables}
    places = {table.name: place for place, table in enumerate(tables)}

    def place(key: ForeignKey) -> int:
        return places[key.table]

    return replace(schema, tables=tuple(tables), foreign_keys=tuple(sorted(keys, key=place)))


def _from(tables: Sequence[Table], start: int) -> list[Table]:
    return [*tables[start:], *tables[:start]]
