"""A model that is asked again with the database's error message."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from chatmetrics.components.evaluate.evaluate import evaluate, evaluate_endpoint
from chatmetrics.components.evaluate.report import Report
from chatmetrics.components.evaluate.settings import EvaluateSettings
from tests.gguf_files import answering_gguf

QUICK = {"max_tokens": 16, "concurrency": 2, "repair_attempts": 1, "limit": 2, "acceptance_test_questions": 0}


class Corrigible(BaseHTTPRequestHandler):
    """An API with OpenAI's protocol that answers differently after an error."""

    protocol_version = "HTTP/1.1"
    first, second = "SELECT zzz FROM hotel", "SELECT count(*) FROM hotel"
    questions: list[str]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][-1]["content"]
        self.questions.append(question)
        chunks: list[dict[str, Any]] = [
            {"choices": [{"index": 0, "delta": {"content": self.second if "fails:" in question else self.first}}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
            {"choices": [], "usage": {"prompt_tokens": 50, "completion_tokens": 9, "total_tokens": 59}},
        ]
        frame = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m"}
        text = "".join(f"data: {json.dumps(frame | chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@pytest.fixture
def model() -> Iterator[tuple[str, type[Corrigible]]]:
    handler = type("Model", (Corrigible,), {"questions": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/v1", handler
        http.shutdown()


def asked(
    endpoint: str, dataset: Path, output: Path, monkeypatch: pytest.MonkeyPatch, **settings: object
) -> tuple[Report, list[dict[str, Any]]]:
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    report = evaluate_endpoint(EvaluateSettings.model_validate(QUICK | settings), dataset, "", endpoint, "m", output)
    return report, [json.loads(line) for line in (output / "items.jsonl").read_text("utf-8").splitlines()]


def test_a_failing_answer_is_asked_again_with_the_error(
    model: tuple[str, type[Corrigible]], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, handler = model
    report, items = asked(endpoint, dataset, tmp_path / "report", monkeypatch)
    first, second = sorted(handler.questions, key=len)[:2], sorted(handler.questions, key=len)[2:]
    assert len(second) == 2
    for question in second:
        # What the server has in its cache stays the beginning of the prompt.
        assert any(question.startswith(before) for before in first)
        assert question.endswith("SELECT zzz FROM hotel\nfails: no such column: zzz\nWrite a query that runs.")
    for item in items:
        assert (item["predicted"], item["first_answer"]) == (handler.second, handler.first)
        assert item["first_error"] == "no such column: zzz"
        assert (item["prompt_tokens"], item["completion_tokens"]) == (100, 18)
    again = report.systems["m"].asked_again
    assert again is not None and again.total == 2 and again.correct == sum(item["strict"] for item in items)
    for page in ("report.html", "report.md"):
        text = (tmp_path / "report" / page).read_text("utf-8")
        assert f"{again.correct} of 2" in text and "right after the database" in text


def test_an_answer_that_fails_again_is_kept_as_it_was(
    model: tuple[str, type[Corrigible]], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, handler = model
    handler.second = "SELECT yyy FROM hotel"
    _, items = asked(endpoint, dataset, tmp_path / "report", monkeypatch)
    assert [(item["predicted"], item["first_answer"]) for item in items] == [(handler.first, handler.first)] * 2


@pytest.mark.parametrize(
    ("answer", "attempts"), [("SELECT zzz FROM hotel", 0), ("SELECT name FROM hotel", 1), ("I cannot say.", 1)]
)
def test_nothing_is_asked_again_without_a_query_that_fails_or_without_the_setting(
    answer: str,
    attempts: int,
    model: tuple[str, type[Corrigible]],
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endpoint, handler = model
    handler.first = answer
    report, items = asked(endpoint, dataset, tmp_path / "report", monkeypatch, repair_attempts=attempts)
    assert len(handler.questions) == 2 and report.systems["m"].asked_again is None
    assert not any("first_answer" in item for item in items)


@pytest.mark.parametrize(("context", "again"), [(1024, True), (256, False)])
def test_a_served_student_is_asked_again_if_the_error_fits_its_context(
    context: int, again: bool, dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    student = answering_gguf(tmp_path, ["SELECT", " zzz", " FROM", " hotel"])
    settings = EvaluateSettings.model_validate(QUICK | {"context_length": context, "limit": 1})
    evaluate(settings, dataset, "", student, None, tmp_path / "report", None)
    lines = (tmp_path / "report" / "predictions-student.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["predicted"] for line in lines] == ["SELECT zzz FROM hotel"]
    assert ["first_error" in json.loads(line) for line in lines] == [again]
    assert ("exceeds the context length" in capfd.readouterr().err) is not again
