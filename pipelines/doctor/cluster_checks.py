"""Checks of KFP and of the objects in the cluster that runs use: namespace, account, queue, claims, secrets."""

import base64
import re
from datetime import UTC, datetime, timedelta
from typing import Any

from kubernetes import client

from chatmetrics.components.deploy.kubernetes_client import NEW_TOKEN, token_expiry
from chatmetrics.components.errors import UserError
from chatmetrics.components.responder import checked_json
from chatmetrics.pipelines.cluster.kubeflow import api_errors, connect
from chatmetrics.pipelines.cluster.placement import READ_BASE, READ_DATA, steps_that_read_data
from chatmetrics.pipelines.doctor.findings import Finding, combined
from chatmetrics.pipelines.doctor.rights_checks import our_name
from chatmetrics.pipelines.doctor.setup import Setup

OLDEST_KFP = (2, 14)  # the first with run workspaces and with everything that kfp-kubernetes 2.17 writes
KUEUE = "kueue.x-k8s.io"
RUN = timedelta(days=2)  # a long run, with its waiting for nodes


def api(setup: Setup) -> Finding:
    """Whether KFP answers, lets us in, and is new enough."""
    kfp = connect(setup.access)
    with api_errors(setup.access):
        # The raw answer, because KFP's own class for it drops the version.
        answer = kfp._healthz_api.healthz_service_get_healthz(_preload_content=False)
    health = checked_json(answer.status, answer.headers, answer.data)
    setup.multi_user = bool(health.get("multi_user"))
    where = f"at {setup.access.url}, {'multi-user' if setup.multi_user else 'single-user'}"
    oldest = ".".join(map(str, OLDEST_KFP))
    tag = str(health.get("tag_name") or "")
    version = re.match(r"v?(\d+)\.(\d+)", tag)
    if not version:
        return Finding(
            "warning", f"Kubeflow Pipelines {where}, does not report its version; {oldest} or newer is needed"
        )
    if (int(version[1]), int(version[2])) < OLDEST_KFP:
        return Finding("failed", f"Kubeflow Pipelines {tag} {where}; {oldest} or newer is needed: upgrade it")
    return Finding("ok", f"Kubeflow Pipelines {tag} {where}")


def kubernetes(setup: Setup) -> Finding:
    """Whether we have access to Kubernetes, and as which user."""
    if isinstance(setup.client_or_error, UserError):
        return Finding(
            "warning", f"{str(setup.client_or_error).rstrip('.')}; set KUBECONFIG, or most checks are skipped"
        )
    kubernetes = setup.client_or_error
    version = kubernetes.call(client.VersionApi(kubernetes.api).get_code).git_version
    user = our_name(kubernetes)
    return Finding("ok", f"{version}, as {user}" if user else str(version))


def namespace(setup: Setup) -> Finding:
    """Whether the runs' namespace exists."""
    name = setup.namespace
    found = setup.kubernetes.find(setup.kubernetes.core.read_namespace, name)
    if found is None:
        setup.namespace_missing = True
        return Finding("failed", f"there is no {name}; kubectl create namespace {name}, or --namespace")
    if found.status.phase != "Active":
        return Finding("failed", f"{name} is {found.status.phase}: nothing can be started there")
    return Finding("ok", name)


def service_account(setup: Setup) -> Finding:
    """Whether the service account of the steps' pods exists."""
    kubernetes = setup.kubernetes_in_namespace
    if kubernetes.find(kubernetes.core.read_namespaced_service_account, setup.account, setup.namespace) is None:
        return Finding(
            "failed",
            f"there is no {setup.account} in {setup.namespace}; set cluster.service_account, or "
            f"kubectl -n {setup.namespace} create serviceaccount {setup.account}",
        )
    return Finding("ok", setup.account)


