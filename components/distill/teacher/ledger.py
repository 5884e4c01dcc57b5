"""Records requests, answers and costs before they count, so that nothing is paid for twice."""

import asyncio
import json
import math
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.distill.teacher.answers_on_disk import AnswersOnDisk
from chatmetrics.components.distill.teacher.append_only_log import AppendOnlyLog, LogRecord, open_log
from chatmetrics.components.distill.teacher.request import Request, TeacherAnswer
from chatmetrics.components.distill.teacher.spending import Spending, TeacherUsage
from chatmetrics.components.errors import InputError
from chatmetrics.components.storage.files import atomic_file

# Upper bounds for tokens that are not in the messages: the chat template, and a provider's own system prompt.
TOKENS_PER_MESSAGE = 16
TOKENS_PER_REQUEST = 64

SENT, ANSWERED, FAILED, WITHDRAWN = "sent", "answered", "failed", "withdrawn"
NOTHING = TeacherUsage(0, 0, 0.0)


class WithdrawnError(Exception):
    """A recorded request was not sent: another process sent it first, or its own requests reached a cap."""


@contextmanager
def open_ledger(uri: str, settings: DistillSettings) -> Iterator["Ledger"]:
    """Open the ledger in a folder or below a bucket prefix; see `open_log`.

    Raises:
        InputError: a record is not one of this version's; also as `open_log`.
    """
    with open_log(uri) as log:
        try:
            ledger = Ledger(log, settings)
        except (LookupError, TypeError, AttributeError) as error:
            raise InputError(
                f"{uri}: a record of the ledger is not as this version writes it ({type(error).__name__}: {error}); "
                "fix or remove it, or name another ledger"
            ) from error
        yield ledger


@dataclass(slots=True)
class _Entry:
    """A request in the account; its texts are not kept in memory."""

    state: str = ""
    usage: TeacherUsage = NOTHING
    key: str = ""
    process: str = ""
    time: str = ""
    purpose: str = ""
    sample: int = 0
    model: str = ""
    prices: tuple[float, ...] = ()


