"""A teacher for demos and tests: a server that speaks OpenAI's protocol, knows a dataset's answers, and errs on demand.

It is a process of its own, `python -m chatmetrics.components.distill.scripted_teacher --answers FILE`, which prints its
port. Whether an answer is right, and which fault a request meets, is decided by hashes: the same however requests are
ordered.
"""

import argparse
import hashlib
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from chatmetrics.components.distill.mistakes import mistaken
from chatmetrics.components.inference.process import ChildProcess
from chatmetrics.components.nl2sql.example import Example, read_examples

MODEL = "scripted"
MODULE = "chatmetrics.components.distill.scripted_teacher"
START_SECONDS = 30.0
PIECE = 24  # characters of a streamed answer that come at once
HUGE = "Let me look at the schema once more. " * 2800
FAULTS = ("cut", "malformed", "empty", "error_500", "hang", "huge")
STYLES = ("fenced", "prose", "plain")


@contextmanager
def scripted_teacher(answers: Sequence[Path], error_rate: float, *options: str) -> Iterator[str]:
    """Run such a server on this machine while the block lasts, and give its base URL.

    Args:
        answers: dataset files.
        error_rate: share of the answers that are wrong.
        options: further ones of the command line.

    Raises:
        ServiceError: it did not start.
    """
    files = [word for path in answers for word in ("--answers", str(path))]
    command = [sys.executable, "-m", MODULE, *files, "--error-rate", str(error_rate), *options]
    with ChildProcess("scripted teacher", command) as child:
        child.wait_until(lambda: "port " in child.log(), START_SECONDS)
        port = child.log().partition("port ")[2].split()[0]
        yield f"http://127.0.0.1:{port}/v1"


class Script:
    """What is answered to whom.

    Args:
        examples: questions with their queries.
        options: of the command line.
    """

    def __init__(self, examples: Sequence[Example], options: argparse.Namespace) -> None:
        self._by_question = {example.question: example for example in examples}
        self._by_database: dict[str, list[Example]] = {}
        for example in examples:
            self._by_database.setdefault(example.db_id, []).append(example)
        self._options = options
        self._attempts: Counter[str] = Counter()
        self._recent: list[float] = []
        self._lock = threading.Lock()

    def fault(self, body: dict[str, Any]) -> str:
        """The fault that this attempt meets; empty for none."""
        name = json.dumps([body["messages"], body.get("seed")])
        with self._lock:
            self._attempts[name] += 1
            attempt = self._attempts[name]
            if self._is_too_fast():
                return "429"
        faults = [fault for fault in FAULTS if self._share(fault, name, attempt) < getattr(self._options, fault)]
        return faults[0] if faults else ""

    def text(self, body: dict[str, Any]) -> tuple[str, str]:
        """Reasoning and answer."""
        said = body["messages"][-1]["content"]
        if "Make up" in said:
            return "Which questions would people ask?", self._made_up(body)
        example = self._asked(said)
        if example is None:
            return "I do not find this in the schema.", "I am sorry, I cannot answer this question."
        is_wrong = self._share("wrong", example.question, body.get("seed")) < self._options.error_rate
        mark = f"{self._options.seed} {example.question} {body.get('seed')}"
        sql = mistaken(example.sql, mark) if is_wrong else example.sql
        return f"The question is about {example.db_id}. I look for the tables and join them.", self._styled(sql, mark)

    def _asked(self, said: str) -> Example | None:
        last = said.rstrip().rpartition("\n")[2]
        if last in self._by_question:
            return self._by_question[last]
        return max(
            (example for question, example in self._by_question.items() if question in said),
            key=lambda example: len(example.question),
            default=None,
        )

    def _made_up(self, body: dict[str, Any]) -> str:
        """So many pairs about the database as are asked for, the same ones for the same request."""
        said = "\n".join(message["content"] for message in body["messages"])
        known = next((found for name, found in self._by_database.items() if f"'{name}'" in said), [])
        count = int("".join(filter(str.isdigit, said.partition("Make up ")[2].split()[0])) or 1)
        generator = random.Random(f"{self._options.seed} {said} {body.get('seed')}")
        pairs = []
        for example in generator.sample(known, min(count, len(known))):
            is_wrong = generator.random() < self._options.error_rate
            sql = mistaken(example.sql, example.question) if is_wrong else example.sql
            pairs.append({"question": example.question, "sql": sql})
        return f"Here they are:\n```json\n{json.dumps(pairs, ensure_ascii=False, indent=1)}\n```"

    def _styled(self, sql: str, mark: str) -> str:
        style = self._options.style
        if style == "mixed":
            style = STYLES[int(self._share("style", mark) * len(STYLES))]
        if style == "plain":
            return sql
        fenced = f"```sql\n{sql};\n```"
        return (
            fenced if style == "fenced" else f"Sure! This query answers the question:\n\n{fenced}\n\nAsk me anything."
        )

    def _is_too_fast(self) -> bool:
        if not self._options.rate_limit:
            return False
        now = time.monotonic()
        self._recent = [moment for moment in self._recent if now - moment < 1]
        self._recent.append(now)
        return len(self._recent) > self._options.rate_limit

    def _share(self, *about: object) -> float:
        """A number from 0 to 1 that is always the same for the same."""
        digest = hashlib.sha256(repr((self._options.seed, *about)).encode(errors="replace")).digest()
        return int.from_bytes(digest[:8], "big") / 2**64


