"""A scripted teacher in its own process, requests to it, and its log."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chatmetrics.components.distill.prompts import question_messages
from chatmetrics.components.distill.scripted.server import name_of, scripted_teacher
from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.distill.teacher.ledger import open_ledger
from chatmetrics.components.distill.teacher.request import Request
from chatmetrics.components.distill.teacher.sampling import SamplingResult, ask
from chatmetrics.components.nl2sql.example import write_examples
from tests.distill.shop import question


def requests(number: int, samples: int = 1) -> list[Request]:
    """Requests about different questions, with the same number of samples each."""
    return [
        Request(question_messages("shop", words(index), "CREATE TABLE item (name, price)"), sample, 0.6, 256)
        for index in range(number)
        for sample in range(samples)
    ]


def words(index: int) -> str:
    return f"What does item {index} cost?"


def sql(index: int) -> str:
    return f"SELECT price FROM item WHERE name = 'item {index}'"


class RunningTeacher:
    """A teacher that answers `requests`, with a ledger for the client and the server's log."""

    def __init__(self, folder: Path, endpoint: str, log: Path) -> None:
        self.endpoint, self._log = endpoint, log
        self.ledger: str | Path = folder / "ledger"

    def settings(self, **values: Any) -> DistillSettings:
        quick = {"backoff_seconds": 0.05, "max_backoff_seconds": 0.2, "concurrency": 8}
        return DistillSettings.model_validate({"base_url": self.endpoint, "model": "teacher", **quick, **values})

    def ask(self, wanted: list[Request], **values: Any) -> SamplingResult:
        settings = self.settings(**values)
        with open_ledger(str(self.ledger), settings) as ledger:
            return ask(settings, self.endpoint, wanted, ledger, "asking")

    def answered(self, wanted: list[Request], **values: Any) -> set[str]:
        """Names in `logged` of the requests that have an answer in the ledger."""
        settings = self.settings(**values)
        with open_ledger(str(self.ledger), settings) as ledger:
            known = [request for request in wanted if request.key(settings) in ledger.answers]
        return {name_of(request.body(settings)) for request in known}

    def logged(self) -> list[dict[str, Any]]:
        """The server's record of every request: time, name, fault and tokens."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def billed(self) -> dict[str, int]:
        """Tokens of all answers that the server started to send."""
        logged = self.logged()
        return {name: sum(record.get(name, 0) for record in logged) for name in ("prompt_tokens", "completion_tokens")}


@contextmanager
def running_teacher(folder: Path, *options: str, known: int = 64, error_rate: float = 0.0) -> Iterator[RunningTeacher]:
    """Run a teacher that knows the answers to the first `known` questions of `requests`."""
    answers, log = folder / "answers.jsonl", folder / "log.jsonl"
    write_examples(answers, [question(sql(index), f"q{index}", words=words(index)) for index in range(known)])
    log.touch()
    with scripted_teacher([answers], error_rate, "--log", str(log), *options) as endpoint:
        yield RunningTeacher(folder, endpoint, log)
