"""How many of the hidden foreign keys of Spider's databases are found again, and how many of the found joins are right.

No model is needed. The rules and the least score were not changed after a look at the databases of Spider's dev set.
"""

import json
import os
from functools import partial
from pathlib import Path

import pytest

from chatmetrics.components.evaluate.statistics import wilson_interval
from chatmetrics.components.nl2sql.databases.execution import Executor
from chatmetrics.components.nl2sql.descriptions import DiscoveredJoin
from chatmetrics.components.nl2sql.schema import Schema
from chatmetrics.components.preprocess.joins.discovery import LEAST_SCORE, discover
from chatmetrics.components.preprocess.joins.used import with_uses

SPIDER = os.environ.get("CHATMETRICS_SPIDER_DIR", "")
SCORES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)

pytestmark = pytest.mark.skipif(not SPIDER, reason="CHATMETRICS_SPIDER_DIR is not set")

Ends = frozenset[tuple[str, str]]


def ends_of(join: DiscoveredJoin) -> Ends:
    return frozenset(((join.table, join.column), (join.referenced_table, join.referenced_column)))


def percent(right: int, total: int) -> str:
    low, high = wilson_interval(right, total)
    return f"{100 * right / total:.1f} [{100 * low:.1f}, {100 * high:.1f}]" if total else "none"


def schema_of(db_id: str, entries: dict[str, dict[str, object]]) -> Schema:
    return Schema.from_spider(entries[db_id], Path(SPIDER) / "database" / db_id / f"{db_id}.sqlite")


def hidden(schema: Schema) -> Schema:
    return Schema(schema.db_id, schema.tables)


@pytest.mark.parametrize("split", ["train_spider", "dev"])
def test_hidden_keys_are_found(split: str) -> None:
    entries = {entry["db_id"]: entry for entry in json.loads((Path(SPIDER) / "tables.json").read_text())}
    queries: dict[str, list[str]] = {}
    for record in json.loads((Path(SPIDER) / f"{split}.json").read_text()):
        queries.setdefault(record["db_id"], []).append(record["query"])
    declared: set[tuple[str, Ends]] = set()
    used: set[tuple[str, Ends]] = set()
    found: list[tuple[str, DiscoveredJoin]] = []
    with Executor(5.0) as executor:
        for db_id in sorted(queries):
            path = Path(SPIDER) / "database" / db_id / f"{db_id}.sqlite"
            if not path.exists():
                continue
            schema = schema_of(db_id, entries)
            declared |= {
                (db_id, frozenset(((key.table, key.column), (key.referenced_table, key.referenced_column))))
                for key in schema.foreign_keys
                if key.table != key.referenced_table
            }
            used |= {(db_id, ends_of(join)) for join in with_uses([], hidden(schema), queries[db_id])}
            found += [(db_id, join) for join in discover(hidden(schema), partial(executor.execute_all, path), 0.0)]
    print(f"\n{split}: {len(declared)} keys of {len(queries)} databases\n")
    print(
        "| least score | declared keys found | found joins declared | declared or in a gold query |\n|---|---|---|---|"
    )
    for least in SCORES:
        joins = {(db_id, ends_of(join)) for db_id, join in found if join.score >= least}
        chosen = " (chosen)" if least == LEAST_SCORE else ""
        shares = (len(joins & declared), len(declared)), (len(joins & declared), len(joins))
        in_queries = percent(len(joins & (declared | used)), len(joins))
        print(f"| {least}{chosen} | {' | '.join(percent(*share) for share in shares)} | {in_queries} |")
    if os.environ.get("CHATMETRICS_SHOW"):
        for db_id, join in found:
            if (db_id, ends_of(join)) not in declared and join.score >= LEAST_SCORE:
                print(db_id, join)
        kept = {(db_id, ends_of(join)) for db_id, join in found if join.score >= LEAST_SCORE}
        for item in sorted(declared - kept, key=str):
            print("MISSED", item)
