"""Checks of capacity: whether the nodes of the cluster and the quotas of the namespace have room for each step."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from kubernetes import client
from kubernetes.utils.quantity import parse_quantity

from chatmetrics.components.deploy.kubernetes_client import KubernetesClient
from chatmetrics.components.errors import ServiceError
from chatmetrics.pipelines.cluster.kubernetes import check_pool_nodes, ready_nodes, untolerated
from chatmetrics.pipelines.doctor.findings import Finding, Skipped, combined
from chatmetrics.pipelines.doctor.setup import Amounts, Setup
from chatmetrics.pipelines.estimate import check_pool
from chatmetrics.pipelines.resources import DISK, requests_of


def nodes(setup: Setup) -> Finding:
    """Whether the pool has a node with as many GPUs as train requests, and how many are free now."""
    nodes = setup.pool_nodes()
    if not nodes and setup.settings.scales_from_zero:
        return Finding("warning", f"{setup.pool_name} has no node now; cluster.scales_from_zero: one is to be added")
    if not nodes:
        check_pool_nodes(
            setup.kubernetes, f"--gpu-pool {setup.pool_name}", setup.pool, setup.settings.node_label
        )  # lists the pools
    resource, wanted = setup.pool.resource, setup.gpus
    found = f"{_count(nodes, 'node')} of {setup.pool_name}"
    if not wanted:
        return Finding("ok", f"{found}, train requests no GPU")
    total = {node.metadata.name: int(node.status.allocatable.get(resource, 0)) for node in nodes}
    largest = max(total.values())
    if largest < wanted:
        hint = "lower train.processes, or use another pool" if largest else "is its device plugin running?"
        return Finding(
            "failed",
            f"train requests {wanted} {resource} on one node, the largest node of {setup.pool_name} has {largest}: "
            f"{hint}",
        )
    try:
        used = _used(setup.kubernetes, resource)
    except ServiceError as error:
        return Finding(
            "warning", f"{found} with {sum(total.values())} {resource}; how many are free is not known: {error}"
        )
    free = {name: number - used.get(name, 0) for name, number in total.items()}
    line = f"{found}, {sum(free.values())} of {sum(total.values())} {resource} free"
    if max(free.values()) < wanted:
        return Finding("warning", f"{line}; train requests {wanted} on one node and would wait")
    return Finding("ok", line)


def taints(setup: Setup) -> Finding:
    """Whether train tolerates the taints of the pool's nodes."""
    nodes = ready_nodes(setup.kubernetes, setup.pool, setup.settings.node_label)
    if not nodes:
        raise Skipped(f"no node of {setup.pool_name}")
    check_pool_nodes(setup.kubernetes, f"--gpu-pool {setup.pool_name}", setup.pool, setup.settings.node_label)
    taints_by_node = {node.metadata.name: untolerated(node, setup.pool) for node in nodes}
    closed = {name: taint for name, taint in taints_by_node.items() if taint}
    if closed and not setup.pool.label:
        return Finding("ok", f"{len(nodes) - len(closed)} of {_count(nodes, 'node')} open to train")
    if closed:
        name, taint = next(iter(closed.items()))
        return Finding(
            "warning",
            f"{len(closed)} of {_count(nodes, 'node')} are closed to train, for example {name} by {taint}; "
            "add it to the pool's tolerations if train is to use them",
        )
    return Finding("ok", "all tolerated" if any(node.spec.taints for node in nodes) else "none")


def requests(setup: Setup) -> Finding:
    """Whether each step's pod fits a node that it may use; otherwise it would wait forever."""
    requests = {step: _without_disk(amounts) for step, amounts in setup.requests().items()}
    pool_nodes, untainted_nodes, placed = setup.pool_nodes(), setup.untainted_nodes(), setup.placed
    if not pool_nodes:
        raise Skipped(f"no node of {setup.pool_name}")
    train = requests.pop("train")
    elsewhere = {step: requests.pop(step) for step in placed}
    if not untainted_nodes:
        tolerant = ", ".join(["train", *elsewhere])
        return Finding(
            "failed", f"every node has a taint, and only {tolerant} tolerates any: {', '.join(requests)} fit no node"
        )
    if all(int(node.status.allocatable.get(setup.pool.resource, 0)) < setup.gpus for node in pool_nodes):
        train.pop(setup.pool.resource, None)  # the check `nodes` fails for too few GPUs
    rooms = [_room({"train": train}, pool_nodes), _room(requests, untainted_nodes)]
    rooms += [_room_in_pool(setup, step, amounts) for step, amounts in elsewhere.items()]
    room = combined(rooms)
    if room.verdict == "ok":
        assert setup.recipe is not None  # setup.requests() has raised without one
        check_pool(setup.recipe, setup.pool_name, setup.pool)
        return Finding("ok", f"train's {_amounts_text(train)} fit a node, and so does each other step")
    return room


