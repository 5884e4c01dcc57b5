"""A model in an Ollama server of its own: `with OllamaServer(...) as server: ... server.endpoint`."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from chatmetrics.components.errors import ServiceError
from chatmetrics.components.inference.process import ChildProcess, ServerProcess, free_port
from chatmetrics.components.inference.server import available_cores, environment
from chatmetrics.components.progress import track
from chatmetrics.components.serve.model import ServedModel
from chatmetrics.components.serve.settings import ServeSettings

START_TIMEOUT = 60.0
LOAD_TIMEOUT = 900.0  # for each of: one chunk sent, created, loaded
CHUNK = 1024 * 1024


class OllamaServer(ServerProcess):
    """Context manager: `ollama serve` with one model, created with our template, loaded and kept loaded.

    Args:
        program: the `ollama` executable.
        model: what to serve.
        settings: host, parallel requests, threads and the folder for Ollama's copy of the model.
        port: 0 means a free one.

    Raises:
        ServiceError: the port is taken, or Ollama did not start or refused the model.
    """

    def __init__(self, program: str, model: ServedModel, settings: ServeSettings, port: int = 0) -> None:
        self._model = model
        self._settings = settings
        address = f"{settings.host}:{free_port(port, settings.host)}"
        # One folder for each model, so that the server lists this model only.
        home = Path(settings.cache).expanduser() / "ollama" / f"{model.name.replace(':', '-')}-{model.sha256[:12]}"
        home.mkdir(parents=True, exist_ok=True)
        child = ChildProcess("ollama", [program, "serve"], _environment(home, address, settings))
        super().__init__(child, f"http://{address.replace('0.0.0.0', '127.0.0.1')}")
        # Without environment proxies: the server is on this machine.
        self._http = httpx.Client(base_url=self.endpoint, timeout=LOAD_TIMEOUT, trust_env=False)

    def _make_ready(self, stack: ExitStack) -> None:
        stack.enter_context(self._http)
        self._child.wait_until(self._answers, START_TIMEOUT)
        self._upload()
        self._create()
        self._load()

    def _answers(self) -> bool:
        try:
            return self._http.get("/api/version", timeout=5.0).is_success
        except httpx.TransportError:
            return False

    def _upload(self) -> None:
        blob = f"/api/blobs/sha256:{self._model.sha256}"
        if self._http.head(blob).is_success:
            return
        self._request("POST", blob, content=_chunks(self._model.gguf))

    def _create(self) -> None:
        print(f"ollama: creating {self._model.name}", file=sys.stderr, flush=True)
        settings = self._settings
        parameters = {
            "temperature": 0,
            "top_k": 1,
            "seed": 0,
            "repeat_penalty": 1.0,
            "num_ctx": self._model.context_length,
            # Ollama's default follows the machine's cores, not a container's limit.
            "num_thread": settings.threads or available_cores(),
            # Without any, Ollama guesses stop strings from the GGUF's chat template.
            "stop": self._model.stop or [self._model.template.before],
        }
        request = {
            "model": self._model.name,
            "files": {self._model.gguf.name: f"sha256:{self._model.sha256}"},
            "template": self._model.template.go(),
            "parameters": parameters,
            "stream": False,  # a streamed error would come with status 200
        }
        self._request("POST", "/api/create", json=request)

    def _load(self) -> None:
        print(f"ollama: loading {self._model.name}", file=sys.stderr, flush=True)
        self._request("POST", "/api/generate", json={"model": self._model.name, "keep_alive": -1})
        created, loaded = self._digests("/api/tags"), self._digests("/api/ps")
        if self._model.name not in loaded or loaded != created:
            raise self._child.failure(f"did not load {self._model.name}")

    def _digests(self, path: str) -> dict[str, str]:
        return {model["name"]: model["digest"] for model in self._request("GET", path).json()["models"]}

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise self._child.failure(f"broke off at {method} {path} ({error or type(error).__name__})") from error
        if not response.is_success:
            raise ServiceError(
                f"ollama refused {self._model.name} ({response.status_code}): {response.text.strip()[:300]}"
            )
        return response


def _environment(home: Path, address: str, settings: ServeSettings) -> dict[str, str]:
    return {
        **environment(),
        "HOME": str(home),  # it writes a key there
        "OLLAMA_HOST": address,
        "OLLAMA_MODELS": str(home / "models"),
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_KEEP_ALIVE": "-1",
        "OLLAMA_GO_TEMPLATE": "1",  # our template wins over the GGUF's
        "OLLAMA_NUM_PARALLEL": str(settings.parallel),
        "OLLAMA_NOPRUNE": "1",
        "GIN_MODE": "release",
    }


def _chunks(path: Path) -> Iterator[bytes]:
    count = -(-path.stat().st_size // CHUNK)
    with path.open("rb") as file:
        yield from track(iter(lambda: file.read(CHUNK), b""), f"ollama: copying {path.name}", count, "MiB")
