"""Whether two results are the same but for the order of their columns, and which order the question asks for."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from sqlglot import exp
from sqlglot.errors import SqlglotError

from chatmetrics.components.nl2sql.parsing import first_select, parse

Row = tuple[Any, ...]

# What a question calls an aggregate.
_CALLED = {
    exp.Count: "how many number count total amount 多少 几 数量 数 订单量 个数",
    exp.Avg: "average avg mean 平均 均值",
    exp.Max: "maximum max highest largest most latest oldest 最高 最大 最多 最晚",
    exp.Min: "minimum min lowest smallest least earliest youngest 最低 最小 最少 最早",
    exp.Sum: "total sum 总 合计 一共",
}


def column_order(gold: Sequence[Row], predicted: Sequence[Row]) -> tuple[int, ...] | None:
    """Find the order of the predicted columns in which the rows are the gold ones, as multisets.

    Columns are placed one after the other; after each, the rows seen so far must agree, which soon leaves one choice.

    Args:
        gold: rows, at least one.
        predicted: as many rows, of as many columns.

    Returns:
        For each gold column the predicted one that takes its place; None where no order does.
    """
    gold_columns, columns = list(zip(*gold, strict=True)), list(zip(*predicted, strict=True))
    contents = [Counter(column) for column in columns]
    choices = [
        [number for number, content in enumerate(contents) if content == wanted]
        for wanted in map(Counter, gold_columns)
    ]

    def arrangements(chosen: tuple[int, ...], left: list[int], right: list[int]) -> Iterator[tuple[int, ...]]:
        if len(chosen) == len(columns):
            yield chosen
            return
        place = len(chosen)
        tried: set[Row] = set()  # a column equal to one that did not fit will not fit either
        for number in choices[place]:
            if number in chosen or columns[number] in tried:
                continue
            tried.add(columns[number])
            refined = _refine(left, gold_columns[place], right, columns[number])
            if refined:
                yield from arrangements((*chosen, number), *refined)

    start = [0] * len(gold)
    return next(arrangements((), start, start), None)


def _refine(
    left: list[int], gold: Sequence[Any], right: list[int], predicted: Sequence[Any]
) -> tuple[list[int], list[int]] | None:
    """Tell rows apart by one more column; None when the two sides then no longer have the same rows.

    `left` and `right` number the classes of rows that are equal so far.
    """
    numbers: dict[tuple[int, Any], int] = {}
    new_left = [numbers.setdefault(key, len(numbers)) for key in zip(left, gold, strict=True)]
    new_right = [numbers.setdefault(key, len(numbers)) for key in zip(right, predicted, strict=True)]
    return (new_left, new_right) if Counter(new_left) == Counter(new_right) else None


def question_fixes_columns(question: str, gold_sql: str) -> bool:
    """Whether a question asks for its columns one after the other, so that an answer must give them in that order.

    It does when the words for all columns that the gold query selects are found in it; "Show all about hotels" or
    "Rank the hotels" leaves the order open. Without a question, and for a query that cannot be read, the gold query's
    order is all there is, and counts.
    """
    try:
        select = first_select(parse(gold_sql)) if question else None
    except (SqlglotError, RecursionError):
        return True
    return select is None or all(_is_named(column.unalias(), question.lower()) for column in select.selects)


def _is_named(column: exp.Expr, question: str) -> bool:
    """Whether the question has a word for a selected column: of the aggregate, or of the column's name."""
    called = next((words for kind, words in _CALLED.items() if isinstance(column, kind)), "").split()
    if any(_occurs(word, question) for word in called):
        return True
    names = [node.name for node in column.find_all(exp.Column)]
    words = [word for name in names for word in re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))]
    return any(_occurs(word.lower().removesuffix("s"), question) for word in words if word.lower() != "id") or (
        any(word.lower() == "id" for word in words) and bool(re.search(r"\bids?\b|编号|identif", question))
    )


def _occurs(word: str, question: str) -> bool:
    return bool(re.search(rf"\b{re.escape(word)}", question)) if word.isascii() else word in question
