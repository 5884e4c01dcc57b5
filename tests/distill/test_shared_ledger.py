"""Several processes that share a ledger in a bucket."""

import time
import tracemalloc
from collections import Counter
from multiprocessing import Queue, get_context
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from chatmetrics.components.distill.teacher import append_only_log
from chatmetrics.components.distill.teacher.append_only_log import ObjectLog, open_log
from chatmetrics.components.distill.teacher.ledger import Ledger, open_ledger
from chatmetrics.components.distill.teacher.request import Request, TeacherAnswer
from chatmetrics.components.storage.store import open_store
from tests.distill.running_teacher import RunningTeacher, requests, running_teacher
from tests.storage.s3 import Server
from tests.waiting import wait_until

FORK = get_context("fork")


@pytest.fixture(autouse=True)
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(append_only_log, "LEASE_SECONDS", 3.0)
    monkeypatch.setattr(append_only_log, "BEAT_SECONDS", 0.5)
    monkeypatch.setattr(append_only_log, "CHECK_SECONDS", 0.2)


class Run:
    """A process that asks, and reports how many answers it has and how many requests it did not send."""

    def __init__(self, teacher: RunningTeacher, wanted: list[Request], **settings: Any) -> None:
        self._results: Queue[tuple[int, int]] = FORK.Queue()
        self.process = FORK.Process(target=self._ask, args=(teacher, wanted, settings))
        self.process.start()

    def _ask(self, teacher: RunningTeacher, wanted: list[Request], settings: dict[str, Any]) -> None:
        result = teacher.ask(wanted, **settings)
        self._results.put((len(result.answers), result.not_sent))

    def result(self) -> tuple[int, int]:
        found = self._results.get(timeout=600)
        self.process.join()
        return found


def sent(teacher: RunningTeacher) -> Counter[str]:
    return Counter(record["request"] for record in teacher.logged())


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_with_the_same_questions_send_each_once(processes: int, tmp_path: Path, bucket: str) -> None:
    with running_teacher(tmp_path, "--latency", "0.1") as teacher:
        teacher.ledger = f"s3://{bucket}/teacher"
        runs = [Run(teacher, requests(40)) for _ in range(processes)]
        assert [run.result() for run in runs] == [(40, 0)] * processes
        assert set(sent(teacher).values()) == {1} and len(sent(teacher)) == 40


@pytest.mark.parametrize("same", [True, False])
def test_a_cap_holds_for_all_processes_together(same: bool, tmp_path: Path, bucket: str) -> None:
    with running_teacher(tmp_path, "--latency", "0.1") as teacher:
        teacher.ledger = f"s3://{bucket}/teacher"
        wanted = requests(60)
        parts = [wanted, wanted] if same else [wanted[:30], wanted[30:]]
        runs = [Run(teacher, part, budget_tokens=6000) for part in parts]
        found = [run.result() for run in runs]
        assert all(answers + not_sent == len(part) for (answers, not_sent), part in zip(found, parts, strict=True))
        assert any(not_sent > 0 for _, not_sent in found)
        # Little is wasted: a process stops while the other one's requests still reserve more than they will cost.
        assert 6000 - 1500 < sum(teacher.billed().values()) <= 6000
        assert set(sent(teacher).values()) == {1}


def test_a_process_takes_over_the_requests_of_one_that_was_killed(tmp_path: Path, bucket: str) -> None:
    with running_teacher(tmp_path, "--latency", "0.5") as teacher:
        teacher.ledger = f"s3://{bucket}/teacher"
        first, second = Run(teacher, requests(24)), Run(teacher, requests(24))
        while len(teacher.logged()) < 12:
            time.sleep(0.02)
        first.process.kill()
        assert second.result() == (24, 0)
        # At most the requests that the killed process had in flight are sent again.
        assert len(sent(teacher)) == 24 and sum(sent(teacher).values()) <= 24 + 8
        with open_ledger(str(teacher.ledger), teacher.settings()) as ledger:
            spending = ledger.spending()
        assert spending.answered == 24 and spending.unknown <= 8
        assert spending.completion_tokens >= teacher.billed()["completion_tokens"]


