"""The pod compared with a plain Ollama in the same run: startup, latency, requests per second, the proxy's overhead.

`make bench` measures a tiny model, which is so fast that the proxy's overhead is visible. CHATMETRICS_BENCH_MODEL is
the folder of a published version to measure instead.
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
from chatmetrics.components.nl2sql.prompts.prompt import instruction
from chatmetrics.components.nl2sql.prompts.template import DEEPSEEK3
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
    return DEEPSEEK3.prompt(schema, instruction("shop"), f"How many rows has table {number}?")


def show(label: str, seconds: list[float]) -> None:
    cuts = statistics.quantiles(seconds, n=100)
    print(f"  {label:<46} p50 {1000 * cuts[49]:8.2f} ms   p99 {1000 * cuts[98]:8.2f} ms")


def asking(session: aiohttp.ClientSession, model: str, stream: bool = True) -> Ask:
    async def ask(text: str) -> tuple[float, float]:
        """Return the seconds to the first token and to the end of the answer."""
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
    """Measure all in turn, so that other load on the machine affects each equally."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in asks}
    for number, text in enumerate(texts):
        for name in list(asks)[:: 1 if number % 2 else -1]:
            times[name].append(await asks[name](text))
    return times


def overhead(times: dict[str, list[tuple[float, float]]]) -> float:
    """Milliseconds by which the second median exceeds the first."""
    first, second = (statistics.median(total for _, total in taken) for taken in times.values())
    return 1000 * (second - first)


async def rate(ask: Ask, clients: int, seconds: float = 5.0) -> float:
    """Answers per second with this number of clients."""
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
        asks = {"plain Ollama": asking(plain, model), "through the proxy": asking(through, model)}
        for name, ask in asks.items():
            # A different schema for each prompt, so that nothing is in the server's cache.
            cold = [await ask(prompt(number, TABLES.replace("table", f"{name[0]}{number}_"))) for number in range(20)]
            show(f"{name}, cold schema, first token", [first for first, _ in cold])
        times = await interleaved(asks, [prompt(number) for number in range(PAIRS)])
        for name, taken in times.items():
            show(f"{name}, warm schema, first token", [first for first, _ in taken])
            show(f"{name}, warm schema, complete answer", [total for _, total in taken])
        print(f"  overhead of the proxy at p50, streamed answer: {overhead(times):.2f} ms")
        unstreamed = {"plain Ollama": asking(plain, model, False), "through the proxy": asking(through, model, False)}
        times = await interleaved(unstreamed, [prompt(number) for number in range(PAIRS)])
        print(f"  overhead of the proxy at p50, answer without streaming: {overhead(times):.2f} ms")
        print(f"  overhead of /ask at p50: {1000 * await ask_overhead(through, asks['plain Ollama']):.2f} ms")
        for clients in (1, 4, 16):
            rates = [f"{name} {await rate(ask, clients):.0f}" for name, ask in asks.items()]
            print(f"  answers per second, {clients} clients, concurrency {concurrency}: {', '.join(rates)}")


async def ask_overhead(session: aiohttp.ClientSession, ask: Ask) -> float:
    """Median seconds that /ask takes in addition to Ollama's answer to the same prompt and the query."""
    overheads = []
    async with session.get("/databases/hotel") as answer:
        ddl = (await answer.json())["ddl"]
    for number in range(PAIRS):
        question = f"How many hotels has city {number}?"
        _, model = await ask(DEEPSEEK3.prompt(ddl, instruction("hotel"), question))
        started = time.perf_counter()
        async with session.post("/ask", json={"question": question}) as answered:
            body: dict[str, Any] = await answered.json()
        overheads.append(time.perf_counter() - started - model - body["timing"]["database_ms"] / 1000)
    return statistics.median(overheads)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_bench_serve(tmp_path: Path, concurrency: int) -> None:
    given = os.environ.get("CHATMETRICS_BENCH_MODEL", "")
    uri = given or published(tmp_path, "1", context_length=4096, cutoff_length=4096)
    model = served_model(read_manifest(uri), "hotel", tmp_path).name
    pod = RunningPod(tmp_path / "pod", [{"name": "hotel", "uri": uri}], {"concurrency": concurrency})
    print(f"\n{model}, OLLAMA_NUM_PARALLEL {concurrency}")
    started = time.perf_counter()
    with pod.ready():
        print(
            f"  cold start, from fetch to ready (including the acceptance test): {time.perf_counter() - started:.1f} s"
        )
        asyncio.run(measure(pod, model, concurrency))
