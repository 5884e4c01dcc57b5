"""The load of the soak: clients, samples of what the pods use, and the accounts at the end."""

import asyncio
import contextlib
import csv
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from random import Random
from typing import Any, Protocol

from tests.soak.accounts import Judgment, Outcome, Rules, Snapshot, differences, judge, read_log
from tests.soak.clients import Connection, Exchange, send
from tests.soak.events import Event, Site
from tests.soak.mix import Target, plan
from tests.soak.pods import REQUEST_SECONDS, Pod
from tests.soak.processes import COLUMNS, Usage, usage
from tests.soak.tokens import Tokens

SAMPLE_SECONDS = 2.0
PROGRESS_SECONDS = 5.0
PAUSE_SECONDS = 1.0  # the longest pause of a client between two requests
# Idle connections to Ollama are closed after 15 s, and answers whose clients left are read to their end.
SETTLE_SECONDS = 20.0
MORE_SECONDS = 60.0  # than the time limit of an answer, after which a client misses its response
EMPTY_SECONDS = 60.0  # until the queue is empty after the last request


class Endpoint(Protocol):
    """A pod, or a Service in a cluster."""

    name: str
    endpoint: str
    disturbed: list[tuple[float, float]]


class Load:
    """Clients that send requests, and the outcome of each request.

    Args:
        seed: Seed of all random choices.
        target: What is asked.
        tokens: The clients' tokens.
        next_endpoint: Returns where the next new connection leads; None while there is no place.
        request_seconds: The time limit of an answer.
    """

    def __init__(
        self,
        seed: int,
        target: Target,
        tokens: Tokens,
        next_endpoint: Callable[[], Endpoint | None],
        request_seconds: float = REQUEST_SECONDS,
    ) -> None:
        self._seed, self._target, self._tokens, self._next = seed, target, tokens, next_endpoint
        self._seconds = request_seconds
        self.results: list[tuple[Exchange, Judgment]] = []
        self.counts: Counter[Outcome] = Counter()
        self._in_flight: list[Exchange] = []
        self._flows, self._is_over = asyncio.Event(), False
        self._clients: list[asyncio.Task[None]] = []

    def start(self, clients: int) -> None:
        """Let this number of clients send requests."""
        self._flows.set()
        self._clients = [asyncio.create_task(self._client(number)) for number in range(clients)]

    async def pause(self) -> None:
        """Let the clients finish their requests and close their connections."""
        self._flows.clear()
        while self._in_flight:
            await asyncio.sleep(0.1)

    def resume(self) -> None:
        """Continue after a pause."""
        self._flows.set()

    async def finish(self) -> None:
        """Let the clients finish their requests and end."""
        self._is_over = True
        self._flows.set()
        await asyncio.gather(*self._clients)

    def in_flight(self, name: str = "") -> list[Exchange]:
        """Requests without a complete response yet, of one pod or of all."""
        return [record for record in self._in_flight if not name or record.pod == name]

    async def _client(self, number: int) -> None:
        random = Random(f"{self._seed} {number}")
        kept: tuple[Connection, Endpoint] | None = None
        while not self._is_over:
            if kept and not self._flows.is_set():
                kept[0].close()
                kept = None
            await self._flows.wait()
            asked = plan(random, self._target)
            if asked.reads and kept:  # it needs a connection with small buffers
                kept[0].close()
                kept = None
            place = kept[1] if kept else self._next()
            if place is None:
                await asyncio.sleep(0.2)
                continue
            record = Exchange(asked, place.name, self._tokens.of(asked.client))
            self._in_flight.append(record)
            connection = await send(record, place.endpoint, kept[0] if kept else None, self._seconds + MORE_SECONDS)
            self._in_flight.remove(record)
            kept = (connection, place) if connection else None
            judgment = judge(record, self._rules(record, place))
            record.body.clear()  # thousands of answers would need much memory
            self.counts[judgment.outcome] += 1
            self.results.append((record, judgment))
            await asyncio.sleep(random.uniform(0, PAUSE_SECONDS))
        if kept:
            kept[0].close()

    def _rules(self, record: Exchange, place: Endpoint) -> Rules:
        disturbed = any(begun <= record.ended and record.begun <= ended for begun, ended in place.disturbed)
        return Rules(*self._tokens.statuses(record.token, record.sent), disturbed, self._seconds)


