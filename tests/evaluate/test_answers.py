"""Remote models: real servers, both protocols, and resuming after an interruption."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from chatmetrics.components.errors import ServiceError
from chatmetrics.components.evaluate.answers import connect
from chatmetrics.components.evaluate.evaluate import evaluate_endpoint
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.inference.server import LlamaServer
from chatmetrics.components.nl2sql.example import read_examples, write_examples
from chatmetrics.components.nl2sql.prompts.template import DEEPSEEK3
from tests.gguf_files import answering_gguf

QUICK = EvaluateSettings(max_tokens=16, concurrency=2)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    gguf = answering_gguf(tmp_path_factory.mktemp("model"), ["SELECT", " count", "(*)", " FROM", " hotel"])
    template = "{% for message in messages %}{{ message.content }}{% endfor %}<｜Assistant｜>"
    with LlamaServer(gguf, 1024, concurrency=2, name="counter", chat_template=template) as server:
        yield server


@pytest.mark.parametrize("path", ["", "/v1"])
def test_a_served_model_is_asked_scored_and_measured(
    path: str, server: LlamaServer, dataset: Path, tmp_path: Path
) -> None:
    output = tmp_path / "report"
    report = evaluate_endpoint(QUICK, dataset, "", server.endpoint + path, "counter", output)
    score = report.systems["counter"]
    assert (score.strict.correct, score.strict.total) == (2, 4)
    assert score.speed is not None
    assert 0 < score.speed.first_token[0] <= score.speed.latency[0] and score.speed.completion_tokens == 6
    assert report.costs is not None and report.costs.systems["counter"].tokens > 6
    lines = (output / "predictions-counter.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["q0", "q1", "q2", "q3", "q4"]
    assert not list(output.glob("answers-*"))


def test_a_remote_model_gets_few_shot_prompts(server: LlamaServer, dataset: Path, tmp_path: Path) -> None:
    (first, *_) = read_examples(dataset / "dev.jsonl")
    write_examples(dataset / "train.jsonl", [replace(first, question=f"Question {number}") for number in range(3)])
    reports = {
        few_shot: evaluate_endpoint(
            QUICK.model_copy(update={"few_shot": few_shot}),
            dataset,
            "",
            server.endpoint,
            "counter",
            tmp_path / str(few_shot),
        )
        for few_shot in (0, 2)
    }
    lengths = {
        few_shot: [
            json.loads(line)["prompt_tokens"]
            for line in (tmp_path / str(few_shot) / "predictions-counter.jsonl")
            .read_text(encoding="utf-8")
            .splitlines()
        ]
        for few_shot in reports
    }
    assert all(longer > shorter + 80 for shorter, longer in zip(lengths[0], lengths[2], strict=True))
    assert reports[2].few_shot == "prompts of counter show up to 2 training questions with their SQL, drawn at random"
    assert reports[2].systems["counter"].strict.correct == 2


class Flaky(BaseHTTPRequestHandler):
    """An API with OpenAI's protocol that refuses all requests after the first `fails_after`."""

    protocol_version = "HTTP/1.1"
    requests: list[dict[str, Any]]
    fails_after: int
    lock = threading.Lock()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            self.requests.append({"body": body, "key": self.headers["Authorization"]})
            refused = len(self.requests) > self.fails_after
        if refused:
            self._reply(400, "application/json", json.dumps({"error": {"message": "no credit left"}}))
            return
        chunks: list[dict[str, Any]] = [
            {"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}}]},
            {"choices": [{"index": 0, "delta": {"content": "```sql\nSELECT count(*) FROM hotel\n```"}}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
            {"choices": [], "usage": {"prompt_tokens": 50, "completion_tokens": 9, "total_tokens": 59}},
        ]
        frame = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "teacher"}
        text = "".join(f"data: {json.dumps(frame | chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        self._reply(200, "text/event-stream", text)

    def _reply(self, status: int, media_type: str, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@pytest.fixture
def teacher() -> Iterator[tuple[str, type[Flaky]]]:
    handler = type("Teacher", (Flaky,), {"requests": [], "fails_after": 10**6})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/v1", handler
        http.shutdown()


def test_an_interrupted_run_asks_only_what_is_missing(
    teacher: tuple[str, type[Flaky]], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, handler = teacher
    monkeypatch.setenv("OPENAI_API_KEY", "a-secret-key")
    output, settings = tmp_path / "report", QUICK.model_copy(update={"concurrency": 1})
    handler.fails_after = 2
    with pytest.raises(ServiceError, match=r"refused \(400\).*no credit left"):
        evaluate_endpoint(settings, dataset, "", endpoint, "org/teacher", output)
    asked = len(handler.requests)
    assert asked <= 4  # another request may have been in flight when the first was refused
    log = output / "answers-org-teacher.partial.jsonl"
    log.write_text(log.read_text("utf-8") + '{"torn', encoding="utf-8")

    handler.fails_after = 10**6
    report = evaluate_endpoint(settings, dataset, "", endpoint, "org/teacher", output)

    questions = [request["body"]["messages"][-1]["content"] for request in handler.requests]
    assert len(questions) == asked + 3 and len(set(questions)) == 5
    assert report.systems["org-teacher"].strict.correct == 2
    assert handler.requests[0]["key"] == "Bearer a-secret-key"
    assert handler.requests[0]["body"]["messages"][0]["role"] == "system"
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"a-secret-key" in path.read_bytes()]


def test_an_unreachable_endpoint_is_an_error_that_names_it() -> None:
    model = connect("http://127.0.0.1:9/v1", "m", DEEPSEEK3)
    model._client.max_retries = 0  # type: ignore[attr-defined]
    with pytest.raises(ServiceError, match=r"cannot reach http://127.0.0.1:9/v1"):
        model.ask("", "a", "b", 1)
