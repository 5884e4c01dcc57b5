"""Pods on this machine, and what Kubernetes does for them: restarts, probes, a Service, and Secrets."""

import asyncio
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.serve.pods import RunningPod
from tests.soak.accounts import Snapshot
from tests.soak.processes import family, is_running
from tests.soak.tokens import Tokens

# As in the chart (helm/chatmetrics-ollama/templates/_containers.tpl), except the time for which a pod drains.
PROBE_SECONDS = 2.0
FAILED_PROBES = 2  # after which a pod gets no new requests
HANGS_SECONDS = 2.0  # of grace for an Ollama that hangs
DRAIN_SECONDS = 3.0
UNROUTED_SECONDS = 1.0  # until a Service sends nothing more to a terminating pod
START_SECONDS = 120.0
REQUEST_SECONDS = 15.0
SECONDS_TO_READ = 2.5  # a pod reads a changed folder of tokens again after a second
SETTINGS: dict[str, Any] = {
    "concurrency": 2,
    "queue": 12,
    "requestSeconds": REQUEST_SECONDS,
    "drainSeconds": DRAIN_SECONDS,
}


def write_tokens(tokens: Tokens, folder: Path) -> None:
    """Write the tokens to a pod's folder as the kubelet does: each file is replaced at once."""
    for name, token in tokens.current.items():
        new = folder.with_name(f"new-{name}")
        new.write_text(token, "utf-8")
        new.replace(folder / name)


class Pod:
    """A pod of the chart: fetch, then Ollama and the proxy, which are probed and restarted until the pod is stopped.

    Args:
        root: Its folder, which is its volume too.
        models: The models of its release.
        tokens: The clients' tokens.
        report: Called with what happens.
    """

    def __init__(self, root: Path, models: list[dict[str, Any]], tokens: Tokens, report: Callable[[str], None]) -> None:
        self.name = root.name
        self.running = RunningPod(root, models, SETTINGS)
        self.endpoint = self.running.endpoint
        self.token_folder = root / "tokens"
        write_tokens(tokens, self.token_folder)
        self.is_routed = False  # whether the Service sends requests to it
        self.fetches = self.engine_restarts = 0
        self.disturbed: list[tuple[float, float]] = []  # times in which its engine is killed or stopped
        self.proxy_status: int | None = None
        self._stuck, self._is_ending = root / "state" / "stuck", False
        self._report, self._containers, self._engine = report, ExitStack(), ExitStack()
        self._proxy: subprocess.Popen[str]  # both exist once there is a kubelet
        self._ollama: subprocess.Popen[bytes]
        self._kubelet: asyncio.Task[None] | None = None
        self._http = httpx.Client(base_url=self.running.health, timeout=PROBE_SECONDS, trust_env=False)

    @property
    def proxy_pid(self) -> int:
        """Process id of the proxy; 0 if it does not run."""
        return self._proxy.pid if self._kubelet and self._proxy.poll() is None else 0

    @property
    def engine_pid(self) -> int:
        """Process id of Ollama's server; 0 if it does not run."""
        return self._ollama.pid if self._kubelet and self._ollama.poll() is None else 0

    async def start(self) -> None:
        """Run the init container until it succeeds, start the others, and wait until the pod is ready.

        Raises:
            RuntimeError: It is not ready in time.
        """
        deadline = time.monotonic() + START_SECONDS
        while True:
            self.fetches += 1
            fetched = await asyncio.to_thread(self.running.fetch)
            if fetched.returncode == 0:
                break
            self._report(f"{self.name}: fetch ended with status {fetched.returncode}: {fetched.stderr.strip()[-200:]}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name}: the models could not be fetched")
            await asyncio.sleep(PROBE_SECONDS)
        self._start_engine()
        self._proxy = self._containers.enter_context(self.running.proxy())
        self._kubelet = asyncio.create_task(self._supervise())
        await self.routed(deadline)

    async def routed(self, deadline: float) -> None:
        """Wait until the pod is ready and gets requests.

        Raises:
            RuntimeError: It is not ready in time.
        """
        while not self.is_routed:
            if time.monotonic() > deadline or self._proxy.poll() is not None:
                raise RuntimeError(f"{self.name} is not ready; its log ends with: {self.running.log()[-2000:]}")
            await asyncio.sleep(0.1)

    def is_ready(self) -> bool:
        """Whether the readiness probe succeeds."""
        try:
            return self._http.get("/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def metrics(self) -> Snapshot | None:
        """The metrics of now; None if the proxy does not respond."""
        before = time.time()
        try:
            text = self._http.get("/metrics").text
        except httpx.TransportError:
            return None
        return Snapshot(before, time.time(), text)

    @contextmanager
    def disturbance(self) -> Iterator[None]:
        """A time in which requests may fail because of the engine."""
        begun = time.time()
        self.disturbed.append((begun, math.inf))
        try:
            yield
        finally:
            self.disturbed[-1] = begun, time.time()

    async def stop(self) -> None:
        """Terminate the pod: it drains, and its engine ends last."""
        assert self._kubelet
        self._proxy.send_signal(signal.SIGTERM)
        await asyncio.sleep(UNROUTED_SECONDS)
        self._is_ending, self.is_routed = True, False
        await asyncio.to_thread(self._containers.close)
        self.proxy_status = self._proxy.returncode
        self._kubelet.cancel()
        await asyncio.to_thread(self._engine.close)

    def end(self) -> None:
        """Kill all processes that still run, whatever their state."""
        self.signal_engine(signal.SIGKILL, with_server=True)
        if self.proxy_pid:
            self._proxy.kill()
        if self._kubelet:
            self._kubelet.cancel()
        self._engine.close()
        self._containers.close()

    def signal_engine(self, number: signal.Signals, with_server: bool) -> list[int]:
        """Send a signal to Ollama's runners, which compute, and perhaps to its server; returns their ids."""
        chosen = family(self.engine_pid)[0 if with_server else 1 :]
        for pid in chosen:
            os.kill(pid, number)
        return chosen

    def has_other_engine(self, pids: list[int]) -> bool:
        """Whether Ollama's server and a runner for each model run, and none of some processes."""
        running = family(self.engine_pid)
        return (
            len(running) == 1 + len(self.running.models) and not any(map(is_running, pids)) and not {*running} & {*pids}
        )

    def _start_engine(self) -> None:
        self._ollama = self._engine.enter_context(self.running.ollama())

    async def _supervise(self) -> None:
        """Restart Ollama's container, and send requests to the pod while its readiness probe succeeds."""
        failed = 0
        while True:
            if self._stuck.exists() and self.engine_pid:
                self._report(f"{self.name}: the liveness probe of Ollama fails")
                await asyncio.sleep(HANGS_SECONDS)
                self.signal_engine(signal.SIGKILL, with_server=True)
            if self._ollama.poll() is not None:
                await asyncio.to_thread(self._engine.close)
                self.engine_restarts += 1
                self._start_engine()
            failed = 0 if await asyncio.to_thread(self.is_ready) else failed + 1
            is_ready = not failed or (self.is_routed and failed < FAILED_PROBES)
            self.is_routed = is_ready and not self._is_ending
            await asyncio.sleep(PROBE_SECONDS)


class Service:
    """Sends each request to the next pod that is ready."""

    def __init__(self) -> None:
        self.pods: list[Pod] = []
        self._turn = 0

    def next(self) -> Pod | None:
        """The pod for the next new connection; None while none is ready."""
        routed = [pod for pod in self.pods if pod.is_routed]
        if not routed:
            return None
        self._turn += 1
        return routed[self._turn % len(routed)]
