"""Turns pydantic's validation errors into one line; an unknown key is reported with the closest valid one."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Annotated, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Location = Sequence[str | int]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The closest of the known words as a question; the list of them where none is close."""
    candidates = list(known)
    closest = difflib.get_close_matches(word, candidates, n=1, cutoff=0.5)
    return f"did you mean {closest[0]}?" if closest else f"known are {', '.join(candidates)}"


def first_key(error: ValidationError) -> str:
    """The dotted key that the first problem is about; empty where it is about several keys together."""
    return _dotted(_problems(error)[0]["loc"])


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem of a validation, without its key, and the keys of the others.

    Args:
        error: the validation error.
        model: the model that was validated; its fields are the valid keys.
    """
    first, *others = _problems(error)
    keys = ", ".join(_dotted(other["loc"]) for other in others)
    more = f" (and {len(others)} more: {keys})" if others else ""
    return _problem(first, model) + more


def _problems(error: ValidationError) -> list[ErrorDetails]:
    """The problems, unknown keys first: a misspelled key is the cause of the missing one that comes with it."""
    return sorted(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")


def _problem(error: ErrorDetails, model: type[BaseModel]) -> str:
    if error["type"] == "extra_forbidden":
        *parents, last = map(str, error["loc"])
        return f"unknown key; {did_you_mean(last, _valid_keys(model, parents))}"
    if error["type"] == "missing":
        return "is missing and has no default"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return message if isinstance(error["input"], dict) else f"{message}, not {error['input']!r}"


def _valid_keys(model: type[BaseModel], parents: Iterable[str]) -> list[str]:
    """The keys of the section that is found under these keys of the model."""
    keys = iter(parents)
    for parent in keys:
        section = model.model_fields[parent].annotation
        if get_origin(section) in (dict, list):
            section = get_args(section)[-1]
            next(keys, None)  # the key or position of one of them
        if get_origin(section) is Annotated:
            section = get_args(section)[0]
        assert isinstance(section, type) and issubclass(section, BaseModel), parent
        model = section
    return [field.alias or name for name, field in model.model_fields.items()]


def _dotted(location: Location) -> str:
    # pydantic appends "[key]" where the key itself is wrong and not its value.
    return ".".join(str(part) for part in location if part != "[key]")
