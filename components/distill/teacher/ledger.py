"""What was asked, what came of it and what it cost: written down before it counts, so that nothing is paid twice."""

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
from chatmetrics.components.distill.teacher.append_only_log import AppendOnlyLog, Record, open_log
from chatmetrics.components.distill.teacher.request import Request, TeacherAnswer
from chatmetrics.components.distill.teacher.spending import Spending, TeacherUsage
from chatmetrics.components.storage.files import atomic_file

# Of the template around a message, and of what a provider puts in front: tokens that nobody sees.
TOKENS_A_MESSAGE = 16
TOKENS_A_REQUEST = 64

SENT, ANSWERED, FAILED = "sent", "answered", "failed"


@contextmanager
def open_ledger(uri: str, settings: DistillSettings) -> Iterator["Ledger"]:
    """The ledger of a folder or bucket prefix; see `open_log`."""
    with open_log(uri) as log:
        yield Ledger(log, settings)


class Ledger:
    """The account and the cache of all requests to a teacher; its coroutines are for one event loop at a time.

    A request is written down with the most that it can cost before it is sent. When its answer is written down, the
    real cost takes that place. One that was sent by a process which then died keeps the most that it can have cost.

    Args:
        log: where it is written.
        settings: for prices and caps.

    Attributes:
        refused: what the teacher would not take in this run, by `Request.key`; the next run may have another teacher.
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
        self._unwritten: list[tuple[Record, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    @property
    def answers(self) -> Mapping[str, TeacherAnswer]:
        """All answers by `Request.key`, of this run and of earlier ones."""
        return self._answers

    @property
    def in_flight(self) -> int:
        """Requests that were sent and have not come to an end."""
        return len(self._in_flight)

    def fits(self, request: Request) -> bool:
        """Whether the caps hold if the request is sent and costs the most that it can."""
        most, settings = self._most(request), self._settings
        has_cost = not settings.budget or self._cost + most.cost <= settings.budget
        return has_cost and (not settings.budget_tokens or self._tokens + most.tokens <= settings.budget_tokens)

    @asynccontextmanager
    async def sent(self, request: Request) -> AsyncIterator[str]:
        """Write down that a request is about to be sent, and name it; it is in flight until the block ends.

        One of which the block has not said what came of it still counts as dear as it can be.
        """
        most, id = self._most(request), uuid4().hex
        record = {
            **{"kind": SENT, "id": id, "key": request.key(self._settings)},
            **{"purpose": request.purpose, "sample": request.sample, "time": datetime.now(UTC).isoformat()},
            **{"model": self._settings.model, "most": _as_dict(most)},
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
        """Write an answer down; from then on it counts."""
        counted = answer.prompt_tokens + answer.completion_tokens > 0
        usage = self._price(answer.prompt_tokens, answer.completion_tokens) if counted else self._usage[id]
        record = {"kind": ANSWERED, "id": id, "key": request.key(self._settings), "usage": _as_dict(usage)}
        await self._write({**record, "estimated": not counted, "answer": answer.record()})

    async def failed(self, id: str, reason: str, is_free: bool) -> None:
        """Write down that there was no answer.

        Args:
            id: from `send`.
            reason: one line.
            is_free: whether the teacher certainly bills nothing, as for a refusal; else it counts as dear as it can be.
        """
        usage = TeacherUsage(0, 0, 0.0) if is_free else self._usage[id]
        await self._write({"kind": FAILED, "id": id, "usage": _as_dict(usage), "reason": reason})

    async def flush(self) -> None:
        """Return when all that was said is written down, by those too who were cancelled meanwhile."""
        if self._writing:
            await self._writing

    def spending_line(self) -> str:
        """For progress lines: the cost that is gone, or may be by the time that everything in flight is answered."""
        return f"{self._settings.currency}{self._cost:,.2f} spent"

    def spending(self) -> Spending:
        """What was spent so far."""
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
        """Write a line for every request: when, what for, what became of it, tokens and price; no question or answer.

        Raises:
            StorageError: the disk refused.
        """
        states = self._states()
        with atomic_file(path) as file:
            for record in self._records:
                if record["kind"] == SENT:
                    line = {name: record[name] for name in ("time", "id", "key", "purpose", "sample", "model")}
                    line |= {"state": states[record["id"]], **_as_dict(self._usage[record["id"]])}
                    line |= dict(zip(("prompt_price", "completion_price"), record["prices"], strict=True))
                    file.write(json.dumps(line).encode() + b"\n")

    def _most(self, request: Request) -> TeacherUsage:
        """The most that a request can cost: no tokenizer makes more tokens of a text than it has bytes."""
        texts = [text for message in request.messages for text in message]
        prompt = sum(len(text.encode(errors="replace")) for text in texts)
        prompt += TOKENS_A_MESSAGE * len(request.messages) + TOKENS_A_REQUEST
        return self._price(prompt, request.max_tokens)

    def _price(self, prompt_tokens: int, completion_tokens: int) -> TeacherUsage:
        settings = self._settings
        cost = (prompt_tokens * settings.prompt_price + completion_tokens * settings.completion_price) / 1000
        return TeacherUsage(prompt_tokens, completion_tokens, cost)

    def _count(self, record: Record) -> None:
        """Take a record into account."""
        before = self._usage.get(record["id"])
        # In a bucket, records of one moment may be read in another order than they were written in.
        if record["kind"] == SENT and before:
            return
        usage = TeacherUsage(**record["most" if record["kind"] == SENT else "usage"])
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

    async def _write(self, record: Record) -> None:
        """Return when the record is kept; what comes while another is being written is written with one call."""
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unwritten.append((record, kept))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_all())
        # A request that is cancelled must not take the others' writing with it.
        await asyncio.shield(kept)

    async def _write_all(self) -> None:
        while self._unwritten:
            batch, self._unwritten = self._unwritten, []
            writing = asyncio.to_thread(self._log.append, [record for record, _ in batch])
            [error] = await asyncio.gather(writing, return_exceptions=True)
            for record, kept in batch:
                if error:
                    kept.set_exception(error)
                    kept.exception()  # whoever waited for it may be gone
                else:
                    self._records.append(record)
                    self._count(record)
                    kept.set_result(None)


def _as_dict(usage: TeacherUsage) -> dict[str, Any]:
    return {field.name: getattr(usage, field.name) for field in fields(usage)}
