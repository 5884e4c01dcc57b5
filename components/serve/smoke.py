"""One question more to each model, asked as applications do: through the Service and with a token."""

import sys
import time
from typing import Any

import httpx

from chatmetrics.components.errors import GateError, ServiceError
from chatmetrics.components.inference.client import ANSWER_TIMEOUT, ollama_request
from chatmetrics.components.nl2sql.prompt import sql_from_answer

SECONDS = 30.0  # that each question is tried for
SECONDS_BETWEEN_TRIES = 1.0
BUSY = (429, 503)
FEW_TOKENS = 8


def smoke(endpoint: str, token: str) -> None:
    """Ask every model behind an endpoint a question of its acceptance test, and compare with what it said there.

    Of a model that got nothing right there, and is served all the same, only that it answers is looked at.

    Raises:
        GateError: it says something else.
        ServiceError: the endpoint refused or cannot be reached.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with httpx.Client(base_url=endpoint, headers=headers, timeout=ANSWER_TIMEOUT, trust_env=False) as http:
        _smoke(http)


def _smoke(http: httpx.Client) -> None:
    acceptance_test = reversed(_told(http, "GET", "/acceptance-test"))
    # Of each model the first that it answered right, if there is any.
    questions = {
        question["model"]: question for question in sorted(acceptance_test, key=lambda asked: bool(asked["right"]))
    }
    if not questions:
        print("no model has an acceptance test, so none is asked", file=sys.stderr, flush=True)
    for name, question in questions.items():
        started = time.monotonic()
        # A model that gets nothing right may repeat itself without end, which Ollama breaks off.
        most = question["max_tokens"] if question["right"] else FEW_TOKENS
        request = {**ollama_request(name, question["prompt"], most), "stream": False}
        sql = sql_from_answer(_told(http, "POST", "/api/generate", request)["response"])
        if question["right"] and sql != question["answer"]:
            raise GateError(
                f"{name} answers question {question['id']} with {sql!r}; in its acceptance test it said "
                f"{question['answer']!r}"
            )
        print(f"{name}: {sql} ({1000 * (time.monotonic() - started):.0f} ms)", flush=True)


def _told(http: httpx.Client, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """What the endpoint answers; asked again while it is busy, for others may use it meanwhile."""
    deadline = time.monotonic() + SECONDS
    try:
        while (answer := http.request(method, path, json=body)).status_code in BUSY and time.monotonic() < deadline:
            time.sleep(SECONDS_BETWEEN_TRIES)
        if not answer.is_success:
            raise ServiceError(f"{http.base_url} refuses {path} ({answer.status_code}): {answer.text.strip()[:200]}")
        return answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise ServiceError(f"{http.base_url} does not answer {path}: {str(error) or type(error).__name__}") from error
