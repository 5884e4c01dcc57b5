"""What happens to the pods during the soak, one event after the other."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.soak.clients import Exchange
from tests.soak.pods import SECONDS_TO_READ, START_SECONDS, Pod, Service, write_tokens
from tests.soak.store import Line
from tests.soak.tokens import Tokens

OUTAGE_SECONDS = 12.0
INTERRUPTED = "drained; 0 requests were interrupted"  # in the log of a pod that finished all requests


@dataclass
class Event:
    """Something that happened.

    Attributes:
        kind: What.
        pod: The pod's name, or several.
        begun: Time, in seconds since the epoch.
        ended: Time when the pods were ready again.
        in_flight: Requests that this pod was answering when it began.
        note: What was seen.
    """

    kind: str
    pod: str
    begun: float = field(default_factory=time.time)
    ended: float = 0.0
    in_flight: list[Exchange] = field(default_factory=list)
    note: str = ""


class Site:
    """The pods behind a Service, the store, and the tokens.

    Args:
        folder: Folder of the pods.
        models: Models of the release.
        line: The line to the store.
        in_flight: Returns the requests that a pod is answering now.
        report: Called with what happens.
        complain: Called with what is wrong.
    """

    def __init__(
        self,
        folder: Path,
        models: list[dict[str, Any]],
        line: Line,
        in_flight: Callable[[str], list[Exchange]],
        report: Callable[[str], None],
        complain: Callable[[str], None],
    ) -> None:
        first = {name: f"first-token-of-{name}" for name in ("analyst", "other")}
        self.tokens = Tokens(first, SECONDS_TO_READ)
        self.service, self.retired = Service(), list[Pod]()
        self._folder, self._models, self._line, self._in_flight = folder, models, line, in_flight
        self._report, self._complain = report, complain
        self.events: list[Event] = []

    async def start_pod(self) -> Pod:
        """Start one more pod and wait until it gets requests.

        Raises:
            RuntimeError: It does not become ready.
        """
        number = len(self.retired) + len(self.service.pods) + 1
        pod = Pod(self._folder / f"pod-{number}", self._models, self.tokens, self._report)
        self.service.pods.append(pod)
        await pod.start()
        return pod

    async def stop_pod(self, pod: Pod) -> None:
        """Terminate a pod, which must finish its requests."""
        await pod.stop()
        self.service.pods.remove(pod)
        self.retired.append(pod)
        if pod.proxy_status != 0:
            self._complain(f"{pod.name}: the proxy ended with status {pod.proxy_status} instead of 0")
        if INTERRUPTED not in pod.running.log():
            self._complain(f"{pod.name}: it did not finish all requests before it ended; see its proxy.log")

    async def kill_engine(self, random: Random) -> None:
        """End Ollama's container, which Kubernetes restarts."""
        await self._disturb(random, "engine killed", signal.SIGKILL, with_server=True)

    async def kill_runners(self, random: Random) -> None:
        """End the processes that compute; Ollama itself starts others."""
        await self._disturb(random, "runners killed", signal.SIGKILL, with_server=False)

    async def stop_engine(self, random: Random) -> None:
        """Stop Ollama's container. The proxy must notice it, so that the liveness probe fails."""
        await self._disturb(random, "engine stopped", signal.SIGSTOP, with_server=True)

    async def stop_runners(self, random: Random) -> None:
        """Stop the processes that compute. Ollama replaces them, or the proxy notices it."""
        await self._disturb(random, "runners stopped", signal.SIGSTOP, with_server=False)

    async def rotate_token(self, random: Random) -> None:
        """Replace a client's token. From then on the old one must be refused."""
        event = self._event("token rotated", "all")
        self.tokens.replace("analyst", f"token-{len(self.events)}-of-analyst")
        for pod in self.service.pods:
            write_tokens(self.tokens, pod.token_folder)
        await asyncio.sleep(2 * SECONDS_TO_READ)
        event.ended = time.time()

    async def roll_out(self, random: Random) -> None:
        """Replace the newest pod: the next one must be ready before the old one ends, which finishes its requests."""
        event = self._event("rollout", "")
        await self._replace(event, self.start_pod())

    async def roll_out_without_store(self, random: Random) -> None:
        """The same while S3 is not available for a while: the new pod must wait, and start when S3 is back."""
        event = self._event("rollout while S3 is unavailable", "")
        self._line.cut()
        starting = asyncio.ensure_future(self.start_pod())
        await asyncio.sleep(OUTAGE_SECONDS)
        if starting.done():
            self._complain("a pod did not wait for S3, which was not available")
        await self._line.restore()
        restored = time.time()
        await self._replace(event, starting)
        event.note = f"{event.note}; ready {event.ended - restored:.0f} s after S3 was back"

    async def _replace(self, event: Event, starting: Awaitable[Pod]) -> None:
        new = await starting
        old = self.service.pods[-2]
        event.pod, event.ended = f"{old.name} by {new.name}", time.time()
        event.in_flight = self._in_flight(old.name)
        await self.stop_pod(old)
        event.note = f"fetch ran {new.fetches} times, drained in {time.time() - event.ended:.0f} s"

    async def _disturb(self, random: Random, kind: str, number: signal.Signals, with_server: bool) -> None:
        """Send a signal to the processes of an engine, and wait until others have replaced them."""
        pod = random.choice(self.service.pods)
        event = self._event(kind, pod.name)
        event.in_flight = self._in_flight(pod.name)
        restarts, unready, until = pod.engine_restarts, 0.0, time.time() + START_SECONDS
        with pod.disturbance():
            signaled = pod.signal_engine(number, with_server)
            while time.time() < until:
                is_ready = await asyncio.to_thread(pod.is_ready)
                unready = unready or (0.0 if is_ready else time.time())
                if is_ready and pod.has_other_engine(signaled) and pod.is_routed:
                    break
                await asyncio.sleep(0.1)
            else:
                self._complain(f"{pod.name}: {kind}, and {START_SECONDS:g} s later it does not work again")
        event.ended = time.time()
        by = "Kubernetes" if pod.engine_restarts > restarts else "Ollama"
        noticed = f"not ready after {unready - event.begun:.1f} s" if unready else "ready all the time"
        event.note = f"{noticed}, replaced by {by}, works again after {event.ended - event.begun:.0f} s"

    def _event(self, kind: str, pod: str) -> Event:
        event = Event(kind, pod)
        self.events.append(event)
        self._report(f"{kind} {pod}")
        return event
