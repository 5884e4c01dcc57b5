"""The verdict of Spider's official evaluator, rule by rule, without what makes it slow or unsafe.

The rules are those of taoyds/test-suite-sql-eval (Zhong et al. 2020, arXiv:2010.02840) as `evaluation.py --etype exec`
applies them to one database. It has quirks, kept here because published numbers have them too: DISTINCT does not
count, columns may stand in any order, an order is compared only if the gold text has "order by" with one space, and
two empty results are equal.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlparse.engine import FilterStack
from sqlparse.lexer import tokenize

from chatmetrics.components.nl2sql.columns import column_order

Row = tuple[Any, ...]

CURRENT_YEAR = re.compile(r"YEAR\s*\(\s*CURDATE\s*\(\s*\)\s*\)\s*", re.IGNORECASE)
# A text without quotes, comments and placeholders: its words are its tokens.
PLAIN = re.compile(r"[\w\s(),.*=<>;]*", re.ASCII)
DISTINCT = re.compile(r"\bdistinct\b", re.IGNORECASE | re.ASCII)
LONGEST_SPLIT = 100_000  # characters; splitting takes up to a second then, and nobody means a longer query
SPACED_OPERATORS = {"> =": ">=", "< =": "<=", "! =": "!="}


def official_prediction(sql: str) -> str:
    """The text that the official evaluator runs for a predicted query; the word "value" becomes 1 in it."""
    return official_gold(sql.replace("value", "1"))


@lru_cache(maxsize=256)
def official_gold(sql: str) -> str:
    """The text that the official evaluator runs for a gold query: the first statement, without DISTINCT."""
    for spaced, operator in SPACED_OPERATORS.items():
        sql = sql.replace(spaced, operator)
    return CURRENT_YEAR.sub("2020", _without_distinct(sql))


def _without_distinct(sql: str) -> str:
    # Splitting a text into tokens takes longer than running it, and most have nothing to take out.
    if len(sql) > LONGEST_SPLIT:
        return sql
    if ";" in sql.rstrip()[:-1]:
        statement = next(iter(FilterStack().run(sql)), None)
        sql = str(statement) if statement else sql
    if "distinct" not in sql.lower():
        return sql
    if PLAIN.fullmatch(sql):
        return DISTINCT.sub("", sql)
    return "".join(value for _, value in tokenize(sql) if value.lower() != "distinct")


def order_matters(official_gold_sql: str) -> bool:
    """Whether the rows' order is compared: wherever "order by" stands in the gold text, a subquery or a value too."""
    return "order by" in official_gold_sql.lower()


def same_official_result(gold: Sequence[Row], predicted: Sequence[Row], ordered: bool) -> bool:
    """Whether some order of the predicted columns makes the results equal, as lists if `ordered`, else as multisets.

    1 equals 1.0, '1' does not equal 1, and floats have no tolerance. The official evaluator tries all orders of the
    columns; here only those that give each column its gold values, which comes to the same.
    """
    if not gold and not predicted:
        return True
    if len(gold) != len(predicted) or len(gold[0]) != len(predicted[0]):
        return False
    if not _same_sorted_rows(gold, predicted, ordered):
        return False
    if gold == predicted:
        return True
    if ordered:
        # Some order of the columns works exactly if each column occurs as often on either side.
        return Counter(zip(*gold, strict=True)) == Counter(zip(*predicted, strict=True))
    return column_order(gold, predicted) is not None


def _same_sorted_rows(gold: Sequence[Row], predicted: Sequence[Row], ordered: bool) -> bool:
    """The official quick check: equal rows once each is sorted by its values' text.

    It also refuses what would be equal: (1, 10) and (1.0, 10) are sorted differently, because of the point.
    """
    ones, others = ([_sorted_row(row) for row in rows] for rows in (gold, predicted))
    return ones == others if ordered else set(ones) == set(others)


def _sorted_row(row: Row) -> Row:
    return row if len(row) == 1 else tuple(sorted(row, key=lambda value: str(value) + str(type(value))))
