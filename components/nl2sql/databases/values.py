"""Values of any database as SQLite represents them, so that results of different databases compare by value.

    booleans                 0 or 1
    decimals                 int if integral, else float; infinite ones and NaN as below
    NaN                      "NaN", because a NaN equals nothing, not even itself
    dates, times             text, as SQLite's date functions return it: 2024-05-01, 2024-05-01 08:30:00
    times with a zone        the same in UTC, with +00:00
    durations                text, [-]H:MM:SS[.ffffff]
    bytes                    bytes
    arrays, structs, JSON    JSON text with sorted keys

It uses the standard library only, because DuckDB's worker process imports it.
"""

import datetime
import decimal
import json
import math
import uuid
from typing import Any


def plain(value: Any) -> Any:
    """A value as None, int, float, str or bytes; see above."""
    match value:
        case bool():
            return int(value)
        case None | int() | str() | bytes():
            return value
        case float():
            return "NaN" if math.isnan(value) else value
        case decimal.Decimal():
            return _number(value)
        case memoryview() | bytearray():
            return bytes(value)
        case datetime.datetime():
            return str(value.astimezone(datetime.UTC) if value.tzinfo else value)
        case datetime.date() | datetime.time() | uuid.UUID():
            return str(value)
        case datetime.timedelta():
            return _duration(value)
        case list() | tuple() | dict() | set() | frozenset():
            return json.dumps(value, default=_part, sort_keys=True, ensure_ascii=False)
        case _:  # ranges, network addresses, ...
            return str(value)


def _number(value: decimal.Decimal) -> int | float | str:
    if value.is_nan():
        return "NaN"
    return int(value) if value.is_finite() and value == value.to_integral_value() else float(value)


def _duration(value: datetime.timedelta) -> str:
    sign, value = ("-", -value) if value < datetime.timedelta() else ("", value)
    seconds, fraction = value.days * 86400 + value.seconds, value.microseconds
    text = f"{sign}{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{text}.{fraction:06}" if fraction else text


def _part(value: Any) -> Any:
    """A value inside an array, a struct or JSON, of a type that JSON lacks."""
    if isinstance(value, set | frozenset):
        return sorted(map(plain, value), key=str)
    found = plain(value)
    return found.hex() if isinstance(found, bytes) else found
