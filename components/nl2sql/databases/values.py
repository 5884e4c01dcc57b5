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

MAX_DIGITS = 300


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
            return str(_in_utc(value) if value.tzinfo else value)
        case datetime.date() | datetime.time() | uuid.UUID():
            return str(value)
        case datetime.timedelta():
            return _duration(value)
        case list() | tuple() | dict() | set() | frozenset():
            return json.dumps(_part(value), sort_keys=True, ensure_ascii=False)
        case _:  # ranges, network addresses, ...
            return str(value)


def _in_utc(value: datetime.datetime) -> datetime.datetime:
    try:
        return value.astimezone(datetime.UTC)
    except OverflowError:  # at the end of the year 9999
        return value


def _number(value: decimal.Decimal) -> int | float | str:
    if value.is_nan():
        return "NaN"
    if value.is_finite() and value.adjusted() > MAX_DIGITS:
        return str(value)  # Python writes no larger integers, and floats end there too
    return int(value) if value.is_finite() and value == value.to_integral_value() else float(value)


def _duration(value: datetime.timedelta) -> str:
    sign, value = ("-", -value) if value < datetime.timedelta() else ("", value)
    seconds, fraction = value.days * 86400 + value.seconds, value.microseconds
    text = f"{sign}{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{text}.{fraction:06}" if fraction else text


def _part(value: Any) -> Any:
    """A value as a part of JSON."""
    match value:
        case bool():
            return value
        case list() | tuple():
            return list(map(_part, value))
        case set() | frozenset():
            return sorted(map(_part, value), key=str)
        case dict():
            return {key if isinstance(key, str) else str(plain(key)): _part(each) for key, each in value.items()}
        case _:
            found = plain(value)
            return found.hex() if isinstance(found, bytes) else found
