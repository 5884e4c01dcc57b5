"""A step that is killed again and again, at random moments, pays for nothing twice."""

import random
import signal
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from chatmetrics.components.distill.teacher.ledger import open_ledger
from chatmetrics.components.distill.teacher.request import Request
from chatmetrics.components.distill.teacher.spending import Spending
from tests.distill.running_teacher import RunningTeacher, requests, running_teacher

AT_ONCE, LATENCY = 6, 0.1


class Life:
    """A process that asks until it is done, or killed once it has sent so many requests, and what it asked."""

    def __init__(self, teacher: RunningTeacher, wanted: list[Request], most: int, **settings: Any) -> None:
        # Forked, because a new interpreter would need longer to begin than to be killed.
        settings["concurrency"] = AT_ONCE
        process = get_context("fork").Process(target=teacher.ask, args=(wanted,), kwargs=settings)
        before = len(teacher.noted())
        process.start()
        while process.is_alive() and len(teacher.noted()) - before < most:
            time.sleep(0.01)
        if process.is_alive():
            time.sleep(random.uniform(0, LATENCY))
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        time.sleep(0.2)  # the server may still take note of what was under way
        self.was_killed = process.exitcode != 0
        self.asked = [record["request"] for record in teacher.noted()[before:]]


def killed_until_done(teacher: RunningTeacher, wanted: list[Request], seed: int, **settings: Any) -> tuple[int, int]:
    """Kill and start again until all is answered; returns the kills, and how many requests were under way at them."""
    generator, kills, under_way = random.Random(seed), 0, 0
    known: set[str] = set()
    while True:
        life = Life(teacher, wanted, generator.randrange(len(wanted) // 6, len(wanted) // 2), **settings)
        assert len(set(life.asked)) == len(life.asked)
        assert not known.intersection(life.asked), "what was answered and written down was asked again"
        known = teacher.answered(wanted, **settings)
        if not life.was_killed:
            return kills, under_way
        kills += 1
        assert len(set(life.asked) - known) <= AT_ONCE
        under_way += len(set(life.asked) - known)
        assert kills < 60, "it makes no progress"


def spent(teacher: RunningTeacher) -> Spending:
    with open_ledger(str(teacher.ledger), teacher.settings()) as ledger:
        return ledger.spending()


@pytest.mark.parametrize(
    ("store", "questions", "stream"), [("folder", 40, True), ("folder", 40, False), ("bucket", 10, True)]
)
def test_killed_at_random_nothing_is_paid_twice(
    store: str, questions: int, stream: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with running_teacher(tmp_path, "--latency", str(LATENCY)) as teacher:
        if store == "bucket":
            teacher.ledger = f"s3://{request.getfixturevalue('bucket')}/teacher"
        wanted = requests(questions, 3)
        kills, under_way = killed_until_done(teacher, wanted, questions + stream, stream=stream)
        noted = teacher.noted()
        assert kills >= 1
        assert len(wanted) <= len(noted) <= len(wanted) + under_way
        assert teacher.answered(wanted) == {record["request"] for record in noted}
        # What came of those that were under way is not known; they count as dear as they can be.
        spending = spent(teacher)
        assert len(noted) <= spending.requests <= len(noted) + kills * AT_ONCE
        assert spending.prompt_tokens >= teacher.billed()["prompt_tokens"]
        assert spending.completion_tokens >= teacher.billed()["completion_tokens"]
        assert Life(teacher, wanted, 1, stream=stream).asked == []


def test_killed_at_random_a_cap_holds(tmp_path: Path) -> None:
    with running_teacher(tmp_path, "--latency", str(LATENCY)) as teacher:
        wanted = requests(40, 3)
        kills, _ = killed_until_done(teacher, wanted, 7, budget_tokens=15000)
        assert kills >= 1
        assert 0 < sum(teacher.billed().values()) <= 15000
        assert len(teacher.answered(wanted)) < len(wanted)
