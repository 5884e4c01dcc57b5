"""The pod beside a plain Ollama, in one run: start, times of an answer, requests a second, what the proxy adds.

`make bench` measures a tiny model, whose own time hides little of the proxy's; CHATMETRICS_BENCH_MODEL, the folder of
a published version, measures that one.
"""

import asyncio
import json
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from chatmetrics.components.inference.client import ollama_request
from chatmetrics.components.nl2sql.prompt import instruction, render_prompt
from chatmetrics.components.serve.model import served_model
from chatmetrics.components.storage.manifest import read_manifest
from tests.serve.pods import TOKEN, RunningPod, needs_ollama, published

pytestmark = needs_ollama
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
PAIRS = 200
TABLES = "\n".join(
    f"CREATE TABLE table{number} (\nid INTEGER PRIMARY KEY,\nname TEXT,\nprice REAL,\ncity TEXT\n);"
    for number in range(int(os.environ.get("CHATMETRICS_BENCH_TABLES", "8")))
)
Ask = Callable[[str], Awaitable[tuple[float, float]]]


def prompt(number: int, schema: str = TABLES) -> str:
    return render_prompt(schema, instruction("shop"), f"How many rows has table {number}?")


def show(what: str, seconds: list[float]) -> None:
    cuts = statistics.quantiles(seconds, n=100)
    print(f"  {what:<46} p50 {1000 * cuts[49]:8.2f} ms   p99 {1000 * cuts[98]:8.2f} ms")


def asking(session: aiohttp.ClientSession, model: str, stream: bool = True) -> Ask:
    async def ask(text: str) -> tuple[float, float]:
        """Seconds to the first token and to the end of an answer."""
        started, first = time.perf_counter(), 0.0
        request = {**ollama_request(model, text, 32), "stream": stream}
        async with session.post("/api/generate", json=request) as answer:
            async for line in answer.content:
                first = first or time.perf_counter() - started
                end = json.loads(line)
        assert end["done"], end
        return first, time.perf_counter() - started

    return ask


async def interleaved(asks: dict[str, Ask], texts: list[str]) -> dict[str, list[tuple[float, float]]]:
    """Ask all in turn, so that what else the machine does falls on each alike."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in asks}
    for number, text in enumerate(texts):
        for name in list(asks)[:: 1 if number % 2 else -1]:
            times[name].append(await asks[name](text))
    return times


def added(times: dict[str, list[tuple[float, float]]]) -> float:
    """Milliseconds by which the second of two medians is more than the first."""
    first, second = (statistics.median(whole for _, whole in taken) for taken in times.values())
    return 1000 * (second - first)


async def rate(ask: Ask, clients: int, seconds: float = 5.0) -> float:
    """Answers a second that so many clients get."""
    done, until = 0, time.perf_counter() + seconds

    async def client() -> None:
        nonlocal done
        while time.perf_counter() < until:
            await ask(prompt(1))
            done += 1

    await asyncio.gather(*(client() for _ in range(clients)))
    return done / seconds


async def measure(pod: RunningPod, model: str, concurrency: int) -> None:
    plain = aiohttp.ClientSession(f"http://127.0.0.1:{pod.ollama_port}")
    through = aiohttp.ClientSession(pod.endpoint, headers=HEADERS)
    async with plain, through:
        asks = {"Ollama itself": asking(plain, model), "through the proxy": asking(through, model)}
        for name, ask in asks.items():
            # Another schema each time: nothing of it is in the server's cache.
            cold = [await ask(prompt(number, TABLES.replace("table", f"{name[0]}{number}_"))) for number in range(20)]
            show(f"{name}, cold schema, first token", [first for first, _ in cold])
        times = await interleaved(asks, [prompt(number) for number in range(PAIRS)])
        for name, taken in times.items():
            show(f"{name}, warm schema, first token", [first for first, _ in taken])
            show(f"{name}, warm schema, whole answer", [whole for _, whole in taken])
        print(f"  the proxy adds at p50 to a streamed answer: {added(times):.2f} ms")
        at_once = {"Ollama itself": asking(plain, model, False), "through the proxy": asking(through, model, False)}
        times = await interleaved(at_once, [prompt(number) for number in range(PAIRS)])
        print(f"  the proxy adds at p50 to an answer in one piece: {added(times):.2f} ms")
        print(f"  /ask adds at p50: {1000 * await ask_service(through, asks['Ollama itself']):.2f} ms")
        for clients in (1, 4, 16):
            rates = [f"{name} {await rate(ask, clients):.0f}" for name, ask in asks.items()]
            print(f"  answers a second, {clients} clients, {concurrency} at once: {', '.join(rates)}")


async def ask_service(session: aiohttp.ClientSession, ask: Ask) -> float:
    """What /ask takes beyond the answer of Ollama to the same prompt and the query in the database."""
    beyond = []
    async with session.get("/databases/hotel") as answer:
        ddl = (await answer.json())["ddl"]
    for number in range(PAIRS):
        question = f"How many hotels has city {number}?"
        _, model = await ask(render_prompt(ddl, instruction("hotel"), question))
        started = time.perf_counter()
        async with session.post("/ask", json={"question": question}) as answered:
            body: dict[str, Any] = await answered.json()
        beyond.append(time.perf_counter() - started - model - body["timing"]["database_ms"] / 1000)
    return statistics.median(beyond)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_bench_serve(tmp_path: Path, concurrency: int) -> None:
    given = os.environ.get("CHATMETRICS_BENCH_MODEL", "")
    uri = given or published(tmp_path, "1", context_length=4096, cutoff_length=4096)
    model = served_model(read_manifest(uri), "hotel", tmp_path).name
    pod = RunningPod(tmp_path / "pod", [{"name": "hotel", "uri": uri}], {"concurrency": concurrency})
    print(f"\n{model}, OLLAMA_NUM_PARALLEL {concurrency}")
    started = time.perf_counter()
    with pod.ready():
        print(f"  cold start, fetch to ready (acceptance test included): {time.perf_counter() - started:.1f} s")
        asyncio.run(measure(pod, model, concurrency))
