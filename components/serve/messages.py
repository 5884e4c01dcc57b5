"""The messages of a chat, checked in one place for both APIs, in a pod and on this machine."""

from collections.abc import Callable
from typing import Any

from starlette.exceptions import HTTPException

from chatmetrics.components.nl2sql.prompts.prompt_text import content_text

Json = dict[str, Any]

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def checked_messages(messages: Any, content: Callable[[str], str] = content_text) -> list[Json]:
    """The messages as `role` and `content`, whose text cannot contain marks of the prompt template.

    Args:
        messages: What the client sent.
        content: Keeps marks out of a text; see `PromptTemplate.content`.

    Raises:
        HTTPException: A message has another role, no text, or something else than text; the message names it.
    """
    if not isinstance(messages, list) or not messages:
        raise HTTPException(400, "'messages' must be a list of at least one message")
    return [_checked(number, message, content) for number, message in enumerate(messages)]


def _checked(number: int, message: Any, content_of: Callable[[str], str]) -> Json:
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str) or role not in ROLES:
        raise HTTPException(400, f"messages[{number}]: role must be one of {', '.join(ROLES)}")
    for name in ("images", "tool_calls", "function_call", "tool_call_id", "audio"):
        if message.get(name):
            raise HTTPException(400, f"messages[{number}]: {name!r} is not supported, only text")
    content = message.get("content")
    if isinstance(content, list) and content:
        content = "\n".join(_part(number, part) for part in content)
    if not isinstance(content, str):
        raise HTTPException(400, f"messages[{number}]: content must be a string or a list of parts of type text")
    if not content and role == "user":
        raise HTTPException(400, f"messages[{number}]: content is empty")
    return {"role": ROLES[role], "content": content_of(content)}


def _part(number: int, part: Any) -> str:
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
    if not isinstance(text, str):
        raise HTTPException(400, f"messages[{number}]: content must be a string or a list of parts of type text")
    return text