def disk(setup: Setup) -> Finding:
    """Whether the nodes have the disk that each step needs for temporary files, such as the base model."""
    requests = setup.requests()
    assert setup.recipe is not None  # setup.requests() has raised without one
    needed = {
        step: Decimal(parse_quantity(found.disk)) for step, found in requests_of(setup.recipe).items() if found.disk
    }
    largest = max(needed, key=needed.__getitem__)
    line = f"{_amount_text(DISK, needed[largest])} or less for temporary files, the most in {largest}"
    if setup.settings.scratch_class:
        find_class = client.StorageV1Api(setup.kubernetes.api).read_storage_class
        if setup.kubernetes.find(find_class, setup.settings.scratch_class) is None:
            name = setup.settings.scratch_class
            return Finding("failed", f"there is no storage class {name}; kubectl get storageclass lists them")
        return Finding("ok", f"{line}, on volumes of the class {setup.settings.scratch_class}")
    findings = [_disk_of(setup, step, needed[step], DISK in requests[step]) for step in needed]
    worst = combined(findings)
    return worst if worst.verdict != "ok" else Finding("ok", line)


def _disk_of(setup: Setup, step: str, needed: Decimal, requested: bool) -> Finding:
    nodes = {
        node.metadata.name: parse_quantity(node.status.allocatable.get(DISK, "0")) for node in setup.nodes_of(step)
    }
    if not nodes:
        return Finding("ok", f"no node for {step}")  # the check `requests` says so
    largest = max(nodes, key=nodes.__getitem__)
    if nodes[largest] >= needed:
        return Finding("ok", f"{step} fits {largest}")
    return Finding(
        "failed" if requested else "warning",
        f"{step} needs {_amount_text(DISK, needed)} of disk for temporary files, and {largest}, which has the most, "
        f"{_amount_text(DISK, Decimal(nodes[largest]))}; use nodes with more, set cluster.scratch_class, or correct "
        f"cluster.requests.{step}.disk",
    )


def _room_in_pool(setup: Setup, step: str, amounts: Amounts) -> Finding:
    assert setup.recipe is not None
    name = setup.recipe.cluster.pools[step]
    nodes = setup.nodes_of(step)
    if not nodes and setup.settings.scales_from_zero:
        return Finding("ok", f"{name} has no node now")
    if not nodes:
        where = f"cluster.pools.{step} {name}"
        check_pool_nodes(setup.kubernetes, where, setup.placed[step], setup.settings.node_label, step)
    return _room({step: amounts}, nodes)


def _without_disk(amounts: Amounts) -> Amounts:
    return {key: amount for key, amount in amounts.items() if key != DISK}  # the check `disk` has its own advice


def quota(setup: Setup) -> Finding:
    """Whether quotas and limits of the namespace leave room for the steps."""
    kubernetes = setup.kubernetes_in_namespace
    quotas = kubernetes.call(kubernetes.core.list_namespaced_resource_quota, setup.namespace).items
    limit_ranges = kubernetes.call(kubernetes.core.list_namespaced_limit_range, setup.namespace).items
    if not quotas and not limit_ranges:
        return Finding("ok", f"{setup.namespace} has no ResourceQuota and no LimitRange")
    requests = setup.requests()
    limits = [limit for found in limit_ranges for limit in found.spec.limits if limit.type in ("Container", "Pod")]
    findings = [_within_quota(found, requests, limits) for found in quotas]
    findings += [_within_limit(limit, step, amounts) for limit in limits for step, amounts in requests.items()]
    return combined(findings or [Finding("ok", "no LimitRange for pods")])


def _used(kubernetes: KubernetesClient, resource: str) -> dict[str, int]:
    """Return how much of a resource the pods on each node hold."""
    selector = "status.phase!=Succeeded,status.phase!=Failed"
    used: dict[str, int] = {}
    for pod in kubernetes.call(kubernetes.core.list_pod_for_all_namespaces, field_selector=selector).items:
        if pod.spec.node_name:
            # Containers run at the same time, init containers one after another before them.
            held = sum(_requested(container, resource) for container in pod.spec.containers)
            first = max((_requested(container, resource) for container in pod.spec.init_containers or ()), default=0)
            used[pod.spec.node_name] = used.get(pod.spec.node_name, 0) + max(held, first)
    return used


