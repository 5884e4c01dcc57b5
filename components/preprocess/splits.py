"""Chooses the questions that are held out from training, and draws as many as the recipe's limit allows."""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from chatmetrics.components import console
from chatmetrics.components.nl2sql.example import question_key
from chatmetrics.components.nl2sql.sql.canonical import canonical
from chatmetrics.components.preprocess.readers import DEV, TRAIN, Record
from chatmetrics.components.preprocess.settings import PreprocessSettings

Query = tuple[str, str]  # a database and the canonical form of a query


def limited(records: list[Record], settings: PreprocessSettings) -> list[Record]:
    """Apply the limit to training and dev questions."""
    parts = ([r for r in records if r.split == TRAIN], [r for r in records if r.split != TRAIN])
    return [record for part in parts for record in sample(part, settings.limit, settings.seed)]


def without_scored(records: Iterable[Record], scored: Iterable[Record], reason: str) -> list[Record]:
    """Leave out training questions that are scored elsewhere, which a warning with the reason says."""
    splits = {question_key(record.db_id, record.question): record.split for record in scored}
    kept: list[Record] = []
    left_out: list[Record] = []
    for record in records:
        is_scored = record.split == TRAIN and question_key(record.db_id, record.question) in splits
        (left_out if is_scored else kept).append(record)
    if left_out:
        first = left_out[0]
        console.warning(
            f"preprocess: {len(left_out)} training questions are left out, because {reason}; for example {first.where} "
            f"is in {splits[question_key(first.db_id, first.question)]}"
        )
    return kept


def hold_out(records: list[Record], fraction: float, seed: int) -> list[Record]:
    """Move a fraction of the queries to dev, so that neither a gold query nor a question is in both splits.

    A query counts once however it is spelled. Queries that share a question are moved together.
    """
    if not fraction:
        return records
    groups = _groups(records)
    order = sorted(set(groups.values()))
    random.Random(seed).shuffle(order)
    sizes = Counter(groups.values())
    wanted, held_out, count = round(len(groups) * fraction), set[Query](), 0
    for group in order:
        if count + sizes[group] <= wanted:
            held_out.add(group)
            count += sizes[group]
    if wanted and not count:
        console.warning(
            "preprocess: no questions are held out, because all queries are linked by questions that they share; give "
            "some questions the split dev"
        )
    return [replace(record, split=DEV) if groups[_query(record)] in held_out else record for record in records]


def _groups(records: Iterable[Record]) -> dict[Query, Query]:
    """The group of each query, named by one of its queries: those that share a question, directly or through others."""
    groups: dict[Query, Query] = {}
    by_question: dict[Query, Query] = {}

    def group_of(query: Query) -> Query:
        while groups.setdefault(query, query) != query:
            groups[query] = groups[groups[query]]
            query = groups[query]
        return query

    for record in records:
        group = group_of(_query(record))
        other = group_of(by_question.setdefault(question_key(record.db_id, record.question), group))
        groups[max(group, other)] = min(group, other)
    return {query: group_of(query) for query in groups}


def _query(record: Record) -> Query:
    return record.db_id, canonical(record.sql)


def sample(records: list[Record], limit: int, seed: int) -> list[Record]:
    """Draw at most `limit` records in their order; 0 takes all."""
    if not limit or limit >= len(records):
        return records
    return [records[index] for index in sorted(random.Random(seed).sample(range(len(records)), limit))]
