"""A step that is killed repeatedly, at random moments, pays for nothing twice."""

import random
import signal
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from chatmetrics.components.distill.teacher import append_only_log
from chatmetrics.components.distill.teacher.ledger import open_ledger
from chatmetrics.components.distill.teacher.request import Request
from chatmetrics.components.distill.teacher.spending import Spending
from tests.distill.running_teacher import RunningTeacher, requests, running_teacher

CONCURRENCY, LATENCY = 6, 0.1


class Attempt:
    """A process that asks until it is done or has sent `most` requests and is killed; `asked` are its requests."""

    def __init__(self, teacher: RunningTeacher, wanted: list[Request], most: int, **settings: Any) -> None:
        # Forked, because a new interpreter takes too long to start.
        settings["concurrency"] = CONCURRENCY
        process = get_context("fork").Process(target=teacher.ask, args=(wanted,), kwargs=settings)
        before = len(teacher.logged())
        process.start()
        while process.is_alive() and len(teacher.logged()) - before < most:
            time.sleep(0.01)
        if process.is_alive():
            time.sleep(random.uniform(0, LATENCY))
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        time.sleep(0.2)  # the server may still log requests that are in flight
        self.was_killed = process.exitcode != 0
        self.asked = [record["request"] for record in teacher.logged()[before:]]


def killed_until_done(teacher: RunningTeacher, wanted: list[Request], seed: int, **settings: Any) -> tuple[int, int]:
    """Kill and restart until all is answered; returns the number of kills, and of requests that were in flight then."""
    generator, kills, in_flight = random.Random(seed), 0, 0
    known: set[str] = set()
    while True:
        attempt = Attempt(teacher, wanted, generator.randrange(len(wanted) // 6, len(wanted) // 2), **settings)
        assert len(set(attempt.asked)) == len(attempt.asked)
        assert not known.intersection(attempt.asked), "a recorded answer was requested again"
        known = teacher.answered(wanted, **settings)
        if not attempt.was_killed:
            return kills, in_flight
        kills += 1
        assert len(set(attempt.asked) - known) <= CONCURRENCY
        in_flight += len(set(attempt.asked) - known)
        assert kills < 60, "no progress"


def spent(teacher: RunningTeacher) -> Spending:
    with open_ledger(str(teacher.ledger), teacher.settings()) as ledger:
        return ledger.spending()


@pytest.mark.parametrize(
    ("store", "questions", "stream"), [("folder", 40, True), ("folder", 40, False), ("bucket", 10, True)]
)
def test_nothing_is_paid_twice_when_killed_at_random(
    store: str,
    questions: int,
    stream: bool,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(append_only_log, "LEASE_SECONDS", 2.0)
    monkeypatch.setattr(append_only_log, "BEAT_SECONDS", 0.5)
    with running_teacher(tmp_path, "--latency", str(LATENCY)) as teacher:
        if store == "bucket":
            teacher.ledger = f"s3://{request.getfixturevalue('bucket')}/teacher"
        wanted = requests(questions, 3)
        kills, in_flight = killed_until_done(teacher, wanted, questions + stream, stream=stream)
        logged = teacher.logged()
        assert kills >= 1
        assert len(wanted) <= len(logged) <= len(wanted) + in_flight
        assert teacher.answered(wanted) == {record["request"] for record in logged}
        # The outcome of those in flight is unknown, so they count at their maximum cost.
        spending = spent(teacher)
        assert len(logged) <= spending.requests <= len(logged) + kills * CONCURRENCY
        assert spending.prompt_tokens >= teacher.billed()["prompt_tokens"]
        assert spending.completion_tokens >= teacher.billed()["completion_tokens"]
        assert Attempt(teacher, wanted, 1, stream=stream).asked == []


def test_a_cap_holds_when_killed_at_random(tmp_path: Path) -> None:
    with running_teacher(tmp_path, "--latency", str(LATENCY)) as teacher:
        wanted = requests(40, 3)
        kills, _ = killed_until_done(teacher, wanted, 7, budget_tokens=15000)
        assert kills >= 1
        assert 0 < sum(teacher.billed().values()) <= 15000
        assert len(teacher.answered(wanted)) < len(wanted)
