"""The smoke test: one question to each model, sent as applications do, through the Service and with a token."""

import time
from typing import Any

import httpx

from chatmetrics.components.console import info
from chatmetrics.components.credentials import bearer, checked_secret
from chatmetrics.components.errors import GateError, ServiceError
from chatmetrics.components.inference.client import ANSWER_TIMEOUT, ollama_request
from chatmetrics.components.nl2sql.answers.extraction import sql_from_answer
from chatmetrics.components.redaction import one_line
from chatmetrics.components.responder import UnexpectedAnswer, checked_json, what_answered
from chatmetrics.components.serve.error_responses import error_message

SECONDS_FOR_ANSWER = 30.0  # during which a question is sent again while the endpoint is busy
SECONDS_BETWEEN_TRIES = 1.0
BUSY = (429, 503)
SHORT_ANSWER_TOKENS = 8
QUESTION = {"model", "id", "prompt", "answer", "right", "max_tokens"}  # fields of a question of an acceptance test


def smoke(endpoint: str, token: str) -> None:
    """Ask every model behind an endpoint a question of its acceptance test, and compare it with the answer in the test.

    A model that answered no question correctly, but is served because its threshold is 0, only has to answer.

    Args:
        endpoint: Base URL of the Service.
        token: A client's token; empty if the endpoint needs none.

    Raises:
        InputError: The token cannot be sent.
        GateError: A model's answer differs from the one in its acceptance test.
        ServiceError: The endpoint refused a request or cannot be reached.
    """
    headers = bearer(checked_secret(token, "the token (CHATMETRICS_TOKEN)"))
    try:
        http = httpx.Client(base_url=endpoint, headers=headers, timeout=ANSWER_TIMEOUT, trust_env=False)
    except httpx.InvalidURL as error:
        raise ServiceError(f"{endpoint} is not a URL ({one_line(error)})") from error
    with http:
        _smoke(http)


def _smoke(http: httpx.Client) -> None:
    acceptance_test = reversed(_acceptance_test(http))
    # For each model the first question that it answered correctly, if there is one: the last entry of a name wins.
    questions = {question["model"]: question for question in sorted(acceptance_test, key=_is_right)}
    if not questions:
        info("no model has an acceptance test; the smoke test asks no question")
    for name, question in questions.items():
        started = time.monotonic()
        # A model without a correct answer may repeat itself endlessly, and Ollama reports that as an error.
        max_tokens = question["max_tokens"] if question["right"] else SHORT_ANSWER_TOKENS
        request = {**ollama_request(name, question["prompt"], max_tokens), "stream": False}
        response = _request(http, "POST", "/api/generate", request)
        try:
            answer = checked_json(response.status_code, response.headers, response.content, ("response",))
        except UnexpectedAnswer as error:
            raise _other_answer(http, "/api/generate", error) from error
        sql = sql_from_answer(str(answer["response"]))
        if question["right"] and sql != question["answer"]:
            raise GateError(
                f"{name} answered question {question['id']} with {sql!r}, but with {question['answer']!r} in its "
                "acceptance test; check which version the endpoint serves"
            )
        print(f"{name}: {sql} ({1000 * (time.monotonic() - started):.0f} ms)", flush=True)


def _acceptance_test(http: httpx.Client) -> list[dict[str, Any]]:
    response = _request(http, "GET", "/acceptance-test")
    try:
        questions = response.json()
        if isinstance(questions, list) and all(set(question) >= QUESTION for question in questions):
            return questions
    except (ValueError, TypeError, RecursionError):
        pass  # named below
    raise _other_answer(
        http, "/acceptance-test", what_answered(response.status_code, response.headers, response.content)
    )


def _is_right(question: dict[str, Any]) -> bool:
    return bool(question["right"])


def _request(http: httpx.Client, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
    """Send a request and return the response; repeat it while other clients keep the endpoint busy."""
    deadline = time.monotonic() + SECONDS_FOR_ANSWER
    try:
        response = http.request(method, path, json=body)
        while response.status_code in BUSY and time.monotonic() < deadline:
            time.sleep(SECONDS_BETWEEN_TRIES)
            response = http.request(method, path, json=body)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        reason = one_line(error) or type(error).__name__
        raise ServiceError(f"{http.base_url} did not answer {path}: {reason}") from error
    if not response.is_success:
        what = what_answered(response.status_code, response.headers, response.content)
        message = error_message(response.content) if "JSON" in what else what
        raise ServiceError(f"{http.base_url} refused {path} ({response.status_code}): {one_line(message, 200)}")
    return response


def _other_answer(http: httpx.Client, path: str, what: object) -> ServiceError:
    return ServiceError(f"{http.base_url} sent {what} instead of an answer of the proxy to {path}; check the endpoint")
