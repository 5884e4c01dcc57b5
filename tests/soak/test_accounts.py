"""The soak's own checks: each fault that it is there to find is a violation."""

import json
from dataclasses import replace

import pytest

from tests.serve.pods import ANSWER
from tests.soak.accounts import Logged, Outcome, Rules, Snapshot, differences, judge
from tests.soak.clients import Exchange
from tests.soak.mix import OPENAI, Cut, Plan
from tests.soak.processes import Usage
from tests.soak.report import Report
from tests.soak.tokens import Tokens

WHOLE = Plan("/api/generate", b"{}", "analyst", streamed=False, expected=ANSWER)
STREAMED = replace(WHOLE, streamed=True)
ASKED = replace(STREAMED, path="/ask")
CHAT = replace(STREAMED, path=OPENAI)
CALM = Rules(accepted=True, refused=False, disturbed=False, request_seconds=15)
DISTURBED = replace(CALM, disturbed=True)
REFUSED = replace(CALM, accepted=False, refused=True)
COMPLETE, PART = {"response": ANSWER, "done": True}, {"response": ANSWER, "done": False}
DONE = {"response": "", "done": True}
CHUNK = b'data: {"choices": [{"delta": {"content": "%s"}}]}\n\n' % ANSWER.encode()
ERROR = {"error": "Ollama closed the connection"}


def exchange(plan: Plan, status: int, *lines: object, seconds: float = 1.0, complete: bool = True) -> Exchange:
    """A request that was answered with these lines of JSON, or with bytes."""
    body = b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines)
    return Exchange(plan, "pod-1", "token", 100.0, 100.0, 100.0 + seconds, status, bytearray(body), complete)


@pytest.mark.parametrize(
    ("record", "rules", "outcome"),
    [
        (exchange(WHOLE, 200, COMPLETE), CALM, Outcome.ANSWERED),
        (exchange(STREAMED, 200, PART, DONE), CALM, Outcome.ANSWERED),
        (exchange(CHAT, 200, CHUNK, b"data: [DONE]\n\n"), CALM, Outcome.ANSWERED),
        (exchange(ASKED, 200, {"text": ANSWER}, {"sql": ANSWER}, {"rows": []}, {"done": True}), CALM, Outcome.ANSWERED),
        (exchange(WHOLE, 401, ERROR), REFUSED, Outcome.REFUSED),
        (exchange(WHOLE, 429, ERROR), CALM, Outcome.REFUSED),
        (exchange(WHOLE, 504, ERROR), CALM, Outcome.NAMED_ERROR),
        (exchange(WHOLE, 502, ERROR), DISTURBED, Outcome.NAMED_ERROR),
        (exchange(replace(WHOLE, valid=False), 400, ERROR), CALM, Outcome.NAMED_ERROR),
        (exchange(replace(WHOLE, sends=13.0), 408, ERROR), CALM, Outcome.NAMED_ERROR),
        (exchange(STREAMED, 200, {"response": "S", "done": False}, ERROR), DISTURBED, Outcome.STREAM_ERROR),
        (exchange(STREAMED, 200, ERROR, seconds=15), CALM, Outcome.STREAM_ERROR),
        (exchange(replace(STREAMED, reads=100), 200, seconds=30, complete=False), CALM, Outcome.TOO_SLOW),
        (replace(exchange(STREAMED, 200, complete=False), left=True), CALM, Outcome.DISCONNECTED),
    ],
)  # fmt: skip
def test_what_may_happen_has_an_outcome(record: Exchange, rules: Rules, outcome: Outcome) -> None:
    assert judge(record, rules).outcome is outcome, judge(record, rules)


@pytest.mark.parametrize(
    ("record", "rules"),
    [
        pytest.param(exchange(WHOLE, 0, complete=False), DISTURBED, id="no response"),
        pytest.param(exchange(WHOLE, 200), DISTURBED, id="empty body"),
        pytest.param(exchange(WHOLE, 502), DISTURBED, id="error without a message"),
        pytest.param(exchange(WHOLE, 200, PART), DISTURBED, id="cut answer"),
        pytest.param(exchange(WHOLE, 200, {"response": "other", "done": True}), DISTURBED, id="another answer"),
        pytest.param(exchange(STREAMED, 200, PART), DISTURBED, id="stream that just ends"),
        pytest.param(exchange(CHAT, 200, CHUNK), DISTURBED, id="events that just end"),
        pytest.param(exchange(STREAMED, 200, DONE, complete=False), DISTURBED, id="connection lost at the end"),
        pytest.param(exchange(STREAMED, 200, ERROR), CALM, id="stream error of an engine that nothing happened to"),
        pytest.param(exchange(WHOLE, 502, ERROR), CALM, id="502 of an engine that nothing happened to"),
        pytest.param(exchange(WHOLE, 401, ERROR), CALM, id="a valid token is refused"),
        pytest.param(exchange(WHOLE, 200, COMPLETE), REFUSED, id="a replaced token is accepted"),
        pytest.param(exchange(WHOLE, 400, ERROR), CALM, id="a valid body is refused"),
        pytest.param(exchange(replace(STREAMED, reads=100), 200, complete=False), CALM, id="cut off too early"),
    ],
)  # fmt: skip
def test_what_must_not_happen_is_a_violation(record: Exchange, rules: Rules) -> None:
    assert judge(record, rules).outcome is Outcome.VIOLATION


