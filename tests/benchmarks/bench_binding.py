"""What binding names to the schema gives back: on published predictions, and on gold queries with one wrong name.

The gold queries are those of Spider's training questions, whose schemas are not those of the predictions.
`CHATMETRICS_CORRUPTED` is the number of corrupted queries of each kind, 300 by default.
"""

import json
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from sqlglot import exp

from chatmetrics.components.evaluate.prediction_files import read_predictions
from chatmetrics.components.evaluate.predictions import Prediction
from chatmetrics.components.evaluate.score import score
from chatmetrics.components.evaluate.statistics import wilson_interval
from chatmetrics.components.nl2sql.binding.binder import BoundQuery, bind_names
from chatmetrics.components.nl2sql.databases.databases import SqliteDatabases
from chatmetrics.components.nl2sql.schema import Schema
from chatmetrics.components.nl2sql.sql.parsing import parse_new
from chatmetrics.components.nl2sql.sqlite_compiler import unresolved_name

SPIDER, PREDICTIONS = (os.environ.get(f"CHATMETRICS_{name}_DIR", "") for name in ("SPIDER", "PREDICTIONS"))
CORRUPTED = int(os.environ.get("CHATMETRICS_CORRUPTED", "300"))

pytestmark = pytest.mark.skipif(
    not (SPIDER and PREDICTIONS), reason="CHATMETRICS_SPIDER_DIR or CHATMETRICS_PREDICTIONS_DIR is not set"
)


class Schemas(dict[str, Schema]):
    """Spider's schemas, read when they are first needed."""

    def __init__(self) -> None:
        self._entries = {entry["db_id"]: entry for entry in json.loads((Path(SPIDER) / "tables.json").read_text())}

    def __missing__(self, db_id: str) -> Schema:
        path = Path(SPIDER) / "database" / db_id / f"{db_id}.sqlite"
        self[db_id] = Schema.from_spider(self._entries[db_id], path)
        return self[db_id]


def strictly_right(predictions: Sequence[Prediction], queries: Sequence[str]) -> list[bool]:
    """The strict verdict on queries in the place of the predicted ones."""
    asked = [replace(item, predicted=sql) for item, sql in zip(predictions, queries, strict=True)]
    with SqliteDatabases(Path(SPIDER) / "database", query_seconds=5) as databases:
        items, _ = score({"it": asked}, databases)
    return [item.answers["it"].judgement.strict for item in items]


def shares(counts: dict[str, list[bool]]) -> str:
    """Right ones of all, by kind."""
    return ", ".join(f"{kind} {sum(found)} of {len(found)}" for kind, found in sorted(counts.items())) or "none"


def test_published_predictions() -> None:
    schemas = Schemas()
    kinds: dict[str, list[bool]] = defaultdict(list)
    for file in sorted(Path(PREDICTIONS).glob("*.json")):
        predictions = read_predictions(file)
        seconds, bound = [], []
        for item in predictions:
            started = time.perf_counter()
            bound.append(bind_names(item.predicted, schemas[item.db_id])[0])
            seconds.append(time.perf_counter() - started)
        before = strictly_right(predictions, [item.predicted for item in predictions])
        after = strictly_right(predictions, [query.sql for query in bound])
        unresolved = sum(bool(unresolved_name(schemas[item.db_id], item.predicted)) for item in predictions)
        changes = Counter(zip(before, after, strict=True))
        changed = [(query, right) for query, right in zip(bound, after, strict=True) if query.repairs]
        for query, right in changed:
            kinds["+".join(sorted({repair.kind for repair in query.repairs}))].append(right)
        print(
            f"\n{file.stem}: raw {sum(before)}, bound {sum(after)} of {len(before)}; {unresolved} with an unresolved "
            f"name, {len(changed)} changed, wrong to right {changes[False, True]}, right to wrong "
            f"{changes[True, False]}; ms per query: mean {1000 * sum(seconds) / len(seconds):.2f}, "
            f"slowest {1000 * max(seconds):.0f}",
            end="",
        )
    print(f"\nright among repaired, all sets: {shares(kinds)}")


def test_corrupted_gold_queries() -> None:
    schemas, draw = Schemas(), random.Random(0)
    records = json.loads((Path(SPIDER) / "train_spider.json").read_text("utf-8"))
    gold = {(item["db_id"], item["query"]): Prediction(item["db_id"], item["query"], "") for item in records}
    for name, corrupt in CORRUPTIONS.items():
        items, queries, candidates = [], [], []
        with SqliteDatabases(Path(SPIDER) / "database", query_seconds=5) as databases:
            for item in draw.sample(list(gold.values()), len(gold)):
                tree = parse_new(item.gold)
                if len(items) == CORRUPTED or not corrupt(tree, draw):
                    continue
                sql, schema = tree.sql(dialect="sqlite"), schemas[item.db_id]
                # Any repair is right if the gold query returns no rows.
                if unresolved_name(schema, sql) and databases.execute(item.db_id, [item.gold])[0].rows:
                    items.append(item)
                    queries.append(sql)
                    candidates.append(bind_names(sql, schema))
        restored = strictly_right(items, [found[0].sql for found in candidates])
        every = [(item, query.sql) for item, found in zip(items, candidates, strict=True) for query in found]
        any_right = Counter(
            id(item)
            for (item, _), right in zip(every, strictly_right(*map(list, zip(*every, strict=True))), strict=True)
            if right
        )
        kinds: dict[str, list[bool]] = defaultdict(list)
        for found, right in zip(candidates, restored, strict=True):
            kinds["+".join(sorted({repair.kind for repair in found[0].repairs})) or "not repaired"].append(right)
        low, high = wilson_interval(sum(restored), len(items))
        print(
            f"\n{name}: {sum(restored)} of {len(items)} restored, {sum(restored) / len(items):.1%} "
            f"[{low:.1%}, {high:.1%}]; {len(any_right)} by one of the candidates; {shares(kinds)}",
            end="",
        )
        show(items, queries, candidates, restored)


