"""Caps on the cost, and the account of what was spent."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from chatmetrics.components.distill.teacher.append_only_log import FILE, open_log
from chatmetrics.components.distill.teacher.ledger import open_ledger
from chatmetrics.components.distill.teacher.request import TeacherAnswer
from chatmetrics.components.errors import InputError, StorageError
from tests.distill.running_teacher import RunningTeacher, requests, running_teacher
from tests.storage.s3 import Server

PRICES = {"prompt_price": 2.0, "completion_price": 10.0}


def price(billed: dict[str, int]) -> float:
    """The price of the tokens that the server counted."""
    return sum(billed[f"{name}_tokens"] * PRICES[f"{name}_price"] / 1000 for name in ("prompt", "completion"))


@pytest.mark.parametrize("faults", [(), ("--cut", "0.3", "--error-500", "0.2")])
def test_a_budget_holds_over_several_runs_by_the_servers_count(
    faults: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_teacher(tmp_path, *faults) as teacher:
        for budget in (20.0, 20.0, 40.0):
            result = teacher.ask(requests(64), budget=budget, **PRICES)
            assert price(teacher.billed()) <= budget
            assert result.not_sent > 0 and len(result.answers) + result.not_sent + result.unanswered.total() == 64
        # Everything is spent except for what one more request could cost.
        assert price(teacher.billed()) > 40 - 5 - 25 * bool(faults)
    assert f"the cap is reached: {result.not_sent} requests were not sent" in capsys.readouterr().err


def test_a_cap_on_tokens_holds(tmp_path: Path) -> None:
    with running_teacher(tmp_path) as teacher:
        result = teacher.ask(requests(64), budget_tokens=5000)
        assert 5000 - 1000 < sum(teacher.billed().values()) <= 5000
        assert result.not_sent == 64 - len(result.answers)


def test_a_run_can_fail_at_the_cap(tmp_path: Path) -> None:
    with running_teacher(tmp_path) as teacher:
        with pytest.raises(InputError, match=r"the cap is reached: .* raise distill.budget .30.$"):
            teacher.ask(requests(64), budget=30, at_cap="fail", **PRICES)
        known = len(teacher.logged())
        assert len(teacher.ask(requests(64), budget=30, **PRICES).answers) == known > 0


def test_a_request_that_does_not_fit_the_budget_is_not_sent(tmp_path: Path) -> None:
    with running_teacher(tmp_path) as teacher:
        result = teacher.ask(requests(4), budget=0.01, **PRICES)
        assert (result.not_sent, teacher.logged()) == (4, [])


def test_the_account_equals_the_servers_to_the_token(tmp_path: Path) -> None:
    with running_teacher(tmp_path) as teacher:
        teacher.ask(requests(16, 2), **PRICES)
        settings = teacher.settings(**PRICES)
        with open_ledger(str(teacher.ledger), settings) as ledger:
            spending = ledger.spending()
            ledger.export(tmp_path / "ledger.jsonl")
        assert {name: getattr(spending, name) for name in teacher.billed()} == teacher.billed()
        assert spending.cost == pytest.approx(price(teacher.billed()))
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert len(lines) == spending.requests == 32
    assert {line["state"] for line in lines} == {"answered"} and {line["purpose"] for line in lines} == {"question"}
    assert sum(line["cost"] for line in lines) == pytest.approx(spending.cost)
    assert not any("item" in json.dumps(line) for line in lines)  # the lines have no questions and no answers


def test_changed_prices_apply_to_later_requests_only(tmp_path: Path) -> None:
    with running_teacher(tmp_path) as teacher:
        teacher.ask(requests(4), prompt_price=1, completion_price=1)
        first = sum(teacher.billed().values()) / 1000
        teacher.ask(requests(8), prompt_price=2, completion_price=2)
        with open_ledger(str(teacher.ledger), teacher.settings()) as ledger:
            assert ledger.spending().cost == pytest.approx(first + 2 * (sum(teacher.billed().values()) / 1000 - first))


@pytest.mark.parametrize(
    "change",
    [
        {"model": "another"},
        {"seed": 7},
        {"seed": -1},
        {"options": {"top_p": 0.9}},
    ],
)
def test_only_settings_that_affect_the_answer_send_requests_again(change: dict[str, Any], tmp_path: Path) -> None:
    with running_teacher(tmp_path) as teacher:
        teacher.ask(requests(3))
        teacher.ask(requests(3), verification="none", keep_samples=2, concurrency=1, stream=False, attempts=2)
        assert len(teacher.logged()) == 3
        teacher.ask(requests(3), **change)
        assert len(teacher.logged()) == 6


async def account(teacher: RunningTeacher, text: str) -> None:
    """Record a request and its answer."""
    with open_ledger(str(teacher.ledger), teacher.settings()) as ledger:
        request = requests(1)[0]
        async with ledger.sent(request) as id:
            await ledger.answered(id, request, TeacherAnswer(text, "", 10, 5, False, 1.0, 0.5))


def test_an_incomplete_line_is_overwritten(tmp_path: Path) -> None:
    nobody = RunningTeacher(tmp_path, "http://127.0.0.1:1/v1", tmp_path / "none")
    asyncio.run(account(nobody, "SELECT 1"))
    log = nobody.ledger / FILE
    whole = log.read_bytes()
    log.write_bytes(whole + whole[:37])
    asyncio.run(account(nobody, "SELECT 2"))
    with open_ledger(str(nobody.ledger), nobody.settings()) as ledger:
        assert [answer.text for answer in ledger.answers.values()] == ["SELECT 2"]
        assert ledger.spending().requests == 2
    log.write_bytes(b"not a line\n" + log.read_bytes())
    with (
        pytest.raises(InputError, match=r"requests.jsonl:1: not a line of the ledger"),
        open_ledger(str(nobody.ledger), nobody.settings()),
    ):
        pass


@pytest.mark.parametrize(
    "record",
    [
        {"id": "1"},
        {"id": "1", "kind": "paused"},
        {"kind": "sent", "id": "1", "key": "k"},
        {"kind": "answered", "id": "1", "key": "k", "usage": None, "answer": {}},
        {"kind": "failed", "id": "1", "usage": {"prompt_tokens": 1, "completion_tokens": 1, "cost": 1, "cached": 1}},
        {"kind": "failed", "id": "1", "usage": {"prompt_tokens": 1, "completion_tokens": 1, "cost": "free"}},
    ],
)
def test_a_record_of_another_form_is_one_line(record: dict[str, Any], tmp_path: Path) -> None:
    nobody = RunningTeacher(tmp_path, "http://127.0.0.1:1/v1", tmp_path / "none")
    nobody.ledger.mkdir(exist_ok=True)
    (nobody.ledger / FILE).write_text(json.dumps(record) + "\n")
    with (
        pytest.raises(InputError, match="a record of the ledger is not as this version writes it"),
        open_ledger(str(nobody.ledger), nobody.settings()),
    ):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_an_error_and_earlier_records_remain(tmp_path: Path) -> None:
    with open_log(str(tmp_path)) as log:
        log.append([{"number": 1}])
        file = tmp_path / FILE
        file.rename(tmp_path / "kept")
        file.symlink_to("/dev/full")
        with pytest.raises(StorageError):
            log.append([{"number": 2}])
        file.unlink()
        (tmp_path / "kept").rename(file)
        with file.open("a") as torn:
            torn.write('{"number": 2')
        log.append([{"number": 3}])
        assert list(log.read()) == [{"number": 1}, {"number": 3}]


def test_a_ledger_can_be_in_a_bucket(tmp_path: Path, bucket: str) -> None:
    with running_teacher(tmp_path) as teacher:
        teacher.ledger = f"s3://{bucket}/teacher/hotel"  # type: ignore[assignment]
        for _ in range(2):
            assert len(teacher.ask(requests(16)).answers) == 16
        assert len(teacher.logged()) == 16


def test_many_objects_in_a_bucket_are_merged(bucket: str, aws: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatmetrics.components.distill.teacher.append_only_log.MAX_OBJECTS", 10)
    with open_log(f"s3://{bucket}/teacher") as log:
        for number in range(12):
            log.append([{"number": number}])
        for _ in range(2):
            assert [record["number"] for record in log.read()] == list(range(12))
            assert aws.client.list_objects_v2(Bucket=bucket, Prefix="teacher/requests/")["KeyCount"] == 1
        log.append([{"number": 12}])
        assert [record["number"] for record in log.read()] == list(range(13))
