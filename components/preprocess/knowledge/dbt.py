"""Reads descriptions from dbt's property files (`schema.yml`).

They describe models, seeds, snapshots, and tables of sources; see https://docs.getdbt.com/reference/configs-and-properties.
A file names no database, so its tables are those of that name in any database.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from chatmetrics.components import console
from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.descriptions import Descriptions
from chatmetrics.components.preprocess.knowledge.texts import description

KEYS = ("sources", "seeds", "snapshots", "models")  # what a model says of a table wins over what its source says
PRIVATE = ("private", "contains_pii")  # keys of `meta`; dbt's documentation uses the second one
# The last name in ref('table'), ref('package', 'table', v=2) and source('schema', 'table').
_REFERENCE = re.compile(
    r"""\s*(?:\{\{)?\s*(?:ref|source)\s*\(.*?['"]([^'"]+)['"]\s*(?:,\s*v(?:ersion)?\s*=[^)]*)?\)\s*(?:\}\})?\s*"""
)
# dbt reads YAML 1.1, in which all of these are truth values.
_TRUE, _FALSE = ("true", "yes", "on", "y", "t", "1"), ("", "false", "no", "off", "n", "f", "0", "~", "null")

Json = Mapping[str, Any]


def parse_dbt(content: Json, name: str) -> Descriptions:
    """Parse the content of a property file: descriptions, accepted values, relationships, and columns marked private.

    A column is private if its `meta` has `private: true` or `contains_pii: true`. A version of a model is described
    like the model, under its own name too.

    Args:
        content: what the file contains, with all values as text.
        name: the file, for messages.

    Raises:
        InputError: a table or a column has no name, or a value is of another kind; names the file and the place.
    """
    tables: dict[str, str] = {}
    known = Descriptions(tables=tables)
    names: dict[str, str] = {}
    for place, node in _tables(content, name):
        table = _table_name(node, place)
        names[_name(node, place)] = table
        if _is_private(node, place):
            raise InputError(f"{place}: is marked as private as a whole; mark its columns")
        if text := description(table, _text(node, place)):
            tables[table] = text
        known = known.updated(_columns(table, node, place))
        for number, version in enumerate(_list(node, "versions", place)):
            version_place = f"{place}.versions[{number}]"
            own = str(version.get("alias") or f"{table}_v{version.get('v', '')}")
            for each in (table, own):
                known = known.updated(_columns(each, node, place)).updated(_columns(each, version, version_place))
    keys = tuple((table, column, names.get(target, target), end) for table, column, target, end in known.foreign_keys)
    return replace(known, foreign_keys=keys, tables=tables)


def _columns(table: str, node: Json, place: str) -> Descriptions:
    """What is known about the columns of a table."""
    columns: dict[str, str] = {}
    values: dict[str, str] = {}
    private: list[str] = []
    keys: list[tuple[str, str, str, str]] = []
    for number, column in enumerate(_list(node, "columns", place)):
        column_place = f"{place}.columns[{number}]"
        if "include" in column:  # of a version: all columns of the model
            continue
        name = _name(column, column_place)
        tests = list(_tests(column, column_place))
        if _is_private(column, column_place):
            private.append(name)
        if text := description(name, _text(column, column_place)):
            columns[name] = text
        if text := description(name, _accepted_values(tests)):
            values[name] = text
        keys += [(table, name, *end) for end in _references(tests)]
    return Descriptions(
        {table: columns} if columns else {},
        tuple(keys),
        private={table: tuple(private)} if private else {},
        values={table: values} if values else {},
    )


def _tables(content: Json, name: str) -> Iterator[tuple[str, Json]]:
    """The tables of a file, each with its place."""
    for key in KEYS:
        for number, node in enumerate(_list(content, key, name)):
            place = f"{name}: {key}[{number}]"
            if key != "sources":
                yield place, node
                continue
            for index, table in enumerate(_list(node, "tables", place)):
                yield f"{place}.tables[{index}]", table


def _table_name(node: Json, place: str) -> str:
    """The table's name in the database: a source's `identifier` or a model's `alias`, if it has one."""
    config = node.get("config") if isinstance(node.get("config"), dict) else {}
    assert isinstance(config, dict)
    return str(node.get("identifier") or node.get("alias") or config.get("alias") or _name(node, place))


def _name(node: Json, place: str) -> str:
    name = node.get("name")
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"{place}: has no name")
    return name.strip().strip('"`[]')  # some people quote names that a database distinguishes by case


def _text(node: Json, place: str) -> str:
    text = node.get("description", "")
    if not isinstance(text, str):
        raise InputError(f"{place}.description: is no text")
    if "{{" in text:
        console.warning(f"{place}.description is left out: it is a template, which only dbt can render")
        return ""
    return re.split(r"\n\s*\n", text.strip())[0]  # the first paragraph; the others rarely help with a query


def _list(node: Json, key: str, place: str) -> list[Json]:
    found = node.get(key) or []
    if found in ("~", "null"):
        return []
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise InputError(f"{place}: {key} is no list of mappings")
    return found


def _tests(column: Json, place: str) -> Iterator[tuple[str, Json]]:
    """The tests with arguments of a column, by name; new versions of dbt have them under `arguments`."""
    for key in ("tests", "data_tests"):
        found = column.get(key) or []
        if not isinstance(found, list):
            raise InputError(f"{place}: {key} is no list")
        for test in found:
            if isinstance(test, dict) and isinstance(test.get("test_name"), str):
                yield test["test_name"], test
                continue
            for name, given in test.items() if isinstance(test, dict) else ():
                if isinstance(given, dict):
                    arguments = given.get("arguments")
                    yield name, arguments if isinstance(arguments, dict) else given


def _accepted_values(tests: Sequence[tuple[str, Json]]) -> str:
    for name, arguments in tests:
        values = arguments.get("values")
        if name == "accepted_values" and isinstance(values, list):
            return f"one of {', '.join(map(str, values))}"
    return ""


def _references(tests: Sequence[tuple[str, Json]]) -> Iterator[tuple[str, str]]:
    """The tables and columns that a column refers to."""
    for name, arguments in tests:
        found = _REFERENCE.fullmatch(str(arguments.get("to", "")))
        if name == "relationships" and found and isinstance(arguments.get("field"), str):
            yield found[1], arguments["field"]


def _is_private(node: Json, place: str) -> bool:
    config = node.get("config")
    metas = [node.get("meta"), config.get("meta") if isinstance(config, dict) else None]
    marks = [(key, str(meta.get(key, "")).lower()) for meta in metas if isinstance(meta, dict) for key in PRIVATE]
    for key, mark in marks:
        if mark not in _TRUE + _FALSE:
            raise InputError(f"{place}: {key} is {mark!r}; write true or false")
    return any(mark in _TRUE for _, mark in marks)
