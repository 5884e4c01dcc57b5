"""One question more to each model, asked as applications do: through the Service and with a token."""

import sys
from typing import Any

import httpx

from chatmetrics.components.errors import GateError, ServiceError
from chatmetrics.components.inference.client import Client
from chatmetrics.components.nl2sql.prompt import sql_from_answer

SECONDS = 30.0


def smoke(endpoint: str, token: str) -> None:
    """Ask every model behind an endpoint a question of its examination, and compare with what it said there.

    Raises:
        GateError: it says something else.
        ServiceError: the endpoint refused or cannot be reached.
    """
    questions = {question["model"]: question for question in reversed(_examination(endpoint, token))}
    if not questions:
        print("no model has an examination, so none is asked", file=sys.stderr, flush=True)
    for name, question in questions.items():
        answer = Client(endpoint, name, token).generate(question["prompt"], question["max_tokens"])
        sql = sql_from_answer(answer.text)
        if sql != question["answer"]:
            raise GateError(
                f"{name} answers question {question['id']} with {sql!r}; in its examination it said "
                f"{question['answer']!r}"
            )
        print(f"{name}: {sql} ({answer.seconds * 1000:.0f} ms)", flush=True)


def _examination(endpoint: str, token: str) -> list[dict[str, Any]]:
    try:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = httpx.get(f"{endpoint.rstrip('/')}/examination", headers=headers, timeout=SECONDS, trust_env=False)
        if not answer.is_success:
            raise ServiceError(f"{endpoint} does not tell its examination ({answer.status_code}): {answer.text[:200]}")
        return list(answer.json())
    except (httpx.HTTPError, ValueError) as error:
        raise ServiceError(f"{endpoint} does not tell its examination: {error}") from error