def queue(setup: Setup) -> Finding:
    """Whether Kueue has the queue, admits workloads from it, and covers the resources that train requests."""
    name = setup.settings.queue
    if not name:
        return Finding("ok", "no Kueue queue used")
    groups = setup.kubernetes.call(client.ApisApi(setup.kubernetes.api).get_api_versions).groups
    versions = [group.preferred_version.version for group in groups if group.name == KUEUE]
    if not versions:
        return Finding(
            "failed", f"cluster.queue is {name}, but Kueue is not installed; install it, or leave cluster.queue empty"
        )
    custom = client.CustomObjectsApi(setup.kubernetes.api)
    get_local, get_cluster = custom.get_namespaced_custom_object, custom.get_cluster_custom_object
    kubernetes = setup.kubernetes_in_namespace
    local = kubernetes.find(get_local, KUEUE, versions[0], setup.namespace, "localqueues", name)
    if local is None:
        return Finding("failed", f"there is no LocalQueue {name} in {setup.namespace}; create it, or set cluster.queue")
    cluster_name = local["spec"]["clusterQueue"]
    cluster_queue = kubernetes.find(get_cluster, KUEUE, versions[0], "clusterqueues", cluster_name)
    if cluster_queue is None:
        return Finding(
            "failed", f"the LocalQueue {name} refers to the ClusterQueue {cluster_name}, which does not exist"
        )
    active = [entry for entry in cluster_queue.get("status", {}).get("conditions", []) if entry["type"] == "Active"]
    if not active or active[0]["status"] != "True":
        why = active[0].get("message", "") if active else "Kueue has not processed it; is its controller running?"
        return Finding("failed", f"the ClusterQueue {cluster_name} is not active: {why}")
    return _queue_resources(setup, name, cluster_name, cluster_queue["spec"].get("resourceGroups", []))


def claims(setup: Setup) -> Finding:
    """Whether the claims that steps mount exist and can be mounted where the steps run."""
    read_data = steps_that_read_data(setup.recipe) if setup.recipe else READ_DATA
    steps_by_claim: dict[str, set[str]] = {}
    for claim, steps in ((setup.settings.data_claim, read_data), (setup.settings.weights_claim, READ_BASE)):
        if claim:
            steps_by_claim[claim] = steps_by_claim.get(claim, set()) | steps
    if not steps_by_claim:
        return Finding("ok", "no claims used")
    return combined(_claim(setup, name, steps) for name, steps in steps_by_claim.items())


def secrets(setup: Setup) -> Finding:
    """Whether the secrets exist and have the keys that steps use."""
    settings, recipe = setup.settings, setup.recipe
    keys: dict[str, list[str]] = {}
    if settings.s3_secret:
        keys[settings.s3_secret] = [settings.s3_access_key, settings.s3_secret_key]
    if settings.hub_secret:
        keys.setdefault(settings.hub_secret, []).append("token")
    if settings.database_secret:
        keys.setdefault(settings.database_secret, []).append(settings.database_key)
    if settings.teacher_secret and recipe and recipe.distill.enabled:
        keys.setdefault(settings.teacher_secret, []).append(settings.teacher_key)
    if settings.signing_secret:
        keys.setdefault(settings.signing_secret, []).append(settings.signing_key)
    findings = [_secret(setup, name, names) for name, names in keys.items()]
    if recipe and recipe.deploy.enabled:
        findings.append(_deployer_token(setup, recipe.deploy.secret))
    if settings.image_pull_secret:
        findings.append(_secret(setup, settings.image_pull_secret, [".dockerconfigjson"], "docker-registry"))
    return combined(findings or [Finding("ok", "none used")])


def _queue_resources(setup: Setup, name: str, cluster_name: str, groups: list[Any]) -> Finding:
    covered = {resource for group in groups for resource in group["coveredResources"]}
    needed = {"cpu", "memory"} | ({setup.pool.resource} if setup.given_pool and setup.gpus else set())
    if setup.recipe and setup.given_pool:
        needed |= {resource for amounts in setup.requests().values() for resource in amounts}
    missing = sorted(needed - covered)
    if missing:
        return Finding(
            "failed",
            f"the ClusterQueue {cluster_name} does not cover {', '.join(missing)}: Kueue would never admit "
            "steps that request it; add it to the queue's resourceGroups",
        )
    return Finding("ok", f"{name}, of the ClusterQueue {cluster_name}")


