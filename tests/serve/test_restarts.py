"""Requests that meet a restart of Ollama are answered, or end with a named error."""

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Gauge
from starlette.exceptions import HTTPException

from chatmetrics.components.serve.pod.engine.client import EngineClient
from chatmetrics.components.serve.pod.engine.engine import Engine
from chatmetrics.components.serve.pod.engine.queue import EngineQueue
from chatmetrics.components.serve.pod.metrics import Metrics
from chatmetrics.components.serve.pod.pod_state import PodState
from tests.serve.pods import ANSWER, ROWS, RunningPod, needs_ollama, published
from tests.serve.test_pod import children_of, metric
from tests.soak.mix import LONG
from tests.waiting import wait_until

MESSAGES = [{"role": "user", "content": "x"}]
ASKED: dict[str, dict[str, Any]] = {
    "/api/generate": {"prompt": "x"},
    "/v1/chat/completions": {"messages": MESSAGES},
    "/ask": {"question": "x"},
}


def kill(ollama: subprocess.Popen[bytes]) -> None:
    """End Ollama and its runner as the kernel does when memory is short."""
    runners = children_of(ollama.pid)
    ollama.kill()
    for runner in runners:
        os.kill(runner, signal.SIGKILL)


@contextmanager
def waiting_requests(
    pod: RunningPod, asked: list[tuple[str, dict[str, Any]]]
) -> Iterator[list[Future[httpx.Response]]]:
    """Requests that Ollama has accepted when it is killed. It is started again within the context."""
    with pod.ollama() as ollama:
        pod.wait(200)
        [runner] = children_of(ollama.pid)
        os.kill(runner, signal.SIGSTOP)
        pool = ThreadPoolExecutor(len(asked))
        sent = [pool.submit(pod.post, path, {"model": "hotel", **body}) for path, body in asked]
        wait_until(lambda: metric(pod, "chatmetrics_queue_length") >= len(asked), 120)
        time.sleep(0.5)
        kill(ollama)
    with pod.ollama(), pool:
        yield sent


@needs_ollama
def test_requests_are_sent_again_once_after_a_restart(tmp_path: Path) -> None:
    asked = [(path, {**body, "stream": stream}) for path, body in ASKED.items() for stream in (False, True)]
    pod = RunningPod(tmp_path / "pod", [{"name": "hotel", "uri": published(tmp_path, "1")}], {"concurrency": 6})
    assert pod.fetch().returncode == 0
    with pod.proxy(), waiting_requests(pod, asked) as sent:
        for (path, body), future in zip(asked, sent, strict=True):
            answer = future.result()
            assert answer.status_code == 200, (path, body, answer.text)
            if not body["stream"]:
                found = answer.json()
                whole = {"/api/generate": ("response", ANSWER), "/ask": ("rows", ROWS)}.get(path)
                assert whole is None or found[whole[0]] == whole[1]
        assert metric(pod, "chatmetrics_retries_total") == len(asked)
        assert metric(pod, "chatmetrics_queue_length") == 0


@needs_ollama
@pytest.mark.parametrize("path", ASKED)
def test_a_stream_that_has_begun_ends_with_a_named_error(tmp_path: Path, path: str) -> None:
    # Not an endless model: Ollama stops one after thirty repetitions, which may be before it is killed.
    uri = published(tmp_path, "1", LONG, gold=None, context_length=1024)
    pod = RunningPod(tmp_path / "pod", [{"name": "hotel", "uri": uri, "threshold": 0}])
    assert pod.fetch().returncode == 0
    body = {"model": "hotel", **ASKED[path], "stream": True}
    headers = {"Authorization": "Bearer s3cret"}
    with pod.proxy(), pod.ollama() as ollama:
        pod.wait(200)
        with httpx.stream("POST", pod.endpoint + path, json=body, headers=headers, timeout=60) as answer:
            lines = (line for line in answer.iter_lines() if line)
            next(lines)
            kill(ollama)
            *_, last = lines
        error = json.loads(last.removeprefix("data: "))["error"]
        assert "closed the connection" in (error["message"] if isinstance(error, dict) else error)
        assert metric(pod, "chatmetrics_retries_total") == 0


@asynccontextmanager
async def engine(sent: bytes) -> AsyncIterator[tuple[Engine, PodState, list[bytes]]]:
    """An engine that answers each request with these bytes and closes the connection. Yields its requests too."""
    requests: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"}"))
        writer.write(sent)
        writer.close()

    state, metrics = PodState(loaded=True), Metrics()
    async with await asyncio.start_server(answer, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        yield Engine(EngineClient(f"http://127.0.0.1:{port}"), state, metrics, 20), state, requests


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 O", HEAD, HEAD + b"{", b"\x00\xff" * 99, b"<html>" * 9])
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_fails_twice_is_a_named_error(sent: bytes, stream: bool) -> None:
    async def asked() -> list[bytes]:
        async with engine(sent) as (failing, state, requests):
            asyncio.get_running_loop().call_later(0.3, lambda: setattr(state, "confirmed_at", time.monotonic()))
            place = EngineQueue(1, 1, Gauge("queue", "", registry=CollectorRegistry())).enter("a", False)
            lines = failing.lines("/api/generate", {"stream": stream}, failing.deadline(), place)
            with pytest.raises(HTTPException) as caught:
                async for _ in lines:
                    pass
            assert caught.value.status_code == 502
            assert "Ollama" in caught.value.detail
            return requests

    has_begun = stream and sent.startswith(HEAD)
    assert len(asyncio.run(asked())) == (1 if has_begun else 2)


def test_a_request_is_not_sent_again_while_the_pod_shuts_down() -> None:
    async def asked() -> list[bytes]:
        async with engine(b"") as (failing, state, requests):
            state.draining = True
            with pytest.raises(HTTPException, match="502"):
                await failing.whole("/api/generate", {}, failing.deadline())
            return requests

    assert len(asyncio.run(asked())) == 1


def test_connections_are_used_again() -> None:
    ports: set[int] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ports.add(writer.get_extra_info("peername")[1])
        while True:
            await reader.readuntil(b"}")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    async def asked() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1") as server:
            client = EngineClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            for _ in range(5):
                assert await (await client.send("POST", "/", {})).read() == b"{}"

    asyncio.run(asked())
    assert len(ports) == 1
