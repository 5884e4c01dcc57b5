"""The accounts of the soak: every request has one outcome, and clients, metrics and request logs count the same."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from tests.soak.answers import content_of
from tests.soak.clients import Exchange

BODY_SECONDS = 10.0  # in which a pod expects a body (components/serve/pod/access.py)
OVERLOAD = {429, 503, 504}  # may be the status of any request that needs the engine
ENGINE_FAILED = {500, 502}  # only while its engine is disturbed
REQUESTS = re.compile(r"^chatmetrics_requests_total\{(?P<labels>[^}]*)\} (?P<value>\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')
QUEUE = re.compile(r"^chatmetrics_queue_length (\S+)$", re.MULTILINE)
RETRIES = re.compile(r"^chatmetrics_\w*retr\w*_total(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


class Outcome(StrEnum):
    """What became of a request."""

    ANSWERED = "complete answer"
    REFUSED = "refused (401, 429, 503)"
    NAMED_ERROR = "named error"
    STREAM_ERROR = "stream ended with a named error"
    DISCONNECTED = "disconnected by the client"
    TOO_SLOW = "cut off because its client read too slowly"
    VIOLATION = "violation"


@dataclass(frozen=True)
class Judgment:
    """The outcome of a request, and what was wrong if it is a violation."""

    outcome: Outcome
    complaint: str = ""


@dataclass(frozen=True)
class Rules:
    """What may happen to a request.

    Attributes:
        accepted: Whether its token may be accepted.
        refused: Whether its token may be refused.
        disturbed: Whether its pod's engine was killed or stopped at some time during the request.
        request_seconds: The time limit of an answer.
    """

    accepted: bool
    refused: bool
    disturbed: bool
    request_seconds: float


def judge(record: Exchange, rules: Rules) -> Judgment:
    """Find the outcome of a request. Whatever is not expected is a violation."""
    plan, status = record.plan, record.status
    if record.left:
        return Judgment(Outcome.DISCONNECTED)
    content = content_of(plan, status, bytes(record.body)) if record.complete else None
    if content is None:
        if plan.reads and status == 200 and record.seconds >= rules.request_seconds:
            return Judgment(Outcome.TOO_SLOW)
        return _violation(record, record.failure)
    if not content.error and content.text is None:
        return _violation(record, "neither a complete answer nor a named error")
    if status not in _expected(record, rules):
        return _violation(record, f"status {status}: {content.error or content.text}")
    if status != 200:
        return Judgment(Outcome.REFUSED if status in (401, 429, 503) else Outcome.NAMED_ERROR)
    if content.error:
        is_explained = rules.disturbed or record.seconds >= 0.9 * rules.request_seconds
        return Judgment(Outcome.STREAM_ERROR) if is_explained else _violation(record, f"stream error: {content.error}")
    if plan.expected and content.text != plan.expected:
        return _violation(record, f"another answer: {str(content.text)[:100]}")
    return Judgment(Outcome.ANSWERED)


def _expected(record: Exchange, rules: Rules) -> set[int]:
    plan = record.plan
    statuses = {401} if rules.refused else set()
    if rules.accepted:
        if plan.sends > BODY_SECONDS:
            statuses |= {408, 503}
        elif not plan.valid:
            statuses |= {400, 429, 503}
        else:
            statuses |= {200} | (OVERLOAD if plan.body else set())
        statuses |= ENGINE_FAILED if rules.disturbed else set()
    return statuses


def _violation(record: Exchange, complaint: str) -> Judgment:
    got = bytes(record.body[-120:]).decode("utf-8", "replace")
    return Judgment(Outcome.VIOLATION, f"{complaint} (status {record.status}, {len(record.body)} bytes: ...{got})")


@dataclass(frozen=True)
class Snapshot:
    """A pod's metrics, and the times before and after they were read, in seconds since the epoch."""

    before: float
    after: float
    text: str

    def requests(self) -> Counter[tuple[str, int, str]]:
        """Number of requests by path, status and client."""
        counts: Counter[tuple[str, int, str]] = Counter()
        for found in REQUESTS.finditer(self.text):
            labels = dict(LABEL.findall(found["labels"]))
            counts[labels["path"], int(labels["code"]), labels["client"]] += int(float(found["value"]))
        return counts

    @property
    def queue(self) -> int:
        """Occupied places of the queue."""
        found = QUEUE.search(self.text)
        return int(float(found[1])) if found else 0

    @property
    def retries(self) -> int:
        """Sum of the metrics that count retries; 0 if there are none."""
        return int(sum(map(float, RETRIES.findall(self.text))))


@dataclass(frozen=True)
class Logged:
    """A line of the request log."""

    time: float
    path: str
    status: int
    client: str


def read_log(path: Path) -> list[Logged]:
    """Read the lines of requests in a proxy's log."""
    lines = (line for line in path.read_text("utf-8").splitlines() if line.startswith('{"time"'))
    return [
        Logged(datetime.fromisoformat(line["time"]).timestamp(), line["path"], line["status"], line["client"])
        for line in map(json.loads, lines)
    ]


def differences(
    pod: str, records: Iterable[Exchange], logged: list[Logged], snapshot: Snapshot | None
) -> Iterator[str]:
    """Compare what clients sent to a pod with its request log, and the log with its metrics.

    A client that disconnected does not know its status, and one whose headers were not complete sent no request.

    Args:
        pod: The pod's name, for the messages.
        records: Requests that were sent to it.
        logged: Its request log.
        snapshot: Its metrics, at some time near its end; None if they could not be read.

    Yields:
        A sentence for each difference.
    """
    known: Counter[tuple[str, int]] = Counter()
    unknown: Counter[str] = Counter()
    for record in records:
        if record.complete and not record.left:
            known[record.plan.path, record.status] += 1
        elif record.sent:
            unknown[record.plan.path] += 1
    found = Counter((line.path, line.status) for line in logged)
    for key in sorted(key for key in known if known[key] > found[key]):
        yield f"{pod}: clients got {known[key]} responses with status {key[1]} of {key[0]}, its log has {found[key]}"
    more = Counter(dict.fromkeys(unknown, 0))
    for (path, status), count in (found - known).items():
        more[path] += count
        if status not in {200, 400, 401, 408, 429, 499, 500, 502, 503, 504}:
            yield f"{pod}: its log has {count} responses with status {status} of {path}"
    for path in sorted(more.keys() | unknown.keys()):
        if more[path] != unknown[path]:
            yield f"{pod}: {unknown[path]} clients of {path} disconnected; its log has {more[path]} such requests"
    if snapshot is None:
        yield f"{pod}: its metrics could not be read"
        return
    # The metrics are those of a time between `before` and `after`; milliseconds are the log's resolution.
    counted = snapshot.requests()
    least, most = (
        Counter((line.path, line.status, line.client or "unauthenticated") for line in logged if line.time <= until)
        for until in (snapshot.before - 0.001, snapshot.after + 0.001)
    )
    for label in sorted(counted.keys() | most.keys()):
        if not least[label] <= counted[label] <= most[label]:
            yield f"{pod}: its metrics have {counted[label]} requests {label}, its log {least[label]} to {most[label]}"
