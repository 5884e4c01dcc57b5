"""Sampling from a teacher that misbehaves: no answer is lost or requested twice, and each error is one line."""

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from chatmetrics.components.distill.teacher.ledger import open_ledger
from chatmetrics.components.distill.teacher.sampling import SamplingResult
from chatmetrics.components.errors import InputError, ServiceError
from tests.distill.running_teacher import RunningTeacher, requests, running_teacher, sql

FAULTS = {
    "error_500": "500: ",
    "cut": "",
    "malformed": "invalid response|JSON that is cut off",
    "empty": "",
    "hang": "no answer within",
}


def is_right(result: SamplingResult, number: int, samples: int = 1) -> bool:
    """Whether there are `samples` answers with the right query for each question."""
    held = Counter(index for answer in result.answers.values() for index in range(number) if sql(index) in answer.text)
    return len(result.answers) == number * samples and held == dict.fromkeys(range(number), samples)


@pytest.mark.parametrize("style", ["fenced", "prose", "plain", "reasoning_content"])
def test_answers_in_all_styles_are_read(style: str, tmp_path: Path) -> None:
    with running_teacher(tmp_path, "--style", style) as teacher:
        for stream, count in ((True, 16), (False, 32)):
            teacher.ledger = tmp_path / f"ledger-{stream}"
            for _ in range(2):
                result = teacher.ask(requests(8, 2), stream=stream)
                answers = result.answers.values()
                assert is_right(result, 8, 2)
                assert all(answer.reasoning.startswith("The question is about") for answer in answers)
                assert all("<think>" not in answer.text for answer in answers)
                assert all(answer.prompt_tokens > 20 and answer.completion_tokens > 10 for answer in answers)
                assert len(teacher.logged()) == count


@pytest.mark.parametrize("stream", [True, False])
def test_occasional_faults_are_retried(stream: bool, tmp_path: Path) -> None:
    shares = [word for fault in FAULTS for word in (f"--{fault.replace('_', '-')}", "0.1")]
    with running_teacher(tmp_path, *shares, "--huge", "0.1", "--hang-seconds", "20") as teacher:
        result = teacher.ask(requests(40), stream=stream, attempts=12, request_seconds=3)
        assert is_right(result, 40) and not result.unanswered
        logged = teacher.logged()
    again = Counter(record["request"] for record in logged if record["fault"] in ("", "huge"))
    assert set(again.values()) == {1}, "a request that was answered was asked again"
    assert {record["fault"] for record in logged} == {*FAULTS, "huge", ""}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_permanent_fault_is_an_error_of_one_line(fault: str, tmp_path: Path) -> None:
    option = f"--{fault.replace('_', '-')}"
    with running_teacher(tmp_path, option, "1", "--hang-seconds", "20") as teacher:
        for stream in (True, False):
            with pytest.raises(
                ServiceError, match=r"does not answer .*; the answers received so far are kept, run"
            ) as raised:
                teacher.ask(requests(8), stream=stream, attempts=2, request_seconds=0.5, concurrency=4)
            assert re.search(FAULTS[fault], str(raised.value)) and "\n" not in str(raised.value)
        assert len(teacher.logged()) <= 2 * 2 * 8


def test_an_answer_of_100_kb_is_accepted(tmp_path: Path) -> None:
    with running_teacher(tmp_path, "--huge", "1") as teacher:
        for stream in (True, False):
            teacher.ledger = tmp_path / f"ledger-{stream}"
            result = teacher.ask(requests(4), stream=stream)
            assert is_right(result, 4)
            assert all(len(answer.reasoning) > 100_000 for answer in result.answers.values())


def test_retry_after_is_respected(tmp_path: Path) -> None:
    with running_teacher(tmp_path, "--rate-limit", "5", "--retry-after", "1.2") as teacher:
        # Far more concurrent requests than it accepts, and fewer attempts than there are refusals.
        result = teacher.ask(requests(20), concurrency=16, attempts=3)
        assert is_right(result, 20) and not result.unanswered
        logged = teacher.logged()
    assert any(record["fault"] == "429" for record in logged)
    refused = 0.0
    for record, following in pairwise(logged):
        refused = record["time"] if record["fault"] == "429" else refused
        # Requests that were in flight arrive within a fraction of a second.
        assert not 0.5 < following["time"] - refused < 1.1, "a request was sent during the pause"


