"""Asking a teacher that misbehaves: nothing is lost, nothing is asked too often, each error is a line."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from chatmetrics.components.distill.teacher.ledger import open_ledger
from chatmetrics.components.distill.teacher.sampling import SamplingResult
from chatmetrics.components.errors import InputError, ServiceError
from tests.distill.running_teacher import RunningTeacher, requests, running_teacher, sql

FAULTS = {"error_500": "500: ", "cut": "", "malformed": "none of the protocol", "empty": "", "hang": "no answer within"}


def is_right(asked: SamplingResult, number: int, samples: int = 1) -> bool:
    """Whether each question's answer holds its query, as often as there are samples."""
    held = Counter(index for answer in asked.answers.values() for index in range(number) if sql(index) in answer.text)
    return len(asked.answers) == number * samples and held == dict.fromkeys(range(number), samples)


@pytest.mark.parametrize("style", ["fenced", "prose", "plain", "reasoning_content"])
def test_answers_come_however_they_are_written(style: str, tmp_path: Path) -> None:
    with running_teacher(tmp_path, "--style", style) as teacher:
        for stream, count in ((True, 16), (False, 32)):
            teacher.ledger = tmp_path / f"ledger-{stream}"
            for _ in range(2):
                asked = teacher.ask(requests(8, 2), stream=stream)
                answers = asked.answers.values()
                assert is_right(asked, 8, 2)
                assert all(answer.reasoning.startswith("The question is about") for answer in answers)
                assert all("<think>" not in answer.text for answer in answers)
                assert all(answer.prompt_tokens > 20 and answer.completion_tokens > 10 for answer in answers)
                assert len(teacher.noted()) == count


@pytest.mark.parametrize("stream", [True, False])
def test_what_goes_wrong_sometimes_is_asked_again(stream: bool, tmp_path: Path) -> None:
    shares = [word for fault in FAULTS for word in (f"--{fault.replace('_', '-')}", "0.1")]
    with running_teacher(tmp_path, *shares, "--huge", "0.1", "--hang-seconds", "20") as teacher:
        asked = teacher.ask(requests(40), stream=stream, attempts=12, request_seconds=3)
        assert is_right(asked, 40) and not asked.unanswered
        noted = teacher.noted()
    again = Counter(record["request"] for record in noted if record["fault"] in ("", "huge"))
    assert set(again.values()) == {1}, "a request that was answered was asked again"
    assert {record["fault"] for record in noted} == {*FAULTS, "huge", ""}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_what_always_goes_wrong_is_an_error_of_one_line(fault: str, tmp_path: Path) -> None:
    option = f"--{fault.replace('_', '-')}"
    with running_teacher(tmp_path, option, "1", "--hang-seconds", "20") as teacher:
        for stream in (True, False):
            with pytest.raises(ServiceError, match=r"does not answer .*; what was answered is kept, run") as raised:
                teacher.ask(requests(8), stream=stream, attempts=2, request_seconds=0.5, concurrency=4)
            assert FAULTS[fault] in str(raised.value) and "\n" not in str(raised.value)
        assert len(teacher.noted()) <= 2 * 2 * 8


def test_an_answer_of_100_kb_is_taken(tmp_path: Path) -> None:
    with running_teacher(tmp_path, "--huge", "1") as teacher:
        for stream in (True, False):
            teacher.ledger = tmp_path / f"ledger-{stream}"
            asked = teacher.ask(requests(4), stream=stream)
            assert is_right(asked, 4)
            assert all(len(answer.reasoning) > 100_000 for answer in asked.answers.values())


def test_a_busy_teacher_is_left_alone_for_as_long_as_it_wants(tmp_path: Path) -> None:
    with running_teacher(tmp_path, "--rate-limit", "5", "--retry-after", "1.2") as teacher:
        # Far more at once than it takes, and fewer attempts than there are refusals.
        asked = teacher.ask(requests(20), concurrency=16, attempts=3)
        assert is_right(asked, 20) and not asked.unanswered
        noted = teacher.noted()
    assert any(record["fault"] == "429" for record in noted)
    refused = 0.0
    for record, following in pairwise(noted):
        refused = record["time"] if record["fault"] == "429" else refused
        # Those that were on their way already arrive within a fraction of a second.
        assert not 0.5 < following["time"] - refused < 1.1, "it was not left alone"


