"""Checks of requests to Ollama: they may not change the loaded model for other clients or make Ollama fail."""

import json
import math
from collections.abc import Callable
from typing import Any

from starlette.exceptions import HTTPException

from chatmetrics.components.nl2sql.prompts.prompt_text import content_text
from chatmetrics.components.serve.messages import checked_messages
from chatmetrics.components.serve.pod.json_formats import check_format

Json = dict[str, Any]

# Fields of Ollama that do not affect other clients. Others are refused, not ignored: for example, template would answer
# with another prompt than the acceptance test used.
FIELDS = {"model", "prompt", "messages", "system", "raw", "stream", "format", "options", "suffix", "think"}
FIELDS |= {"logprobs", "top_logprobs"}
# Fields that replace the client's: keep_alive could unload the model, truncate would cut a long prompt silently.
FIXED_FIELDS = {"keep_alive": -1, "truncate": False}
# Values of fields that mean nothing, whatever the field is: clients send them without being asked.
EMPTY: tuple[object, ...] = (None, "", [], {})
TOOLS = {"tools", "functions"}  # the older name is OpenAI's
# Options for which Ollama would load the model again. Clients send them without being asked, so the model stays as it
# is, and a header of the answer reports it.
LOADING = {"num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "numa", "low_vram", "f16_kv"}
LOADING |= {"use_mmap", "use_mlock", "vocab_only", "logits_all", "draft_num_predict", "penalize_newline"}
SHOWN_CHARACTERS = 40
IGNORED_HEADER = "X-Ignored-Options"
# Options that do not make Ollama reload the model.
NUMBERS = {"temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty", "frequency_penalty"}
INTEGERS = {"top_k", "seed", "num_predict", "repeat_last_n"}
OPTIONS = NUMBERS | INTEGERS | {"stop"}
# Options next to `options`, where Ollama ignores them: ollama-ai-provider-v2, for Vercel's AI SDK, sends them there.
OUTER_OPTIONS = {name: name for name in OPTIONS} | {"max_output_tokens": "num_predict"}


def given_fields(body: Json) -> Json:
    """The fields of a request that mean something, which are all but the empty ones. The rule for all APIs.

    Raises:
        HTTPException: A field has upper case letters or asks for tools; the message names it.
    """
    # Go's JSON parser ignores case, so that "Model" would replace the model that the proxy checked.
    for name in body:
        if name != name.lower():
            raise HTTPException(400, f"the field {name!r} is not accepted: write it in lower case")
    given = {name: value for name, value in body.items() if value not in EMPTY}
    if asked := sorted(TOOLS & given.keys()):
        raise HTTPException(
            400, f"the field {asked[0]!r} is not supported: a model answers with text, and calls no tools"
        )
    return given


def check_fields(body: Json, context_length: int, content: Callable[[str], str] = content_text) -> dict[str, str]:
    """Refuse fields that would change the loaded model or its prompt template, and limit the answer's length.

    Args:
        body: The given fields of the request's body; they, the options and texts are adjusted.
        context_length: The model's context length in tokens.
        content: Keeps marks of the model's prompt template out of a text; see `PromptTemplate.content`.

    Returns:
        A header of the response that names the options that are ignored; empty if there are none.

    Raises:
        HTTPException: A field is refused; the message names it.
    """
    for name in FIXED_FIELDS:
        body.pop(name, None)
    outer = {OUTER_OPTIONS[name]: body.pop(name) for name in OUTER_OPTIONS if name in body}
    if unknown := sorted(body.keys() - FIELDS):
        raise HTTPException(400, f"the field {unknown[0]!r} is not accepted; accepted: {', '.join(sorted(FIELDS))}")
    check_format("format", body.get("format"))
    given = body.get("options") or {}
    if not isinstance(given, dict):
        raise HTTPException(400, "'options' must be an object")
    options = outer | {name: value for name, value in given.items() if value is not None}
    ignored = {name: options.pop(name) for name in sorted(LOADING & options.keys())}
    if ignored.get("num_ctx") == context_length:
        del ignored["num_ctx"]
    if unknown := sorted(options.keys() - OPTIONS):
        raise HTTPException(400, f"the option {unknown[0]!r} is not accepted; accepted: {', '.join(sorted(OPTIONS))}")
    for name, value in options.items():
        _check_option(name, value)
    if options.get("repeat_last_n", 0) > context_length:  # Ollama allocates memory for this number of tokens
        raise HTTPException(400, f"the option 'repeat_last_n' must be at most {context_length}")
    # Without a limit, Ollama would shift the context and generate forever if the model emits no end token.
    most = options.get("num_predict", -1)
    body["options"] = options | {"num_predict": most if 0 < most <= context_length else context_length}
    _check_texts(body, content)
    listed = ", ".join(f"{name}={json.dumps(value)}"[:SHOWN_CHARACTERS] for name, value in ignored.items())
    return {IGNORED_HEADER: listed} if listed else {}


def _check_texts(body: Json, content: Callable[[str], str]) -> None:
    """Keep marks of the prompt template out of the texts. A raw prompt is the client's own, marks included.

    Raises:
        HTTPException: A text is not a string, or a message cannot be used.
    """
    if "messages" in body:  # without messages, Ollama only loads the model
        body["messages"] = checked_messages(body["messages"], content)
    for name in ("prompt", "system"):
        if not isinstance(body.get(name) or "", str):
            raise HTTPException(400, f"{name!r} must be a string")
        if body.get(name) and not body.get("raw"):
            body[name] = content(body[name])


def _check_option(name: str, value: Any) -> None:
    """Check the type of an option's value, because Ollama answers a wrong type with status 500.

    Raises:
        HTTPException: The value has the wrong type; the message names the option.
    """
    if name == "stop":
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise HTTPException(400, "the option 'stop' must be a list of strings")
    elif not isinstance(value, int | float) or isinstance(value, bool) or value in (math.inf, -math.inf):
        raise HTTPException(400, f"the option {name!r} must be a number")
    elif name in INTEGERS and value % 1:
        raise HTTPException(400, f"the option {name!r} must be an integer")
