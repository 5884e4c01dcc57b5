"""What a request to Ollama may say: nothing that changes the model for others, and nothing that Ollama fails on."""

import json
import math
from typing import Any

from starlette.exceptions import HTTPException

Json = dict[str, Any]

# Fields that Ollama knows and that change nothing for other clients. What is not here is refused rather than ignored:
# keep_alive, for one, would unload the model, and template would answer by another prompt than was examined.
FIELDS = {"model", "prompt", "messages", "system", "raw", "stream", "format", "options", "suffix", "think"}
FIELDS |= {"logprobs", "top_logprobs", "tools"}
FIXED_FIELDS = {"keep_alive": -1, "truncate": False}  # truncated, a prompt would be cut in silence
# Options of a request that do not make Ollama load the model anew.
NUMBERS = {"temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty", "frequency_penalty"}
INTEGERS = {"top_k", "seed", "num_predict", "repeat_last_n"}
OPTIONS = NUMBERS | INTEGERS | {"stop"}
FORMAT_CHARACTERS = 8192


def check_names_and_format(body: Json) -> None:
    """Refuse what Ollama would read as another field, and grammars that keep everybody waiting or are none.

    Raises:
        HTTPException: names the field.
    """
    # Go matches names without regard to case, so that "Model" would take the place of the model that was looked up.
    if odd := next((name for name in body if name != name.lower()), None):
        raise HTTPException(400, f"the field {odd!r} is not accepted: names are in lower case")
    for name in ("format", "response_format"):
        if len(json.dumps(body.get(name))) > FORMAT_CHARACTERS:
            raise HTTPException(400, f"the field {name!r} is longer than {FORMAT_CHARACTERS} characters")
    if body.get("format") not in (None, "", "json") and not isinstance(body["format"], dict):
        raise HTTPException(400, "'format' must be \"json\" or a JSON schema")


def check_fields(body: Json, context_length: int) -> None:
    """Refuse what would change the loaded model or the prompt that was examined, and give the answer an end.

    Raises:
        HTTPException: names the field.
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
            400, f"the option {unknown[0]!r} is not accepted here: it would load the model anew for everybody, or is "
            f"unknown; accepted: {', '.join(sorted(OPTIONS))}"
        )  # fmt: skip
    for name, value in options.items():
        _check_option(name, value)
    if options.get("repeat_last_n", 0) > context_length:  # Ollama sets aside memory for as many as it is told
        raise HTTPException(400, f"the option 'repeat_last_n' is at most {context_length} here")
    # An answer has an end even where the model finds none: Ollama would shift its context for ever.
    most = options.get("num_predict", -1)
    body["options"] = options | {"num_predict": most if 0 < most <= context_length else context_length}


def _check_option(name: str, value: Any) -> None:
    """Refuse another type than Ollama has, which it would call its own failure.

    Raises:
        HTTPException: names the option.
    """
    if name == "stop":
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise HTTPException(400, "the option 'stop' must be a list of texts")
    elif not isinstance(value, int | float) or isinstance(value, bool) or value in (math.inf, -math.inf):
        raise HTTPException(400, f"the option {name!r} must be a number")
    elif name in INTEGERS and value % 1:
        raise HTTPException(400, f"the option {name!r} must be an integer")
