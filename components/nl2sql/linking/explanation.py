"""Why a part of a schema is shown for a question, in words."""

from collections.abc import Iterator

from chatmetrics.components.nl2sql.linking.ranking import Ranking
from chatmetrics.components.nl2sql.schema import Schema

MOST_COLUMNS = 8  # of a table


def explain(ranking: Ranking, whole: Schema, part: Schema) -> str:
    """What the question names, which keys join it, and what is left out, in lines.

    Args:
        ranking: the ranking of `whole` for the question.
        whole: the whole schema.
        part: the part that is shown.
    """
    lines = list(_found(ranking)) or ["the question names no table, column or value of the schema"]
    return "\n".join([*lines, *_joins(ranking, whole), _left_out(whole, part)])


def _found(ranking: Ranking) -> Iterator[str]:
    relevant = ranking.tables[: ranking.relevant]
    for table in relevant:
        scores = {name: score for (owner, name), score in ranking.columns.items() if owner == table}
        best = sorted(scores, key=lambda name: -scores[name])[:MOST_COLUMNS]
        columns = f"; columns: {', '.join(f'{name} {scores[name]:.1f}' for name in best)}" if best else ""
        found = ", ".join(f"{value!r} in {name}" for (owner, name), value in ranking.values.items() if owner == table)
        values = f"; values: {found}" if found else ""
        yield f"{table} {ranking.scores[table]:.1f}{columns}{values}"


def _joins(ranking: Ranking, whole: Schema) -> list[str]:
    relevant = set(ranking.tables[: ranking.relevant])
    joins = [
        f"{key.table}.{key.column} = {key.referenced_table}.{key.referenced_column}"
        for key in whole.foreign_keys
        if {key.table, key.referenced_table} <= relevant
    ]
    return [f"joined by: {'; '.join(joins)}"] if joins else []


def _left_out(whole: Schema, part: Schema) -> str:
    kinds = ("tables", "columns", "sample values")
    missing = [f"{a - b:,} of {a:,} {kind}" for kind, a, b in zip(kinds, _counts(whole), _counts(part), strict=True)]
    return "nothing is left out" if whole == part else f"left out: {', '.join(missing)}"


def _counts(schema: Schema) -> tuple[int, int, int]:
    columns = [column for table in schema.tables for column in table.columns]
    return len(schema.tables), len(columns), sum(len(column.samples) for column in columns)
