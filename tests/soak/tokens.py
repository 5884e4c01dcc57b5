"""The clients' tokens, and the times in which each is valid."""

import math
import time
from collections.abc import Mapping


class Tokens:
    """Tokens that are replaced during the soak.

    Args:
        current: Each client's token.
        seconds_to_read: Time after a change in which pods may still know the tokens from before.
    """

    def __init__(self, current: Mapping[str, str], seconds_to_read: float) -> None:
        self.current = dict(current)
        self._seconds, self._old = seconds_to_read, ""
        self._valid = dict.fromkeys(current.values(), (0.0, math.inf))

    def replace(self, client: str, token: str) -> None:
        """Note that a client has another token from now on."""
        now = time.time()
        self._old, self.current[client] = self.current[client], token
        if self._old not in self.current.values():
            self._valid[self._old] = self._valid[self._old][0], now
        self._valid.setdefault(token, (now, math.inf))

    def of(self, client: str) -> str:
        """The token that a client sends: its own, for `old` the one that was replaced last, for others a wrong one."""
        return {**self.current, "old": self._old}.get(client, "") or "wrong"

    def statuses(self, token: str, at: float) -> tuple[bool, bool]:
        """Whether a request that is sent with this token at a time may be accepted, and whether it may be refused."""
        first, last = self._valid.get(token, (math.inf, math.inf))
        return first <= at <= last + self._seconds, not first + self._seconds <= at <= last - 0.5
