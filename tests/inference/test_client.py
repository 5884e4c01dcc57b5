"""The client: errors of an endpoint, and the requests for greedy and for sampled answers."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from chatmetrics.components.errors import ServiceError
from chatmetrics.components.inference.client import Client
from chatmetrics.components.inference.server import LlamaServer
from chatmetrics.components.nl2sql.prompts.template import DEEPSEEK3
from tests.gguf_files import tiny_gguf
from tests.ports import free_port

PROMPT = "CREATE TABLE hotel (id);<｜User｜>How many?<｜Assistant｜>"


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:{}", "127.0.0.1:{}", "http://no such host:{}"])
def test_an_endpoint_that_does_not_answer_is_an_error_that_names_it(endpoint: str) -> None:
    address = endpoint.format(free_port())
    with pytest.raises(ServiceError, match=f"cannot reach .*{address}"):
        Client(address)


def test_an_endpoint_of_another_kind_is_an_error() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(ServiceError, match=f"{endpoint} is neither an Ollama endpoint nor"):
            Client(endpoint)
        server.shutdown()


def test_an_answer_is_greedy_unless_a_temperature_is_given(tmp_path: Path) -> None:
    with LlamaServer(tiny_gguf(tmp_path), 300, threads=1) as server:
        client = Client(server.endpoint, template=DEEPSEEK3)
        greedy = {client.generate(PROMPT, 16, seed=seed).text for seed in (0, 1)}
        sampled = [client.generate(PROMPT, 16, temperature=2.0, seed=seed).text for seed in (1, 2, 1)]
        assert client.ask("CREATE TABLE hotel (id);", "", "How many?", 16, 2.0, 1).text not in greedy
    assert len(greedy) == 1
    assert sampled[0] == sampled[2] != sampled[1]
    assert not greedy & set(sampled)


class Ollama(BaseHTTPRequestHandler):
    """The part of Ollama's protocol that an answer needs."""

    requests: list[dict[str, Any]]

    def do_GET(self) -> None:
        self._reply({"version": "0.9.0"} if self.path == "/api/version" else {"models": [{"name": "hotel:1"}]})

    def do_POST(self) -> None:
        self.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._reply({"response": "SELECT 1", "done": True, "prompt_eval_count": 3, "eval_count": 2})

    def _reply(self, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@pytest.fixture
def ollama() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    handler = type("Recorder", (Ollama,), {"requests": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler.requests
        server.shutdown()


def test_ollama_gets_the_sampling_options(ollama: tuple[str, list[dict[str, Any]]]) -> None:
    endpoint, requests = ollama
    client = Client(endpoint)
    assert client.generate(PROMPT, 8).text == client.generate(PROMPT, 8, 0.7, 5).text == "SELECT 1"
    greedy, sampled = (request["options"] for request in requests)
    assert greedy == {"temperature": 0, "top_k": 1, "seed": 0, "repeat_penalty": 1.0, "num_predict": 8}
    assert (sampled["temperature"], sampled["seed"], sampled["repeat_penalty"]) == (0.7, 5, 1.0)
    assert sampled["top_k"] > 1