def test_a_teacher_that_is_always_busy_is_an_error(tmp_path: Path) -> None:
    with (
        running_teacher(tmp_path, "--rate-limit", "1", "--retry-after", "0.1") as teacher,
        pytest.raises(ServiceError, match=r"takes no request .429: Rate limit reached.* after 2 pauses"),
    ):
        # One request a second is let in, and then there is none for a second.
        teacher.ask(requests(20), attempts=2)


def test_a_busy_teacher_that_does_not_say_how_long_is_left_alone_longer_each_time(tmp_path: Path) -> None:
    with running_teacher(tmp_path, "--rate-limit", "4", "--retry-after", "0") as teacher:
        asked = teacher.ask(requests(12), attempts=6, max_backoff_seconds=1.0)
        assert is_right(asked, 12)


def test_a_wrong_key_ends_the_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_API_KEY", "sk-of-somebody-else")
    with running_teacher(tmp_path, "--key", "sk-the-right-one") as teacher:
        with pytest.raises(ServiceError, match=r"the key in TEACHER_API_KEY is refused .401.*\[key\]"):
            teacher.ask(requests(16))
        monkeypatch.delenv("TEACHER_API_KEY")
        with pytest.raises(ServiceError, match="it wants a key: set TEACHER_API_KEY"):
            teacher.ask(requests(16))
        assert teacher.noted() == []
        monkeypatch.setenv("TEACHER_API_KEY", "sk-the-right-one")
        assert is_right(teacher.ask(requests(16)), 16)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1/v1", "http://nowhere.invalid/v1", "https://127.0.0.1:1/v1"])
def test_where_nobody_listens_nothing_was_spent(endpoint: str, tmp_path: Path) -> None:
    nobody = RunningTeacher(tmp_path, endpoint, tmp_path / "none")
    with pytest.raises(ServiceError, match=f"{endpoint} does not answer") as raised:
        nobody.ask(requests(6), attempts=2, concurrency=4)
    assert "\n" not in str(raised.value)
    with open_ledger(str(nobody.ledger), nobody.settings()) as ledger:
        assert (ledger.spending().cost, ledger.spending().failed > 0) == (0, True)


def test_an_address_that_is_none_is_an_error_at_once(tmp_path: Path) -> None:
    with running_teacher(tmp_path) as teacher:
        teacher.endpoint = teacher.endpoint.replace("/v1", "/v2")
        with pytest.raises(ServiceError, match="has no teacher, or is no such address"):
            teacher.ask(requests(16))
        assert teacher.noted() == []


def test_a_model_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    with running_teacher(tmp_path, "--model", "small") as teacher:
        with pytest.raises(ServiceError, match="has no teacher"):
            teacher.ask(requests(16))
        assert is_right(teacher.ask(requests(16), model="small"), 16)


def test_a_teacher_that_wants_money_first_ends_the_run(tmp_path: Path) -> None:
    with running_teacher(tmp_path, "--balance", "5") as teacher:
        with pytest.raises(ServiceError, match=r"wants to be paid first .402.*what was answered is kept"):
            teacher.ask(requests(16), concurrency=1)
        with open_ledger(str(teacher.ledger), teacher.settings()) as ledger:
            assert len(ledger.answers) == 5


def test_at_the_same_ledger_there_is_one_process_at_a_time(tmp_path: Path) -> None:
    teacher = RunningTeacher(tmp_path, "http://127.0.0.1:1/v1", tmp_path / "none")
    with open_ledger(str(teacher.ledger), teacher.settings()), pytest.raises(InputError, match="another process"):
        teacher.ask(requests(1))