def test_records_are_not_merged_while_another_process_may_read_them(
    bucket: str, aws: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(append_only_log, "MAX_OBJECTS", 5)
    with open_log(f"s3://{bucket}/teacher") as reader:
        assert list(reader.read()) == []
        with open_log(f"s3://{bucket}/teacher") as writer:
            for number in range(12):
                writer.append([{"number": number}])
        with open_log(f"s3://{bucket}/teacher") as third:
            assert [record["number"] for record in third.read()] == list(range(12))
        assert [record["number"] for record in reader.read_new()] == list(range(12))
        assert reader.read_new() == []
    with open_log(f"s3://{bucket}/teacher") as later:
        assert [record["number"] for record in later.read()] == list(range(12))
        assert len(aws.client.list_objects_v2(Bucket=bucket, Prefix="teacher/requests/")["Contents"]) == 1
        assert len(aws.client.list_objects_v2(Bucket=bucket, Prefix="teacher/processes/")["Contents"]) == 1


def test_records_of_earlier_versions_are_read(bucket: str) -> None:
    store = open_store(f"s3://{bucket}/teacher")
    store.put_bytes(b'{"number": 1}\n', "requests/01700000000000000000-0123456789abcdef.jsonl", overwrite=True)
    with open_log(f"s3://{bucket}/teacher") as log:
        assert list(log.read()) == [{"number": 1}]


@pytest.mark.parametrize("beat", [b"{", b"[]", b'"x"', b'{"count": 1}', b"\xff"])
def test_objects_that_no_process_wrote_do_no_harm(beat: bytes, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(append_only_log, "MAX_OBJECTS", 1)
    store, process = open_store(f"s3://{bucket}/teacher"), "01700000000000000000-0123456789ab"
    for number, name in enumerate(("00000000", "00000001", "00000001 (copy)")):
        store.put_bytes(b'{"number": %d}\n' % number, f"requests/{process}/{name}.jsonl", overwrite=True)
    store.put_bytes(beat, f"processes/{process}.json", overwrite=True)
    with open_log(f"s3://{bucket}/teacher") as log:
        assert sorted(record["number"] for record in log.read()) == [0, 1, 2]
        assert log.read_new() == []


def test_a_process_is_dead_when_its_counter_stands_still(bucket: str) -> None:
    with open_log(f"s3://{bucket}/teacher") as log:
        killed = ObjectLog(open_store(f"s3://{bucket}/teacher"))
        killed.beat(0)
        assert log.is_alive(killed.process)
        wait_until(lambda: not log.is_alive(killed.process), 120)
        with open_log(f"s3://{bucket}/teacher") as alive:
            assert log.is_alive(alive.process)
        time.sleep(0.3)
        assert not log.is_alive(alive.process) and not log.is_alive("never")


@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_a_large_ledger_is_not_held_in_memory(
    where: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(append_only_log, "MERGED_BYTES", 2**20)
    uri = f"s3://{request.getfixturevalue('bucket')}/teacher" if where == "bucket" else str(tmp_path / "ledger")
    settings = RunningTeacher(tmp_path, "http://127.0.0.1:1/v1", tmp_path / "none").settings()
    reasoning, wanted = "Let me think about it. " * 5000, requests(200)  # 115 kB each, 23 MB together
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "cost": 0.0}
    with open_log(uri) as log:
        for number, each in enumerate(wanted):
            id, key = uuid4().hex, each.key(settings)
            sent = {"kind": "sent", "id": id, "key": key, "purpose": "question", "sample": 0, "time": "", "model": "m"}
            answer = TeacherAnswer(f"SELECT {number}", reasoning, 10, 5, False, 1.0, 0.5).record()
            answered = {"kind": "answered", "id": id, "key": key, "usage": usage, "answer": answer}
            log.append([{**sent, "max_usage": usage, "prices": [0, 0]}, answered])
    with open_log(uri) as log:
        tracemalloc.start()
        ledger = Ledger(log, settings)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < len(reasoning) * len(wanted) / 4
        assert ledger.answers[wanted[7].key(settings)].text == "SELECT 7"
        assert ledger.spending().answered == 200
