import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from chatmetrics.components.errors import ServiceError
from chatmetrics.components.inference.client import Client
from chatmetrics.components.inference.process import free_port


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:{}", "127.0.0.1:{}", "http://no such host:{}"])
def test_an_endpoint_that_does_not_answer_is_named(endpoint: str) -> None:
    address = endpoint.format(free_port())
    with pytest.raises(ServiceError, match=f"cannot reach .*{address}"):
        Client(address)


def test_something_else_behind_the_endpoint_is_noticed() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(ServiceError, match=f"{endpoint} is neither an Ollama endpoint nor"):
            Client(endpoint)
        server.shutdown()