def test_a_teacher_that_is_always_busy_is_an_error(tmp_path: Path) -> None:
    with (
        running_teacher(tmp_path, "--rate-limit", "1", "--retry-after", "0.1") as teacher,
        pytest.raises(ServiceError, match=r"accepts no requests .429: Rate limit reached.* after 2 pauses"),
    ):
        # One request per second is accepted.
        teacher.ask(requests(20), attempts=2)


def test_pauses_grow_without_retry_after(tmp_path: Path) -> None:
    with running_teacher(tmp_path, "--rate-limit", "4", "--retry-after", "0") as teacher:
        result = teacher.ask(requests(12), attempts=6, max_backoff_seconds=1.0)
        assert is_right(result, 12)


def test_a_wrong_key_ends_the_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_API_KEY", "sk-of-somebody-else")
    with running_teacher(tmp_path, "--key", "sk-the-right-one") as teacher:
        with pytest.raises(ServiceError, match=r"the API key in TEACHER_API_KEY is refused .401.*\[hidden\]"):
            teacher.ask(requests(16))
        monkeypatch.delenv("TEACHER_API_KEY")
        with pytest.raises(ServiceError, match="an API key is required: set TEACHER_API_KEY"):
            teacher.ask(requests(16))
        assert teacher.logged() == []
        monkeypatch.setenv("TEACHER_API_KEY", "sk-the-right-one")
        assert is_right(teacher.ask(requests(16)), 16)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1/v1", "http://nowhere.invalid/v1", "https://127.0.0.1:1/v1"])
def test_nothing_is_spent_if_nothing_listens(endpoint: str, tmp_path: Path) -> None:
    nobody = RunningTeacher(tmp_path, endpoint, tmp_path / "none")
    with pytest.raises(ServiceError, match=f"{endpoint} does not answer") as raised:
        nobody.ask(requests(6), attempts=2, concurrency=4)
    assert "\n" not in str(raised.value)
    with open_ledger(str(nobody.ledger), nobody.settings()) as ledger:
        assert (ledger.spending().cost, ledger.spending().failed > 0) == (0, True)


def test_an_address_that_does_not_exist_is_an_error_at_once(tmp_path: Path) -> None:
    with running_teacher(tmp_path) as teacher:
        teacher.endpoint = teacher.endpoint.replace("/v1", "/v2")
        with pytest.raises(ServiceError, match=r"the model teacher or the address does not exist .Not found: /v2"):
            teacher.ask(requests(16))
        assert teacher.logged() == []


def test_a_model_that_does_not_exist_is_an_error_at_once(tmp_path: Path) -> None:
    with running_teacher(tmp_path, "--model", "small") as teacher:
        with pytest.raises(ServiceError, match=r"the model teacher or the address does not exist .The model"):
            teacher.ask(requests(16))
        assert is_right(teacher.ask(requests(16), model="small"), 16)


def test_a_teacher_that_requires_payment_ends_the_run(tmp_path: Path) -> None:
    with running_teacher(tmp_path, "--balance", "5") as teacher:
        with pytest.raises(ServiceError, match=r"requires payment .402.*the answers received so far are kept"):
            teacher.ask(requests(16), concurrency=1)
        with open_ledger(str(teacher.ledger), teacher.settings()) as ledger:
            assert len(ledger.answers) == 5


def test_only_one_process_can_use_a_ledger(tmp_path: Path) -> None:
    teacher = RunningTeacher(tmp_path, "http://127.0.0.1:1/v1", tmp_path / "none")
    with open_ledger(str(teacher.ledger), teacher.settings()), pytest.raises(InputError, match="another process"):
        teacher.ask(requests(1))
