"""OpenAI's chat completions, translated to Ollama's /api/chat, because Ollama's own /v1 truncates prompts silently."""

import json
import time
import uuid
from typing import Any

from starlette.exceptions import HTTPException

from chatmetrics.components.serve.messages import checked_messages
from chatmetrics.components.serve.pod.json_formats import check_format

Json = dict[str, Any]

PATH = "/v1/chat/completions"
# OpenAI's fields and their names in Ollama. A field that is not listed here is refused, because ignoring it would
# change the answer.
FIELDS = {"model": "model", "stream": "stream", "logprobs": "logprobs", "top_logprobs": "top_logprobs"}
OPTIONS = {name: name for name in ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "stop")}
OPTIONS |= {"max_tokens": "num_predict", "max_completion_tokens": "num_predict"}
TRANSLATED = {"messages", "response_format", "stream_options", "n"}
WITHOUT_EFFECT = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
WITHOUT_EFFECT |= {"verbosity", "parallel_tool_calls", "tool_choice", "function_call"}  # the last three without tools
TEXT_ONLY = ["text"]  # modalities that ask for what this server does anyway


def chat_request(body: Json) -> Json:
    """Translate the given fields of a chat completion's body to the body of /api/chat.

    Raises:
        HTTPException: A field is not supported or not valid; the message names it.
    """
    given = {name: value for name, value in body.items() if (name, value) != ("modalities", TEXT_ONLY)}
    known = FIELDS.keys() | OPTIONS.keys() | TRANSLATED
    if unknown := sorted(given.keys() - known - WITHOUT_EFFECT):
        raise HTTPException(400, f"the field {unknown[0]!r} is not accepted; accepted: {', '.join(sorted(known))}")
    if given.get("n", 1) != 1:
        raise HTTPException(400, "'n' must be 1: this server returns one answer per request")
    options = {OPTIONS[name]: value for name, value in given.items() if name in OPTIONS}
    if isinstance(options.get("stop"), str):
        options["stop"] = [options["stop"]]
    return {
        **{FIELDS[name]: value for name, value in given.items() if name in FIELDS},
        "messages": checked_messages(given.get("messages")),
        "format": _format(given.get("response_format")),
        "options": options,
    }


def model_object(name: str) -> Json:
    """A model in the list of models."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "chatmetrics"}


def wants_usage(body: Json) -> bool:
    """Whether a streamed answer ends with its token counts.

    Raises:
        HTTPException: stream_options is not an object.
    """
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise HTTPException(400, "'stream_options' must be an object")
    return bool(options.get("include_usage"))


def completion(answer: Json) -> Json:
    """Translate a complete answer of /api/chat to a chat completion."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": answer["message"]["content"]},
        "finish_reason": answer["done_reason"],
        **_logprobs(answer),
    }
    return {**_heading("chat.completion"), "model": answer["model"], "choices": [choice], "usage": _usage(answer)}


class Chunks:
    """Translates the parts of a streamed answer of /api/chat to events of a streamed chat completion.

    Args:
        usage: Whether the last event contains the token counts.
    """

    def __init__(self, usage: bool) -> None:
        self._heading, self._usage, self._rest = _heading("chat.completion.chunk"), usage, b""

    def __call__(self, part: bytes) -> bytes:
        """Events for the lines that are complete after this part."""
        *lines, self._rest = (self._rest + part).split(b"\n")
        return b"".join(event_bytes(event) for line in lines if line for event in self._events(json.loads(line)))

    def _events(self, answer: Json) -> list[Json | None]:
        if "error" in answer:
            return [{"error": {"message": str(answer["error"]), "type": "server_error"}}]
        heading = {**self._heading, "model": answer["model"]}
        reason = answer.get("done_reason") if answer["done"] else None
        delta = {"role": "assistant", "content": answer["message"]["content"]}
        choice = {"index": 0, "delta": delta, "finish_reason": reason, **_logprobs(answer)}
        events: list[Json | None] = [{**heading, "choices": [choice]}]
        if reason:
            events += [{**heading, "choices": [], "usage": _usage(answer)}, None] if self._usage else [None]
        return events


def event_bytes(event: Json | None) -> bytes:
    """Encode a server-sent event; None is the end of the stream."""
    return b"data: [DONE]\n\n" if event is None else b"data: %s\n\n" % json.dumps(event, ensure_ascii=False).encode()


def _heading(kind: str) -> Json:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time())}


def _usage(answer: Json) -> Json:
    read, written = answer.get("prompt_eval_count", 0), answer.get("eval_count", 0)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _logprobs(answer: Json) -> Json:
    return {"logprobs": {"content": answer["logprobs"]}} if "logprobs" in answer else {}


def _format(wanted: Any) -> Any:
    """Translate response_format to Ollama's `format`."""
    kind = wanted.get("type") if isinstance(wanted, dict) else wanted
    if kind in (None, "text"):
        return None
    if kind == "json_object":
        return "json"
    described = wanted.get("json_schema") if kind == "json_schema" and isinstance(wanted, dict) else None
    if not isinstance(described, dict) or not isinstance(described.get("schema"), dict):
        raise HTTPException(400, "'response_format' must be text, json_object, or json_schema with a schema")
    check_format("response_format", described["schema"])
    return described["schema"]
