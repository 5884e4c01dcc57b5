"""Pairs of columns that may join, by their names and types alone; in linear time for schemas of any size."""

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from chatmetrics.components import console
from chatmetrics.components.nl2sql.schema import Column, Schema, Table

MAX_CANDIDATES = 5_000  # of a database
MAX_TARGETS = 4  # of a column

# What a name counts.
SAME, BY_TABLE, TABLE_ALONE, PART = 1.0, 1.0, 0.8, 0.7
OTHER_ENDING = 0.8  # of it, if for example a code refers to an id
OTHER_TYPE = 0.8  # of it, if numbers are compared with text

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+")
_ENDINGS = frozenset({"id", "ids", "code", "key", "no", "nr", "num", "number", "uuid"})
_CHINESE_ENDING = re.compile(r"(编号|代码|编码|代号|号码|标识|号|码)$")
_CHINESE_TABLE = re.compile(r"(信息表|数据表|信息|表)$")
_TABLE_WORDS = frozenset({"tbl", "tb", "t", "dim", "fact", "table", "list", "info", "ref"})
# Words that columns of unrelated tables share.
_GENERIC = frozenset(
    [
        "name",
        "date",
        "time",
        "year",
        "month",
        "day",
        "status",
        "type",
        "kind",
        "description",
        "title",
        "value",
        "amount",
        "price",
        "total",
        "count",
        "age",
        "sex",
        "gender",
        "email",
        "phone",
        "address",
        "note",
        "comment",
        "remark",
        "created",
        "updated",
        "rank",
        "score",
        "level",
        "名称",
        "姓名",
        "日期",
        "时间",
        "年份",
        "状态",
        "类型",
        "描述",
        "备注",
        "标题",
        "金额",
        "价格",
        "数量",
        "年龄",
        "性别",
        "电话",
        "地址",
        "邮箱",
    ]
)
_NUMBER = re.compile(r"int|serial|numeric|decimal|number", re.IGNORECASE)
_TEXT = re.compile(r"char|text|string|clob", re.IGNORECASE)


class Candidate(NamedTuple):
    """A column that may refer to another one.

    Attributes:
        table: the table that refers.
        column: its column.
        referenced_table: the table that is referred to.
        referenced_column: its column.
        score: how well the names and types agree, from 0 to 1.
        evidence: how the names agree.
        is_unique: whether the referenced column is a primary key.
        as_text: whether the values must be compared as text.
    """

    table: str
    column: Column
    referenced_table: str
    referenced_column: Column
    score: float
    evidence: str
    is_unique: bool
    as_text: bool


class _Name(NamedTuple):
    words: tuple[str, ...]  # without the ending
    ending: str


class _Target(NamedTuple):
    table: Table
    column: Column
    ending: str
    score: float
    evidence: str
    is_key: bool


def candidates(schema: Schema) -> list[Candidate]:
    """The pairs of columns of two tables that may join, the best first; none that a foreign key declares."""
    targets = _targets(schema)
    declared = {
        frozenset(((k.table, k.column), (k.referenced_table, k.referenced_column))) for k in schema.foreign_keys
    }
    referring = {(key.table, key.column) for key in schema.foreign_keys}
    found: dict[frozenset[tuple[str, str]], Candidate] = {}
    for table in schema.tables:
        for column in table.columns:
            if column.private or (table.name, column.name) in referring or not _family(column):
                continue
            for candidate in _of_column(table, column, targets):
                ends = frozenset(
                    ((table.name, column.name), (candidate.referenced_table, candidate.referenced_column.name))
                )
                if ends not in declared and (ends not in found or found[ends].score < candidate.score):
                    found[ends] = candidate
    if len(found) > MAX_CANDIDATES:
        console.warning(
            f"{schema.db_id}: {len(found):,} pairs of columns have similar names; {MAX_CANDIDATES:,} are compared"
        )
    return sorted(found.values(), key=lambda each: -each.score)[:MAX_CANDIDATES]


