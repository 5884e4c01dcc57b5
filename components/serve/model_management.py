"""Client for managing models of an Ollama server: create with our template and parameters, load, keep loaded."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import httpx

from chatmetrics.components.console import track
from chatmetrics.components.errors import ServiceError
from chatmetrics.components.inference.client import GREEDY, ollama_request
from chatmetrics.components.serve.model import ServedModel

TIMEOUT = 900.0  # seconds, for sending one chunk, for creating and for loading a model
STATUS_TIMEOUT = 15.0
CHUNK = 1024 * 1024


class ModelManagement:
    """Management API of an Ollama server. Clients of a served model should have no access to it.

    Args:
        http: HTTP client for the server; the caller closes it.
        disconnected: Makes the error for a closed connection from a description of what happened.
    """

    def __init__(self, http: httpx.Client, disconnected: Callable[[str], ServiceError] | None = None) -> None:
        self._http = http
        self._disconnected = disconnected or (lambda what: ServiceError(f"ollama {what}"))

    def status(self) -> Literal["up", "hangs", "down"]:
        """Whether the server is running, with or without a loaded model, or accepts a connection without answering.

        While llama.cpp does not respond, Ollama 0.34.0 does not answer /api/ps, but other paths.
        """
        try:
            return "up" if self._http.get("/api/ps", timeout=STATUS_TIMEOUT).is_success else "down"
        except httpx.ReadTimeout:
            return "hangs"
        except httpx.TransportError:
            return "down"

    def create(self, model: ServedModel, threads: int) -> None:
        """Create the model. Its weights are sent only if the server does not have them.

        Raises:
            ServiceError: The server refused or closed the connection.
        """
        blob = f"/api/blobs/sha256:{model.sha256}"
        if not self._http.head(blob).is_success:
            self._request("POST", blob, model.name, content=_chunks(model.gguf))
        parameters = {
            **GREEDY,
            "num_ctx": model.context_length,
            # Ollama's default is the number of the machine's cores, not the container's limit.
            "num_thread": threads,
            # Without this, Ollama guesses stop strings from the GGUF's chat template.
            "stop": model.stop or [model.template.stop or model.template.before_question],
        }
        request = {
            "model": model.name,
            "files": {model.gguf.name: f"sha256:{model.sha256}"},
            "template": model.template.go(),
            "parameters": parameters,
            "stream": False,  # errors in a stream have status 200
        }
        self._request("POST", "/api/create", model.name, json=request)

    def load(self, name: str) -> str:
        """Load the model without expiry and return the digest of its Ollama manifest.

        Raises:
            ServiceError: The server refused or closed the connection, or loaded another model than the created one.
        """
        self._request("POST", "/api/generate", name, json={"model": name, "keep_alive": -1})
        created, loaded = self.digests("/api/tags").get(name), self.loaded()
        if created is None or created not in loaded:
            raise self._disconnected(f"did not load {name}: created {created}, loaded {sorted(loaded)}")
        return created

    def loaded(self) -> set[str]:
        """Digests of the loaded models. For a model with two names, Ollama lists only one of the names."""
        return set(self.digests("/api/ps").values())

    def digests(self, path: str) -> dict[str, str]:
        """Digests by name from /api/tags or /api/ps."""
        return {
            model["name"]: model["digest"]
            for model in self._request("GET", path, path, timeout=STATUS_TIMEOUT).json()["models"]
        }

    def rendered_prompt(self, name: str, system: str, question: str) -> str:
        """Prompt that the server renders for a chat with one question."""
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": question})
        request = {"model": name, "messages": messages, "stream": False, "keep_alive": -1, "_debug_render_only": True}
        answer = self._request("POST", "/api/chat", name, json=request).json()
        return str(answer.get("_debug_info", {}).get("rendered_template", ""))

    def can_generate(self, name: str, seconds: float) -> bool:
        """Whether the model generates a token within `seconds`."""
        request = {**ollama_request(name, "SELECT", 1), "stream": False}
        try:
            return self._http.post("/api/generate", json=request, timeout=seconds).is_success
        except httpx.TransportError:
            return False

    def _request(self, method: str, path: str, about: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise self._disconnected(
                f"closed the connection at {method} {path} ({error or type(error).__name__})"
            ) from error
        if not response.is_success:
            raise ServiceError(f"ollama refused {about} ({response.status_code}): {response.text.strip()[:300]}")
        return response


def _chunks(path: Path) -> Iterator[bytes]:
    count = -(-path.stat().st_size // CHUNK)
    with path.open("rb") as file:
        yield from track(iter(lambda: file.read(CHUNK), b""), f"ollama: copying {path.name}", count, "MiB")
