"""The verdict of Spider's official evaluator, by the same rules but fast and safe.

The rules are those of taoyds/test-suite-sql-eval (Zhong et al. 2020, arXiv:2010.02840), as `evaluation.py --etype exec`
applies them to one database. Their quirks are kept, because published numbers depend on them: DISTINCT does not count,
columns may be in any order, the order of rows counts only if the gold query contains "order by" with one space, and two
empty results are equal.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from chatmetrics.components.nl2sql.sql.columns import column_order

Row = tuple[Any, ...]

CURRENT_YEAR = re.compile(r"YEAR\s*\(\s*CURDATE\s*\(\s*\)\s*\)\s*", re.IGNORECASE)
# Text without comments, placeholders and escaped quotes, in which every word and every quoted text is a token.
PLAIN = re.compile(r"""(?:[\w\s(),.*=<>;]|(?<!\w)'[\w\s%.,:-]*'(?![\w'])|(?<!\w)"[\w\s%.,:-]*"(?![\w"]))*""", re.ASCII)
DISTINCT = re.compile(r"""('[^']*'|"[^"]*")|\bdistinct\b""", re.IGNORECASE | re.ASCII)
LONGEST_SPLIT = 100_000  # characters; splitting such a text into tokens takes up to a second
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
    # Splitting a query into tokens takes longer than running it, and few queries need it.
    if len(sql) > LONGEST_SPLIT:
        return sql
    if ";" in sql.rstrip()[:-1]:
        from sqlparse.engine import FilterStack  # imported here, as below, since it is seldom needed

        statement = next(iter(FilterStack().run(sql)), None)
        sql = str(statement) if statement else sql
    if "distinct" not in sql.lower():
        return sql
    if PLAIN.fullmatch(sql):
        return DISTINCT.sub(lambda found: found[1] or "", sql)
    from sqlparse.lexer import tokenize

    return "".join(value for _, value in tokenize(sql) if value.lower() != "distinct")


def order_matters(official_gold_sql: str) -> bool:
    """Whether the order of rows counts: "order by" is anywhere in the gold query, even in a subquery or a string."""
    return "order by" in official_gold_sql.lower()


def same_official_result(gold: Sequence[Row], predicted: Sequence[Row], ordered: bool) -> bool:
    """Whether some order of the predicted columns makes the results equal: as lists if `ordered`, else as multisets.

    1 equals 1.0, '1' does not equal 1, and floats have no tolerance. The official evaluator tries all n! column orders.
    This function gives the same verdict, since an order can work only if each column has the values of its gold column,
    and `column_order` searches exactly these orders.
    """
    if gold is predicted or (not gold and not predicted):
        return True
    if len(gold) != len(predicted) or len(gold[0]) != len(predicted[0]):
        return False
    if not _same_sorted_rows(gold, predicted, ordered):
        return False
    if gold == predicted:
        return True
    if ordered:
        # With the order of rows fixed, columns are lists of values. A column order works if and only if both sides
        # have the same columns, as multisets.
        return Counter(zip(*gold, strict=True)) == Counter(zip(*predicted, strict=True))
    return column_order(gold, predicted) is not None


def _same_sorted_rows(gold: Sequence[Row], predicted: Sequence[Row], ordered: bool) -> bool:
    """The official evaluator's quick check: whether the rows are equal after sorting each row by its values' text.

    It also rejects some equal results: (1, 10) and (1.0, 10) are sorted differently, since "1.0" differs from "1".
    """
    gold_rows, predicted_rows = ([_sorted_row(row) for row in rows] for rows in (gold, predicted))
    return gold_rows == predicted_rows if ordered else set(gold_rows) == set(predicted_rows)


def _sorted_row(row: Row) -> Row:
    return row if len(row) == 1 else tuple(sorted(row, key=lambda value: str(value) + str(type(value))))
