"""Overload, and clients that send or read slowly, do not keep other clients from being answered."""

import asyncio
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Gauge
from starlette.types import Message

from chatmetrics.components.nl2sql.prompts.template import DEEPSEEK3
from chatmetrics.components.serve.model import ServedModel
from chatmetrics.components.serve.pod.access import AccessControl
from chatmetrics.components.serve.pod.admission import Admitted
from chatmetrics.components.serve.pod.ask_service import AskService
from chatmetrics.components.serve.pod.bearer_tokens import BearerTokens
from chatmetrics.components.serve.pod.engine.client import EngineClient
from chatmetrics.components.serve.pod.engine.engine import Engine
from chatmetrics.components.serve.pod.engine.queue import EngineQueue, FullQueueError, Place
from chatmetrics.components.serve.pod.metrics import Metrics
from chatmetrics.components.serve.pod.pod_state import PodState
from chatmetrics.components.serve.pod.request_log import RequestLog
from chatmetrics.components.serve.release import Release
from chatmetrics.components.storage.manifest import read_manifest
from tests.serve.pods import ANSWER, TOKEN, RunningPod, hotel_database, needs_ollama, published
from tests.serve.test_pod import QUESTION, children_of, metric
from tests.serve.test_same_prompt import Endpoint
from tests.waiting import wait_until

HEADER = f"POST /api/generate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"


@contextmanager
def stopped_runner(folder: Path, **settings: Any) -> Iterator[tuple[RunningPod, int]]:
    """A pod whose llama.cpp is stopped: Ollama accepts requests and does not answer. Yields the process id too."""
    pod = RunningPod(folder / "pod", [{"name": "hotel", "uri": published(folder, "1")}], settings)
    (pod.root / "tokens" / "other").write_text("other", "utf-8")
    assert pod.fetch().returncode == 0
    with pod.ollama() as ollama, pod.proxy() as process:
        pod.wait(200, process)
        [runner] = children_of(ollama.pid)
        os.kill(runner, signal.SIGSTOP)
        try:
            yield pod, runner
        finally:
            os.kill(runner, signal.SIGCONT)


@needs_ollama
@pytest.mark.parametrize(("path", "asked"), [("/api/generate", {"prompt": "x"}), ("/ask", {"question": "x"})])
def test_streams_that_are_late_do_not_make_ollama_hang(tmp_path: Path, path: str, asked: dict[str, str]) -> None:
    body = {"model": "hotel", "stream": True, **asked}
    with stopped_runner(tmp_path, requestSeconds=4) as (pod, runner), ThreadPoolExecutor(6) as pool:
        sent: list[Future[httpx.Response]] = [pool.submit(pod.post, path, body) for _ in range(6)]
        answers = [future.result() for future in sent]
        os.kill(runner, signal.SIGCONT)
        late = [answer for answer in answers if "not complete in time" in answer.text]
        waited = [answer for answer in answers if "too many requests" in answer.text]
        # The engine gets one at a time. The first of /ask, which only counts tokens, may give its slot back in time.
        assert len(late) + len(waited) == 6 and 1 <= len(late) <= 2
        wait_until(lambda: not metric(pod, "chatmetrics_queue_length"), 120, "the late answer was not read to its end")
        assert pod.post("/api/generate", QUESTION).json()["response"] == ANSWER
        time.sleep(3)  # two checks of the supervisor
        assert pod.readiness() == 200
        assert not (pod.root / "state" / "stuck").exists()


@needs_ollama
def test_a_client_cannot_occupy_the_whole_queue(tmp_path: Path) -> None:
    with stopped_runner(tmp_path, queue=4) as (pod, runner), ThreadPoolExecutor(5) as pool:
        greedy = [pool.submit(pod.post, "/api/generate", QUESTION) for _ in range(4)]
        wait_until(lambda: sum(future.done() for future in greedy) >= 2, 120)
        other = pool.submit(pod.post, "/api/generate", QUESTION, "other")
        wait_until(lambda: metric(pod, "chatmetrics_queue_length") >= 3, 120)
        os.kill(runner, signal.SIGCONT)
        assert other.result().status_code == 200
        assert sorted(future.result().status_code for future in greedy) == [200, 200, 429, 429]
        # So that the client may reach another pod.
        refused = [future.result() for future in greedy if future.result().status_code == 429]
        assert [answer.headers.get("connection") for answer in refused] == ["close", "close"]


@needs_ollama
def test_slow_and_silent_clients_occupy_nothing(tmp_path: Path) -> None:
    pod = RunningPod(tmp_path / "pod", [{"name": "hotel", "uri": published(tmp_path, "1")}])
    slow = {
        "one byte of the body": HEADER + "Content-Length: 90\r\n\r\n{",
        "a body without a place": HEADER.replace("generate", "show") + "Content-Length: 90\r\n\r\n{",
        "unfinished headers": HEADER,
        "nothing": "",
    }
    with pod.ready(), ExitStack() as stack:
        connections = []
        for text in (*slow.values(),) * 30:
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", pod.port)))
            connection.sendall(text.encode())
            connections.append((text, connection))
        time.sleep(0.5)
        assert metric(pod, "chatmetrics_queue_length") == 0
        for _ in range(5):
            assert pod.post("/api/generate", QUESTION).json()["response"] == ANSWER
        for text, connection in connections:
            connection.settimeout(20)
            answer = b"".join(iter(partial(connection.recv, 65536), b""))  # until the server closes it
            assert (b" 408 " in answer) == text.endswith("{"), answer


