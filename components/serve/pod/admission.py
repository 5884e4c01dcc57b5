"""Admission of a model: it is loaded, its prompt template is checked, and it runs its acceptance test."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

from chatmetrics.components.console import info, warning
from chatmetrics.components.errors import GateError, InputError, ServiceError
from chatmetrics.components.inference.client import Client
from chatmetrics.components.nl2sql.acceptance_test import (
    QUERY_SECONDS,
    AcceptanceScore,
    AcceptanceTest,
    Question,
    read_acceptance_test,
    run_acceptance_test,
)
from chatmetrics.components.nl2sql.databases.databases import open_databases
from chatmetrics.components.nl2sql.verdict import Execute
from chatmetrics.components.serve.model import ServedModel
from chatmetrics.components.serve.model_management import ModelManagement

SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Admitted:
    """A model that may answer requests.

    Attributes:
        model: The served model.
        digest: Ollama's digest of the loaded model.
        acceptance_test: Its acceptance test; None if it has none and none is required.
        score: Its score in the acceptance test; None without a test.
    """

    model: ServedModel
    digest: str
    acceptance_test: AcceptanceTest | None
    score: AcceptanceScore | None


def admit(
    management: ModelManagement,
    endpoint: str,
    model: ServedModel,
    acceptance_test: Path | None,
    threads: int,
    threshold: float | None = None,
    addresses: Mapping[str, str] = MappingProxyType({}),
) -> Admitted:
    """Create and load a model, and run the acceptance test that was published with it.

    Args:
        management: Client of the Ollama server.
        endpoint: Endpoint of the same server.
        model: The model to serve.
        acceptance_test: File of its acceptance test, with the databases in the same folder; None if it has none.
        threads: Number of threads that the model computes with.
        threshold: Replaces the acceptance test's threshold; 0 admits a model with any score or without a test.
        addresses: Addresses of the pod's databases on servers, by name. The test runs on them; of others and of those
            that are not available, it checks the text of the SQL.

    Raises:
        GateError: The server renders another prompt than the model was trained with, too few answers are correct, or
            there is no acceptance test.
        ServiceError: Ollama refused the model or closed the connection.
    """
    info(f"creating {model.name}")
    management.create(model, threads)
    info(f"loading {model.name}")
    digest = management.load(model.name)
    if acceptance_test is None:
        if threshold != 0:
            raise GateError(
                f"{model.name} has no acceptance test: publish it again, or set the threshold of this model to 0 to "
                "serve it untested"
            )
        warning(f"{model.name} is served untested, because its threshold is 0")
        return Admitted(model, digest, None, None)
    questions = read_acceptance_test(acceptance_test)
    _check_template(management, model.name, questions)
    client = Client(endpoint, model.name, template=questions.template)
    with _served(questions, addresses) as served:
        score = run_acceptance_test(
            questions, acceptance_test.parent, lambda question: _answer(client, question, questions), threshold, served
        )
    if not score.passed:
        raise GateError(f"{model.name} failed its acceptance test: {score.summary()}")
    info(f"{model.name} passed its acceptance test: {score.summary()}")
    return Admitted(model, digest, questions, score)


@contextmanager
def _served(acceptance_test: AcceptanceTest, addresses: Mapping[str, str]) -> Iterator[dict[str, Execute]]:
    """Context manager: what runs queries on the test's databases on servers, by name, as far as they are available."""
    with ExitStack() as stack:
        served: dict[str, Execute] = {}
        for db_id in sorted(acceptance_test.schemas.keys() & addresses.keys()):
            databases = stack.enter_context(open_databases(addresses[db_id], QUERY_SECONDS))
            try:
                databases.check(db_id)
            except (InputError, ServiceError) as error:
                warning(f"acceptance test: database {db_id} is not available: {error}")
            else:
                served[db_id] = partial(databases.execute, db_id)
        yield served


def _answer(client: Client, question: Question, acceptance_test: AcceptanceTest) -> str:
    return client.ask(question.system, question.instruction, question.input, acceptance_test.max_tokens).text


def _check_template(management: ModelManagement, name: str, acceptance_test: AcceptanceTest) -> None:
    """Compare the prompt that the server renders for a chat with the prompt of training.

    Raises:
        GateError: The prompts differ; the message shows both from the first difference.
    """
    question = acceptance_test.questions[0]
    expected = acceptance_test.template.prompt(question.system, question.instruction, question.input)
    asked = (question.system, f"{question.instruction}\n{question.input}")
    rendered = management.rendered_prompt(name, *map(acceptance_test.template.content, asked))
    if rendered != expected:
        pairs = enumerate(zip(rendered, expected, strict=False))
        at = next((index for index, (one, other) in pairs if one != other), min(len(rendered), len(expected)))
        shown = [text[at : at + SHOWN_CHARACTERS] for text in (rendered, expected)]
        raise GateError(
            f"template mismatch: starting at character {at}, Ollama rendered the prompt for {name} as {shown[0]!r}, "
            f"training rendered it as {shown[1]!r}; check prompt_template in its manifest, and that OLLAMA_GO_TEMPLATE "
            "is 1"
        )
