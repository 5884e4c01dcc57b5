"""Checks of the JSON schemas of answers, which llama.cpp turns into a grammar.

A grammar of repetitions inside repetitions keeps the engine busy without end, and llama.cpp has no limit on that. So
only keywords are accepted whose grammar is small: for example no `pattern` and no bounds of lengths.
"""

import json
from typing import Any

from starlette.exceptions import HTTPException

MAX_CHARACTERS = 8192
MAX_DEPTH = 12
NAMES = {"properties", "$defs", "definitions"}  # their keys are names, not keywords
SCHEMAS = {"items", "additionalProperties", "prefixItems", "anyOf", "oneOf", "allOf"}
VALUES = {"type", "required", "enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "$ref"}
WITHOUT_EFFECT = {"title", "description", "default", "examples", "$schema", "$id", "strict", "nullable", "$comment"}


def check_format(name: str, format: Any) -> None:
    """Check the format of an answer: empty, "json", or a JSON schema.

    Args:
        name: The request's field, for the message.
        format: Its value.

    Raises:
        HTTPException: It is something else, too long, or has a keyword whose grammar could be large.
    """
    if format in (None, "", "json"):
        return
    if not isinstance(format, dict):
        raise HTTPException(400, f'{name!r} must be "json" or a JSON schema')
    if len(json.dumps(format)) > MAX_CHARACTERS:
        raise HTTPException(400, f"the field {name!r} is longer than {MAX_CHARACTERS} characters")
    _check(name, format, MAX_DEPTH)


def _check(name: str, schema: Any, depth: int) -> None:
    if depth == 0:
        raise HTTPException(400, f"the JSON schema in {name!r} is nested more than {MAX_DEPTH} levels deep")
    if isinstance(schema, list):
        for item in schema:
            _check(name, item, depth - 1)
    if not isinstance(schema, dict):
        return
    for keyword, value in schema.items():
        if keyword in NAMES and isinstance(value, dict):
            for item in value.values():
                _check(name, item, depth - 1)
        elif keyword in SCHEMAS:
            _check(name, value, depth - 1)
        elif keyword not in VALUES | WITHOUT_EFFECT:
            raise HTTPException(400, f"the JSON schema in {name!r} has the keyword {keyword!r}, which is not accepted")
