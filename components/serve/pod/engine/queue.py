"""The queue in front of Ollama, which never gets more requests than it answers at once: overload can make it hang."""

import asyncio
from collections import Counter, deque
from collections.abc import Coroutine
from typing import Any

from prometheus_client import Gauge


class FullQueueError(Exception):
    """No place is free: in the whole queue, or for this client."""


class EngineQueue:
    """Places for requests, and slots of the engine, which the clients get in turn.

    Args:
        slots: Number of requests that the engine answers at once.
        places: Number of requests that wait or are answered; a client may have half of them if there are other clients.
        gauge: Shows the number of occupied places.
    """

    def __init__(self, slots: int, places: int, gauge: Gauge) -> None:
        self._free, self._places, self._gauge = slots, places, gauge
        self._taken: Counter[str] = Counter()  # places, by client
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # the first client is the next
        self._background: set[asyncio.Task[Any]] = set()

    @property
    def pending(self) -> int:
        """Number of occupied places."""
        return self._taken.total()

    def enter(self, client: str, other_clients: bool) -> "Place":
        """Take a place.

        Raises:
            FullQueueError: None is free.
        """
        if self.pending >= self._places:
            raise FullQueueError(f"{self._places} requests are already pending; try again later")
        share = max(1, self._places // 2) if other_clients else self._places
        if self._taken[client] >= share:
            raise FullQueueError(f"{share} requests of this client are already pending; try again later")
        self._taken[client] += 1
        self._gauge.set(self.pending)
        return Place(self, client)

    def _take(self) -> bool:
        is_free = self._free > 0
        self._free -= is_free
        return is_free

    async def _acquire(self, client: str) -> None:
        if self._take():
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release()
            else:
                self._forget(client, turn)
            raise

    def _release(self) -> None:
        """Give a slot to the next client that waits."""
        if not self._waiting:
            self._free += 1
            return
        client = next(iter(self._waiting))
        turns = self._waiting.pop(client)
        turns.popleft().set_result(None)
        if turns:
            self._waiting[client] = turns  # now the last

    def _forget(self, client: str, turn: asyncio.Future[None]) -> None:
        turns = self._waiting[client]
        turns.remove(turn)
        if not turns:
            del self._waiting[client]

    def _leave(self, client: str) -> None:
        self._taken[client] -= 1
        self._gauge.set(self.pending)

    def _start(self, action: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(action)
        self._background.add(task)  # the event loop itself keeps only a weak reference
        task.add_done_callback(self._background.discard)


class Place:
    """A request's place, with or without a slot of the engine. `leave` must be called once.

    Attributes:
        model: The model that uses the slot.
    """

    def __init__(self, queue: EngineQueue, client: str) -> None:
        self._queue, self._client, self.model = queue, client, ""
        self._has_slot = self._is_kept = False

    def take_slot(self, model: str) -> bool:
        """Take a slot of the engine for this model, if one is free."""
        self.model, self._has_slot = model, self._queue._take()
        return self._has_slot

    async def slot(self, model: str = "") -> None:
        """Wait for a slot of the engine, for this model."""
        self.model = model
        await self._queue._acquire(self._client)
        self._has_slot = True

    def release_slot(self) -> None:
        """Give the slot back, if it has one."""
        if self._has_slot and not self._is_kept:
            self._has_slot = False
            self._queue._release()

    def leave(self) -> None:
        """Leave the queue, unless the place is kept."""
        if not self._is_kept:
            self.release_slot()
            self._queue._leave(self._client)

    def keep_until(self, action: Coroutine[Any, Any, None]) -> None:
        """Keep place and slot until a background action ends, although the request ends earlier."""
        self._is_kept = True
        self._queue._start(self._finished(action))

    async def _finished(self, action: Coroutine[Any, Any, None]) -> None:
        try:
            await action
        finally:
            self._is_kept = False
            self.leave()
