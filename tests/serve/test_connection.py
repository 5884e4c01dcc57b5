"""Bytes that are no request, or two: a pod refuses them, holds nothing for them, and serves others."""

import socket
from collections.abc import Iterator
from functools import partial

import httpx
import pytest

from tests.serve.pods import TOKEN, RunningPod, needs_ollama, published
from tests.serve.test_pod import QUESTION, metric

pytestmark = needs_ollama
LINE = b"POST /api/generate HTTP/1.1\r\n"
COMMON = b"Host: x\r\nAuthorization: Bearer " + TOKEN.encode() + b"\r\n"
HEAD = LINE + COMMON
BODY = b'{"model": "hotel", "prompt": "x", "stream": false}'
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n"
MEGABYTE = b"a" * (1 << 20)

REFUSED = {
    "a large header": HEAD + b"X: " + MEGABYTE + b"\r\nContent-Length: 0\r\n\r\n",
    "many headers": HEAD + b"".join(b"x%d: y\r\n" % number for number in range(60_000)) + b"\r\n",
    "a header's name without end": HEAD + MEGABYTE,
    "a large path": b"GET /" + MEGABYTE + b" HTTP/1.1\r\n" + COMMON + b"\r\n",
    "a large extension of a chunk": CHUNKED + b"\r\n1;" + MEGABYTE + b"\r\n{\r\n0\r\n\r\n",
    "large trailers": CHUNKED + b"\r\n1\r\n{\r\n0\r\n" + b"".join(b"x%d: y\r\n" % n for n in range(60_000)) + b"\r\n",
    "a length and chunks": CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 5\r\n\r\n{}",
    "a negative length": HEAD + b"Content-Length: -1\r\n\r\n",
    "a length with a sign": HEAD + b"Content-Length: +2\r\n\r\n{}",
    "a length that is no number": HEAD + b"Content-Length: 0x2\r\n\r\n{}",
    "a length without end": HEAD + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n",
    "a space before the colon": HEAD + b"Content-Length : 2\r\n\r\n{}",
    "an unknown transfer encoding": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunks inside another encoding": HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "a chunk whose size is no number": CHUNKED + b"\r\nxyz\r\n{}\r\n0\r\n\r\n",
    "a chunk with a negative size": CHUNKED + b"\r\n-2\r\n{}\r\n0\r\n\r\n",
    "a chunk with a size without end": CHUNKED + b"\r\n" + b"f" * 30 + b"\r\n",
    "a null character in a header": HEAD + b"X: a\0b\r\nContent-Length: 0\r\n\r\n",
    "a line break in a header": HEAD + b"X: a\rb\r\nContent-Length: 0\r\n\r\n",
    "no version": b"GET /v1/models\r\n\r\n",
    "another version": b"GET / HTTP/3.0\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": bytes.fromhex("16030100c8010000c40303") + b"\0" * 200,
    "a method in lower case": b"get / HTTP/1.1\r\nHost: x\r\n\r\n",
    "an unknown method": b"HACK / HTTP/1.1\r\nHost: x\r\n\r\n",
    "bytes": bytes(range(256)) * 8,
    "a path in bytes": b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    "no path": b"GET  HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPod]:
    folder = tmp_path_factory.mktemp("connections")
    pod = RunningPod(folder / "pod", [{"name": "hotel", "uri": published(folder, "1")}], {"requestKib": 64})
    with pod.ready():
        yield pod


def received(pod: RunningPod, sent: bytes) -> bytes:
    """What the pod sends until it closes the connection."""
    with socket.create_connection(("127.0.0.1", pod.port), timeout=30) as connection:
        try:
            connection.sendall(sent)
            return b"".join(iter(partial(connection.recv, 65536), b""))
        except (ConnectionResetError, BrokenPipeError):  # it closed the connection before it read everything
            return b""


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_request_is_refused_and_the_connection_closed(pod: RunningPod, name: str) -> None:
    before = metric(pod, 'chatmetrics_requests_total{client="analyst",code="200",path="/api/generate"}')
    answer = received(pod, REFUSED[name] + WHOLE)
    assert answer.count(b"HTTP/1.1 ") <= 1
    assert not answer or int(answer.split()[1]) in range(400, 500), answer
    assert metric(pod, 'chatmetrics_requests_total{client="analyst",code="200",path="/api/generate"}') == before
    assert metric(pod, "chatmetrics_queue_length") == 0
    assert pod.post("/api/generate", QUESTION).status_code == 200


def test_requests_in_one_packet_are_answered_in_order(pod: RunningPod) -> None:
    last = b"GET /v1/models HTTP/1.1\r\nConnection: close\r\n" + COMMON + b"\r\n"
    first, second, third = received(pod, WHOLE + WHOLE + last).split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert b'"response"' in first and b'"response"' in second and b'"object":"list"' in third


@pytest.mark.parametrize("header", [b"Upgrade: websocket\r\nConnection: upgrade, close", b"Connection: close"])
def test_a_request_to_change_the_protocol_is_an_ordinary_request(pod: RunningPod, header: bytes) -> None:
    answer = received(pod, b"GET /v1/models HTTP/1.1\r\n" + header + b"\r\n" + COMMON + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_a_client_may_wait_until_it_may_send_the_body(pod: RunningPod) -> None:
    head = HEAD + b"Expect: 100-continue\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY)
    with socket.create_connection(("127.0.0.1", pod.port), timeout=30) as connection:
        connection.sendall(head)
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(BODY)
        assert b"".join(iter(partial(connection.recv, 65536), b"")).startswith(b"HTTP/1.1 200 ")


def test_a_body_is_not_invited_if_the_request_is_refused(pod: RunningPod) -> None:
    head = LINE + b"Host: x\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n"
    assert received(pod, head).startswith(b"HTTP/1.1 401 ")


def test_a_connection_stays_open_after_an_error_about_a_name(pod: RunningPod) -> None:
    for path in ("/v1/models/unknown", "/databases/unknown"):
        refused = pod.get(path)
        assert (refused.status_code, refused.headers.get("connection")) == (404, None)


def test_the_methods_of_a_path_are_named(pod: RunningPod) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    refused = httpx.put(f"{pod.endpoint}/api/generate", headers=headers)
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert "POST" in refused.json()["error"]
    head = httpx.head(f"{pod.endpoint}/v1/models", headers=headers)
    assert (head.status_code, head.content) == (200, b"")
    assert "server" not in head.headers
