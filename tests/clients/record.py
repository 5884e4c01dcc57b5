"""Runs all client programs against a pod and records what they send."""

from typing import Any

from tests.clients.programs import programs, results
from tests.clients.recorder import recording
from tests.clients.uses import USES, Recording
from tests.serve.pods import TOKEN, RunningPod

SOURCE = "recorded by `make clients`"


def record(pod: RunningPod) -> list[Recording]:
    """Run all installed programs against a pod that is ready."""
    found = []
    with recording(pod.endpoint, TOKEN) as (endpoint, recorder):
        for program in programs():
            for line in results(program, endpoint, TOKEN):
                error = _error(line).replace(endpoint, "ENDPOINT")
                requests = tuple(recorder.requests[line["client"], line["use"]])
                found.append(Recording(line["client"], line["version"], SOURCE, line["use"], error, requests))
    return found


def _error(line: dict[str, Any]) -> str:
    """The client's error message; empty if it returned what it should."""
    if "error" in line:
        return str(line["error"])
    is_right = USES[line["use"]].is_right
    return "" if is_right and is_right(line["result"]) else f"unexpected result: {line['result']}"
