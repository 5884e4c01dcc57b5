"""One deployment of a release at a time: a Lease of Kubernetes, which ends by itself when its holder does."""

import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from kubernetes import client
from kubernetes.client.exceptions import ApiException

from chatmetrics.components.deploy.kubernetes_client import KubernetesClient
from chatmetrics.components.errors import ServiceError

SECONDS = 30  # that a holder is believed to live without a word
RENEWAL_SECONDS = 8.0
LOOK_SECONDS = 2.0
SECONDS_BETWEEN_LINES = 15.0


class Lease:
    """The right to change a release, once it is held; see `held`."""

    def __init__(self, cluster: KubernetesClient, release: str) -> None:
        self._cluster, self._name = cluster, release
        self._api = client.CoordinationV1Api(cluster.api)
        self._me = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._renewed = 0.0
        self._lost = ""

    @property
    def lost(self) -> ServiceError | None:
        """An error once somebody else may have it."""
        late = time.monotonic() - self._renewed > SECONDS
        why = self._lost or ("Kubernetes does not answer" if late else "")
        return ServiceError(f"the lease {self._name} was lost ({why}): another deployment may go on") if why else None

    def acquire(self) -> None:
        """Wait until nobody has it, or its holder has not been heard of for its time, and take it.

        Raises:
            ServiceError: Kubernetes does not answer or refused.
        """
        seen, since, said = "", time.monotonic(), 0.0
        while True:
            found = self._read()
            holder = found.spec.holder_identity if found else ""
            state = f"{holder} {found.spec.renew_time}" if found and holder else ""
            if state != seen:
                # By our own clock and not by the holder's, which may be wrong.
                seen, since = state, time.monotonic()
            alive = bool(state) and time.monotonic() - since <= SECONDS
            if not alive and self._take(found):
                return
            if alive and time.monotonic() - said >= SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                print(f"deploy: waiting for {holder}, which changes {self._name}", file=sys.stderr, flush=True)
            time.sleep(LOOK_SECONDS)

    def renew(self) -> None:
        """Say that we live; what goes wrong shows in `lost`."""
        try:
            found = self._read()
            if found is None or found.spec.holder_identity != self._me:
                self._lost = f"{found.spec.holder_identity} has it" if found else "it was deleted"
            elif not self._write(found):
                self._lost = "somebody else wrote it"
        except ServiceError as error:
            print(f"warning: {error}", file=sys.stderr, flush=True)

    def release(self) -> None:
        """Let the next one have it; a cluster that does not answer is said, and the lease ends by itself."""
        try:
            found = self._read()
            if found is not None and found.spec.holder_identity == self._me:
                found.spec.holder_identity = None
                self._replace(found)
        except ServiceError as error:
            print(f"warning: the lease ends in {SECONDS} s: {error}", file=sys.stderr, flush=True)

    def _take(self, found: "client.V1Lease | None") -> bool:
        if found is not None:
            found.spec.acquire_time = _now()
            return self._write(found)
        spec = client.V1LeaseSpec(acquire_time=_now())
        return self._write(client.V1Lease(metadata=client.V1ObjectMeta(name=self._name), spec=spec))

    def _write(self, lease: "client.V1Lease") -> bool:
        lease.spec.holder_identity = self._me
        lease.spec.lease_duration_seconds = SECONDS
        lease.spec.renew_time = _now()
        started = time.monotonic()
        if not self._replace(lease):
            return False
        self._renewed = started
        return True

    def _replace(self, lease: "client.V1Lease") -> bool:
        """Create or replace it; False when somebody else was faster, which its resource version tells."""
        try:
            if lease.metadata.resource_version:
                self._cluster.call(self._api.replace_namespaced_lease, self._name, self._cluster.namespace, lease)
            else:
                self._cluster.call(self._api.create_namespaced_lease, self._cluster.namespace, lease)
        except ServiceError as error:
            if _status(error) == 409:
                return False
            raise
        return True

    def _read(self) -> "client.V1Lease | None":
        try:
            return self._cluster.call(self._api.read_namespaced_lease, self._name, self._cluster.namespace)
        except ServiceError as error:
            if _status(error) == 404:
                return None
            raise


@contextmanager
def held(cluster: KubernetesClient, release: str) -> Iterator[Lease]:
    """Hold the lease of a release while the block lasts, waiting for others that do.

    Raises:
        ServiceError: Kubernetes does not answer or refused.
    """
    lease = Lease(cluster, release)
    lease.acquire()
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(RENEWAL_SECONDS):
            lease.renew()

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        ended.set()
        thread.join()
        lease.release()


def _status(error: ServiceError) -> int:
    return error.__cause__.status if isinstance(error.__cause__, ApiException) else 0


def _now() -> datetime:
    # Kubernetes wants all six digits of the microseconds, and Python writes none where they are 0.
    return datetime.now(UTC).replace(microsecond=1)