class Ledger:
    """Cost account and answer cache of all requests to a teacher. Its coroutines must run in one event loop at a time.

    A request is recorded at its maximum cost before it is sent. When its answer is recorded, the actual cost replaces
    that. If the process dies in between, the request remains at its maximum cost:

        sent (maximum cost) -> answered  (actual cost)
                            -> failed    (no cost if the teacher certainly does not bill it, else maximum cost)
                            -> withdrawn (not sent, because of another process; no cost)

    In a bucket, several processes can share a ledger: the caps apply to all of them together, and none sends a request
    that another one is sending.

    Args:
        log: where the records are written.
        settings: for prices and caps.

    Attributes:
        answers: all answers of this run and earlier ones, by `Request.key`.
        refused: keys of the requests that the teacher refused in this run; a later run sends them again, because the
            teacher behind the endpoint may have changed.
    """

    def __init__(self, log: AppendOnlyLog, settings: DistillSettings) -> None:
        self._log, self._settings = log, settings
        self._entries: dict[str, _Entry] = {}
        self._cost, self._tokens = 0.0, 0
        self.answers = AnswersOnDisk()
        self.refused: set[str] = set()
        self._in_flight: set[str] = set()
        self._of_others: dict[str, set[str]] = {}  # by key: ids of the requests that other processes are sending
        for record in log.read():
            self._count(record)
        self._unwritten: list[tuple[LogRecord, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    @property
    def is_shared(self) -> bool:
        """Whether other processes can use the ledger at the same time."""
        return bool(self._log.process)

    @property
    def in_flight(self) -> int:
        """Number of requests that this process is sending or that are being answered."""
        return len(self._in_flight)

    def fits(self, request: Request) -> bool:
        """Whether the caps still hold if the request is sent and costs its maximum."""
        return self._within_caps(self._max_usage(request))

    async def refresh(self) -> None:
        """Count what other processes have recorded meanwhile."""
        for record in await asyncio.to_thread(self._log.read_new):
            self._count(record)

    async def sent_by_others(self, keys: Sequence[str]) -> set[str]:
        """Those of the requests, by `Request.key`, that another process is sending."""
        found = {key: self._of_others[key] for key in keys if key in self._of_others}
        processes = {self._entries[id].process for ids in found.values() for id in ids}
        alive = {process for process in processes if await asyncio.to_thread(self._log.is_alive, process)}
        return {key for key, ids in found.items() if any(self._entries[id].process in alive for id in ids)}

    async def others_are_sending(self) -> bool:
        """Whether another process has requests in flight, whose actual cost may turn out lower than their maximum."""
        return bool(await self.sent_by_others(list(self._of_others)))

    @asynccontextmanager
    async def sent(self, request: Request) -> AsyncIterator[str]:
        """Context manager: record that a request is about to be sent; it is in flight until the block ends.

        Yields the request's id for `answered` or `failed`. If the block calls neither, the request remains at its
        maximum cost.

        Raises:
            WithdrawnError: another process is sending the request or has an answer, or has reached a cap meanwhile.
        """
        most, id, key = self._max_usage(request), uuid4().hex, request.key(self._settings)
        record = {
            **{"kind": SENT, "id": id, "key": key, "process": self._log.process},
            **{"purpose": request.purpose, "sample": request.sample, "time": datetime.now(UTC).isoformat()},
            **{"model": self._settings.model, "max_usage": _as_dict(most)},
            "prices": [self._settings.prompt_price, self._settings.completion_price],
        }
        self._in_flight.add(id)
        self._count(record)
        try:
            # Reads what others have recorded, after the write: see append_only_log.py.
            await self._write(record)
            if self.is_shared and await self._must_withdraw(key):
                await self._write({"kind": WITHDRAWN, "id": id})
                raise WithdrawnError
            yield id
        finally:
            self._in_flight.discard(id)

    async def answered(self, id: str, request: Request, answer: TeacherAnswer) -> None:
        """Record an answer and its actual usage, or the maximum if the endpoint does not count tokens."""
        counted = answer.prompt_tokens + answer.completion_tokens > 0
        usage = self._price(answer.prompt_tokens, answer.completion_tokens) if counted else self._entries[id].usage
        record = {"kind": ANSWERED, "id": id, "key": request.key(self._settings), "usage": _as_dict(usage)}
        await self._write({**record, "estimated": not counted, "answer": answer.record()})

    async def failed(self, id: str, reason: str, is_free: bool) -> None:
        """Record that a request has no answer.

        Args:
            id: id of the request, from `sent`.
            reason: one line.
            is_free: whether the teacher certainly does not bill it; otherwise it remains at its maximum cost.
        """
        usage = NOTHING if is_free else self._entries[id].usage
        await self._write({"kind": FAILED, "id": id, "usage": _as_dict(usage), "reason": reason})

    async def flush(self) -> None:
        """Wait until all records are written, including those of coroutines that were cancelled meanwhile."""
        if self._writing:
            await self._writing

    def spending_line(self) -> str:
        """Cost so far as text for progress lines; requests in flight count at their maximum cost."""
        return f"{self._settings.currency}{self._cost:,.2f} spent"

    def spending(self) -> Spending:
        """Requests and cost so far, over all runs."""
        entries = [entry for entry in self._entries.values() if entry.state != WITHDRAWN]
        states = Counter(entry.state for entry in entries)
        by_purpose: dict[str, float] = {}
        for entry in entries:
            by_purpose[entry.purpose] = by_purpose.get(entry.purpose, 0.0) + entry.usage.cost
        return Spending(
            requests=len(entries),
            answered=states[ANSWERED],
            failed=states[FAILED],
            unknown=states[SENT],
            prompt_tokens=sum(entry.usage.prompt_tokens for entry in entries),
            completion_tokens=sum(entry.usage.completion_tokens for entry in entries),
            cost=math.fsum(entry.usage.cost for entry in entries),
            currency=self._settings.currency,
            budget=self._settings.budget,
            budget_tokens=self._settings.budget_tokens,
            cost_by_purpose={name: round(cost, 6) for name, cost in by_purpose.items()},
        )

    def export(self, path: Path) -> None:
        """Write one line per request: time, purpose, state, tokens and cost, but no questions and no answers.

        Raises:
            StorageError: the file cannot be written.
        """
        with atomic_file(path) as file:
            for id, entry in self._entries.items():
                if entry.state != WITHDRAWN:
                    line = {
                        **{"time": entry.time, "id": id, "key": entry.key, "purpose": entry.purpose},
                        **{"sample": entry.sample, "model": entry.model, "state": entry.state},
                        **_as_dict(entry.usage),
                        **dict(zip(("prompt_price", "completion_price"), entry.prices, strict=True)),
                    }
                    file.write(json.dumps(line).encode() + b"\n")

    async def _must_withdraw(self, key: str) -> bool:
        return not self._within_caps(NOTHING) or key in self.answers or bool(await self.sent_by_others([key]))

    def _within_caps(self, more: TeacherUsage) -> bool:
        settings = self._settings
        fits_budget = not settings.budget or self._cost + more.cost <= settings.budget
        fits_tokens = not settings.budget_tokens or self._tokens + more.tokens <= settings.budget_tokens
        return fits_budget and fits_tokens

    def _max_usage(self, request: Request) -> TeacherUsage:
        """Upper bound of a request's usage: no tokenizer produces more tokens than the text has bytes."""
        texts = [text for message in request.messages for text in message]
        prompt = sum(len(text.encode(errors="replace")) for text in texts)
        prompt += TOKENS_PER_MESSAGE * len(request.messages) + TOKENS_PER_REQUEST
        return self._price(prompt, request.max_tokens)

    def _price(self, prompt_tokens: int, completion_tokens: int) -> TeacherUsage:
        settings = self._settings
        cost = (prompt_tokens * settings.prompt_price + completion_tokens * settings.completion_price) / 1000
        return TeacherUsage(prompt_tokens, completion_tokens, cost)

    def _count(self, record: LogRecord) -> None:
        """Update the account and the answers with a record.

        Records may be read more than once, and a request's settlement before the request itself.
        """
        id, kind = record["id"], record["kind"]
        entry = self._entries.setdefault(id, _Entry())
        if kind == SENT:
            entry.key, entry.process, entry.time = record["key"], record.get("process", ""), record["time"]
            entry.purpose, entry.sample, entry.model = record["purpose"], record["sample"], record["model"]
            entry.prices = tuple(record["prices"])
            if not entry.state:
                self._settle(entry, SENT, TeacherUsage(**record["max_usage"]))
                if entry.process != self._log.process:
                    self._of_others.setdefault(entry.key, set()).add(id)
            return
        self._settle(entry, kind, NOTHING if kind == WITHDRAWN else TeacherUsage(**record["usage"]))
        if (ids := self._of_others.get(entry.key)) is not None:
            ids.discard(id)
            if not ids:
                del self._of_others[entry.key]
        if kind == ANSWERED:
            self.answers.add(record["key"], record["answer"])

    def _settle(self, entry: _Entry, state: str, usage: TeacherUsage) -> None:
        self._cost += usage.cost - entry.usage.cost
        self._tokens += usage.tokens - entry.usage.tokens
        entry.state, entry.usage = state, usage

    async def _write(self, record: LogRecord) -> None:
        """Wait until the record is durable. Records that arrive during a write are written together afterwards."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unwritten.append((record, written))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_all())
        # Cancelling this coroutine must not cancel the write, which may include records of others.
        await asyncio.shield(written)

    async def _write_all(self) -> None:
        while self._unwritten:
            batch, self._unwritten = self._unwritten, []
            records = [record for record, _ in batch]
            writing = asyncio.to_thread(self._append, records)
            outcome: list[LogRecord] | BaseException
            [outcome] = await asyncio.gather(writing, return_exceptions=True)
            error = outcome if isinstance(outcome, BaseException) else None
            if not isinstance(outcome, BaseException):
                for record in (*outcome, *records):
                    self._count(record)
            for _, written in batch:
                if error:
                    written.set_exception(error)
                    written.exception()  # mark as retrieved: the coroutine that waits may have been cancelled
                else:
                    written.set_result(None)

    def _append(self, records: Sequence[LogRecord]) -> list[LogRecord]:
        """Append records, and return those that others have appended meanwhile."""
        self._log.append(records)
        return self._log.read_new()


def _as_dict(usage: TeacherUsage) -> dict[str, Any]:
    return {field.name: getattr(usage, field.name) for field in fields(usage)}
