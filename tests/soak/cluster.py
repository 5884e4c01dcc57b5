"""The soak of a release in a cluster: the same clients, and events that kubectl causes.

The pods' metrics and logs are not read, so only the outcomes of the requests are checked.
"""

import argparse
import asyncio
import base64
import json
import secrets
import time
from dataclasses import dataclass, field
from random import Random

from tests.soak.mix import Target
from tests.soak.report import Report
from tests.soak.run import Load, background, progress
from tests.soak.tokens import Tokens

CLIENT = "default"  # whose token the soak uses and replaces
BETWEEN_EVENTS = (10.0, 30.0)  # seconds
READY_SECONDS = 600  # until a pod that replaces another one is ready
SECONDS_TO_READ = 120.0  # the kubelet updates a mounted Secret within about a minute
REQUEST_SECONDS = 120.0  # the chart's limits.requestSeconds


@dataclass
class Service:
    """The release's Service. No request may fail, because pods are only terminated, never killed."""

    endpoint: str
    name: str = "service"
    disturbed: list[tuple[float, float]] = field(default_factory=list)


class Kubectl:
    """kubectl for one release."""

    def __init__(self, namespace: str, release: str) -> None:
        self._namespace, self._release = namespace, release

    async def __call__(self, *words: str, secret: str = "") -> str:
        """Run kubectl and return its output. `secret` is its standard input, so that it is not seen as an argument.

        Raises:
            RuntimeError: It failed.
        """
        process = await asyncio.create_subprocess_exec(
            "kubectl",
            "-n",
            self._namespace,
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, error = await process.communicate(secret.encode())
        if process.returncode:
            raise RuntimeError(f"kubectl {' '.join(words[:2])}: {error.decode().strip()}")
        return output.decode()

    async def delete_pod(self, random: Random) -> None:
        """Delete a pod and wait until another one has replaced it."""
        selector = f"app.kubernetes.io/instance={self._release},track=stable"
        pods = (await self("get", "pods", "-l", selector, "-o", "name")).split()
        await self("delete", random.choice(pods))  # waits until the pod has ended
        await self("rollout", "status", f"deployment/{self._release}", f"--timeout={READY_SECONDS}s")

    async def roll_out(self) -> None:
        """Replace all pods."""
        await self("rollout", "restart", f"deployment/{self._release}")
        await self("rollout", "status", f"deployment/{self._release}", f"--timeout={READY_SECONDS}s")

    async def rotate_token(self, tokens: Tokens) -> None:
        """Replace the clients' token in the Secret."""
        token = secrets.token_urlsafe(24)
        patch = json.dumps({"data": {CLIENT: base64.b64encode(token.encode()).decode()}})
        words = ("patch", "secret", f"{self._release}-tokens", "--type", "merge", "--patch-file", "/dev/stdin")
        await self(*words, secret=patch)
        for client in tokens.current:
            tokens.replace(client, token)


async def soak_cluster(options: argparse.Namespace, report: Report) -> None:
    """Run the load against a deployed release, and fill in the report."""
    token = options.token_file.read_text("utf-8").strip()
    tokens = Tokens({"analyst": token, "other": token}, SECONDS_TO_READ)
    kubectl, service = Kubectl(options.kubectl_namespace, options.release), Service(options.endpoint)
    target = Target(short="", long="", database="", answers={})  # the only ones
    load = Load(options.seed, target, tokens, lambda: service, REQUEST_SECONDS)
    begun, random = time.time(), Random(f"{options.seed} events")
    until = time.monotonic() + options.minutes * 60
    with background(progress(load, lambda: options.endpoint)):
        load.start(options.clients)
        while time.monotonic() < until:
            for kind, happen in (
                ("pod deleted", lambda: kubectl.delete_pod(random)),
                ("token rotated", lambda: kubectl.rotate_token(tokens)),
                ("rollout", kubectl.roll_out),
            ):
                await asyncio.sleep(random.uniform(*BETWEEN_EVENTS))
                report.events.append({"at": round(time.time() - begun, 1), "kind": kind, "pod": "", "note": ""})
                try:
                    await happen()
                except RuntimeError as error:
                    report.violations.append(str(error))
        await load.finish()
    report.seconds = round(time.time() - begun, 1)
    report.count(load.results)
