"""A teacher for demos and tests: an OpenAI-compatible server that knows a dataset's answers and can inject faults.

It runs in its own process, `python -m chatmetrics.components.distill.scripted.server --answers FILE`, and prints its
port.
"""

import argparse
import hashlib
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from chatmetrics.components.distill.scripted.script import FAULTS, STYLES, Script
from chatmetrics.components.inference.process import ChildProcess
from chatmetrics.components.nl2sql.example import read_examples

MODEL = "scripted"
MODULE = "chatmetrics.components.distill.scripted.server"
START_SECONDS = 120.0  # a busy machine takes long; a process that fails ends at once
CHUNK_CHARACTERS = 24  # of a streamed answer
MAX_CHUNKS = 100
PATHS = ("/v1/models", "/v1/chat/completions")
UNBILLED = ("429", "error_500")
HUGE = "Let me look at the schema once more. " * 2800


@contextmanager
def scripted_teacher(answers: Sequence[Path], error_rate: float, *options: str) -> Iterator[str]:
    """Context manager: run the server on this machine and yield its base URL.

    Args:
        answers: dataset files.
        error_rate: fraction of the answers that are wrong.
        options: additional command line options.

    Raises:
        ServiceError: the server did not start.
    """
    files = [word for path in answers for word in ("--answers", str(path))]
    command = [sys.executable, "-m", MODULE, *files, "--error-rate", str(error_rate), *options]
    with ChildProcess("scripted teacher", command) as child:
        child.wait_until(lambda: "port " in child.log(), START_SECONDS)
        port = child.log().partition("port ")[2].split()[0]
        yield f"http://127.0.0.1:{port}/v1"


