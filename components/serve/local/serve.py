"""Serve a published model on this machine, behind an OpenAI-compatible and Ollama-compatible endpoint."""

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from chatmetrics.components.console import info
from chatmetrics.components.errors import ServiceError
from chatmetrics.components.inference.server import LlamaServer
from chatmetrics.components.serve.local.gateway import Gateway
from chatmetrics.components.serve.local.ollama_server import OllamaServer
from chatmetrics.components.serve.model import ServedModel, find_model
from chatmetrics.components.serve.settings import ServeSettings


@dataclass(frozen=True, slots=True)
class _Runtime:
    endpoint: str
    alive: Callable[[], bool]


def serve(settings: ServeSettings, model: str, port: int) -> None:
    """Serve a model until Ctrl-C or SIGTERM.

    Args:
        settings: Runtime and its limits.
        model: URI of a published model's manifest, or path of a GGUF file.
        port: Port to listen on; 0 is a free one.

    Raises:
        InputError: The model does not exist or cannot be used.
        ServiceError: The port is already in use, or the runtime did not start or exited.
        StorageError: The published model cannot be fetched or is damaged.
    """
    with _ending_at_signals():
        served = find_model(model, settings)
        with _started(settings, served, port) as runtime:
            print(
                f"serving {served.name} on {runtime.endpoint} (OpenAI: /v1, Ollama: /api); stop with Ctrl-C", flush=True
            )
            while runtime.alive():
                time.sleep(1.0)
            raise ServiceError(f"the server of {served.name} exited unexpectedly; start it again")


@contextmanager
def running(settings: ServeSettings, model: str, port: int = 0) -> Iterator[str]:
    """Serve a model inside a `with` block; yields the endpoint, for example http://127.0.0.1:11434.

    Raises:
        UserError: See `serve`.
    """
    with _started(settings, find_model(model, settings), port) as runtime:
        yield runtime.endpoint


@contextmanager
def _started(settings: ServeSettings, model: ServedModel, port: int) -> Iterator[_Runtime]:
    program = _ollama_program(settings)
    if program:
        info(f"runtime: Ollama ({program})")
        with OllamaServer(program, model, settings, port) as ollama:
            yield _Runtime(ollama.endpoint, lambda: ollama.running)
        return
    reason = "as configured" if settings.runtime == "llama.cpp" else "ollama is not on PATH"
    info(f"runtime: llama.cpp's server ({reason})")
    server = LlamaServer(
        model.gguf,
        model.context_length,
        settings.concurrency,
        settings.threads,
        chat_template=model.template.jinja(),
        name=model.name,
    )
    with server, Gateway(server.endpoint, model, settings, port) as gateway:
        yield _Runtime(gateway.endpoint, lambda: server.running)


def _ollama_program(settings: ServeSettings) -> str:
    """Path of the `ollama` executable; empty if llama.cpp is the runtime.

    Raises:
        ServiceError: The runtime is set to ollama, which is not on PATH.
    """
    program = shutil.which("ollama") if settings.runtime != "llama.cpp" else None
    if settings.runtime == "ollama" and not program:
        raise ServiceError("ollama is not on PATH: install it, or set serve.runtime to llama.cpp")
    return program or ""


@contextmanager
def _ending_at_signals() -> Iterator[None]:
    """Leave the block without an error at Ctrl-C or SIGTERM; further signals are ignored during the cleanup."""
    signals = (signal.SIGINT, signal.SIGTERM)

    def end(number: int, frame: FrameType | None) -> NoReturn:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {each: signal.signal(each, end) for each in signals}
    try:
        yield
    except KeyboardInterrupt:
        info("stopped")
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
