"""Samples of the questions, the same for every system."""

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from chatmetrics.components.errors import InputError
from chatmetrics.components.evaluate.hardness import LEVELS, hardness_of
from chatmetrics.components.nl2sql.sql.query_type import QUERY_TYPES, is_complex, query_types_of

Question = TypeVar("Question")


def sample(
    questions: Sequence[Question], sql_of: Callable[[Question], str], drawn: str, seed: int, at_most: bool = False
) -> list[Question]:
    """Draw questions of one kind, without replacement and in their original order.

    Args:
        questions: all questions.
        sql_of: returns a question's gold query.
        drawn: KIND:NUMBER, where KIND is "all", "complex" (several tables, a subquery, a window function or a set
            operation), a query type or a hardness level; empty takes all questions.
        seed: equal seeds draw equal questions.
        at_most: take all questions of the kind if there are too few.

    Raises:
        InputError: the kind does not exist, or has too few questions and `at_most` is not set.
    """
    if not drawn:
        return list(questions)
    kind, _, number = drawn.rpartition(":")
    known = ("all", "complex", *QUERY_TYPES, *LEVELS)
    if kind not in known or not number.isdecimal() or int(number) == 0:
        raise InputError(f"sample {drawn!r}: write KIND:NUMBER, as in complex:100, with a KIND of {', '.join(known)}")
    found = [index for index, question in enumerate(questions) if _is_of(kind, sql_of(question))]
    if int(number) >= len(found) and at_most:
        return [questions[index] for index in found]
    if int(number) > len(found):
        raise InputError(f"sample {drawn!r}: only {len(found)} questions are of the kind {kind!r}")
    chosen = random.Random(seed).sample(found, int(number))
    return [questions[index] for index in sorted(chosen)]


def spread(questions: Sequence[Question], limit: int) -> list[Question]:
    """Take at most `limit` questions; 0 takes all.

    They are evenly spaced, because adjacent questions often are about the same database or in the same split.
    """
    if limit == 0 or limit >= len(questions):
        return list(questions)
    return [questions[index * len(questions) // limit] for index in range(limit)]


def _is_of(kind: str, sql: str) -> bool:
    if kind in LEVELS:
        return hardness_of(sql) == kind
    return kind == "all" or (is_complex(sql) if kind == "complex" else kind in query_types_of(sql))