class Handler(BaseHTTPRequestHandler):
    """Handles HTTP requests; `server` has the script and the options."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: "Server"

    def do_GET(self) -> None:
        """List the models."""
        if not self._is_refused({}):
            name = self.server.options.model or MODEL
            self._send(200, {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "chatmetrics"}]})

    def do_POST(self) -> None:
        """Answer a chat completion."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._is_refused(body):
            return
        options, script = self.server.options, self.server.script
        fault = script.fault(body)
        reasoning, text = _reasoning_and_text(script, body, fault)
        if options.repeat_key:
            text += f"\n{self._key}"
        self.server.log(body, fault, _usage(body, reasoning + text) if fault not in UNBILLED else {})
        time.sleep(options.latency)
        if fault == "429":
            wait = {"Retry-After": str(options.retry_after)} if options.retry_after else {}
            return self._fail(429, "Rate limit reached, slow down", wait)
        if fault == "error_500":
            return self._fail(500, f"Something broke while serving {self._key}")
        if fault == "hang":
            time.sleep(options.hang_seconds)
        if body.get("stream"):
            self._stream(body, reasoning, text, fault)
        else:
            self._answer(body, reasoning, text, fault)

    @property
    def _key(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _is_refused(self, body: dict[str, Any]) -> bool:
        """Whether the request is invalid; if so, the error has been sent."""
        options = self.server.options
        if self.path not in PATHS:
            self._fail(404, f"Not found: {self.path}")
        elif options.key and self._key != options.key:
            self._fail(401, f"Incorrect API key provided: {self._key}. Get one at our site.")
        elif body and options.model and body["model"] != options.model:
            self._fail(404, f"The model {body['model']} does not exist")
        elif body and not self.server.has_balance():
            self._fail(402, "Insufficient balance")
        else:
            return False
        return True

    def _answer(self, body: dict[str, Any], reasoning: str, text: str, fault: str) -> None:
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", **self._parts(reasoning, text)}}
        choices = [] if fault == "empty" else [choice]
        completion = {**_head("chat.completion"), "choices": choices, "usage": _usage(body, reasoning + text)}
        data = json.dumps(completion, ensure_ascii=False).encode()
        if fault == "malformed":
            data = data[: len(data) // 2]
        self._head(200, "application/json", len(data))
        self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
        self.close_connection = fault == "cut"

    def _stream(self, body: dict[str, Any], reasoning: str, text: str, fault: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        head, parts = _head("chat.completion.chunk"), self._parts(reasoning, text)
        chunks = [{name: chunk} for name, value in parts.items() for chunk in _chunks(value)]
        for number, delta in enumerate(chunks):
            if number == len(chunks) // 2 and fault in ("cut", "malformed"):
                self._write_chunk("data: {not json\n\n" if fault == "malformed" else "")
                self.close_connection = True
                return
            self._event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        ends = [] if fault == "empty" else [{"index": 0, "delta": {}, "finish_reason": "stop"}]
        self._event({**head, "choices": ends})
        self._event({**head, "choices": [], "usage": _usage(body, reasoning + text)})
        self._write_chunk("data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _parts(self, reasoning: str, text: str) -> dict[str, str]:
        if self.server.options.style == "reasoning_content":
            return {"reasoning_content": reasoning, "content": text}
        return {"content": f"<think>\n{reasoning}\n</think>\n\n{text}" if reasoning else text}

    def _event(self, event: dict[str, Any]) -> None:
        self._write_chunk(f"data: {json.dumps(event, ensure_ascii=False)}\n\n")

    def _write_chunk(self, text: str) -> None:
        data = text.encode()
        if data:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _fail(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, {"error": {"message": message, "type": "scripted"}}, headers)

    def _send(self, status: int, answer: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        data = json.dumps(answer).encode()
        self._head(status, "application/json", len(data), headers)
        self.wfile.write(data)

    def _head(self, status: int, kind: str, length: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(length), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: requests are logged with --log."""


class Server(ThreadingHTTPServer):
    """The HTTP server, with one thread per connection."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, script: Script, options: argparse.Namespace) -> None:
        super().__init__(("127.0.0.1", options.port), Handler)
        self.script, self.options = script, options
        self._log_file = options.log.open("a", buffering=1) if options.log else None
        self._lock = threading.Lock()
        self._balance = options.balance

    def has_balance(self) -> bool:
        """Use up one request of the balance; whether there was one left."""
        with self._lock:
            self._balance -= 1
            return not self.options.balance or self._balance >= 0

    def log(self, body: dict[str, Any], fault: str, usage: dict[str, int]) -> None:
        """Write a log line about a request, for tests that count requests and tokens."""
        if self._log_file:
            record = {"time": time.time(), "request": name_of(body), "fault": fault, **usage}
            with self._lock:
                self._log_file.write(json.dumps(record) + "\n")


def name_of(body: dict[str, Any]) -> str:
    """Name of a request in the log."""
    content = json.dumps([body["messages"], body.get("seed"), body.get("temperature")], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()


def _reasoning_and_text(script: Script, body: dict[str, Any], fault: str) -> tuple[str, str]:
    """Reasoning and text of the answer, with the faults that change them."""
    reasoning, text = script.text(body)
    if fault == "empty":
        return "", ""
    return (HUGE + reasoning if fault == "huge" else reasoning), text


def _chunks(text: str) -> Iterator[str]:
    """The text in chunks for streaming; a long text has larger chunks, not more of them."""
    size = max(CHUNK_CHARACTERS, len(text) // MAX_CHUNKS)
    return (text[start : start + size] for start in range(0, len(text), size))


def _head(kind: str) -> dict[str, Any]:
    return {"id": "scripted", "object": kind, "created": 0, "model": MODEL}


def _usage(body: dict[str, Any], answer: str) -> dict[str, int]:
    """Token counts, at four bytes per token."""
    prompt = sum(len(message["content"].encode(errors="replace")) for message in body["messages"]) // 4
    completion = max(1, min(len(answer.encode(errors="replace")) // 4, body.get("max_tokens", sys.maxsize)))
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=MODULE, description=__doc__)
    parser.add_argument("--answers", type=Path, action="append", required=True, help="dataset file; may be repeated")
    parser.add_argument("--error-rate", type=float, default=0.2, help="fraction of wrong answers")
    parser.add_argument(
        "--seed", type=int, default=0, help="decides which answers are wrong and which requests have faults"
    )
    parser.add_argument("--port", type=int, default=0, help="0 picks a free port")
    parser.add_argument("--key", default="", help="API key that clients must send; empty accepts any")
    parser.add_argument("--model", default="", help="name of the only model; empty accepts any")
    parser.add_argument("--balance", type=int, default=0, help="requests before payment is required; 0 means no limit")
    parser.add_argument("--repeat-key", action="store_true", help="repeat the client's API key in each answer")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before the first token")
    parser.add_argument("--rate-limit", type=int, default=0, help="requests per second; more get 429; 0 means no limit")
    parser.add_argument("--retry-after", type=float, default=1, help="Retry-After of a 429, in seconds; 0 sends none")
    parser.add_argument("--hang-seconds", type=float, default=60.0, help="duration of the fault hang")
    parser.add_argument("--style", choices=(*STYLES, "mixed", "reasoning_content"), default="mixed")
    parser.add_argument("--log", type=Path, help="file to append one line per request to")
    for fault in FAULTS:
        parser.add_argument(f"--{fault.replace('_', '-')}", type=float, default=0.0, help="fraction of requests")
    return parser.parse_args()


def main() -> None:
    """Serve until the process is terminated."""
    options = _options()
    examples = [example for path in options.answers for example in read_examples(path)]
    with Server(Script(examples, options), options) as server:
        print(f"port {server.server_address[1]} ", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
