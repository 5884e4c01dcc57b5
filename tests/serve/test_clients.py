"""The requests of the clients that people use, as these sent them, against one pod."""

from collections.abc import Iterator

import httpx
import pytest

from chatmetrics.components.serve.error_responses import error_message
from tests.clients.table import PAGE, page_with, tables
from tests.clients.uses import USES, Recording, client_pod, read_recordings, result_of, send
from tests.serve.pods import needs_ollama

RECORDINGS = read_recordings()
MAY_BE_REFUSED = {"complete"}  # over OpenAI's protocol it is the old path /v1/completions


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    pod = client_pod(tmp_path_factory.mktemp("clients"))
    with pod.ready(), httpx.Client(base_url=pod.endpoint, timeout=60) as http:
        yield http


@needs_ollama
@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: f"{recording.client}-{recording.use}")
def test_a_client_gets_what_it_needs_for_a_use(http: httpx.Client, recording: Recording) -> None:
    exchanges = [(request, send(http, request)) for request in recording.requests]
    for request, answer in exchanges:
        error = error_message(answer.content) if answer.status_code >= 400 else None
        assert (answer.status_code, error) == (request["status"], request.get("error"))
    if recording.error:
        request, answer = exchanges[-1]
        error = answer.json()["error"]
        assert answer.status_code >= 400 and error
        if request["path"].startswith("/v1/"):
            assert error["message"] and error["type"].endswith("_error")
    else:
        is_right = USES[recording.use].is_right
        request, answer = [(request, answer) for request, answer in exchanges if answer.status_code == 200][-1]
        result = result_of(recording, request, answer)
        assert is_right and is_right(result), result


def test_all_uses_work_that_should() -> None:
    refused = {recording.use for recording in RECORDINGS if recording.error}
    assert refused <= {name for name, use in USES.items() if use.is_right is None} | MAY_BE_REFUSED


def test_recorded_requests_contain_no_token() -> None:
    for recording in RECORDINGS:
        for request in recording.requests:
            assert request["token"] in ("valid", "wrong", "none")
            assert not {name.lower() for name in request["headers"]} & {"authorization", "x-api-key", "api-key"}


def test_the_documentation_has_the_recorded_results() -> None:
    assert PAGE.read_text("utf-8") == page_with(tables(RECORDINGS)), "run `make clients`"
