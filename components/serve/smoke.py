"""The smoke test: one question to each model, sent as applications do, through the Service and with a token."""

import time
from typing import Any

import httpx

from chatmetrics.components.console import info
from chatmetrics.components.errors import GateError, ServiceError
from chatmetrics.components.inference.client import ANSWER_TIMEOUT, ollama_request
from chatmetrics.components.nl2sql.prompt import sql_from_answer

SECONDS_FOR_ANSWER = 30.0  # during which a question is sent again while the endpoint is busy
SECONDS_BETWEEN_TRIES = 1.0
BUSY = (429, 503)
SHORT_ANSWER_TOKENS = 8


def smoke(endpoint: str, token: str) -> None:
    """Ask every model behind an endpoint a question of its acceptance test, and compare it with the answer in the test.

    A model that answered no question correctly, but is served because its threshold is 0, only has to answer.

    Args:
        endpoint: Base URL of the Service.
        token: A client's token; empty if the endpoint needs none.

    Raises:
        GateError: A model's answer differs from the one in its acceptance test.
        ServiceError: The endpoint refused a request or cannot be reached.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with httpx.Client(base_url=endpoint, headers=headers, timeout=ANSWER_TIMEOUT, trust_env=False) as http:
        _smoke(http)


def _smoke(http: httpx.Client) -> None:
    acceptance_test = reversed(_request(http, "GET", "/acceptance-test"))
    # For each model the first question that it answered correctly, if there is one: the last entry of a name wins.
    questions = {
        question["model"]: question for question in sorted(acceptance_test, key=lambda asked: bool(asked["right"]))
    }
    if not questions:
        info("no model has an acceptance test; the smoke test asks no question")
    for name, question in questions.items():
        started = time.monotonic()
        # A model without a correct answer may repeat itself endlessly, and Ollama reports that as an error.
        max_tokens = question["max_tokens"] if question["right"] else SHORT_ANSWER_TOKENS
        request = {**ollama_request(name, question["prompt"], max_tokens), "stream": False}
        sql = sql_from_answer(_request(http, "POST", "/api/generate", request)["response"])
        if question["right"] and sql != question["answer"]:
            raise GateError(
                f"{name} answered question {question['id']} with {sql!r}, but with {question['answer']!r} in its "
                "acceptance test; check which version the endpoint serves"
            )
        print(f"{name}: {sql} ({1000 * (time.monotonic() - started):.0f} ms)", flush=True)


def _request(http: httpx.Client, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """Send a request and return the JSON of the response; repeat it while other clients keep the endpoint busy."""
    deadline = time.monotonic() + SECONDS_FOR_ANSWER
    try:
        answer = http.request(method, path, json=body)
        while answer.status_code in BUSY and time.monotonic() < deadline:
            time.sleep(SECONDS_BETWEEN_TRIES)
            answer = http.request(method, path, json=body)
        if not answer.is_success:
            raise ServiceError(f"{http.base_url} refused {path} ({answer.status_code}): {answer.text.strip()[:200]}")
        return answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise ServiceError(f"{http.base_url} did not answer {path}: {str(error) or type(error).__name__}") from error
