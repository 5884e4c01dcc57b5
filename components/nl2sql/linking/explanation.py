"""Why a part of a schema is shown for a question, in words."""

from collections import defaultdict
from collections.abc import Iterator
from heapq import nlargest

from chatmetrics.components.nl2sql.descriptions import DiscoveredJoin
from chatmetrics.components.nl2sql.linking.ranking import Ranking
from chatmetrics.components.nl2sql.schema import ForeignKey, Schema

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
    columns: dict[str, dict[str, float]] = defaultdict(dict)
    values: dict[str, list[str]] = defaultdict(list)
    for (table, name), score in ranking.columns.items():
        columns[table][name] = score
    for (table, name), found in ranking.values.items():
        for value in found:
            asked = "" if value.asked == value.value else f' (asked: "{value.asked}")'
            values[table].append(f"{value.value!r} in {name}{asked}")
    for table in ranking.tables[: ranking.relevant]:
        best = nlargest(MOST_COLUMNS, columns[table].items(), key=lambda found: found[1])
        named = f"; columns: {', '.join(f'{name} {score:.1f}' for name, score in best)}" if best else ""
        found_values = f"; values: {', '.join(values[table])}" if values[table] else ""
        yield f"{table} {ranking.scores[table]:.1f}{named}{found_values}"


def _joins(ranking: Ranking, whole: Schema) -> list[str]:
    relevant = set(ranking.tables[: ranking.relevant])
    joins = [_join(join) for join in whole.joins if {join.table, join.referenced_table} <= relevant]
    return [f"joined by: {'; '.join(joins)}"] if joins else []


def _join(join: ForeignKey | DiscoveredJoin) -> str:
    text = f"{join.table}.{join.column} = {join.referenced_table}.{join.referenced_column}"
    return f"{text} (discovered, {join.score:.2f}: {join.evidence})" if isinstance(join, DiscoveredJoin) else text


def _left_out(whole: Schema, part: Schema) -> str:
    kinds = ("tables", "columns", "sample values")
    missing = [f"{a - b:,} of {a:,} {kind}" for kind, a, b in zip(kinds, _counts(whole), _counts(part), strict=True)]
    return "nothing is left out" if whole == part else f"left out: {', '.join(missing)}"


def _counts(schema: Schema) -> tuple[int, int, int]:
    columns = [column for table in schema.tables for column in table.columns]
    return len(schema.tables), len(columns), sum(len(column.samples) for column in columns)