def show(
    items: Sequence[Prediction], queries: Sequence[str], found: Sequence[tuple[BoundQuery, ...]], right: Sequence[bool]
) -> None:
    """Print what was not restored, if CHATMETRICS_SHOW is set."""
    if os.environ.get("CHATMETRICS_SHOW"):
        for item, sql, candidates, is_right in zip(items, queries, found, right, strict=True):
            if not is_right:
                print(
                    f"\n  gold  {item.gold}\n  wrong {sql}\n  bound {candidates[0].sql} {candidates[0].repairs}", end=""
                )


# Corruptions. Each changes a tree, and returns whether it found something to change.


def wrong_alias(tree: exp.Expr, draw: random.Random) -> bool:
    """One column outside ON gets the alias of another table of its SELECT."""
    columns = [column for column in tree.find_all(exp.Column) if column.table and not column.find_ancestor(exp.Join)]
    draw.shuffle(columns)
    for column in columns:
        select = column.parent_select
        names = [table.alias_or_name for table in tables_of(select)] if isinstance(select, exp.Select) else []
        others = [name for name in names if name.lower() != column.table.lower()]
        if others:
            column.set("table", exp.to_identifier(draw.choice(others)))
            return True
    return False


def exchanged_aliases(tree: exp.Expr, draw: random.Random) -> bool:
    """The tables of two aliases are exchanged."""
    for select in tree.find_all(exp.Select):
        tables = [table for table in tables_of(select) if table.alias]
        if len(tables) >= 2:
            first, second = draw.sample(tables, 2)
            names = first.this.copy(), second.this.copy()
            first.set("this", names[1])
            second.set("this", names[0])
            return True
    return False


def dropped_join(tree: exp.Expr, draw: random.Random) -> bool:
    """The last joined table is missing, and its columns have the first one's alias."""
    for select in tree.find_all(exp.Select):
        joins = select.args.get("joins") or []
        tables = tables_of(select)
        if joins and len(tables) == len(joins) + 1:
            dropped, first = tables[-1].alias_or_name.lower(), tables[0].alias_or_name
            select.set("joins", joins[:-1])
            for column in select.find_all(exp.Column):
                if column.table.lower() == dropped:
                    column.set("table", exp.to_identifier(first))
            return True
    return False


def misspelled_column(tree: exp.Expr, draw: random.Random) -> bool:
    """A letter of a column's name is missing or doubled, an underscore is missing, or it has a plural s."""
    columns = [column for column in tree.find_all(exp.Column) if len(column.name) > 3]
    if not columns:
        return False
    name = draw.choice(columns).name
    place = draw.randrange(1, len(name) - 1)
    spellings: list[Callable[[], str]] = [
        lambda: name[:place] + name[place + 1 :],
        lambda: name[:place] + name[place] + name[place:],
        lambda: name.replace("_", ""),
        lambda: name + "s",
    ]
    wrong = draw.choice(spellings)()
    for column in columns:
        if column.name == name:
            column.set("this", exp.to_identifier(wrong, quoted=column.this.quoted))
    return wrong != name


def wrong_condition(tree: exp.Expr, draw: random.Random) -> bool:
    """One side of an ON clause has the column's name of another place of the query."""
    sides = [
        side
        for join in tree.find_all(exp.Join)
        for equality in join.find_all(exp.EQ)
        for side in (equality.this, equality.expression)
        if isinstance(side, exp.Column) and side.table
    ]
    names = sorted({column.name for column in tree.find_all(exp.Column)} | {"id"})
    draw.shuffle(sides)
    for side in sides:
        others = [name for name in names if name.lower() != side.name.lower()]
        side.set("this", exp.to_identifier(draw.choice(others)))
        return True
    return False


def tables_of(select: exp.Expr) -> list[exp.Table]:
    """The tables of a FROM clause."""
    clause = select.args.get("from_")
    nodes = [*([clause.this] if clause else []), *(join.this for join in select.args.get("joins") or ())]
    return [node for node in nodes if isinstance(node, exp.Table)]


CORRUPTIONS = {
    "wrong alias": wrong_alias,
    "exchanged aliases": exchanged_aliases,
    "dropped join": dropped_join,
    "misspelled column": misspelled_column,
    "wrong ON column": wrong_condition,
}
