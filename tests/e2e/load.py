"""Runs in a pod: sends requests to an endpoint at a constant rate, and prints the counts of the results as JSON.

Usage: load.py ENDPOINT REQUESTS_PER_SECOND SECONDS. Every second request uses a connection that is kept alive, the
others use new ones; every third is streamed. An answer counts if its status is 200, it is complete, and it is the SQL
that the acceptance test expects.
"""

import asyncio
import collections
import json
import os
import sys
import time

import httpx


async def send(session: httpx.AsyncClient, number: int, question: dict[str, str], counts: collections.Counter) -> None:
    body = {"model": "hotel", "prompt": question["prompt"], "raw": True, "stream": number % 3 == 0}
    body["options"] = {"num_predict": 128}
    started = time.monotonic()
    try:
        answer = await session.post("/api/generate", json=body)
        lines = [json.loads(line) for line in answer.text.splitlines()]
        sql = "".join(line.get("response", "") for line in lines)
        if answer.status_code != 200 or not lines[-1].get("done"):
            counts[f"status {answer.status_code}: {answer.text[-200:]}"] += 1
        elif sql.strip() != question["answer"]:
            counts[f"another answer: {sql[:200]}"] += 1
        else:
            counts[lines[-1]["model"]] += 1
    except (httpx.HTTPError, ValueError) as error:
        counts[f"{type(error).__name__}: {error}"] += 1
    counts["slowest ms"] = max(counts["slowest ms"], round(1000 * (time.monotonic() - started)))


async def main() -> None:
    endpoint, rate, seconds = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
    headers = {"Authorization": f"Bearer {os.environ['TOKEN']}"}
    counts: collections.Counter = collections.Counter()
    options = {"base_url": endpoint, "headers": headers, "timeout": 300}
    single = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(**options) as kept, httpx.AsyncClient(**options, limits=single) as fresh:
        questions = (await kept.get("/acceptance-test")).json()
        print("started", flush=True)
        tasks, number, until = [], 0, time.monotonic() + seconds
        while time.monotonic() < until:
            session = kept if number % 2 else fresh
            tasks.append(asyncio.create_task(send(session, number, questions[number % len(questions)], counts)))
            number += 1
            await asyncio.sleep(1 / rate)
        await asyncio.gather(*tasks)
    print(json.dumps({"sent": number, **counts}, ensure_ascii=False), flush=True)


asyncio.run(main())
