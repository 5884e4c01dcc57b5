"""llama.cpp's HTTP server as a child process: `with LlamaServer(gguf, 2048) as server: ... server.endpoint`.

The server is xllamacpp's (llama.cpp in a wheel, which needs no compiler), or the program named by LLAMA_SERVER.
"""

import argparse
import json
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.components.inference.process import ChildProcess, ServerProcess, free_port
from chatmetrics.components.openmp import SHORT_SPIN

START_TIMEOUT = 900.0  # time to load 15 GB from a slow volume
GGUF_MAGIC = b"GGUF"


class LlamaServer(ServerProcess):
    """Context manager that serves a GGUF file with llama.cpp's HTTP server on 127.0.0.1.

    Args:
        gguf: the model.
        context_length: maximum tokens of a prompt and its answer, per request.
        concurrency: number of requests at the same time; each takes the memory of a context.
        threads: number of threads; 0 for all cores that this process may use, within its container's limit.
        port: port; 0 for any free port.
        chat_template: Jinja template for /v1/chat/completions; empty for the one in the GGUF file.
        name: the model's name in /v1/models; empty for the file's name.

    Raises:
        InputError: the file does not exist or is not a GGUF file.
        ServiceError: the port is in use, or the model cannot be loaded or does not support the context length.
    """

    def __init__(
        self,
        gguf: Path,
        context_length: int,
        concurrency: int = 1,
        threads: int = 0,
        port: int = 0,
        *,
        chat_template: str = "",
        name: str = "",
    ) -> None:
        _check_gguf(gguf)
        self._gguf = gguf
        self._context_length = context_length
        port = free_port(port)
        arguments = {
            "gguf": str(gguf),
            # llama.cpp divides the context between the slots.
            "context": context_length * concurrency,
            "concurrency": concurrency,
            "threads": threads or available_cores(),
            "port": port,
            "chat-template": chat_template,
            "name": name or gguf.name,
        }
        program = os.environ.get("LLAMA_SERVER", "")
        command = _program_command(program, arguments) if program else _own_command(arguments)
        child = ChildProcess(f"llama.cpp server ({gguf.name})", command, environment())
        super().__init__(child, f"http://127.0.0.1:{port}")

    def _make_ready(self, stack: ExitStack) -> None:
        self._child.wait_until(self._healthy, START_TIMEOUT)
        self._check_context()

    def _healthy(self) -> bool:
        try:
            return httpx.get(f"{self.endpoint}/health", timeout=5.0, trust_env=False).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def _check_context(self) -> None:
        # llama.cpp limits the context to the model's training length and reports it only in its log.
        slots = httpx.get(f"{self.endpoint}/slots", timeout=5.0, trust_env=False).json()
        length = min(slot["n_ctx"] for slot in slots)
        if length < self._context_length:
            raise ServiceError(
                f"{self._gguf} supports a context of {length} tokens, not {self._context_length}: lower context_length"
            )


def environment() -> dict[str, str]:
    """This process's environment, with `SHORT_SPIN` unless it says otherwise."""
    return {**SHORT_SPIN, **os.environ}


def available_cores() -> int:
    """Number of cores that this process may use, by its affinity and its container's CPU limit (cgroup v2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = Path("/sys/fs/cgroup/cpu.max")
    quota, period = limit.read_text().split() if limit.is_file() else ("max", "1")
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def _check_gguf(gguf: Path) -> None:
    try:
        with gguf.open("rb") as file:
            magic = file.read(len(GGUF_MAGIC))
    except OSError as error:
        raise InputError(f"{gguf}: {error.strerror}; name a GGUF file") from error
    if magic != GGUF_MAGIC:
        raise InputError(f"{gguf} is not a GGUF file; create one with the convert step")


def _own_command(arguments: dict[str, Any]) -> list[str]:
    options = [item for key, value in arguments.items() for item in (f"--{key}", str(value))]
    return [sys.executable, "-m", __name__, *options]


def _program_command(program: str, arguments: dict[str, Any]) -> list[str]:
    """The command line of `llama-server` that is equivalent to `_run`."""
    options = {
        "--model": arguments["gguf"],
        "--ctx-size": arguments["context"],
        "--parallel": arguments["concurrency"],
        "--threads": arguments["threads"],
        "--host": "127.0.0.1",
        "--port": arguments["port"],
        "--alias": arguments["name"],
        "--fit": "off",
        "--cache-ram": 0,
        "--log-verbosity": 2,
        "--reasoning-format": "none",
        "--temp": 0,
        "--top-k": 1,
        **({"--chat-template": arguments["chat-template"]} if arguments["chat-template"] else {}),
    }
    return [program, "--no-ui", "--jinja", *(str(item) for pair in options.items() for item in pair)]


def _run(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM; runs in the child process."""
    import xllamacpp  # type: ignore[import-untyped]

    parameters = xllamacpp.CommonParams()
    parameters.model.path = arguments.gguf
    parameters.n_ctx = arguments.context
    parameters.n_parallel = arguments.concurrency
    parameters.cpuparams.n_threads = arguments.threads
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = arguments.port
    parameters.model_alias = {arguments.name}
    parameters.chat_template = arguments.chat_template
    parameters.use_jinja = True
    parameters.reasoning_format = xllamacpp.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
    parameters.sampling.temp = 0.0  # greedy, unless a request sets other options
    parameters.sampling.top_k = 1
    parameters.ui = False
    parameters.fit_params = False  # never reduce the context length
    parameters.cache_ram_mib = 0  # a slot keeps its last prompt anyway; the default cache can take another 8 GiB
    parameters.verbosity = 2  # warnings and errors only, so that the log of a long-running server stays small
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    server = xllamacpp.Server(parameters)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    del server


def main() -> None:
    """Entry point of the child process."""
    parser = argparse.ArgumentParser(description="llama.cpp's HTTP server on 127.0.0.1 until SIGTERM")
    for name in ("gguf", "name", "chat-template"):
        parser.add_argument(f"--{name}", default="")
    for name in ("context", "concurrency", "threads", "port"):
        parser.add_argument(f"--{name}", type=int, required=True)
    try:
        _run(parser.parse_args())
    except RuntimeError as error:  # llama.cpp has already printed the reason to standard error
        sys.exit(json.dumps({"error": str(error)}))


if __name__ == "__main__":
    main()
