"""The soak of pods on this machine."""

import argparse
import asyncio
import os
import shutil
import time
from collections.abc import Awaitable, Callable
from random import Random

from tests.soak.events import Event, Site
from tests.soak.mix import Target
from tests.soak.report import Report
from tests.soak.run import Load, Samples, background, in_flight_outcomes, progress, settled, unequal_accounts
from tests.soak.store import Line, publish_models
from tests.storage import s3

WARM_UP_SHARE, WARM_UP_SECONDS = 0.2, 60.0  # the smaller one
REPLICAS = 2
BETWEEN_EVENTS = (3.0, 8.0)  # seconds


async def soak_here(options: argparse.Namespace, report: Report) -> None:
    """Run the load against two pods, whose first lives to the end, and fill in the report."""
    folder = options.output / "pods"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with s3.server(folder) as server:
        line = Line(server.endpoint)
        await line.restore()
        os.environ |= s3.CREDENTIALS | {"AWS_ENDPOINT_URL_S3": line.endpoint}
        models = await asyncio.to_thread(publish_models, folder / "published", server)
        site = Site(folder, models, line, lambda name: load.in_flight(name), _say, report.violations.append)
        load = Load(options.seed, Target(), site.tokens, site.service.next)
        samples = Samples(options.output / "samples.csv", lambda: site.service.pods)
        try:
            await _soak(options, report, site, load, samples)
        finally:
            for pod in [*site.service.pods]:
                await asyncio.to_thread(pod.end)
            samples.close()


async def _soak(options: argparse.Namespace, report: Report, site: Site, load: Load, samples: Samples) -> None:
    begun, seconds = time.time(), options.minutes * 60
    await asyncio.gather(*(site.start_pod() for _ in range(REPLICAS)))
    first = site.service.pods[0]
    with background(samples.run(), progress(load, lambda: _state(site, samples))):
        warm_up = min(WARM_UP_SHARE * seconds, WARM_UP_SECONDS)
        load.start(options.clients)
        await asyncio.sleep(warm_up)
        await load.pause()
        before = await settled(first, samples)
        load.resume()
        try:
            await _events(site, Random(f"{options.seed} events"), time.monotonic() + seconds - warm_up)
        except RuntimeError as error:
            report.violations.append(str(error))
        await load.finish()
        report.compare(before, await settled(first, samples))
    for pod in [*site.service.pods]:
        await site.stop_pod(pod)
    report.seconds = round(time.time() - begun, 1)
    report.count(load.results)
    report.violations += unequal_accounts(site, load, samples)
    report.retries = sum(snapshot.retries for snapshot in samples.snapshots.values())
    report.in_flight = {name: dict(found) for name, found in in_flight_outcomes(load, site.events).items()}
    report.events = [_described(event, begun) for event in site.events]


async def _events(site: Site, random: Random, until: float) -> None:
    """Let one event after the other happen; none that would end long after `until`.

    Raises:
        RuntimeError: A pod does not become ready.
    """
    # With the seconds that each takes.
    rounds: list[tuple[Callable[[Random], Awaitable[None]], float]] = [
        (site.kill_engine, 8),
        (site.rotate_token, 5),
        (site.roll_out, 12),
        (site.kill_runners, 8),
        (site.roll_out_without_store, 30),
        (site.stop_engine, 40),
        (site.stop_runners, 60),
    ]
    while any(time.monotonic() + seconds < until for _, seconds in rounds):
        for happen, seconds in rounds:
            await asyncio.sleep(random.uniform(*BETWEEN_EVENTS))
            if time.monotonic() + seconds < until:
                await happen(random)
    await asyncio.sleep(max(0.0, until - time.monotonic()))


def _state(site: Site, samples: Samples) -> str:
    pods = (
        f"{pod.name} {'ready' if pod.is_routed else 'not ready'}{_used(samples, pod.name)}" for pod in site.service.pods
    )
    return ", ".join(pods)


def _used(samples: Samples, name: str) -> str:
    used = samples.latest.get(name)
    return f" ({used.proxy_mib:.0f} MiB, {used.descriptors} descriptors, queue {used.queue})" if used else ""


def _described(event: Event, begun: float) -> dict[str, object]:
    return {"at": round(event.begun - begun, 1), "kind": event.kind, "pod": event.pod, "note": event.note}


def _say(text: str) -> None:
    print(f"         {text}", flush=True)