def _requested(container: Any, resource: str) -> int:
    return int(((container.resources and container.resources.requests) or {}).get(resource, 0))


def _room(requests: dict[str, Amounts], nodes: list[Any]) -> Finding:
    """Whether each step fits one of the nodes."""
    allocatable = {
        node.metadata.name: {key: parse_quantity(value) for key, value in node.status.allocatable.items()}
        for node in nodes
    }

    def fits(wanted: Amounts) -> bool:
        return any(all(node.get(key, 0) >= amount for key, amount in wanted.items()) for node in allocatable.values())

    too_large = {step: wanted for step, wanted in requests.items() if not fits(wanted)}
    if not too_large:
        return Finding("ok", "each step fits a node")
    largest = max(allocatable, key=lambda name: (allocatable[name]["memory"], allocatable[name]["cpu"]))
    offered = {key: allocatable[largest].get(key, Decimal(0)) for wanted in too_large.values() for key in wanted}
    steps = ", ".join(f"{step} ({_amounts_text(wanted)})" for step, wanted in too_large.items())
    return Finding(
        "failed",
        f"no node is large enough for {steps}: the largest it may use, {largest}, has {_amounts_text(offered)}; lower "
        f"cluster.requests.{next(iter(too_large))}, or use larger nodes",
    )


def _within_quota(found: Any, requests: dict[str, Amounts], limits: list[Any]) -> Finding:
    name = found.metadata.name
    if found.spec.scopes or found.spec.scope_selector:
        return Finding("skipped", f"quota {name} applies to some pods only")
    hard = {key: parse_quantity(value) for key, value in (found.spec.hard or {}).items()}
    used = {key: parse_quantity(value) for key, value in ((found.status and found.status.used) or {}).items()}
    if "limits.cpu" in hard and not any("cpu" in (limit.default or {}) for limit in limits):
        return Finding(
            "failed",
            f"quota {name} requires a CPU limit of each pod and steps have none; add a LimitRange with default.cpu",
        )
    for step, wanted in requests.items():
        for key, amount in _quota_amounts(wanted).items():
            request = f"{step} requests {_amount_text(key, amount)} {key}, quota {name}"
            if key in hard and amount > hard[key]:
                return Finding("failed", f"{request} allows a total of {_amount_text(key, hard[key])}; raise it")
            left = hard.get(key, Decimal(0)) - used.get(key, 0)
            if key in hard and amount > left:
                return Finding("warning", f"{request} has {_amount_text(key, left)} left: it would wait")
    return Finding("ok", f"quota {name} has room")


def _quota_amounts(wanted: Amounts) -> Amounts:
    """Return what a quota counts for a pod, by the quota's own keys; a step's memory limit equals its request."""
    counted = {"pods": Decimal(1), "count/pods": Decimal(1), "limits.memory": wanted["memory"]}
    for key, amount in wanted.items():
        counted |= {key: amount, f"requests.{key}": amount}
    return counted


def _within_limit(limit: Any, step: str, wanted: Amounts) -> Finding:
    for key, amount in wanted.items():
        most, least = (limit.max or {}).get(key), (limit.min or {}).get(key)
        request = f"{step} requests {_amount_text(key, amount)} {key}, a LimitRange"
        if most and amount > parse_quantity(most):
            return Finding("failed", f"{request} allows a {limit.type} {most}; raise it")
        if least and amount < parse_quantity(least):
            return Finding("failed", f"{request} requires {least} or more; set cluster.requests.{step}")
    return Finding("ok", "within the LimitRange")


def _amounts_text(amounts: Amounts) -> str:
    names = {"cpu": "CPU", "memory": "of memory", DISK: "of disk"}
    return ", ".join(f"{_amount_text(key, amount)} {names.get(key, key)}" for key, amount in amounts.items())


def _amount_text(key: str, amount: Decimal) -> str:
    if "memory" in key or "storage" in key:
        return f"{amount / 2**30:.1f}".removesuffix(".0") + "Gi"
    return f"{amount.normalize():f}"


def _count(things: Sequence[Any], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"
