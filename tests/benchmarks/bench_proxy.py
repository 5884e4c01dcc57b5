"""What the pod adds to a request's latency and costs in processor time, compared with the direct path in the same run.

The engine answers at once and the client is compiled (`proxy/main.go`), so that nearly all of the difference is the
pod's. Needs Go. With nginx on the PATH, the design that was not chosen is measured too: nginx passes requests on and
asks the pod about each token. It checks no body, has no queue and reads no late stream to its end.

CHATMETRICS_BENCH_BUSY is a GGUF file: llama.cpp then answers questions with it on all cores during the measurement.
"""

import itertools
import json
import os
import shutil
import statistics
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from chatmetrics.components.inference.client import Client
from chatmetrics.components.inference.server import LlamaServer
from chatmetrics.components.nl2sql.prompts.template import DEEPSEEK3
from tests.ports import free_port
from tests.serve.pods import TOKEN, RunningPod, published

SOURCE = Path(__file__).parent / "proxy"
SECONDS = float(os.environ.get("CHATMETRICS_BENCH_SECONDS", "5"))
ROUNDS = int(os.environ.get("CHATMETRICS_BENCH_ROUNDS", "5"))
RATE = 200  # requests per second
CONNECTIONS = (1, 64)
TICKS = os.sysconf("SC_CLK_TCK")  # per second of processor time
SCHEMA = "\n".join(f"CREATE TABLE table{number} (id INTEGER PRIMARY KEY, name TEXT);" for number in range(20))

pytestmark = pytest.mark.skipif(not shutil.which("go"), reason="go is not on PATH")


@dataclass(frozen=True)
class Measured:
    """Latencies in milliseconds of one load, and the pod's processor time in microseconds per request."""

    p50: float
    p99: float
    first_p50: float
    microseconds: float


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("go") / "proxy"
    subprocess.run(["go", "build", "-o", str(built), "."], cwd=SOURCE, check=True)
    return built


@contextmanager
def engine(program: Path, port: int) -> Iterator[None]:
    with subprocess.Popen([program, "engine", f"127.0.0.1:{port}"]) as process:
        try:
            yield
        finally:
            process.terminate()


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS  # proc(5): utime, stime


NGINX = """
daemon off;
pid {root}/nginx.pid;
error_log {root}/nginx.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {root}/body;
    proxy_temp_path {root}/proxy;
    upstream engine {{ server 127.0.0.1:{engine}; keepalive 64; }}
    upstream pod {{ server 127.0.0.1:{pod}; keepalive 64; }}
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    server {{
        listen 127.0.0.1:{port};
        location / {{ auth_request /token; proxy_pass http://engine; proxy_buffering off; }}
        location = /token {{
            internal;
            proxy_pass http://pod/v1/models;
            proxy_method GET;
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
        }}
    }}
}}
"""


@contextmanager
def nginx(pod: RunningPod) -> Iterator[dict[str, str]]:
    """Endpoint of nginx by its name in the table; empty without nginx."""
    if not shutil.which("nginx"):
        yield {}
        return
    port = free_port()
    text = NGINX.format(root=pod.root, engine=pod.ollama_port, pod=pod.port, port=port)
    (pod.root / "nginx.conf").write_text(text, "utf-8")
    with subprocess.Popen(["nginx", "-e", f"{pod.root}/nginx.log", "-c", f"{pod.root}/nginx.conf"]) as process:
        try:
            yield {"nginx": f"http://127.0.0.1:{port}"}
        finally:
            process.terminate()


@contextmanager
def busy_engine() -> Iterator[None]:
    """llama.cpp on all cores, if CHATMETRICS_BENCH_BUSY is a model."""
    if not (model := os.environ.get("CHATMETRICS_BENCH_BUSY")):
        yield
        return
    with LlamaServer(Path(model), 1024) as server:
        is_over = threading.Event()

        def ask() -> None:
            while not is_over.is_set():
                Client(server.endpoint, "model").generate("SELECT", 256)

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()


def load(program: Path, endpoint: str, stream: bool, connections: int, pid: int) -> Measured:
    body = {"model": "hotel:1", "prompt": DEEPSEEK3.prompt(SCHEMA, "SQL", "How many?"), "raw": True, "stream": stream}
    body |= {"options": {"temperature": 0, "num_predict": 128}}
    options = [f"{endpoint}/api/generate", TOKEN, json.dumps(body), str(RATE), str(SECONDS), str(connections)]
    started = processor_seconds(pid)
    done = subprocess.run([program, "load", *options], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert not found["failed"], done.stderr
    used = 1e6 * (processor_seconds(pid) - started) / found["answers"]
    return Measured(found["p50"], found["p99"], found["first_p50"], used)


def medians(measured: list[Measured]) -> Measured:
    return Measured(*(statistics.median(getattr(one, name) for one in measured) for name in Measured.__annotations__))


def test_latency_and_cost(program: Path, tmp_path: Path) -> None:
    uri = published(tmp_path, "1", gold=None, context_length=4096, cutoff_length=4096)
    pod = RunningPod(tmp_path / "pod", [{"name": "hotel", "uri": uri, "threshold": 0}])
    assert pod.fetch().returncode == 0
    print(
        f"\n{RATE} requests per second, medians of {ROUNDS} rounds of {SECONDS:g} s; milliseconds, processor µs/request"
    )
    print("connections  answer    path         p50     p99  first p50  added p50  added p99  CPU")
    with engine(program, pod.ollama_port), pod.proxy() as process, nginx(pod) as other, busy_engine():
        pod.wait(200, process)
        paths = {"direct": f"http://127.0.0.1:{pod.ollama_port}", "pod": pod.endpoint, **other}
        for connections, stream in itertools.product(CONNECTIONS, (False, True)):
            taken: dict[str, list[Measured]] = {name: [] for name in paths}
            for _, name in itertools.product(range(ROUNDS), paths):
                taken[name].append(load(program, paths[name], stream, connections, process.pid))
            base = medians(taken["direct"])
            for name, measured in taken.items():
                found = medians(measured)
                label = f"{connections:>11}  {'streamed' if stream else 'whole':<8}  {name:<6}"
                shown = f"{found.p50:10.2f}{found.p99:8.2f}{found.first_p50:11.2f}"
                if name != "direct":
                    shown += f"{found.p50 - base.p50:11.2f}{found.p99 - base.p99:11.2f}{found.microseconds:5.0f}"
                print(label + shown)
