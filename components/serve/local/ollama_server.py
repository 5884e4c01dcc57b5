"""A model in its own Ollama server: `with OllamaServer(...) as server: ... server.endpoint`."""

from contextlib import ExitStack
from pathlib import Path

import httpx

from chatmetrics.components.console import info
from chatmetrics.components.inference.process import ChildProcess, ServerProcess, free_port
from chatmetrics.components.inference.server import available_cores, environment
from chatmetrics.components.serve.model import ServedModel
from chatmetrics.components.serve.model_management import TIMEOUT, ModelManagement
from chatmetrics.components.serve.settings import ServeSettings

START_TIMEOUT = 60.0


class OllamaServer(ServerProcess):
    """Context manager for `ollama serve` with one model, which is created with our template and kept loaded.

    Args:
        program: The `ollama` executable.
        model: The model to serve.
        settings: Host, concurrency, threads and the folder for Ollama's copy of the model.
        port: The port; 0 is a free one.

    Raises:
        ServiceError: The port is already in use, or Ollama did not start or refused the model.
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
        # HTTP proxies of the environment are ignored, because the server is on this machine.
        self._http = httpx.Client(base_url=self.endpoint, timeout=TIMEOUT, trust_env=False)

    def _make_ready(self, stack: ExitStack) -> None:
        stack.enter_context(self._http)
        management = ModelManagement(self._http, self._child.failure)
        self._child.wait_until(lambda: management.status() == "up", START_TIMEOUT)
        info(f"ollama: creating {self._model.name}")
        management.create(self._model, self._settings.threads or available_cores())
        info(f"ollama: loading {self._model.name}")
        management.load(self._model.name)


def _environment(home: Path, address: str, settings: ServeSettings) -> dict[str, str]:
    return {
        **environment(),
        "HOME": str(home),  # Ollama writes a key there
        "OLLAMA_HOST": address,
        "OLLAMA_MODELS": str(home / "models"),
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_KEEP_ALIVE": "-1",
        "OLLAMA_GO_TEMPLATE": "1",  # our template takes precedence over the GGUF's
        "OLLAMA_NUM_PARALLEL": str(settings.concurrency),
        "OLLAMA_NOPRUNE": "1",
        "GIN_MODE": "release",
    }