class Handler(BaseHTTPRequestHandler):
    """Speaks the protocol; `server` has the script and the options."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: "Server"

    def do_GET(self) -> None:
        """The list of models."""
        if self._is_let_in():
            self._send(200, {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "chatmetrics"}]})

    def do_POST(self) -> None:
        """A chat completion."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        options, script = self.server.options, self.server.script
        if not self._is_let_in():
            return
        fault = script.fault(body)
        self.server.note(body, fault)
        time.sleep(options.latency)
        if fault == "429":
            message = {"error": {"message": "Rate limit reached, slow down", "type": "rate_limit"}}
            return self._send(429, message, {"Retry-After": str(options.retry_after)})
        if fault == "error_500":
            authorization = self.headers.get("Authorization", "")
            return self._send(500, {"error": {"message": f"Something broke while serving {authorization}"}})
        if fault == "hang":
            time.sleep(options.hang_seconds)
        reasoning, text = script.text(body)
        if fault == "huge":
            reasoning = HUGE + reasoning
        if fault == "empty":
            reasoning = text = ""
        if body.get("stream"):
            self._stream(body, reasoning, text, fault)
        else:
            self._answer(body, reasoning, text, fault)

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
        pieces = [
            {name: value[start : start + PIECE]}
            for name, value in parts.items()
            for start in range(0, len(value), PIECE if len(value) < len(HUGE) else len(value))
        ]
        for number, delta in enumerate(pieces):
            if number == len(pieces) // 2 and fault in ("cut", "malformed"):
                self._piece("data: {not json\n\n" if fault == "malformed" else "")
                self.close_connection = True
                return
            self._event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        ends = [] if fault == "empty" else [{"index": 0, "delta": {}, "finish_reason": "stop"}]
        self._event({**head, "choices": ends})
        self._event({**head, "choices": [], "usage": _usage(body, reasoning + text)})
        self._piece("data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _parts(self, reasoning: str, text: str) -> dict[str, str]:
        if self.server.options.style == "reasoning_content":
            return {"reasoning_content": reasoning, "content": text}
        return {"content": f"<think>\n{reasoning}\n</think>\n\n{text}" if reasoning else text}

    def _event(self, event: dict[str, Any]) -> None:
        self._piece(f"data: {json.dumps(event, ensure_ascii=False)}\n\n")

    def _piece(self, text: str) -> None:
        data = text.encode()
        if data:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _is_let_in(self) -> bool:
        key = self.server.options.key
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not key or given == key:
            return True
        self._send(401, {"error": {"message": f"Incorrect API key provided: {given}. Get one at our site."}})
        return False

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
        """Say nothing: --log has what tests want to know."""


class Server(ThreadingHTTPServer):
    """A thread for each connection."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, script: Script, options: argparse.Namespace) -> None:
        super().__init__(("127.0.0.1", options.port), Handler)
        self.script, self.options = script, options
        self._log = options.log.open("a", buffering=1) if options.log else None
        self._lock = threading.Lock()

    def note(self, body: dict[str, Any], fault: str) -> None:
        """Write a line about a request, for tests that count them."""
        if self._log:
            asked = json.dumps([body["messages"], body.get("seed"), body.get("temperature")], ensure_ascii=False)
            record = {"time": time.time(), "request": hashlib.sha256(asked.encode()).hexdigest(), "fault": fault}
            with self._lock:
                self._log.write(json.dumps(record) + "\n")


def _head(kind: str) -> dict[str, Any]:
    return {"id": "scripted", "object": kind, "created": 0, "model": MODEL}


def _usage(body: dict[str, Any], answer: str) -> dict[str, int]:
    """Tokens, of four bytes each."""
    prompt = sum(len(message["content"].encode(errors="replace")) for message in body["messages"]) // 4
    completion = max(1, min(len(answer.encode(errors="replace")) // 4, body.get("max_tokens", sys.maxsize)))
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=MODULE, description=__doc__)
    parser.add_argument("--answers", type=Path, action="append", required=True, help="a dataset file; may be repeated")
    parser.add_argument("--error-rate", type=float, default=0.2, help="share of wrong answers")
    parser.add_argument("--seed", type=int, default=0, help="decides which answers are wrong, and which faults happen")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--key", default="", help="wanted of clients")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before an answer begins")
    parser.add_argument("--rate-limit", type=int, default=0, help="requests a second; more get 429")
    parser.add_argument("--retry-after", type=float, default=1, help="seconds that a 429 asks to wait")
    parser.add_argument("--hang-seconds", type=float, default=60.0)
    parser.add_argument("--style", choices=(*STYLES, "mixed", "reasoning_content"), default="mixed")
    parser.add_argument("--log", type=Path, help="file that gets a line for every request")
    for fault in FAULTS:
        parser.add_argument(f"--{fault.replace('_', '-')}", type=float, default=0.0, help="share of requests")
    return parser.parse_args()


def main() -> None:
    """Serve until the process is ended."""
    options = _options()
    examples = [example for path in options.answers for example in read_examples(path)]
    with Server(Script(examples, options), options) as server:
        print(f"port {server.server_address[1]} ", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
