"""The paths of a pod: a closed set. Every decision about a request is taken from the path that matched, never twice."""

import re

PAGE = "/"
QUEUED = frozenset({"/api/generate", "/api/chat", "/v1/chat/completions", "/ask"})  # they need the model
OTHERS = frozenset({"/api/tags", "/api/version", "/api/show", "/v1/models", "/databases", "/acceptance-test"})
DATABASE = "/databases/{name}"
MODEL = "/v1/models/{name}"

_NAMED = re.compile(r"(/databases|/v1/models)/([^/\x00-\x1f\x7f]+)")


def no_such_path(path: str) -> str:
    """The error message for a path that no route belongs to."""
    if "embed" in path:  # OpenAI's /v1/embeddings, Ollama's /api/embed and /api/embeddings
        return "this server makes no embeddings: its models only answer questions"
    return f"no such path; a model answers at {', '.join(sorted(QUEUED))}"


def known_path(path: str) -> tuple[str, str]:
    """The path that has a handler for a request's path, compared character by character, and the `{name}` in it.

    Both are empty if there is none. Starlette's own routes match with `$`, which permits a line break at the end.
    """
    if path == PAGE or path in QUEUED or path in OTHERS:
        return path, ""
    found = _NAMED.fullmatch(path)
    return (f"{found[1]}/{{name}}", found[2]) if found else ("", "")
