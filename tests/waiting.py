"""Waiting for what another process or thread does."""

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def wait_until(condition: Callable[[], Result], seconds: float, failure: str = "", pause: float = 0.02) -> Result:
    """Wait until a condition is true, and return its result.

    Args:
        condition: what to look at.
        seconds: how long to wait at most.
        failure: text of the error.
        pause: seconds between two looks.

    Raises:
        AssertionError: it was not true in time.
    """
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, failure or f"not within {seconds} seconds"
        time.sleep(pause)
    return result
