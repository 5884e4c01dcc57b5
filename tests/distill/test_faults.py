"""A teacher that sends arbitrary bytes: what may have been billed counts, and each error is one line."""

import gc
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import Any

import pytest

from chatmetrics.components.distill.teacher.append_only_log import FILE
from chatmetrics.components.distill.teacher.ledger import open_ledger
from chatmetrics.components.distill.teacher.sampling import ask
from chatmetrics.components.distill.teacher.spending import Spending
from chatmetrics.components.errors import ServiceError, StorageError
from tests.distill.running_teacher import RunningTeacher, requests, running_teacher

TLS_HANDSHAKE = b"\x16"  # RFC 8446, 5.1
MAX_TOKENS = 256  # of an answer to one of `requests`


class Server(ThreadingTCPServer):
    """Reads a request, sends the next of the given answers as it is, and closes the connection."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, answers: tuple[bytes, ...]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.count = answers, 0

    def next_answer(self) -> bytes:
        """The next answer; the last one is repeated."""
        self.count += 1
        return self.answers[min(self.count, len(self.answers)) - 1]


class Handler(StreamRequestHandler):
    server: Server

    def handle(self) -> None:
        if self.rfile.peek(1).startswith(TLS_HANDSHAKE):  # type: ignore[attr-defined]
            return
        length = 0
        while line := self.rfile.readline().strip().lower():
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        self.rfile.read(length)
        self.wfile.write(self.server.next_answer())


@contextmanager
def answering(folder: Path, *answers: bytes) -> Iterator[tuple[RunningTeacher, Server]]:
    with Server(answers) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield RunningTeacher(folder, f"http://127.0.0.1:{server.server_address[1]}/v1", folder / "none"), server
        server.shutdown()


def http(status: int, body: Any, headers: str = "") -> bytes:
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n{headers}"
    return head.encode() + b"Connection: close\r\n\r\n" + data


def completion(**fields: Any) -> bytes:
    message = {"role": "assistant", "content": "SELECT 1"}
    return http(200, {"choices": [{"index": 0, "finish_reason": "stop", "message": message}], **fields})


def spent(teacher: RunningTeacher) -> Spending:
    with open_ledger(str(teacher.ledger), teacher.settings()) as ledger:
        return ledger.spending()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "answer",
    [
        *(b"", b"HTTP/1.1 200 OK\r\nContent-Le", b"hello\r\n\r\n", completion()[:-10]),
        *(http(200, {"error": "overloaded"}), http(504, {"error": "gateway timeout"})),
    ],
    ids=["nothing", "half a header", "not HTTP", "half a body", "error instead of an answer", "gateway error"],
)
def test_a_request_that_was_sent_counts_at_its_maximum_cost(answer: bytes, stream: bool, tmp_path: Path) -> None:
    with (
        answering(tmp_path, answer) as (teacher, server),
        pytest.raises(ServiceError, match="does not answer") as raised,
    ):
        teacher.ask(requests(8), stream=stream, attempts=1, concurrency=2)
    assert "\n" not in str(raised.value)
    assert spent(teacher).requests >= server.count > 0
    assert spent(teacher).completion_tokens == MAX_TOKENS * spent(teacher).requests


def test_nothing_is_sent_if_the_tls_handshake_fails(tmp_path: Path) -> None:
    with answering(tmp_path, b"") as (teacher, _), pytest.raises(ServiceError, match="Cannot connect"):
        teacher.endpoint = teacher.endpoint.replace("http:", "https:")
        teacher.ask(requests(8), attempts=1, concurrency=1)
    assert (spent(teacher).cost, spent(teacher).failed > 0) == (0, True)


def test_a_refused_request_is_not_sent_again_in_the_same_run(tmp_path: Path) -> None:
    refusal = http(400, {"error": {"message": "the context is too long"}})
    with answering(tmp_path, refusal) as (teacher, server):
        settings = teacher.settings()
        with open_ledger(str(teacher.ledger), settings) as ledger:
            first, again = (ask(settings, teacher.endpoint, requests(3), ledger, "asking") for _ in range(2))
        assert (first.unanswered.total(), again.unanswered.total(), server.count) == (3, 0, 3)
        assert "refused, 400: " in next(iter(first.unanswered))
        teacher.ask(requests(3))
        assert server.count == 6
        with pytest.raises(ServiceError, match=r"refuses all requests .*the context is too long"):
            teacher.ask(requests(20), concurrency=2)
        assert spent(teacher).cost == 0


def test_a_busy_teacher_does_not_use_up_attempts(tmp_path: Path) -> None:
    busy = http(503, {"error": "busy"}, "Retry-After: 0\r\n")
    with answering(tmp_path, busy, busy, http(500, {}), busy, http(500, {}), completion()) as (teacher, server):
        result = teacher.ask(requests(1), stream=False, attempts=3)
        assert (len(result.answers), server.count) == (1, 6)


def test_a_retry_after_that_is_too_long_ends_the_run(tmp_path: Path) -> None:
    busy = http(429, {"error": "no more today"}, "Retry-After: 7200\r\n")
    with (
        answering(tmp_path, busy) as (teacher, server),
        pytest.raises(ServiceError, match=r"asks to wait 7200 s \(429: .*no more today"),
    ):
        teacher.ask(requests(8), concurrency=4)
    assert server.count <= 4


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": 12, "completion_tokens": None}])
def test_an_answer_is_kept_with_any_token_counts(usage: Any, tmp_path: Path) -> None:
    with answering(tmp_path, completion(usage=usage)) as (teacher, server):
        assert len(teacher.ask(requests(2), stream=False).answers) == server.count == 2
    assert spent(teacher).prompt_tokens > 0


def test_requests_in_flight_are_awaited_when_the_run_ends(tmp_path: Path) -> None:
    with running_teacher(tmp_path, "--balance", "5", "--latency", "0.5") as teacher:
        with pytest.raises(ServiceError, match="requires payment"):
            teacher.ask(requests(24), concurrency=8)
        with open_ledger(str(teacher.ledger), teacher.settings()) as ledger:
            assert len(ledger.answers) == len(teacher.logged()) == 5
            assert ledger.spending().unknown == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_ends_the_run_with_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running_teacher(tmp_path) as teacher:
        teacher.ask(requests(2))
        settings = teacher.settings()
        with open_ledger(str(teacher.ledger), settings) as ledger, caplog.at_level(logging.ERROR):
            file = Path(teacher.ledger) / FILE
            whole = file.read_bytes()
            file.unlink()
            file.symlink_to("/dev/full")
            with pytest.raises(StorageError) as raised:
                ask(settings, teacher.endpoint, requests(16), ledger, "asking")
            file.unlink()
            file.write_bytes(whole)
            assert ledger.in_flight == 0
        assert "\n" not in str(raised.value)
        assert len(teacher.logged()) == 2
    del raised
    gc.collect()
    assert not caplog.records  # no "exception was never retrieved"