@needs_ollama
def test_connections_of_refused_requests_are_closed(tmp_path: Path) -> None:
    """Otherwise a body without end would still be read."""
    pod = RunningPod(tmp_path / "pod", [{"name": "hotel", "uri": published(tmp_path, "1")}], {"requestKib": 1})
    refused = {
        401: HEADER.replace(TOKEN, "wrong"),
        404: HEADER.replace("/api/generate", "/api/pull"),
        413: HEADER,
    }
    with pod.ready():
        for status, head in refused.items():
            with socket.create_connection(("127.0.0.1", pod.port), timeout=20) as connection:
                connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
                sent = 0
                with pytest.raises(OSError):
                    while sent < 10**9:
                        connection.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
                        sent += 4096
                assert sent < 20_000_000, status


def run(action: Any) -> Any:
    return asyncio.run(action)


def queue(slots: int, places: int) -> EngineQueue:
    return EngineQueue(slots, places, Gauge("queue", "", registry=CollectorRegistry()))


def test_clients_get_the_engine_in_turn() -> None:
    served: list[str] = []

    async def answered(place: Place, name: str) -> None:
        await place.slot()
        served.append(name)
        await asyncio.sleep(0)
        place.leave()

    async def all_answered() -> None:
        waiting = queue(1, 20)
        names = [*"aaaaa", *"bb", "c"]
        places = [waiting.enter(name, other_clients=True) for name in names]
        await asyncio.gather(*(answered(place, name) for place, name in zip(places, names, strict=True)))
        assert waiting.pending == 0

    run(all_answered())
    assert "".join(served) == "aabcabaa"


def test_places_are_limited_and_given_back() -> None:
    async def used() -> None:
        waiting = queue(1, 4)
        places = [waiting.enter("a", other_clients=True) for _ in range(2)]
        with pytest.raises(FullQueueError, match="2 requests of this client"):
            waiting.enter("a", other_clients=True)
        places += [waiting.enter("b", other_clients=True) for _ in range(2)]
        with pytest.raises(FullQueueError, match="4 requests are already pending"):
            waiting.enter("c", other_clients=True)
        for place in places:
            place.leave()
        assert [waiting.enter("a", other_clients=False) for _ in range(4)]

    run(used())


def test_a_slot_is_not_lost_when_a_request_that_waits_is_canceled() -> None:
    async def canceled() -> None:
        waiting = queue(1, 9)
        first, second, third = (waiting.enter("a", other_clients=False) for _ in range(3))
        await first.slot()
        tasks = [asyncio.ensure_future(place.slot()) for place in (second, third)]
        await asyncio.sleep(0)
        first.leave()  # gives the slot to the second, which is canceled before it runs again
        tasks[0].cancel()
        await asyncio.gather(tasks[0], return_exceptions=True)
        second.leave()
        await asyncio.wait_for(tasks[1], 5)
        third.leave()
        fourth = waiting.enter("a", other_clients=False)
        await asyncio.wait_for(fourth.slot(), 5)
        fourth.leave()
        assert waiting.pending == 0

    run(canceled())


def test_a_place_is_kept_until_the_background_action_ends() -> None:
    async def kept() -> None:
        waiting, end = queue(1, 1), asyncio.Event()

        async def action() -> None:
            await end.wait()

        place = waiting.enter("a", other_clients=False)
        await place.slot()
        place.keep_until(action())
        place.leave()
        assert waiting.pending == 1
        end.set()
        await asyncio.sleep(0.01)
        assert waiting.pending == 0

    run(kept())


def test_a_client_that_does_not_read_a_streamed_answer_gives_its_place_back_once(tmp_path: Path) -> None:
    uri, database = published(tmp_path, "1"), hotel_database(tmp_path / "hotel.sqlite")
    release = Release.model_validate({"models": [{"name": "m", "uri": uri}], "databases": {"hotel": database}})
    model = ServedModel("m:1", tmp_path / "m.gguf", "0" * 64, DEEPSEEK3, 4096)
    state, metrics = PodState(admitted={"m": Admitted(model, "digest", None, None)}, loaded=True), Metrics()

    async def never_reads(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def asked(endpoint: str) -> None:
        body = json.dumps({"question": "x", "stream": True}).encode()
        sent = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Message:
            for message in sent:
                return message
            await asyncio.Event().wait()
            raise AssertionError

        engine = Engine(EngineClient(endpoint), state, metrics, 120)
        places = EngineQueue(1, 9, metrics.queue)
        service = AskService(release, {"m": read_manifest(uri)}, {}, state, metrics, engine, endpoint)
        access = AccessControl(
            service.handlers(), state, BearerTokens(None), metrics, "", places, 2, 10**6, RequestLog("none")
        )
        scope = {"type": "http", "method": "POST", "path": "/ask", "headers": [], "query_string": b""}
        await access(scope, receive, never_reads)
        await asyncio.sleep(0.5)
        assert places.pending == 0
        first, second = (places.enter("a", other_clients=False) for _ in range(2))
        await asyncio.wait_for(first.slot(), 5)
        with pytest.raises(TimeoutError):  # there is one slot, not two
            await asyncio.wait_for(second.slot(), 0.5)

    handler = type("Recording", (Endpoint,), {"prompts": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        run(asked(f"http://127.0.0.1:{server.server_port}"))
        server.shutdown()
