"""Error responses in the format of the API in use: OpenAI's, or Ollama's, which our own paths also use."""

import json
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive

KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_response(path: str, status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """Error response in the format of the API that `path` belongs to."""
    if path.startswith("/v1/"):
        kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
        return JSONResponse({"error": {"message": message, "type": kind}}, status, headers)
    return JSONResponse({"error": message}, status, headers)


async def refusal(request: Request, error: Exception) -> Response:
    """Handle an HTTPException for Starlette."""
    assert isinstance(error, HTTPException)
    return error_response(request.url.path, error.status_code, error.detail, dict(error.headers or {}))


def error_message(content: bytes | str) -> str:
    """Message of an error of Ollama, which may wrap an error of llama.cpp's server."""
    try:
        error = json.loads(content)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return (content.decode("utf-8", "replace") if isinstance(content, bytes) else content).strip()
    return str(error.get("message", error)) if isinstance(error, dict) else error_message(str(error))


async def read_body(receive: Receive, most_bytes: int) -> bytes:
    """Read a request's body.

    Raises:
        HTTPException: The body is larger than `most_bytes`, or the client disconnected.
    """
    content, has_more = bytearray(), True
    while has_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HTTPException(499, "the client disconnected")
        content += message.get("body", b"")
        has_more = message.get("more_body", False)
        if len(content) > most_bytes:
            raise HTTPException(413, f"the request is larger than {most_bytes} bytes")
    return bytes(content)


async def json_object(request: Request, most_bytes: int) -> dict[str, Any]:
    """Read the JSON object in a request's body.

    Raises:
        HTTPException: The body is larger than `most_bytes` or is not a JSON object, or the client disconnected.
    """
    return parsed_object(await read_body(request.receive, most_bytes))


def parsed_object(content: bytes) -> dict[str, Any]:
    """Parse a request's body, which is a JSON object.

    Raises:
        HTTPException: It is something else.
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the request is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise HTTPException(400, "the request must be a JSON object")
    return body
