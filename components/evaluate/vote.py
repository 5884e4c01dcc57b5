"""A vote over several answers to one question, by the results of their queries."""

from collections import defaultdict
from collections.abc import Callable, Sequence

from chatmetrics.components.nl2sql.databases.execution import FailureMode, Result
from chatmetrics.components.nl2sql.verdict import comparable_rows


def elected(ballots: Sequence[Sequence[str]], execute: Callable[[str], Result]) -> str:
    """The query whose result most answers return.

    Queries that fail have no vote, and neither have results that are empty or all zero, which most wrong conditions
    give. Of results with equally many votes, the one of the earliest answer wins. If no answer has a vote, the first
    query that runs is taken, or else the first.

    Args:
        ballots: the queries of each answer, the greedy one first. An answer with several queries, equally small
            repairs of its names, divides its vote among them.
        execute: runs a query.
    """
    votes: defaultdict[tuple[object, ...], float] = defaultdict(float)
    queries: dict[tuple[object, ...], str] = {}
    running = ""
    for ballot in ballots:
        for sql in ballot:
            result = execute(sql)
            if result.failure != FailureMode.OK:
                continue
            running = running or sql
            if _is_telling(result):
                key = comparable_rows(result)
                votes[key] += 1 / len(ballot)
                queries.setdefault(key, sql)
    if not votes:
        return running or ballots[0][0]
    # max() takes the first of equal ones, and a dict is in the order of its insertions.
    return queries[max(votes, key=lambda key: votes[key])]


def _is_telling(result: Result) -> bool:
    return any(value not in (0, None) for row in result.rows for value in row)
