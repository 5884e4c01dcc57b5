"""Checks of requests to Ollama: they may not change the loaded model for other clients or make Ollama fail."""

import json
import math
from typing import Any

from starlette.exceptions import HTTPException

Json = dict[str, Any]

# Fields of Ollama that do not affect other clients. Others are refused, not ignored: for example, template would answer
# with another prompt than the acceptance test used.
FIELDS = {"model", "prompt", "messages", "system", "raw", "stream", "format", "options", "suffix", "think"}
FIELDS |= {"logprobs", "top_logprobs", "tools"}
# Fields that replace the client's: keep_alive could unload the model, truncate would cut a long prompt silently.
FIXED_FIELDS = {"keep_alive": -1, "truncate": False}
# Options that do not make Ollama reload the model.
NUMBERS = {"temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty", "frequency_penalty"}
INTEGERS = {"top_k", "seed", "num_predict", "repeat_last_n"}
OPTIONS = NUMBERS | INTEGERS | {"stop"}
FORMAT_CHARACTERS = 8192


def check_names_and_format(body: Json) -> None:
    """Refuse field names with upper case letters, and formats that are too long or not valid.

    A long JSON schema is compiled to a grammar, which would keep other clients waiting.

    Raises:
        HTTPException: A field is refused; the message names it.
    """
    # Go's JSON parser ignores case, so that "Model" would replace the model that the proxy checked.
    for name in body:
        if name != name.lower():
            raise HTTPException(400, f"the field {name!r} is not accepted: write it in lower case")
    for name in ("format", "response_format"):
        if len(json.dumps(body.get(name))) > FORMAT_CHARACTERS:
            raise HTTPException(400, f"the field {name!r} is longer than {FORMAT_CHARACTERS} characters")
    if body.get("format") not in (None, "", "json") and not isinstance(body["format"], dict):
        raise HTTPException(400, "'format' must be \"json\" or a JSON schema")


def check_fields(body: Json, context_length: int) -> None:
    """Refuse fields that would change the loaded model or its prompt template, and limit the answer's length.

    Args:
        body: The request's body; its fields and options are adjusted.
        context_length: The model's context length in tokens.

    Raises:
        HTTPException: A field is refused; the message names it.
    """
    for name in FIXED_FIELDS:
        body.pop(name, None)
    if unknown := sorted(body.keys() - FIELDS):
        raise HTTPException(400, f"the field {unknown[0]!r} is not accepted; accepted: {', '.join(sorted(FIELDS))}")
    given = body.get("options") or {}
    if not isinstance(given, dict):
        raise HTTPException(400, "'options' must be an object")
    options = {name: value for name, value in given.items() if value is not None}
    if options.get("num_ctx") == context_length:
        options.pop("num_ctx")
    if unknown := sorted(options.keys() - OPTIONS):
        raise HTTPException(
            400, f"the option {unknown[0]!r} is not accepted: it is unknown, or Ollama would reload the model for it; "
            f"accepted: {', '.join(sorted(OPTIONS))}"
        )  # fmt: skip
    for name, value in options.items():
        _check_option(name, value)
    if options.get("repeat_last_n", 0) > context_length:  # Ollama allocates memory for this number of tokens
        raise HTTPException(400, f"the option 'repeat_last_n' must be at most {context_length}")
    # Without a limit, Ollama would shift the context and generate forever if the model emits no end token.
    most = options.get("num_predict", -1)
    body["options"] = options | {"num_predict": most if 0 < most <= context_length else context_length}


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
