"""What a model must get through before it answers anybody: loaded, speaking its template, and examined."""

import sys
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

from chatmetrics.components.errors import GateError
from chatmetrics.components.inference.client import Client
from chatmetrics.components.nl2sql.acceptance_test import (
    AcceptanceScore,
    AcceptanceTest,
    Question,
    read_acceptance_test,
    run_acceptance_test,
)
from chatmetrics.components.nl2sql.prompt import render_prompt
from chatmetrics.components.serve.model import ServedModel
from chatmetrics.components.serve.model_management import ModelManagement

SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Admitted:
    """A model that may answer.

    Attributes:
        model: what is served.
        digest: Ollama's, of what is loaded.
        acceptance_test: what it was asked; None when none was wanted.
        score: how it did.
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
) -> Admitted:
    """Create and load a model, and let it sit the acceptance test that travels with it.

    Args:
        management: of the Ollama server.
        endpoint: of the same server.
        model: what to serve.
        acceptance_test: its file, the databases beside it; None when the model has none.
        threads: that the model computes with.
        threshold: replaces the acceptance test's own; 0 accepts any answer, also a model without an acceptance test.

    Raises:
        GateError: the server renders another prompt than the model was trained with, too few answers are right, or
            there is no acceptance test.
        ServiceError: Ollama refused the model or broke off.
    """
    _say(f"creating {model.name}")
    management.create(model, threads)
    _say(f"loading {model.name}")
    digest = management.load(model.name)
    if acceptance_test is None:
        if threshold != 0:
            raise GateError(
                f"{model.name} has no acceptance test: publish it again, or set the threshold of this model to 0 to "
                "serve it untested"
            )
        _say(f"{model.name} is served unexamined, as its threshold is 0")
        return Admitted(model, digest, None, None)
    questions = read_acceptance_test(acceptance_test)
    _check_template(management, model.name, questions.questions[0])
    client = Client(endpoint, model.name)
    score = run_acceptance_test(
        questions, acceptance_test.parent, lambda question: _answer(client, question, questions), threshold
    )
    if not score.passed:
        raise GateError(f"{model.name} failed its acceptance test: {score.summary()}")
    _say(f"{model.name} passed its acceptance test: {score.summary()}")
    return Admitted(model, digest, questions, score)


def _answer(client: Client, question: Question, acceptance_test: AcceptanceTest) -> str:
    return client.ask(question.system, question.instruction, question.input, acceptance_test.max_tokens).text


def _check_template(management: ModelManagement, name: str, question: Question) -> None:
    """Compare the prompt of a chat, as the server renders it, with that of training.

    Raises:
        GateError: they differ; shows both from where they do.
    """
    expected = render_prompt(question.system, question.instruction, question.input)
    asked = (question.system, f"{question.instruction}\n{question.input}")
    rendered = management.rendered_prompt(name, *(normalize("NFC", text) for text in asked))
    if rendered != expected:
        pairs = enumerate(zip(rendered, expected, strict=False))
        at = next((index for index, (one, other) in pairs if one != other), min(len(rendered), len(expected)))
        shown = [text[at : at + SHOWN_CHARACTERS] for text in (rendered, expected)]
        raise GateError(
            f"template mismatch: from character {at} on, Ollama renders a prompt for {name} as {shown[0]!r}, training "
            f"rendered it as {shown[1]!r}; check prompt_template in its manifest, and that OLLAMA_GO_TEMPLATE is 1"
        )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
