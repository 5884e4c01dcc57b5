"""How close the request rate comes to the limit that the teacher's latency sets; printed by `make bench`."""

import time
from pathlib import Path

import pytest

from tests.distill.running_teacher import requests, running_teacher

LATENCY = 0.2
REQUESTS_PER_WORKER = 20


@pytest.mark.parametrize("stream", [True, False])
def test_requests_per_second(stream: bool, tmp_path: Path) -> None:
    print()
    for concurrency in (8, 32, 64):
        folder = tmp_path / str(concurrency)
        folder.mkdir()
        count = concurrency * REQUESTS_PER_WORKER
        with running_teacher(folder, "--latency", str(LATENCY), known=count) as teacher:
            started, worked = time.perf_counter(), time.process_time()
            result = teacher.ask(requests(count), concurrency=concurrency, stream=stream)
            rate = len(result.answers) / (time.perf_counter() - started)
            work = 1000 * (time.process_time() - worked) / len(result.answers)
        form = "streamed" if stream else "whole"
        print(
            f"distill, {form}: concurrency {concurrency}, latency {1000 * LATENCY:.0f} ms: "
            f"{rate:.1f} requests/s, {rate * LATENCY / concurrency:.2f} of concurrency / latency, "
            f"{work:.1f} ms of CPU time per request"
        )
