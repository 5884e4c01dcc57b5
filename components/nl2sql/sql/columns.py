"""Column order: whether two results differ only in it, and whether a question fixes it."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from sqlglot import exp
from sqlglot.errors import SqlglotError

from chatmetrics.components.nl2sql.sql.parsing import first_select, parse

Row = tuple[Any, ...]

# Words for an aggregate in a question.
_AGGREGATE_WORDS = {
    exp.Count: "how many number count total amount 多少 几 数量 数 订单量 个数",
    exp.Avg: "average avg mean 平均 均值",
    exp.Max: "maximum max highest largest most latest oldest 最高 最大 最多 最晚",
    exp.Min: "minimum min lowest smallest least earliest youngest 最低 最小 最少 最早",
    exp.Sum: "total sum 总 合计 一共",
}


def column_order(gold: Sequence[Row], predicted: Sequence[Row]) -> tuple[int, ...] | None:
    """Find the order of the predicted columns that makes the rows equal to the gold ones, as multisets.

    Comparing the columns one by one is not enough: the two results below have equal columns but different rows.

        gold    a 1     predicted    a 2
                b 2                  b 1

    Trying all n! orders is too slow. Instead, this is a depth-first search that places one predicted column after the
    other. A candidate for a place must have the values of the gold column. After each placement, the rows restricted
    to the columns placed so far must be equal as multisets. This usually leaves one candidate per place.

    Args:
        gold: rows, at least one.
        predicted: the same number of rows, with the same number of columns.

    Returns:
        For each gold column, the index of the predicted column that takes its place; None if no order works.
    """
    gold_columns, columns = list(zip(*gold, strict=True)), list(zip(*predicted, strict=True))
    contents = [Counter(column) for column in columns]
    candidates = [
        [number for number, content in enumerate(contents) if content == wanted]
        for wanted in map(Counter, gold_columns)
    ]

    def complete(chosen: tuple[int, ...], left: list[int], right: list[int]) -> Iterator[tuple[int, ...]]:
        """Yield the orders that begin with `chosen`; `left` and `right` are the classes of the rows, see `_refine`."""
        if len(chosen) == len(columns):
            yield chosen
            return
        place = len(chosen)
        tried: set[Row] = set()  # of equal columns, only one has to be tried
        for number in candidates[place]:
            if number in chosen or columns[number] in tried:
                continue
            tried.add(columns[number])
            refined = _refine(left, gold_columns[place], right, columns[number])
            if refined:
                yield from complete((*chosen, number), *refined)

    start = [0] * len(gold)
    return next(complete((), start, start), None)


def _refine(
    left: list[int], gold: Sequence[Any], right: list[int], predicted: Sequence[Any]
) -> tuple[list[int], list[int]] | None:
    """Split the classes of equal rows by the values of one more column.

    Args:
        left: class of each gold row. Rows are in the same class if they are equal in all columns placed so far.
        gold: the gold column, one value per row.
        right: class of each predicted row, with the numbers of `left`.
        predicted: the predicted column, one value per row.

    Returns:
        The new classes of the gold and the predicted rows; None if the two sides no longer have the same rows.
    """
    numbers: dict[tuple[int, Any], int] = {}
    new_left = [numbers.setdefault(key, len(numbers)) for key in zip(left, gold, strict=True)]
    new_right = [numbers.setdefault(key, len(numbers)) for key in zip(right, predicted, strict=True)]
    return (new_left, new_right) if Counter(new_left) == Counter(new_right) else None


def question_fixes_columns(question: str, gold_sql: str) -> bool:
    """Whether a question names its columns, so that an answer must return them in that order.

    It does if it contains a word for each column that the gold query selects. "Show all about hotels" and "Rank the
    hotels" leave the order open. If the question is unknown or the gold query cannot be parsed, the gold query's order
    counts.
    """
    try:
        select = first_select(parse(gold_sql)) if question else None
    except (SqlglotError, RecursionError):
        return True
    return select is None or all(_is_named(column.unalias(), question.lower()) for column in select.selects)


def _is_named(column: exp.Expr, question: str) -> bool:
    """Whether the question has a word for a selected column: for its aggregate, or from its name."""
    aggregate_words = next((words for kind, words in _AGGREGATE_WORDS.items() if isinstance(column, kind)), "")
    if any(_occurs(word, question) for word in aggregate_words.split()):
        return True
    names = [node.name for node in column.find_all(exp.Column)]
    # Split at underscores, digits and capitals: "hotelName_2" gives "hotel" and "Name".
    words = [word for name in names for word in re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))]
    if any(_occurs(word.lower().removesuffix("s"), question) for word in words if word.lower() != "id"):
        return True
    # "id" is compared as a whole word, since most texts contain its letters.
    return any(word.lower() == "id" for word in words) and bool(re.search(r"\bids?\b|编号|identif", question))


def _occurs(word: str, question: str) -> bool:
    """Whether a word of the question begins with `word`; Chinese has no word boundaries."""
    return bool(re.search(rf"\b{re.escape(word)}", question)) if word.isascii() else word in question
