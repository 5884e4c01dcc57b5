"""Records requests, answers and costs before they count, so that nothing is paid for twice."""

import asyncio
import json
import math
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.distill.teacher.append_only_log import AppendOnlyLog, LogRecord, open_log
from chatmetrics.components.distill.teacher.request import Request, TeacherAnswer
from chatmetrics.components.distill.teacher.spending import Spending, TeacherUsage
from chatmetrics.components.storage.files import atomic_file

# Upper bounds for tokens that are not in the messages: the chat template, and a provider's own system prompt.
TOKENS_PER_MESSAGE = 16
TOKENS_PER_REQUEST = 64

SENT, ANSWERED, FAILED = "sent", "answered", "failed"


@contextmanager
def open_ledger(uri: str, settings: DistillSettings) -> Iterator["Ledger"]:
    """Open the ledger in a folder or below a bucket prefix; see `open_log`."""
    with open_log(uri) as log:
        yield Ledger(log, settings)


class Ledger:
    """Cost account and answer cache of all requests to a teacher. Its coroutines must run in one event loop at a time.

    A request is recorded at its maximum cost before it is sent. When its answer is recorded, the actual cost replaces
    that. If the process dies in between, the request remains at its maximum cost:

        sent (maximum cost) -> answered (actual cost)
                            -> failed   (no cost if the teacher certainly does not bill it, else maximum cost)

    Args:
        log: where the records are written.
        settings: for prices and caps.

    Attributes:
        refused: keys of the requests that the teacher refused in this run; a later run sends them again, because the
            teacher behind the endpoint may have changed.
    """

    def __init__(self, log: AppendOnlyLog, settings: DistillSettings) -> None:
        self._log, self._settings = log, settings
        self._records = log.read()
        self._usage: dict[str, TeacherUsage] = {}
        self._cost, self._tokens = 0.0, 0
        self._answers: dict[str, TeacherAnswer] = {}
        self.refused: set[str] = set()
        self._in_flight: set[str] = set()
        for record in self._records:
            self._count(record)
        self._unwritten: list[tuple[LogRecord, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    @property
    def answers(self) -> Mapping[str, TeacherAnswer]:
        """All answers of this run and earlier ones, by `Request.key`."""
        return self._answers

    @property
    def in_flight(self) -> int:
        """Number of requests that are being sent or answered."""
        return len(self._in_flight)

    def fits(self, request: Request) -> bool:
        """Whether the caps still hold if the request is sent and costs its maximum."""
        most, settings = self._max_usage(request), self._settings
        fits_budget = not settings.budget or self._cost + most.cost <= settings.budget
        fits_tokens = not settings.budget_tokens or self._tokens + most.tokens <= settings.budget_tokens
        return fits_budget and fits_tokens

    @asynccontextmanager
    async def sent(self, request: Request) -> AsyncIterator[str]:
        """Context manager: record that a request is about to be sent; it is in flight until the block ends.

        Yields the request's id for `answered` or `failed`. If the block calls neither, the request remains at its
        maximum cost.
        """
        most, id = self._max_usage(request), uuid4().hex
        record = {
            **{"kind": SENT, "id": id, "key": request.key(self._settings)},
            **{"purpose": request.purpose, "sample": request.sample, "time": datetime.now(UTC).isoformat()},
            **{"model": self._settings.model, "max_usage": _as_dict(most)},
            "prices": [self._settings.prompt_price, self._settings.completion_price],
        }
        self._in_flight.add(id)
        self._count(record)
        try:
            await self._write(record)
            yield id
        finally:
            self._in_flight.discard(id)

    async def answered(self, id: str, request: Request, answer: TeacherAnswer) -> None:
        """Record an answer and its actual usage, or the maximum if the endpoint does not count tokens."""
        counted = answer.prompt_tokens + answer.completion_tokens > 0
        usage = self._price(answer.prompt_tokens, answer.completion_tokens) if counted else self._usage[id]
        record = {"kind": ANSWERED, "id": id, "key": request.key(self._settings), "usage": _as_dict(usage)}
        await self._write({**record, "estimated": not counted, "answer": answer.record()})

    async def failed(self, id: str, reason: str, is_free: bool) -> None:
        """Record that a request has no answer.

        Args:
            id: id of the request, from `sent`.
            reason: one line.
            is_free: whether the teacher certainly does not bill it; otherwise it remains at its maximum cost.
        """
        usage = TeacherUsage(0, 0, 0.0) if is_free else self._usage[id]
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
        states = Counter(self._states().values())
        by_purpose: Counter[str] = Counter()
        for record in self._records:
            if record["kind"] == SENT:
                by_purpose[record["purpose"]] += self._usage[record["id"]].cost  # type: ignore[assignment]
        return Spending(
            requests=len(self._usage),
            answered=states[ANSWERED],
            failed=states[FAILED],
            unknown=states[SENT],
            prompt_tokens=sum(usage.prompt_tokens for usage in self._usage.values()),
            completion_tokens=sum(usage.completion_tokens for usage in self._usage.values()),
            cost=math.fsum(usage.cost for usage in self._usage.values()),
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
        states = self._states()
        with atomic_file(path) as file:
            for record in self._records:
                if record["kind"] == SENT:
                    line = {name: record[name] for name in ("time", "id", "key", "purpose", "sample", "model")}
                    line |= {"state": states[record["id"]], **_as_dict(self._usage[record["id"]])}
                    line |= dict(zip(("prompt_price", "completion_price"), record["prices"], strict=True))
                    file.write(json.dumps(line).encode() + b"\n")

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
        """Update usage and answers with a record."""
        before = self._usage.get(record["id"])
        # In a bucket, records written at the same moment may be read in a different order.
        if record["kind"] == SENT and before:
            return
        usage = TeacherUsage(**record["max_usage" if record["kind"] == SENT else "usage"])
        self._cost += usage.cost - (before.cost if before else 0.0)
        self._tokens += usage.tokens - (before.tokens if before else 0)
        self._usage[record["id"]] = usage
        if record["kind"] == ANSWERED:
            self._answers[record["key"]] = TeacherAnswer(**record["answer"])

    def _states(self) -> dict[str, str]:
        states: dict[str, str] = {}
        for record in self._records:
            if record["kind"] != SENT:
                states[record["id"]] = record["kind"]
            else:
                states.setdefault(record["id"], SENT)
        return states

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
            writing = asyncio.to_thread(self._log.append, [record for record, _ in batch])
            [error] = await asyncio.gather(writing, return_exceptions=True)
            for record, written in batch:
                if error:
                    written.set_exception(error)
                    written.exception()  # mark as retrieved: the coroutine that waits may have been cancelled
                else:
                    self._records.append(record)
                    self._count(record)
                    written.set_result(None)


def _as_dict(usage: TeacherUsage) -> dict[str, Any]:
    return {field.name: getattr(usage, field.name) for field in fields(usage)}
