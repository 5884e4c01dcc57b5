"""Find out why a release's new pods are not ready, while Helm waits for them."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from chatmetrics.components import console
from chatmetrics.components.deploy.kubernetes_client import RELEASE_LABEL, KubernetesClient
from chatmetrics.components.errors import GateError, InputError, ServiceError, StorageError, UserError

FETCH, PROXY = "fetch", "proxy"  # the chart's containers: one fetches the model, the other runs its acceptance test
JOB_LABEL, SMOKE_TEST = "job-name", "smoke test"
# Another start would find the same file: each of the three has already retried S3 for minutes.
FETCH_ERRORS, FETCH_RESTARTS = (InputError.exit_status, StorageError.exit_status), 2
SECONDS_BETWEEN_LINES = 15.0
STARTING = ("PodInitializing", "ContainerCreating")
NO_IMAGE = ("ErrImagePull", "ImagePullBackOff")  # Kubernetes alternates between them
ERROR = "error: "


@dataclass(frozen=True)
class Fault:
    """The reason why a pod is not ready.

    Attributes:
        pod: name of the pod.
        container: name of the container; empty if the fault is the pod's own.
        text: the reason in one line.
        ended: exit status of the container; None if it has not ended.
        restarts: how often the container was restarted.
    """

    pod: str
    container: str
    text: str
    ended: int | None = None
    restarts: int = 0

    def __str__(self) -> str:
        return f"{self.container}: {self.text}" if self.container else self.text

    @property
    def verdict(self) -> UserError | None:
        """The error with which the deployment ends, or None if the fault may disappear by itself."""
        if self.container == PROXY and self.ended == GateError.exit_status:
            return GateError(self.text)
        if self.container == FETCH and self.ended in FETCH_ERRORS and self.restarts >= FETCH_RESTARTS:
            return ServiceError(self.text)
        return None


class RolloutWatch:
    """Watches the pods of a release that are created after this object.

    Args:
        cluster: client for the release's namespace.
        release: name of the release.

    Attributes:
        progress: how many new pods are ready, and the last log line of one that is not.

    Raises:
        ServiceError: Kubernetes does not answer, or refused.
    """

    def __init__(self, cluster: KubernetesClient, release: str) -> None:
        self._cluster, self._selector = cluster, f"{RELEASE_LABEL}={release}"
        self._old = {pod.metadata.uid for pod in cluster.pods(self._selector)}
        self._faults: dict[str, list[Fault]] = {}  # by pod, including pods that no longer exist
        self.progress = ""
        self._started = self._printed = time.monotonic()

    def look(self) -> UserError | None:
        """Look for faults once, print the new ones, and return the first that waiting cannot fix."""
        try:
            pods = [pod for pod in self._cluster.pods(self._selector) if pod.metadata.uid not in self._old]
            self._record(pods)
        except ServiceError as error:
            self._printed = time.monotonic()
            console.warning(str(error))  # Helm decides whether it can continue
            return None
        if time.monotonic() - self._printed >= SECONDS_BETWEEN_LINES:
            self.progress = self._progress(pods)
            self._print(f"{time.monotonic() - self._started:.0f} s: {self.progress}")
        return self.verdict

    @property
    def verdict(self) -> UserError | None:
        """The first fault that waiting cannot fix, as an error; None if there is none."""
        return next((verdict for fault in self._all() if (verdict := fault.verdict)), None)

    @property
    def reason(self) -> str:
        """All faults in one line, those of ended containers first; empty if there are none."""
        ranked = sorted(self._all(), key=lambda fault: (fault.ended is None, not fault.container))
        return "; ".join(dict.fromkeys(map(str, ranked)))

    def _all(self) -> list[Fault]:
        return [fault for faults in self._faults.values() for fault in faults]

    def _record(self, pods: list[Any]) -> None:
        # A pod that is being deleted keeps the faults recorded before.
        living = [pod for pod in pods if not pod.metadata.deletion_timestamp]
        found = {pod.metadata.name: [] if _is_good(pod) else list(self._faults_of(pod)) for pod in living}
        found[""] = [] if pods else [Fault("", "", text) for text in self._not_created()]
        for name, faults in found.items():
            known = set(map(str, self._faults.get(name, ())))
            for text in sorted(set(map(str, faults)) - known):
                self._print(f"{name}: {text}" if name else text)
        self._faults |= found

    def _faults_of(self, pod: Any) -> Iterator[Fault]:
        found = list(self._container_faults(pod))
        yield from found
        unscheduled = next(
            (c for c in pod.status.conditions or () if c.type == "PodScheduled" and c.status != "True"), None
        )
        if unscheduled is not None:
            yield Fault(
                pod.metadata.name, "", f"no node takes the pod: {_line(unscheduled.message or unscheduled.reason)}"
            )
        elif not found and pod.status.phase == "Pending":
            # A missing volume or secret is reported only in events.
            for text in self._cluster.warnings(pod.metadata.uid)[-1:]:
                yield Fault(pod.metadata.name, "", text)

    def _container_faults(self, pod: Any) -> Iterator[Fault]:
        for status in _statuses(pod):
            name = SMOKE_TEST if JOB_LABEL in pod.metadata.labels else status.name
            ended = status.state.terminated or status.last_state.terminated
            waiting = status.state.waiting
            if ended and ended.exit_code:
                text = self._exit_reason(pod.metadata.name, status, ended)
                yield Fault(pod.metadata.name, name, text, ended.exit_code, status.restart_count)
            elif waiting and waiting.reason not in STARTING:
                yield Fault(pod.metadata.name, name, _waiting_reason(status.image, waiting))

    def _exit_reason(self, pod: str, status: Any, ended: Any) -> str:
        restarted = status.state.terminated is None
        log = ended.message or self._cluster.log(pod, status.name, previous=restarted)
        lines = [line.strip() for line in log.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(ERROR)]
        if errors:
            return errors[-1].removeprefix(ERROR)
        why = f"{ended.reason}, " if ended.reason not in (None, "Error") else ""
        return f"{why}exit status {ended.exit_code}" + (f": {lines[-1]}" if lines else "")

    def _not_created(self) -> list[str]:
        """Return the reasons why no pods are created, such as a quota or the namespace's pod security level."""
        call = self._cluster.apps.list_namespaced_replica_set
        owners = self._cluster.call(call, self._cluster.namespace, label_selector=self._selector).items
        short = [owner for owner in owners if (owner.spec.replicas or 0) > (owner.status.replicas or 0)]
        # Only the first warning: later ones repeat it with another pod's name.
        return [text for owner in short for text in self._cluster.warnings(owner.metadata.uid)[:1]]

    def _progress(self, pods: list[Any]) -> str:
        ready = sum(map(_is_good, pods))
        line = f"{ready} of {len(pods)} new pods ready"
        for pod in pods:
            busy = next((status for status in _statuses(pod) if status.state.running and not status.ready), None)
            if busy and not pod.metadata.deletion_timestamp:
                last_line = self._cluster.log(pod.metadata.name, busy.name, lines=1).strip()
                return f"{line}; {busy.name}: {last_line or 'running'}"
        return line

    def _print(self, text: str) -> None:
        self._printed = time.monotonic()
        console.info(f"deploy: {text}")


def _statuses(pod: Any) -> list[Any]:
    return [*(pod.status.init_container_statuses or ()), *(pod.status.container_statuses or ())]


def _is_good(pod: Any) -> bool:
    """Whether a pod is ready, or has completed."""
    ready = any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions or ())
    return ready or pod.status.phase == "Succeeded"


def _waiting_reason(image: str, waiting: Any) -> str:
    text = _line(f"{waiting.reason}: {waiting.message or ''}")
    if waiting.reason not in NO_IMAGE:
        return text
    # The rest of the text only repeats the image, each time with a longer name.
    return f"the image {image} cannot be pulled: {text.rpartition(': ')[2]}"


def _line(text: str) -> str:
    return " ".join(text.split())
