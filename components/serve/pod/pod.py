"""The proxy container: it admits models, serves requests, and finishes pending requests before the pod ends."""

import asyncio
import gc
import signal
import threading
import time
from dataclasses import replace
from types import FrameType

import httpx
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from chatmetrics.components.console import info, warning
from chatmetrics.components.errors import ServiceError, StorageError
from chatmetrics.components.inference.process import bound_socket
from chatmetrics.components.nl2sql.databases.addresses import is_address
from chatmetrics.components.nl2sql.descriptions import read_descriptions
from chatmetrics.components.serve.model import served_model
from chatmetrics.components.serve.model_management import TIMEOUT, ModelManagement
from chatmetrics.components.serve.pod.access import AccessControl
from chatmetrics.components.serve.pod.admission import admit
from chatmetrics.components.serve.pod.ask_service import AskService
from chatmetrics.components.serve.pod.bearer_tokens import BearerTokens
from chatmetrics.components.serve.pod.connection import Connection
from chatmetrics.components.serve.pod.engine.client import EngineClient
from chatmetrics.components.serve.pod.engine.engine import Engine
from chatmetrics.components.serve.pod.engine.queue import EngineQueue
from chatmetrics.components.serve.pod.metrics import Metrics
from chatmetrics.components.serve.pod.pod_state import PodState
from chatmetrics.components.serve.pod.proxy import Proxy
from chatmetrics.components.serve.pod.request_checks import IGNORED_HEADER
from chatmetrics.components.serve.pod.request_log import RequestLog
from chatmetrics.components.serve.release import Release
from chatmetrics.components.serve.volume.model_store import SECONDS_BETWEEN_MARKS, ModelStore

SECONDS_BETWEEN_CHECKS = 2.0
SECONDS_FOR_START = 30.0
PROBE_SECONDS = 15.0  # for one token
ATTEMPTS = 5  # to load the models while Ollama fails and Kubernetes restarts its container
ANSWERING = "answering"  # a file; while it exists, Ollama's container does not exit
STUCK = "stuck"  # a file; while it exists, Ollama's liveness probe fails
EXTRA_SECONDS = 10.0  # for receiving a request and sending its response, in addition to the model's and the query's
HOST = "0.0.0.0"
KEEP_ALIVE = 75  # seconds


class _Ended(Exception):
    """SIGTERM was received while no model was loaded and no request was pending."""


