"""The Kubernetes API, as far as a run's pods and the nodes that they need are concerned."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException

from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.pipelines.cluster.placement import STEP_LABEL
from chatmetrics.pipelines.pools import Pool

RUN_LABEL = "pipeline/runid"


@dataclass(frozen=True)
class Pod:
    """A step's pod.

    Attributes:
        step: the step's name.
        node: where it is; empty while it has none.
        pending: why it has not started, in Kubernetes' own words; empty when it has.
        pending_seconds: how long it has waited.
    """

    step: str
    node: str
    pending: str
    pending_seconds: float


class Cluster:
    """What Kubernetes says, with the credentials of KUBECONFIG or of the pod that this is.

    Args:
        namespace: of the runs.

    Raises:
        ServiceError: there are no credentials, or they cannot be read.
    """

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        try:
            _load_credentials()
        except (ConfigException, OSError) as error:
            raise ServiceError(f"no access to Kubernetes: {' '.join(str(error).split())[:200]}") from error
        configuration = client.Configuration.get_default_copy()
        configuration.retries = urllib3.Retry(2, backoff_factor=0.5)
        self.api = client.ApiClient(configuration)
        self.core = client.CoreV1Api(self.api)

    def pods(self, run_id: str) -> list[Pod]:
        """The pods of a run's steps, the newest of each step last.

        Raises:
            ServiceError: Kubernetes does not answer or refused.
        """
        selector = f"{RUN_LABEL}={run_id},{STEP_LABEL}"
        found = self.ask(self.core.list_namespaced_pod, self.namespace, label_selector=selector).items
        return [_pod(pod) for pod in sorted(found, key=lambda pod: pod.metadata.creation_timestamp)]

    def nodes_of(self, pool: Pool, node_label: str) -> list[Any]:
        """The nodes of a pool that take new pods.

        Raises:
            ServiceError: as `pods`.
        """
        selector = f"{node_label}={pool.label}" if pool.label else ""
        nodes = self.ask(self.core.list_node, label_selector=selector).items
        return [node for node in nodes if not node.spec.unschedulable and _is_ready(node)]

    def check_pool(self, name: str, pool: Pool, node_label: str) -> None:
        """See that some node is of the pool and that train tolerates its taints.

        Raises:
            InputError: none is; says which pools there are.
            ServiceError: as `pods`.
        """
        nodes = self.nodes_of(pool, node_label)
        if not nodes:
            values = sorted(
                {
                    label
                    for node in self.nodes_of(Pool(gpu_memory_gib=0), node_label)
                    if (label := (node.metadata.labels or {}).get(node_label))
                }
            )
            there = f"the cluster's nodes have {', '.join(values)}" if values else "no node has that label"
            raise InputError(
                f"--gpu-pool {name}: no node that is ready has the label {node_label}={pool.label}; {there}. Label a "
                "node, or set cluster.node_label or the pool's label"
            )
        if all(blocking := [untolerated(node, pool) for node in nodes]):
            raise InputError(
                f"--gpu-pool {name}: train does not tolerate the taint {blocking[0]} of the nodes with "
                f"{node_label}={pool.label}; add it to the pool's tolerations"
            )

    def ask(self, call: Any, *arguments: Any, **options: Any) -> Any:
        """Call the API.

        Raises:
            ServiceError: Kubernetes does not answer or refused.
        """
        try:
            return call(*arguments, _request_timeout=30, **options)
        except ApiException as error:
            raise ServiceError(f"Kubernetes refused to {call.__name__}: {error.status} {error.reason}") from error
        except urllib3.exceptions.HTTPError as error:
            raise ServiceError(f"Kubernetes does not answer ({type(error).__name__}); check KUBECONFIG") from error


def _load_credentials() -> None:
    if os.environ.get("KUBECONFIG") or Path(config.KUBE_CONFIG_DEFAULT_LOCATION).expanduser().exists():
        config.load_kube_config()
    else:
        config.load_incluster_config()


def _pod(pod: Any) -> Pod:
    pending = _why_pending(pod) if pod.status.phase == "Pending" else ""
    waited = (datetime.now(UTC) - pod.metadata.creation_timestamp).total_seconds() if pending else 0.0
    return Pod(pod.metadata.labels[STEP_LABEL], pod.spec.node_name or "", pending, waited)


def _why_pending(pod: Any) -> str:
    for condition in pod.status.conditions or ():
        if condition.type == "PodScheduled" and condition.status != "True":
            return " ".join((condition.message or condition.reason or "not scheduled").split())
    statuses = [*(pod.status.init_container_statuses or ()), *(pod.status.container_statuses or ())]
    for waiting in (status.state.waiting for status in statuses if status.state and status.state.waiting):
        if waiting.reason not in ("PodInitializing", "ContainerCreating"):
            return " ".join(f"{waiting.reason} {waiting.message or ''}".split())
    return "starting"


def _is_ready(node: Any) -> bool:
    return any(condition.type == "Ready" and condition.status == "True" for condition in node.status.conditions or ())


def untolerated(node: Any, pool: Pool) -> str:
    """The first taint that keeps train off a node; empty where there is none."""
    for taint in node.spec.taints or ():
        if taint.effect != "PreferNoSchedule" and not any(_tolerates(entry, taint) for entry in pool.tolerations):
            return f"{taint.key}={taint.value or ''}:{taint.effect}"
    return ""


def _tolerates(toleration: dict[str, Any], taint: Any) -> bool:
    """As Kubernetes' documentation of taints and tolerations says."""
    if toleration.get("effect") not in (None, "", taint.effect):
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return toleration.get("key") in (None, "", taint.key)
    return toleration.get("key") == taint.key and toleration.get("value", "") == (taint.value or "")