def _claim(setup: Setup, name: str, steps: set[str]) -> Finding:
    kubernetes = setup.kubernetes_in_namespace
    claim = kubernetes.find(kubernetes.core.read_namespaced_persistent_volume_claim, name, setup.namespace)
    if claim is None:
        return Finding(
            "failed",
            f"there is no {name} in {setup.namespace}; create it, or correct the recipe's cluster section",
        )
    if claim.status.phase == "Lost":
        return Finding("failed", f"{name} has lost its volume {claim.spec.volume_name}; create it again")
    unbound = _unbound(setup, name, claim.spec.storage_class_name) if claim.status.phase != "Bound" else None
    if unbound:
        return unbound
    modes = set(claim.spec.access_modes)
    nodes = {node.metadata.name for node in setup.untainted_nodes()}
    if "train" in steps and setup.given_pool:
        nodes |= {node.metadata.name for node in setup.pool_nodes()}
    if not modes & {"ReadWriteMany", "ReadOnlyMany"} and len(nodes) > 1:
        return Finding(
            "warning",
            f"{name} is {', '.join(sorted(modes))}, and {', '.join(sorted(steps))} may run on {len(nodes)} nodes: "
            "they would wait for one another's node; use ReadWriteMany",
        )
    return Finding("ok", f"{name} is {claim.status.phase}, {', '.join(sorted(modes))}")


def _unbound(setup: Setup, name: str, class_name: str | None) -> Finding | None:
    """Return what is wrong with a claim without a volume; None if it gets one as soon as a pod uses it."""
    describe = f"kubectl -n {setup.namespace} describe pvc {name}"
    if class_name is None:
        return Finding("failed", f"{name} names no storage class and there is no default; set its storageClassName")
    if class_name == "":
        return Finding("failed", f"{name} waits for a volume that is created by hand; {describe}")
    find_class = client.StorageV1Api(setup.kubernetes.api).read_storage_class
    found = setup.kubernetes.find(find_class, class_name)
    if found is None:
        return Finding(
            "failed",
            f"{name} has the storage class {class_name}, which does not exist; kubectl get storageclass lists them",
        )
    if found.volume_binding_mode != "WaitForFirstConsumer":
        return Finding("failed", f"{name} has no volume yet; {describe} shows why")
    return None


def _deployer_token(setup: Setup, name: str) -> Finding:
    """Whether the deployer's token exists and is valid until a run that starts now has ended."""
    found = _secret(setup, name, ["token"])
    if found.verdict != "ok":
        return Finding(found.verdict, f"{found.line.partition(';')[0]}; helm/deployer.yaml creates it; {NEW_TOKEN}")
    kubernetes = setup.kubernetes_in_namespace
    data = kubernetes.call(kubernetes.core.read_namespaced_secret, name, setup.namespace).data
    expiry = token_expiry(base64.b64decode(data["token"]).decode(errors="replace"))
    if expiry is None:
        return Finding("warning", f"the token in {name} never expires; {NEW_TOKEN}")
    left = expiry - datetime.now(UTC)
    until = f"the token in {name} is valid until {expiry:%Y-%m-%d %H:%M} UTC"
    if left < timedelta():
        return Finding("failed", f"{until}; {NEW_TOKEN}")
    return Finding("ok", until) if left > RUN else Finding("warning", f"{until}, a run can take longer; {NEW_TOKEN}")


def _secret(setup: Setup, name: str, keys: list[str], kind: str = "generic") -> Finding:
    kubernetes = setup.kubernetes_in_namespace
    found = kubernetes.find(kubernetes.core.read_namespaced_secret, name, setup.namespace)
    create = f"kubectl -n {setup.namespace} create secret {kind} {name}"
    if found is None:
        literals = " ".join(f"--from-literal={key}=..." for key in keys)
        options = "--docker-server=... --docker-username=..." if kind == "docker-registry" else literals
        return Finding("failed", f"there is no {name} in {setup.namespace}; {create} {options}")
    existing = sorted(found.data or {})  # only the names of keys
    missing = [key for key in keys if key not in existing]
    if missing:
        return Finding(
            "failed",
            f"{name} has no key {', '.join(missing)}, it has {', '.join(existing) or 'none'}; add it, or correct the "
            "recipe's cluster section",
        )
    if kind == "docker-registry" and found.type != "kubernetes.io/dockerconfigjson":
        return Finding("failed", f"{name} is of type {found.type}; it must be kubernetes.io/dockerconfigjson: {create}")
    return Finding("ok", f"{name} has {', '.join(keys)}")
