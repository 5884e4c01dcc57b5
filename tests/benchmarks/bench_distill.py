"""How near asking a teacher comes to what its latency allows. `make bench` prints; nothing is asserted about time."""

import time
from pathlib import Path

import pytest

from tests.distill.running_teacher import requests, running_teacher

LATENCY = 0.2
ROUNDS = 20  # requests of each worker


@pytest.mark.parametrize("stream", [True, False])
def test_requests_a_second(stream: bool, tmp_path: Path) -> None:
    print()
    for concurrency in (8, 32, 64):
        folder = tmp_path / str(concurrency)
        folder.mkdir()
        count = concurrency * ROUNDS
        with running_teacher(folder, "--latency", str(LATENCY), known=count) as teacher:
            started, worked = time.perf_counter(), time.process_time()
            asked = teacher.ask(requests(count), concurrency=concurrency, stream=stream)
            rate = len(asked.answers) / (time.perf_counter() - started)
            work = 1000 * (time.process_time() - worked) / len(asked.answers)
        print(
            f"distill, {'streamed' if stream else 'whole'}: {concurrency} at once, {1000 * LATENCY:.0f} ms latency: "
            f"{rate:.1f} requests/s, {rate * LATENCY / concurrency:.2f} of concurrency / latency, "
            f"{work:.1f} ms of processor time a request"
        )
