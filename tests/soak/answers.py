"""What a response says: the text of a complete answer, or the message of an error."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.soak.mix import OPENAI, Plan


@dataclass(frozen=True)
class Content:
    """The content of a response: `text` if it is complete, `error` if it names one, neither if it just ends."""

    text: str | None = None
    error: str = ""


def content_of(plan: Plan, status: int, body: bytes) -> Content:
    """Read the response to a request. A body that is not what the API promises has neither text nor error."""
    try:
        if status != 200:
            return Content(error=_message(json.loads(body)))
        return _streamed(plan.path, body) if plan.streamed else _whole(plan.path, json.loads(body))
    except (ValueError, KeyError, TypeError, IndexError):
        return Content()


def _message(answer: Any) -> str:
    error = answer["error"]
    return str(error["message"] if isinstance(error, dict) else error)


def _whole(path: str, answer: dict[str, Any]) -> Content:
    if "error" in answer:
        return Content(error=_message(answer))
    if path == "/api/tags":
        return Content(", ".join(model["name"] for model in answer["models"]))
    if path == "/ask":
        return Content(answer["answered"] if answer["timing"] and isinstance(answer["rows"], list) else None)
    if path == OPENAI:
        choice = answer["choices"][0]
        return Content(choice["message"]["content"] if choice["finish_reason"] else None)
    return Content(_piece(answer) if answer["done"] else None)


def _streamed(path: str, body: bytes) -> Content:
    text, is_complete = "", False
    for event in _events(path, body):
        is_complete = event is None or bool(event.get("done"))
        if event is None:
            continue
        if "error" in event:
            return Content(error=_message(event))
        if path == OPENAI:
            text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
        else:
            text += event.get("text", "") if path == "/ask" else _piece(event)
    return Content(text if is_complete else None)


def _events(path: str, body: bytes) -> Iterator[dict[str, Any] | None]:
    """The events of a stream, of which the last one must be complete; None is OpenAI's end of a stream."""
    for line in body.decode().split("\n"):
        line = line.removeprefix("data: ") if path == OPENAI else line
        if line:
            yield None if line == "[DONE]" else json.loads(line)


def _piece(event: dict[str, Any]) -> str:
    return str(event["message"]["content"] if "message" in event else event.get("response", ""))