def metrics(answered: int, left: int) -> Snapshot:
    labels = 'client="analyst",code="{}",path="/api/generate"'
    lines = [
        f"chatmetrics_requests_total{{{labels.format(*each)}}} {each[1]}.0" for each in ((200, answered), (499, left))
    ]
    return Snapshot(200.0, 200.0, "\n".join([*lines, "chatmetrics_queue_length 3.0", "chatmetrics_retries_total 2.0"]))


def counted(answered: int, left: int, after: int = 0) -> list[Logged]:
    """A request log: complete answers, requests of clients that left, and requests after the metrics were read."""
    times = [(110.0, 200)] * answered + [(120.0, 499)] * left + [(210.0, 200)] * after
    return [Logged(time, "/api/generate", status, "analyst") for time, status in times]


SENT = [
    *[exchange(WHOLE, 200, COMPLETE)] * 5,
    *[replace(exchange(STREAMED, 0, complete=False), left=True)] * 2,
    replace(exchange(replace(WHOLE, cut=Cut.IN_HEADERS), 0, complete=False), left=True, sent=0.0),  # no pod counts it
]


def test_accounts_that_add_up_have_no_differences() -> None:
    assert list(differences("pod-1", SENT, counted(5, 2), metrics(5, 2))) == []
    assert list(differences("pod-1", SENT, counted(4, 2, after=1), metrics(4, 2))) == []


@pytest.mark.parametrize(
    ("logged", "snapshot", "expected"),
    [
        (counted(4, 2), metrics(4, 2), "clients got 5 responses with status 200 of /api/generate, its log has 4"),
        (counted(5, 1), metrics(5, 1), "2 clients of /api/generate disconnected; its log has 1"),
        (counted(5, 3), metrics(5, 3), "2 clients of /api/generate disconnected; its log has 3"),
        (counted(5, 2), metrics(6, 2), "its metrics have 6 requests"),
        (counted(5, 2), metrics(5, 1), "its metrics have 1 requests"),
        (counted(5, 2), None, "could not be read"),
    ],
)
def test_accounts_that_differ_are_named(logged: list[Logged], snapshot: Snapshot | None, expected: str) -> None:
    [found] = differences("pod-1", SENT, logged, snapshot)
    assert expected in found


def test_metrics_are_read() -> None:
    assert metrics(5, 2).requests() == {("/api/generate", 200, "analyst"): 5, ("/api/generate", 499, "analyst"): 2}
    assert (metrics(5, 2).queue, metrics(5, 2).retries) == (3, 2)


@pytest.mark.parametrize("name", ["descriptors", "queue", "threads", "proxy_mib", "engines", "workers"])
def test_what_does_not_return_to_its_value_is_a_violation(name: str) -> None:
    before = Usage(60.0, 1, 6.0, 20, 10, 0, 3, 23)
    fine, leaking = Report(0), Report(0)
    fine.compare(before, before)
    leaking.compare(before, replace(before, **{name: getattr(before, name) + 20}))
    assert not fine.violations
    assert len(leaking.violations) == 1 and name in leaking.violations[0]


def test_a_token_may_be_refused_only_while_it_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens({"analyst": "one", "other": "two"}, 2.0)
    monkeypatch.setattr("time.time", lambda: 100.0)
    tokens.replace("analyst", "three")
    assert (tokens.of("analyst"), tokens.of("old"), tokens.of("wrong")) == ("three", "one", "wrong")
    either, accepted, refused = (True, True), (True, False), (False, True)
    assert [tokens.statuses("one", at) for at in (50.0, 99.8, 101.0, 103.0)] == [accepted, either, either, refused]
    assert [tokens.statuses("three", at) for at in (101.0, 103.0)] == [either, accepted]
    assert [tokens.statuses(token, 101.0) for token in ("two", "wrong")] == [accepted, refused]
