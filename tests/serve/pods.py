"""A pod of the chart without Kubernetes: a published model, the init container, a real Ollama and the proxy."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import pytest

from chatmetrics.components.nl2sql.acceptance_test import AcceptanceTest, Question
from chatmetrics.components.nl2sql.descriptions import FILE as DESCRIPTIONS
from chatmetrics.components.nl2sql.descriptions import Descriptions, write_descriptions
from chatmetrics.components.nl2sql.prompts.prompt import instruction
from chatmetrics.components.nl2sql.prompts.template import DEEPSEEK3, PromptTemplate
from chatmetrics.components.storage.manifest import publish, stage
from tests.gguf_files import answering_gguf
from tests.ports import free_port

needs_ollama = pytest.mark.skipif(not shutil.which("ollama"), reason="ollama is not on PATH")
SQL = ["SELECT", " name", ", rating", " FROM", " hotel", " ORDER", " BY", " id"]
ANSWER = "SELECT name, rating FROM hotel ORDER BY id"
ROWS = [["上海外滩酒店", 4.5], ["Plaza", None]]
TOKEN = "s3cret"
COMMAND = [sys.executable, "-m", "chatmetrics.components.serve"]
START_SECONDS = 90


def hotel_database(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE hotel (id INTEGER PRIMARY KEY, name TEXT, rating REAL)")
        connection.executemany("INSERT INTO hotel VALUES (?, ?, ?)", [(1, "上海外滩酒店", 4.5), (2, "Plaza", None)])
        connection.commit()
    return path


def acceptance_test(
    folder: Path, gold: str = ANSWER, max_tokens: int = 32, template: PromptTemplate = DEEPSEEK3
) -> Path:
    """Write an acceptance test of three questions with the same gold query; returns its folder."""
    hotel_database(folder / "hotel-0123456789ab.sqlite")
    asked = tuple(
        Question(
            id=f"q{number}", db_id="hotel", question=words, sql=gold, system="", instruction=instruction("hotel"),
            input=words,
        )
        for number, words in enumerate(("有哪些酒店？", "All hotels?", "Hotels and ratings"))
    )  # fmt: skip
    databases = {"hotel": "hotel-0123456789ab.sqlite"}
    whole = AcceptanceTest(
        threshold=0.5, max_tokens=max_tokens, databases=databases, questions=asked, prompt_template=template.text
    )
    (folder / "acceptance_test-0123456789ab.json").write_text(whole.model_dump_json(), "utf-8")
    return folder


def published(
    folder: Path,
    version: str,
    answer: list[str] = SQL,
    gold: str | None = ANSWER,
    name: str = "hotel",
    endless: bool = False,
    max_tokens: int = 32,
    descriptions: Mapping[str, Descriptions] = MappingProxyType({}),
    template: PromptTemplate = DEEPSEEK3,
    test: Path | None = None,
    **description: Any,
) -> str:
    """Publish a model that answers every prompt with `answer`, and return the URI of its folder.

    Args:
        folder: Folder for the store and temporary files.
        version: The published version.
        answer: Tokens of the model's answer.
        gold: Gold query of its acceptance test; None publishes no acceptance test.
        name: The published name.
        endless: Whether the model repeats its answer and never emits an end token.
        max_tokens: Maximum tokens of an answer in the acceptance test.
        descriptions: What its prompts show in addition to the databases.
        template: The template of its prompts, DeepSeek's or ChatML.
        test: Folder of another acceptance test than that with `gold`.
        description: Fields that are added to the manifest.
    """
    about = {
        "prompt_template": template.text,
        "context_length": 512,
        "schema_form": "ddl",
        "cutoff_length": 512,
        **description,
    }
    work, chatml = folder / f"gguf-{name}-{version}", template != DEEPSEEK3
    gguf = answering_gguf(work, answer, context=about["context_length"], endless=endless, chatml=chatml)
    write_descriptions(gguf.parent, descriptions)
    files = [gguf, *gguf.parent.glob(DESCRIPTIONS)]
    candidate = stage(str(folder / "models"), name, version, files, about)
    if test is None and gold is not None:
        test = acceptance_test(folder / f"acceptance_test-{name}-{version}", gold, max_tokens, template)
    return publish(candidate, {"passed": True}, test).rpartition("/")[0]


@dataclass
class RunningPod:
    """Folders, ports and processes of a pod; `models` and `settings` are the contents of release.json."""

    root: Path
    models: list[dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    go_template: bool = True

    def __post_init__(self) -> None:
        self.port, self.management, self.ollama_port = free_port(), free_port(), free_port()
        for name in ("models", "ollama", "state", "tokens"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        (self.root / "tokens" / "analyst").write_text(TOKEN, "utf-8")
        self.release = self.root / "release.json"
        self.endpoint, self.health = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self.management}"
        self.answering = self.root / "state" / "answering"

    def fetch(self, memory_limit: int = 0) -> subprocess.CompletedProcess[str]:
        """Run the init container."""
        folders = {name: str(self.root / name) for name in ("ollama", "state", "tokens")}
        database = self.root / "databases" / "hotel.sqlite"
        if not database.exists():
            hotel_database(database)
        release = {"models": self.models, "store": str(self.root / "models"), "drainSeconds": 1}
        release["databases"] = {"hotel": str(database)}
        release["served"] = str(self.root / "models/served")
        self.release.write_text(json.dumps({**release, **folders, **self.settings}), "utf-8")
        environment = {**os.environ, "CHATMETRICS_MEMORY_LIMIT": str(memory_limit)}
        command = [*COMMAND, "fetch", str(self.release)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)

    @contextmanager
    def ollama(self) -> Iterator[subprocess.Popen[bytes]]:
        """Start Ollama with the environment of its container."""
        program = shutil.which("ollama")
        assert program
        home = self.root / "ollama"
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "OLLAMA_HOST": f"127.0.0.1:{self.ollama_port}",
            "OLLAMA_MODELS": str(home / "models"),
            "OLLAMA_NO_CLOUD": "1",
            "OLLAMA_KEEP_ALIVE": "-1",
            "OLLAMA_NOPRUNE": "1",
            "OLLAMA_GO_TEMPLATE": "1" if self.go_template else "0",
            "OLLAMA_NUM_PARALLEL": str(self.settings.get("concurrency", 1)),
        }
        with (self.root / "ollama.log").open("ab") as log:
            process = subprocess.Popen([program, "serve"], env=environment, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)

    @contextmanager
    def proxy(self) -> Iterator[subprocess.Popen[str]]:
        """Start the container `proxy` without waiting until it is ready."""
        environment = {**os.environ, "CHATMETRICS_OLLAMA": f"http://127.0.0.1:{self.ollama_port}"}
        environment["CHATMETRICS_THREADS"] = "1"
        ports = ["--port", str(self.port), "--management-port", str(self.management)]
        command = [*COMMAND, "proxy", str(self.release), *ports]
        log = (self.root / "proxy.log").open("w+", encoding="utf-8")
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, text=True)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            log.close()

    @contextmanager
    def ready(self) -> Iterator[subprocess.Popen[str]]:
        """Start all containers and wait until the pod is ready."""
        fetched = self.fetch()
        assert fetched.returncode == 0, fetched.stderr
        with self.ollama(), self.proxy() as process:
            self.wait(200, process)
            yield process

    def wait(self, status: int, process: subprocess.Popen[str] | None = None) -> None:
        """Wait until the readiness probe returns this status."""
        deadline = time.monotonic() + START_SECONDS
        while self.readiness() != status:
            assert time.monotonic() < deadline, self.log()
            assert process is None or process.poll() is None, self.log()
            time.sleep(0.1)

    def readiness(self) -> int:
        try:
            return httpx.get(f"{self.health}/health/ready").status_code
        except httpx.TransportError:
            return 0

    def log(self) -> str:
        return (self.root / "proxy.log").read_text("utf-8") + (self.root / "ollama.log").read_text("utf-8")[-2000:]

    def post(self, path: str, body: Any, token: str = TOKEN, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.post(self.endpoint + path, json=body, headers=headers, timeout=60.0, **options)

    def get(self, path: str, token: str = TOKEN) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.get(self.endpoint + path, headers=headers, timeout=60.0)