class ModelPod:
    """The server in the container `proxy`.

    Args:
        release: Models, databases and limits.
        ollama: Ollama's endpoint, inside the pod.
        threads: Number of threads that a model computes with.
        port: Port for requests.
        management_port: Port for health checks and metrics.

    Raises:
        InputError: A database or a value of the release cannot be used.
        StorageError: A model is not on the volume, or is not the one that passed the gate.
        ServiceError: A port is already in use.
    """

    def __init__(self, release: Release, ollama: str, threads: int, port: int, management_port: int) -> None:
        self._release, self._ollama, self._threads = release, ollama, threads
        self._state, self._metrics = PodState(), Metrics()
        self._store = ModelStore(release.store, release.served, release.manifest_key)
        self._marked = -SECONDS_BETWEEN_MARKS
        self._manifests = {model.name: self._store.manifest(model.uri, model.sha256) for model in release.models}
        for model in release.models:
            self._store.verify(self._manifests[model.name])
            if not model.sha256:
                warning(
                    f"{model.name}: no sha256 of its manifest is given, so it is not known whether it passed the gate"
                )
        self._descriptions = {
            name: read_descriptions(self._store.folder(manifest)) for name, manifest in self._manifests.items()
        }
        self._answering = release.state / ANSWERING
        self._stuck = release.state / STUCK
        for file in (self._answering, self._stuck):
            file.unlink(missing_ok=True)  # left by a process that was killed
        self._tokens, self._log = BearerTokens(release.tokens), RequestLog(release.request_log)
        self._ending = threading.Event()
        self._queue = EngineQueue(release.concurrency, release.queue, self._metrics.queue)
        self._sockets = [bound_socket(number, HOST) for number in (port, management_port)]
        self._public = _server(self._public_application(), release.request_seconds)
        self._management = _server(self._management_application(), 1)

    def run(self) -> None:
        """Serve until SIGTERM, then finish the pending requests.

        Raises:
            GateError: A model failed its acceptance test.
            ServiceError: Ollama does not load a model.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        loop = threading.Thread(target=lambda: uvloop.run(self._serve()), daemon=True)
        loop.start()
        try:
            self._supervise(loop)
            self._drain()
        except _Ended:
            info("shutting down: no request is pending")
        finally:
            self._answering.unlink(missing_ok=True)
            self._stuck.unlink(missing_ok=True)
            self._public.should_exit = True
            if self._public.started:
                loop.join(self._release.request_seconds + SECONDS_FOR_START)

    def _end(self, number: int, frame: FrameType | None) -> None:
        first = not self._ending.is_set()
        self._ending.set()
        if first and not self._state.loaded and not self._unfinished():
            raise _Ended  # interrupts the wait for Ollama, because there is nothing to finish

    def _supervise(self, loop: threading.Thread) -> None:
        """Load the models, and load them again after Ollama was restarted."""
        with httpx.Client(base_url=self._ollama, timeout=TIMEOUT, trust_env=False) as http:
            management = ModelManagement(http)
            failures = 0
            while not self._ending.is_set():
                if not loop.is_alive():
                    raise ServiceError("the proxy's server exited; see its log above")
                try:
                    self._check(management)
                    failures = 0
                except ServiceError as error:
                    failures += 1
                    self._unready(str(error))
                    if failures == ATTEMPTS:
                        raise
                self._ending.wait(SECONDS_BETWEEN_CHECKS)

    def _check(self, management: ModelManagement) -> None:
        state, began = self._state, time.monotonic()
        match management.status():
            case "down":  # it ended, or is starting
                self._stuck.unlink(missing_ok=True)
                self._unready("Ollama")
                return
            case "hangs":
                self._unready("a restart of Ollama, which hangs")
                self._stuck.touch()
                return
        wanted = {admitted.digest for admitted in state.admitted.values()}
        if len(state.admitted) == len(self._release.models) and wanted <= management.loaded():
            silent = [
                model for model, since in list(state.timed_out_at.items()) if not state.answered_since(model, since)
            ]
            if not all(self._answers(management, model) for model in silent):
                self._unready("a restart of Ollama, which hangs")
                self._stuck.touch()
                return
            self._ready(True)
            state.confirmed_at = began
            self._mark()
            return
        self._unready("the models to load")
        for model in self._release.models:
            manifest = self._manifests[model.name]
            folder = self._store.folder(manifest)
            admitted = admit(
                management,
                self._ollama,
                replace(served_model(manifest, model.name, folder), manifest_sha256=model.sha256),
                folder / manifest.acceptance_test if manifest.acceptance_test else None,
                self._threads,
                model.threshold,
                {name: where for name, where in self._release.databases.items() if is_address(where)},
            )
            state.admitted = {**state.admitted, model.name: admitted}
            self._metrics.model.labels(admitted.model.name, admitted.digest).set(1)
            if admitted.score:
                self._metrics.right.labels(admitted.model.name).set(admitted.score.right)
                self._metrics.questions.labels(admitted.model.name).set(admitted.score.total)
        self._ready(True)
        state.confirmed_at = began

    def _answers(self, management: ModelManagement, model: str) -> bool:
        """Whether a model still answers after a request to it timed out."""
        asked_at = time.monotonic()
        if management.can_generate(model, min(PROBE_SECONDS, self._release.request_seconds)):
            self._state.note_answer(model)
        # If all slots are busy, this request may time out too, but then other answers have made progress.
        return self._state.answered_since(model, asked_at)

    def _mark(self) -> None:
        """Mark the versions on the volume as served, so that they are not deleted."""
        if time.monotonic() - self._marked >= SECONDS_BETWEEN_MARKS:
            self._marked = time.monotonic()
            try:
                for manifest in self._manifests.values():
                    self._store.mark_served(manifest)
            except StorageError as error:  # requests can still be answered
                warning(f"the served versions could not be marked as served: {error}")

    def _unready(self, waiting_for: str) -> None:
        if self._state.loaded or self._state.waiting_for != waiting_for:
            info(f"not ready: waiting for {waiting_for}")
        self._state.waiting_for = waiting_for
        self._ready(False)

    def _ready(self, loaded: bool) -> None:
        if loaded and not self._state.loaded:
            names = ", ".join(admitted.model.name for admitted in self._state.admitted.values())
            info(f"ready: {names}")
            gc.freeze()  # what exists now stays, so the collector need not look at it again
            self._stuck.unlink(missing_ok=True)
            self._answering.touch()
        self._state.loaded = loaded
        self._state.started |= loaded
        self._metrics.ready.set(self._state.ready)

    def _drain(self) -> None:
        """Accept requests until the pod is removed from the Service's endpoints, then finish the pending ones."""
        self._state.draining = True
        self._metrics.ready.set(0)
        seconds = self._release.drain_seconds
        info(f"shutting down: requests are accepted for another {seconds:g} s")
        time.sleep(seconds)
        self._public.should_exit = True
        deadline = time.monotonic() + self._release.request_seconds
        while self._unfinished() and time.monotonic() < deadline:
            time.sleep(0.05)
        info(f"drained; {self._unfinished()} requests were interrupted")

    def _unfinished(self) -> int:
        """Number of accepted requests."""
        # In this order: a request is in the queue before it no longer counts as arriving.
        return self._state.arriving + self._queue.pending

    async def _serve(self) -> None:
        public, management = self._sockets
        serving = asyncio.create_task(self._management.serve([management]))
        await self._public.serve([public])
        self._log.flush()
        self._management.should_exit = True
        await serving

    def _public_application(self) -> ASGIApp:
        release, state, metrics = self._release, self._state, self._metrics
        engine = Engine(EngineClient(self._ollama), state, metrics, release.request_seconds)
        proxy = Proxy(release, state, metrics, engine)
        asking = AskService(release, self._manifests, self._descriptions, state, metrics, engine, self._ollama)
        access = AccessControl(
            {**proxy.handlers(), **asking.handlers()},
            state,
            self._tokens,
            metrics,
            release.rate,
            self._queue,
            release.request_seconds + release.query.seconds + EXTRA_SECONDS,
            release.request_kib * 1024,
            self._log,
        )
        if not release.origins:
            return access
        # In front of the access control, because a browser asks for permission (preflight) without a token.
        return CORSMiddleware(
            access,
            allow_origins=release.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # libraries add their own; only the origins decide
            expose_headers=["Retry-After", IGNORED_HEADER],
        )

    def _management_application(self) -> Starlette:
        state = self._state

        async def metrics(request: Request) -> Response:
            return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

        async def live(request: Request) -> Response:
            return PlainTextResponse("alive")

        async def started(request: Request) -> Response:
            return _health(state.started, state.waiting_for)

        async def ready(request: Request) -> Response:
            return _health(state.ready, "the pod to shut down" if state.draining else state.waiting_for)

        return Starlette(
            routes=[
                Route("/health/live", live),
                Route("/health/started", started),
                Route("/health/ready", ready),
                Route("/metrics", metrics),
            ]
        )


def _health(healthy: bool, waiting_for: str) -> Response:
    return PlainTextResponse("ready" if healthy else f"waiting for {waiting_for}", 200 if healthy else 503)


def _server(application: ASGIApp, seconds: float) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            application,
            http=Connection,
            ws="none",
            lifespan="off",
            proxy_headers=False,  # nothing uses the client's address
            server_header=False,
            log_level="warning",
            timeout_graceful_shutdown=round(seconds),
            timeout_keep_alive=KEEP_ALIVE,
        )
    )
