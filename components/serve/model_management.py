"""What is said to Ollama to have a model: created with our template and parameters, loaded, kept loaded."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from chatmetrics.components.console import track
from chatmetrics.components.errors import ServiceError
from chatmetrics.components.inference.client import GREEDY, ollama_request
from chatmetrics.components.serve.model import ServedModel

TIMEOUT = 900.0  # for each of: one chunk sent, created, loaded
CHUNK = 1024 * 1024


class ModelManagement:
    """The management part of an Ollama server's interface; nobody but whoever serves a model should reach it.

    Args:
        http: client of the server; whoever gives it closes it.
        broken_off: makes the error for a connection that ended; it gets what was being done.
    """

    def __init__(self, http: httpx.Client, broken_off: Callable[[str], ServiceError] | None = None) -> None:
        self._http = http
        self._broken_off = broken_off or (lambda what: ServiceError(f"ollama {what}"))

    def answers(self) -> bool:
        """Whether the server is up, whatever it has loaded."""
        try:
            return self._http.get("/api/version", timeout=5.0).is_success
        except httpx.TransportError:
            return False

    def create(self, model: ServedModel, threads: int) -> None:
        """Make the model known under its name; its weights are sent unless the server has them.

        Raises:
            ServiceError: the server refused or broke off.
        """
        blob = f"/api/blobs/sha256:{model.sha256}"
        if not self._http.head(blob).is_success:
            self._request("POST", blob, model.name, content=_chunks(model.gguf))
        parameters = {
            **GREEDY,
            "num_ctx": model.context_length,
            # Ollama's default follows the machine's cores, not a container's limit.
            "num_thread": threads,
            # Without any, Ollama guesses stop strings from the GGUF's chat template.
            "stop": model.stop or [model.template.before],
        }
        request = {
            "model": model.name,
            "files": {model.gguf.name: f"sha256:{model.sha256}"},
            "template": model.template.go(),
            "parameters": parameters,
            "stream": False,  # a streamed error would come with status 200
        }
        self._request("POST", "/api/create", model.name, json=request)

    def load(self, name: str) -> str:
        """Load the model for good and return its digest, that of Ollama's own manifest.

        Raises:
            ServiceError: the server refused or broke off, or something else than what was created is loaded.
        """
        self._request("POST", "/api/generate", name, json={"model": name, "keep_alive": -1})
        created, loaded = self.digests("/api/tags").get(name), self.loaded()
        if created is None or created not in loaded:
            raise self._broken_off(f"did not load {name}: created is {created}, loaded {sorted(loaded)}")
        return created

    def loaded(self) -> set[str]:
        """The digests of what is loaded; not the names, for of two names of one model Ollama tells only one."""
        return set(self.digests("/api/ps").values())

    def digests(self, path: str) -> dict[str, str]:
        """Digests by name from /api/tags or /api/ps."""
        return {model["name"]: model["digest"] for model in self._request("GET", path, path).json()["models"]}

    def rendered_prompt(self, name: str, system: str, question: str) -> str:
        """The prompt that the server would give the model for a conversation with one question."""
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": question})
        request = {"model": name, "messages": messages, "stream": False, "keep_alive": -1, "_debug_render_only": True}
        answer = self._request("POST", "/api/chat", name, json=request).json()
        return str(answer.get("_debug_info", {}).get("rendered_template", ""))

    def can_generate(self, name: str, seconds: float) -> bool:
        """Whether the model says a token within some seconds."""
        request = {**ollama_request(name, "SELECT", 1), "stream": False}
        try:
            return self._http.post("/api/generate", json=request, timeout=seconds).is_success
        except httpx.TransportError:
            return False

    def _request(self, method: str, path: str, about: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise self._broken_off(f"broke off at {method} {path} ({error or type(error).__name__})") from error
        if not response.is_success:
            raise ServiceError(f"ollama refused {about} ({response.status_code}): {response.text.strip()[:300]}")
        return response


def _chunks(path: Path) -> Iterator[bytes]:
    count = -(-path.stat().st_size // CHUNK)
    with path.open("rb") as file:
        yield from track(iter(lambda: file.read(CHUNK), b""), f"ollama: copying {path.name}", count, "MiB")
