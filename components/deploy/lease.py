"""A Kubernetes Lease that allows one deployment of a release at a time. It expires when its holder is killed."""

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from kubernetes import client
from kubernetes.client.exceptions import ApiException

from chatmetrics.components import console
from chatmetrics.components.deploy.kubernetes_client import KubernetesClient
from chatmetrics.components.errors import ServiceError

SECONDS = 30  # after which a lease that its holder does not renew expires
RENEWAL_SECONDS = 8.0
LOOK_SECONDS = 2.0
SECONDS_BETWEEN_LINES = 15.0


class Lease:
    """The exclusive right to change a release; see `held`.

    Args:
        cluster: client for the release's namespace.
        release: name of the release, which is also the lease's name.
    """

    def __init__(self, cluster: KubernetesClient, release: str) -> None:
        self._cluster, self._name = cluster, release
        self._api = client.CoordinationV1Api(cluster.api)
        self._me = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._renewed = 0.0
        self._lost = ""

    @property
    def lost(self) -> ServiceError | None:
        """An error if another process holds the lease or may hold it; None while this one does."""
        late = time.monotonic() - self._renewed > SECONDS
        why = self._lost or ("Kubernetes does not answer" if late else "")
        if not why:
            return None
        return ServiceError(f"the lease {self._name} was lost ({why}): another deployment may be running")

    def acquire(self) -> None:
        """Wait until the lease is free or has expired, and take it.

        Raises:
            ServiceError: Kubernetes does not answer, or refused.
        """
        seen, since, printed = "", time.monotonic(), 0.0
        while True:
            found = self._read()
            holder = found.spec.holder_identity if found else ""
            state = f"{holder} {found.spec.renew_time}" if found and holder else ""
            if state != seen:
                # Measured with this machine's clock: the holder's may be wrong.
                seen, since = state, time.monotonic()
            alive = bool(state) and time.monotonic() - since <= SECONDS
            if not alive and self._take(found):
                return
            if alive and time.monotonic() - printed >= SECONDS_BETWEEN_LINES:
                printed = time.monotonic()
                console.info(f"deploy: waiting for {holder}, which is changing {self._name}")
            time.sleep(LOOK_SECONDS)

    def renew(self) -> None:
        """Renew the lease. A failure is reported by `lost`."""
        try:
            found = self._read()
            if found is None or found.spec.holder_identity != self._me:
                self._lost = f"{found.spec.holder_identity} holds it" if found else "it was deleted"
            elif not self._write(found):
                self._lost = "another process changed it"
        except ServiceError as error:
            console.warning(str(error))

    def release(self) -> None:
        """Give the lease up. If the cluster does not answer, a warning is printed and the lease expires."""
        try:
            found = self._read()
            if found is not None and found.spec.holder_identity == self._me:
                found.spec.holder_identity = None
                self._replace(found)
        except ServiceError as error:
            console.warning(f"the lease {self._name} was not released and expires in {SECONDS} s: {error}")

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
        """Create or replace the lease; False if another process changed it first, detected by its resource version."""
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
    """Wait for the lease of a release, and hold it while the block runs.

    Raises:
        ServiceError: Kubernetes does not answer, or refused.
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
    # Kubernetes requires six digits of microseconds, and Python writes none if they are 0.
    return datetime.now(UTC).replace(microsecond=1)