def _targets(schema: Schema) -> dict[tuple[str, ...], list[_Target]]:
    """The columns that others may refer to, by the words that these would have."""
    found: dict[tuple[str, ...], list[_Target]] = defaultdict(list)
    for table in schema.tables:
        if table.kind:
            continue
        keys = [column for column in table.columns if column.primary_key]
        own = _table_words(table.name)
        for column in table.columns:
            name, is_key = _name(column.name), keys == [column]
            if column.private or not _family(column):
                continue
            about_table = not name.words or name.words == own or name.words == own[-1:]
            if name.words and (is_key or (name.ending and about_table)):
                found[name.words].append(_Target(table, column, name.ending, SAME, "same name", is_key))
            if own and (is_key or (name.ending and about_table)):
                evidence = f"named as table {table.name}"
                found[own].append(_Target(table, column, name.ending, BY_TABLE, evidence, is_key))
                if len(own) > 1:
                    found[own[-1:]].append(_Target(table, column, name.ending, PART, evidence, is_key))
    for targets in found.values():
        targets.sort(key=lambda target: (-target.is_key, -target.score))
        del targets[32:]
    return found


def _of_column(table: Table, column: Column, targets: dict[tuple[str, ...], list[_Target]]) -> Iterator[Candidate]:
    name = _name(column.name)
    if not name.words or (len(name.words) == 1 and name.words[0] in _GENERIC and not name.ending):
        return
    number = 0
    for start in range(len(name.words)):
        for target in targets.get(name.words[start:], ()):
            if target.table is table:
                continue
            score = target.score if not start else min(target.score, PART)
            if not name.ending and target.ending:
                score = min(score, TABLE_ALONE)
            elif name.ending != target.ending:
                score *= OTHER_ENDING
            types = {_family(column), _family(target.column)} - {"any"}
            as_text = len(types) > 1
            yield Candidate(
                table.name,
                column,
                target.table.name,
                target.column,
                score * (OTHER_TYPE if as_text else 1.0),
                _evidence(column, target, start) + ("; compared as text" if as_text else ""),
                target.is_key,
                as_text,
            )
            number += 1
            if number == MAX_TARGETS:
                return


def _evidence(column: Column, target: _Target, start: int) -> str:
    if target.evidence == "same name" and column.name.lower() == target.column.name.lower():
        return f"same name {column.name}"
    end = "" if not start else "the end of "
    return f"{end}{column.name} is {'like ' if target.evidence == 'same name' else ''}{_about(target)}"


def _about(target: _Target) -> str:
    if target.evidence == "same name":
        return f"{target.table.name}.{target.column.name}"
    return target.evidence


def _family(column: Column) -> str:
    """What a column's values are: numbers, text, UUIDs, or any of these; empty for what no join uses, such as dates."""
    kind = column.type
    if _NUMBER.search(kind) and "point" not in kind.lower() and "interval" not in kind.lower():
        return "number"
    if _TEXT.search(kind):
        return "text"
    if kind.lower() == "uuid":  # PostgreSQL does not compare it with text
        return "uuid"
    return "" if kind else "any"


def _name(name: str) -> _Name:
    words = tuple(_singular(word.lower()) for word in _WORD.findall(name))
    ending = ""
    if words and words[-1] in _ENDINGS:
        words, ending = words[:-1], words[-1]
    elif words and (found := _CHINESE_ENDING.search(words[-1])):
        rest = words[-1][: found.start()]
        words, ending = (*words[:-1], *([rest] if rest else [])), found[1]
    elif len(words) == 1 and words[0].endswith("id") and len(words[0]) > 4:
        words, ending = (_singular(words[0][:-2]),), "id"  # "hotelid"
    return _Name(words, ending)


def _table_words(name: str) -> tuple[str, ...]:
    words = [_CHINESE_TABLE.sub("", _singular(word.lower())) for word in _WORD.findall(name)]
    kept = tuple(word for word in words if word and word not in _TABLE_WORDS)
    return kept or tuple(filter(None, words))


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    if len(word) > 4 and word.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word
