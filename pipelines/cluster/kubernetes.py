"""The nodes of a GPU pool and the pods of a run, as Kubernetes reports them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from chatmetrics.components.deploy.kubernetes_client import KubernetesClient
from chatmetrics.components.errors import InputError
from chatmetrics.pipelines.cluster.placement import QUEUE_LABEL, STEP_LABEL
from chatmetrics.pipelines.pools import Pool

RUN_LABEL = "pipeline/runid"


# What a pod that has not started waits for: for a scheduler such as Kueue to admit it, for a node, or on its node for
# its image and volumes. A pod waits for one after the other, and each may take long.
Wait = Literal["", "admission", "node", "start"]


@dataclass(frozen=True)
class StepPod:
    """The pod of a step.

    Attributes:
        step: name of the step.
        node: name of the node it runs on; empty until it is scheduled.
        pending: why it has not started, in Kubernetes' own words; empty once it has.
        uid: Kubernetes' id of the pod.
        waits_for: what it waits for; empty once it has started.
        since: when this wait began; None if Kubernetes does not tell.
    """

    step: str
    node: str
    pending: str
    uid: str
    waits_for: Wait
    since: datetime | None


def pods_of_run(kubernetes: KubernetesClient, run_id: str) -> list[StepPod]:
    """Return the pods of a run's steps; the newest pod of a step comes last.

    Raises:
        ServiceError: Kubernetes does not answer or refused.
    """
    return [_step_pod(pod) for pod in kubernetes.pods(f"{RUN_LABEL}={run_id},{STEP_LABEL}")]


def ready_nodes(kubernetes: KubernetesClient, pool: Pool, node_label: str) -> list[Any]:
    """Return the nodes of a pool that are ready and accept new pods.

    Raises:
        ServiceError: Kubernetes does not answer or refused.
    """
    selector = f"{node_label}={pool.label}" if pool.label else ""
    nodes = kubernetes.call(kubernetes.core.list_node, label_selector=selector).items
    return [node for node in nodes if not node.spec.unschedulable and _is_ready(node)]


def check_pool_nodes(
    kubernetes: KubernetesClient, where: str, pool: Pool, node_label: str, step: str = "train"
) -> None:
    """Check that a pool has a ready node whose taints it tolerates.

    Args:
        kubernetes: the cluster.
        where: the option or setting that names the pool, with the name, for the error.
        pool: the pool.
        node_label: node label whose value names a node's pool.
        step: the step that is to run there.

    Raises:
        InputError: it has no such node; the error lists the pools that have nodes.
        ServiceError: Kubernetes does not answer or refused.
    """
    nodes = ready_nodes(kubernetes, pool, node_label)
    if not nodes:
        all_nodes = ready_nodes(kubernetes, Pool(gpu_memory_gib=0), node_label)
        labels = {(node.metadata.labels or {}).get(node_label) for node in all_nodes}
        values = sorted(label for label in labels if label)
        known = f"the cluster's nodes have {', '.join(values)}" if values else "no node has that label"
        raise InputError(
            f"{where}: no ready node has the label {node_label}={pool.label}; {known}. Label a node, or set "
            "cluster.node_label or the pool's label"
        )
    blocking = [untolerated(node, pool) for node in nodes]
    if all(blocking):
        raise InputError(
            f"{where}: {step} does not tolerate the taint {blocking[0]} of the nodes with "
            f"{node_label}={pool.label}; add it to the pool's tolerations"
        )


def untolerated(node: Any, pool: Pool) -> str:
    """Return the first taint of a node that a pool's tolerations do not cover; empty if they cover all."""
    for taint in node.spec.taints or ():
        if taint.effect != "PreferNoSchedule" and not any(entry.covers(taint) for entry in pool.tolerations):
            return f"{taint.key}={taint.value or ''}:{taint.effect}"
    return ""


def _step_pod(pod: Any) -> StepPod:
    waits_for, since = _wait(pod) if pod.status.phase == "Pending" else ("", None)
    pending = _pending_reason(pod, waits_for) if waits_for else ""
    return StepPod(
        pod.metadata.labels[STEP_LABEL], pod.spec.node_name or "", pending, pod.metadata.uid, waits_for, since
    )


def _wait(pod: Any) -> tuple[Wait, datetime | None]:
    """Return what a pending pod waits for, and since when.

    The pod's age says nothing: a queue may have held it for hours.
    """
    scheduled = _scheduled_condition(pod)
    if pod.spec.scheduling_gates or (scheduled and scheduled.reason == "SchedulingGated"):
        return "admission", None
    if scheduled and scheduled.status == "True":
        return "start", scheduled.last_transition_time
    if _was_held(pod):
        return "node", None
    return "node", scheduled.last_transition_time if scheduled else pod.metadata.creation_timestamp


def _was_held(pod: Any) -> bool:
    """Whether a scheduling gate may have held the pod. PodScheduled then still has the time when the gate was set."""
    return QUEUE_LABEL in pod.metadata.labels or (pod.metadata.generation or 1) > 1  # removing a gate counts as one


def _scheduled_condition(pod: Any) -> Any:
    return next((found for found in pod.status.conditions or () if found.type == "PodScheduled"), None)


def _pending_reason(pod: Any, waits_for: Wait) -> str:
    scheduled = _scheduled_condition(pod)
    if waits_for == "admission":
        gates = ", ".join(gate.name for gate in pod.spec.scheduling_gates or ())
        return f"waits to be admitted: scheduling gate {gates}" if gates else "waits to be admitted"
    if waits_for == "node":
        words = scheduled and (scheduled.message or scheduled.reason)
        return " ".join((words or "not scheduled").split())
    statuses = [*(pod.status.init_container_statuses or ()), *(pod.status.container_statuses or ())]
    for waiting in (status.state.waiting for status in statuses if status.state and status.state.waiting):
        if waiting.reason not in ("PodInitializing", "ContainerCreating"):
            return " ".join(f"{waiting.reason} {waiting.message or ''}".split())
    return "starting"


def _is_ready(node: Any) -> bool:
    return any(condition.type == "Ready" and condition.status == "True" for condition in node.status.conditions or ())