class Samples:
    """Measures the pods every few seconds, and writes a CSV file.

    Args:
        path: The file.
        pods: Returns the pods of now.
    """

    def __init__(self, path: Path, pods: Callable[[], list[Pod]]) -> None:
        self._pods = pods
        self.latest: dict[str, Usage] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self._file = path.open("w", encoding="utf-8", newline="")
        self._rows = csv.writer(self._file)
        self._rows.writerow(["seconds", "pod", *COLUMNS])
        self._begun = time.monotonic()

    async def run(self) -> None:
        """Measure until it is canceled."""
        while True:
            for pod in self._pods():
                await self.measure(pod)
            await asyncio.sleep(SAMPLE_SECONDS)

    async def measure(self, pod: Pod) -> Usage | None:
        """Measure a pod now; None if it is starting or has ended."""
        snapshot = await asyncio.to_thread(pod.metrics) if pod.proxy_pid else None
        if snapshot is None:
            return None
        self.snapshots[pod.name] = snapshot
        try:
            found = usage(pod.proxy_pid, pod.engine_pid, snapshot.queue)
        except OSError:  # a process has ended meanwhile
            return None
        self.latest[pod.name] = found
        self._rows.writerow([f"{time.monotonic() - self._begun:.1f}", pod.name, *found.row()])
        self._file.flush()
        return found

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@contextlib.contextmanager
def background(*actions: Coroutine[Any, Any, None]) -> Iterator[None]:
    """Run actions until the block ends."""
    tasks = [asyncio.create_task(action) for action in actions]
    try:
        yield
    finally:
        for task in tasks:
            if not task.cancel():
                task.result()  # raises the error that ended it


async def progress(load: Load, about: Callable[[], str]) -> None:
    """Print a line every few seconds."""
    begun = time.monotonic()
    while True:
        await asyncio.sleep(PROGRESS_SECONDS)
        counts = ", ".join(
            f"{load.counts[outcome]} {outcome.name.lower()}" for outcome in Outcome if load.counts[outcome]
        )
        print(
            f"{time.monotonic() - begun:5.0f} s: {len(load.results)} requests ({counts}), "
            f"{len(load.in_flight())} in flight; {about()}",
            flush=True,
        )


async def settled(pod: Pod, samples: Samples) -> Usage | None:
    """Wait until nothing is pending in a pod, and a while longer, and measure what it uses then."""
    until = time.monotonic() + EMPTY_SECONDS
    while (found := await samples.measure(pod)) is None or found.queue:
        if time.monotonic() > until:
            break
        await asyncio.sleep(0.5)
    await asyncio.sleep(SETTLE_SECONDS)
    return await samples.measure(pod)


def unequal_accounts(site: Site, load: Load, samples: Samples) -> list[str]:
    """Differences between what the clients, the metrics and the request logs of all pods count."""
    found: list[str] = []
    for pod in site.retired:
        records = [record for record, _ in load.results if record.pod == pod.name]
        logged = read_log(pod.running.root / "proxy.log")
        found += differences(pod.name, records, logged, samples.snapshots.get(pod.name))
    return found


def in_flight_outcomes(load: Load, events: list[Event]) -> dict[str, Counter[str]]:
    """Outcomes of the requests that a pod was answering when something happened to it, by event and kind of request."""
    judged = {id(record): judgment for record, judgment in load.results}
    found: dict[str, Counter[str]] = {}
    for event in events:
        for record in event.in_flight:
            form = "streamed" if record.plan.streamed else "not streamed"
            outcome = judged[id(record)].outcome
            status = f" {record.status}" if outcome in (Outcome.REFUSED, Outcome.NAMED_ERROR) else ""
            found.setdefault(f"{event.kind}, {form}", Counter())[f"{outcome.name.lower()}{status}"] += 1
    return found
