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

import aiohttp


async def send(
    session: aiohttp.ClientSession, number: int, question: dict[str, str], counts: collections.Counter
) -> None:
    body = {"model": "hotel", "prompt": question["prompt"], "raw": True, "stream": number % 3 == 0}
    body["options"] = {"num_predict": 128}
    started = time.monotonic()
    try:
        async with session.post("/api/generate", json=body) as answer:
            text = await answer.text()
            lines = [json.loads(line) for line in text.splitlines()]
            sql = "".join(line.get("response", "") for line in lines)
            if answer.status != 200 or not lines[-1].get("done"):
                counts[f"status {answer.status}: {text[-200:]}"] += 1
            elif sql.strip() != question["answer"]:
                counts[f"another answer: {sql[:200]}"] += 1
            else:
                counts[lines[-1]["model"]] += 1
    except (aiohttp.ClientError, OSError, ValueError, TimeoutError) as error:
        counts[f"{type(error).__name__}: {error}"] += 1
    counts["slowest ms"] = max(counts["slowest ms"], round(1000 * (time.monotonic() - started)))


async def main() -> None:
    endpoint, rate, seconds = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
    headers = {"Authorization": f"Bearer {os.environ['TOKEN']}"}
    counts: collections.Counter = collections.Counter()
    single = aiohttp.TCPConnector(force_close=True)
    async with (
        aiohttp.ClientSession(endpoint, headers=headers) as kept,
        aiohttp.ClientSession(endpoint, headers=headers, connector=single) as fresh,
    ):
        async with kept.get("/acceptance-test") as answer:
            questions = await answer.json()
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
