"""What `doctor` asks Kubernetes. Each check looks at one thing and says what it found, or exactly what to do."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from kubernetes import client
from kubernetes.client.exceptions import ApiException
from kubernetes.utils.quantity import parse_quantity

from chatmetrics.components.errors import ServiceError, UserError
from chatmetrics.pipelines.cluster.kubeflow import Access
from chatmetrics.pipelines.cluster.kubernetes import Cluster, untolerated
from chatmetrics.pipelines.cluster.placement import READ_BASE, READ_DATA
from chatmetrics.pipelines.cluster_settings import ClusterSettings
from chatmetrics.pipelines.estimate import check_pool
from chatmetrics.pipelines.pools import Pool
from chatmetrics.pipelines.recipe import Recipe
from chatmetrics.pipelines.resources import requests_of

Verdict = Literal["ok", "skipped", "warning", "failed"]  # the worst last
Asked = dict[str, Decimal]  # by resource: cpu, memory, pods, a GPU's
Right = tuple[str, str]  # verb and resource, as kubectl writes them: create, workflowtaskresults.argoproj.io

UNTAINTED = Pool(gpu_memory_gib=0, tolerations=[])  # where every step but train must find a node
SERVICE_ACCOUNT = "system:serviceaccount:"  # begins its name as a user
KUEUE = "kueue.x-k8s.io"
OUR_RIGHTS = {  # what does not work without
    ("list", "pods"): "status does not show where steps run and why they wait",
    ("list", "nodes"): "a pool without nodes is not noticed before a pod waits for one",
}
# Argo's executor reports a pod's outcome in a workflowtaskresult; KFP's launcher reads where and how to store outputs.
ACCOUNT_RIGHTS = (
    (("create", "patch"), ("workflowtaskresults.argoproj.io",)),
    (("get",), ("configmaps", "secrets")),
)
# helm/deployer.yaml's, less what only some of the chart's values need.
HELM_RIGHTS = (
    (
        ("get", "list", "watch", "create", "update", "patch", "delete"),
        (
            "deployments.apps",
            "services",
            "secrets",  # also where Helm keeps its releases
            "serviceaccounts",
            "persistentvolumeclaims",
            "jobs.batch",
            "networkpolicies.networking.k8s.io",
            "poddisruptionbudgets.policy",
        ),
    ),
    (("get", "list", "watch"), ("pods", "replicasets.apps", "events")),
    (("get", "create", "update"), ("leases.coordination.k8s.io",)),
)
Groups = Sequence[tuple[Sequence[str], Sequence[str]]]  # verbs that are needed on resources


@dataclass(frozen=True)
class Said:
    """What a check has to say: one line, and whether that is good."""

    verdict: Verdict
    line: str


class Skipped(Exception):
    """A check needs something that is not there; the text says what."""


@dataclass
class Setup:
    """What is checked.

    Attributes:
        access: to KFP.
        settings: of the cluster; the recipe's, or the defaults.
        recipe: None where none was given.
        pool_name: of `given_pool`.
        given_pool: where train is to run; None where none was given.
        deploy_namespace: where models are to be served; empty is the runs' own.
        multi_user: whether KFP is; it says so itself, when it is asked first.
        namespace_missing: whether Kubernetes was found not to have the namespace.
    """

    access: Access
    settings: ClusterSettings
    recipe: Recipe | None = None
    pool_name: str = ""
    given_pool: Pool | None = None
    deploy_namespace: str = ""
    multi_user: bool = False
    namespace_missing: bool = False

    @property
    def namespace(self) -> str:
        """The namespace of the runs."""
        return self.access.namespace

    @property
    def account(self) -> str:
        """The service account of the steps' pods."""
        return self.settings.service_account or ("default-editor" if self.multi_user else "pipeline-runner")

    @cached_property
    def kubernetes(self) -> Cluster | ServiceError:
        """The cluster, or why we have no access to it."""
        try:
            cluster = Cluster(self.namespace)
            review = {"spec": {"resourceAttributes": {"verb": "list", "resource": "pods"}}}
            cluster.ask(client.AuthorizationV1Api(cluster.api).create_self_subject_access_review, review)
        except ServiceError as error:
            return error
        return cluster

    @property
    def cluster(self) -> Cluster:
        """The cluster.

        Raises:
            Skipped: we have no access to it.
        """
        if isinstance(self.kubernetes, ServiceError):
            raise Skipped("no access to Kubernetes")
        return self.kubernetes

    @property
    def inside(self) -> Cluster:
        """The cluster, for what is in the runs' namespace.

        Raises:
            Skipped: there is no such namespace; also as `cluster`.
        """
        if self.namespace_missing:
            raise Skipped(f"there is no namespace {self.namespace}")
        return self.cluster

    @property
    def pool(self) -> Pool:
        """The pool.

        Raises:
            Skipped: none was given.
        """
        if self.given_pool is None:
            raise Skipped("no --gpu-pool given")
        return self.given_pool

    @property
    def gpus(self) -> int:
        """How many GPUs train asks for."""
        return int(self.pool.gpu_memory_gib > 0) * (self.recipe.train.processes if self.recipe else 1)

    def asked(self) -> dict[str, Asked]:
        """What each step's pod asks for, train first.

        Raises:
            InputError: as `requests_of`.
            Skipped: no recipe or no pool was given.
        """
        if self.recipe is None:
            raise Skipped("no RECIPE given")
        gpus = {self.pool.resource: Decimal(self.gpus)} if self.gpus else {}
        requests = requests_of(self.recipe)
        return {
            step: {"cpu": parse_quantity(requests[step].cpu), "memory": parse_quantity(requests[step].memory)}
            | (gpus if step == "train" else {})
            for step in sorted(requests, key=lambda step: step != "train")
        }

    def pool_nodes(self) -> list[Any]:
        """The pool's nodes, those that train may use only, if there are any."""
        nodes = self.cluster.nodes_of(self.pool, self.settings.node_label)
        return [node for node in nodes if not untolerated(node, self.pool)] or nodes

    def open_nodes(self) -> list[Any]:
        """The nodes that the other steps may use."""
        nodes = self.cluster.nodes_of(UNTAINTED, self.settings.node_label)
        return [node for node in nodes if not untolerated(node, UNTAINTED)]


Check = Callable[[Setup], Said]


def together(parts: Iterable[Said]) -> Said:
    """Make one of several: what is not good, the worst first; what is good where all is."""
    order = get_args(Verdict)
    ranked = sorted(parts, key=lambda said: -order.index(said.verdict))
    worst = ranked[0].verdict
    bad = [said for said in ranked if said.verdict != "ok"]
    return Said(worst, "; ".join(dict.fromkeys(said.line for said in bad or ranked)))


def is_refusal(error: UserError) -> bool:
    """Whether Kubernetes knows the answer and we may not have it."""
    cause = error.__cause__
    return isinstance(cause, ApiException) and cause.status in (401, 403)


def kubernetes(setup: Setup) -> Said:
    """Whether we get in, and as whom."""
    if isinstance(setup.kubernetes, ServiceError):
        return Said("warning", f"{str(setup.kubernetes).rstrip('.')}; set KUBECONFIG, or most of this is skipped")
    cluster = setup.kubernetes
    version = cluster.ask(client.VersionApi(cluster.api).get_code).git_version
    we = _we(cluster)
    return Said("ok", f"{version}, as {we}" if we else str(version))


def namespace(setup: Setup) -> Said:
    """Whether the runs' namespace is there."""
    found = _find(setup.cluster, setup.cluster.core.read_namespace, setup.namespace)
    if found is None:
        setup.namespace_missing = True
        return Said(
            "failed", f"there is no {setup.namespace}; kubectl create namespace {setup.namespace}, or --namespace"
        )
    if found.status.phase != "Active":
        return Said("failed", f"{setup.namespace} is {found.status.phase}: nothing can be started there")
    return Said("ok", setup.namespace)


def service_account(setup: Setup) -> Said:
    """Whether the service account of the steps' pods is there."""
    if _find(setup.inside, setup.inside.core.read_namespaced_service_account, setup.account, setup.namespace) is None:
        return Said(
            "failed",
            f"there is no {setup.account} in {setup.namespace}; set cluster.service_account, or "
            f"kubectl -n {setup.namespace} create serviceaccount {setup.account}",
        )
    return Said("ok", setup.account)


def our_rights(setup: Setup) -> Said:
    """What we may look at during a run."""
    parts = [
        Said("ok", f"{verb} {resource}")
        if _may(setup, "" if resource == "nodes" else setup.inside.namespace, (verb, resource))
        else Said("warning", f"we may not {verb} {resource}: {loss}")
        for (verb, resource), loss in OUR_RIGHTS.items()
    ]
    return together(parts)


def account_rights(setup: Setup) -> Said:
    """Whether the steps' service account may do what KFP does in each pod."""
    return _rights(setup, setup.inside.namespace, ACCOUNT_RIGHTS, setup.account, "chatmetrics-steps")


def helm_rights(setup: Setup) -> Said:
    """Whether we may install a release where models are to be served."""
    target = setup.deploy_namespace or setup.inside.namespace
    try:
        there = _find(setup.cluster, setup.cluster.core.read_namespace, target) is not None
    except ServiceError as error:
        if not is_refusal(error):
            raise
        there = True  # who may not look at namespaces may still have rights in one
    if not there:
        return Said("failed", f"there is no namespace {target}; kubectl create namespace {target}")
    return _rights(setup, target, HELM_RIGHTS, "", "chatmetrics-deploy")


def nodes(setup: Setup) -> Said:
    """Whether the pool has nodes with as many GPUs as train asks for, and how many are free now."""
    found = setup.pool_nodes()
    if not found and setup.settings.scales_from_zero:
        return Said("warning", f"{setup.pool_name} has no node now; cluster.scales_from_zero: one is to come")
    if not found:
        setup.cluster.check_pool(setup.pool_name, setup.pool, setup.settings.node_label)  # says which there are
    resource, wanted = setup.pool.resource, setup.gpus
    seen = f"{_count(found, 'node')} of {setup.pool_name}"
    if not wanted:
        return Said("ok", f"{seen}, no GPU asked for")
    there = {node.metadata.name: int(node.status.allocatable.get(resource, 0)) for node in found}
    if max(there.values()) < wanted:
        why = "is its device plugin running?" if not any(there.values()) else "lower train.processes, or another pool"
        return Said(
            "failed",
            f"train asks for {wanted} {resource} on one node, the largest of {setup.pool_name} has "
            f"{max(there.values())}: {why}",
        )
    try:
        used = _used(setup.cluster, resource)
    except ServiceError as error:
        return Said("warning", f"{seen} with {sum(there.values())} {resource}; how many are free is not seen: {error}")
    free = {name: number - used.get(name, 0) for name, number in there.items()}
    line = f"{seen}, {sum(free.values())} of {sum(there.values())} {resource} free"
    if max(free.values()) < wanted:
        return Said("warning", f"{line}; train asks for {wanted} on one node and would wait")
    return Said("ok", line)


def taints(setup: Setup) -> Said:
    """Whether train tolerates the taints of the pool's nodes."""
    found = setup.cluster.nodes_of(setup.pool, setup.settings.node_label)
    if not found:
        raise Skipped(f"no node of {setup.pool_name}")
    setup.cluster.check_pool(setup.pool_name, setup.pool, setup.settings.node_label)
    closed = {node.metadata.name: taint for node in found if (taint := untolerated(node, setup.pool))}
    if closed and not setup.pool.label:
        return Said("ok", f"{len(found) - len(closed)} of {_count(found, 'node')} open to train")
    if closed:
        name, taint = next(iter(closed.items()))
        return Said(
            "warning",
            f"{len(closed)} of {_count(found, 'node')} are closed to train, as {name} by {taint}; "
            "add it to the pool's tolerations if they are meant",
        )
    return Said("ok", "all tolerated" if any(node.spec.taints for node in found) else "none")


def requests(setup: Setup) -> Said:
    """Whether each step's pod fits a node that it may use; one that fits none would wait for ever."""
    asked = setup.asked()
    pool_nodes, open_nodes = setup.pool_nodes(), setup.open_nodes()
    if not pool_nodes:
        raise Skipped(f"no node of {setup.pool_name}")
    if not open_nodes:
        return Said(
            "failed", f"every node has a taint, and only train tolerates any: {', '.join(list(asked)[1:])} fit none"
        )
    train = asked.pop("train")
    if all(int(node.status.allocatable.get(setup.pool.resource, 0)) < setup.gpus for node in pool_nodes):
        train.pop(setup.pool.resource, None)  # too many GPUs are what `nodes` fails for
    room = together([_room({"train": train}, pool_nodes), _room(asked, open_nodes)])
    if room.verdict == "ok":
        recipe = setup.recipe
        assert recipe is not None  # `asked` had one
        check_pool(recipe, setup.pool_name, setup.pool)
        return Said("ok", f"train's {_shown(train)} fit a node, and so does each other step")
    return room


def claims(setup: Setup) -> Said:
    """Whether the claims that steps mount are there and can be mounted where the steps run."""
    used: dict[str, set[str]] = {}
    for claim, steps in ((setup.settings.data_claim, READ_DATA), (setup.settings.weights_claim, READ_BASE)):
        if claim:
            used[claim] = used.get(claim, set()) | steps
    if not used:
        return Said("ok", "no claims used")
    return together(_claim(setup, name, steps) for name, steps in used.items())


def s3_endpoint(setup: Setup) -> Said:
    """Whether the store's address for pods is a service that the cluster has."""
    endpoint = setup.settings.s3_endpoint
    host = urlsplit(endpoint).hostname or ""
    name, namespace, *rest = [*host.removesuffix(".svc.cluster.local").removesuffix(".svc").split("."), ""]
    namespace = namespace or setup.namespace
    if not endpoint or any(rest) or name.isdigit():
        return Said("ok", f"{endpoint or 'Amazon'}, outside the cluster: pods' way there is not seen from here")
    service = _find(setup.cluster, setup.cluster.core.read_namespaced_service, name, namespace)
    if service is None:
        return Said(
            "warning",
            f"{endpoint}: no service {name} in namespace {namespace}; unless that is a name outside the cluster, pods "
            "will not find the store: set cluster.s3_endpoint",
        )
    if service.spec.type != "ExternalName" and not _is_ready(setup.cluster, name, namespace):
        return Said("failed", f"{endpoint}: the service {name} in {namespace} has nothing behind it that is ready")
    return Said("ok", endpoint)


def secrets(setup: Setup) -> Said:
    """Whether the secrets are there, with the keys that steps take from them."""
    settings = setup.settings
    wanted: dict[str, list[str]] = {}
    if settings.s3_secret:
        wanted[settings.s3_secret] = [settings.s3_access_key, settings.s3_secret_key]
    if settings.hub_secret:
        wanted.setdefault(settings.hub_secret, []).append("token")
    if settings.teacher_secret and setup.recipe and setup.recipe.distill.enabled:
        wanted.setdefault(settings.teacher_secret, []).append(settings.teacher_key)
    parts = [_secret(setup, name, keys) for name, keys in wanted.items()]
    if setup.recipe and setup.recipe.deploy.enabled:
        parts.append(_secret(setup, setup.recipe.deploy.secret, ["token", "ca.crt"]))
    if settings.image_pull_secret:
        parts.append(_secret(setup, settings.image_pull_secret, [".dockerconfigjson"], "docker-registry"))
    return together(parts or [Said("ok", "none used")])


def quota(setup: Setup) -> Said:
    """Whether quotas and limits of the namespace leave room for the steps."""
    quotas = setup.inside.ask(setup.cluster.core.list_namespaced_resource_quota, setup.namespace).items
    limits = setup.inside.ask(setup.cluster.core.list_namespaced_limit_range, setup.namespace).items
    if not quotas and not limits:
        return Said("ok", f"{setup.namespace} has no ResourceQuota and no LimitRange")
    asked = setup.asked()
    ranges = [entry for limit in limits for entry in limit.spec.limits if entry.type in ("Container", "Pod")]
    parts = [_within_quota(found, asked, ranges) for found in quotas]
    parts += [_within_limit(entry, step, wants) for entry in ranges for step, wants in asked.items()]
    return together(parts or [Said("ok", "no LimitRange for pods")])


def queue(setup: Setup) -> Said:
    """Whether Kueue has the queue, admits what is in it, and knows the resources that train asks for."""
    name = setup.settings.queue
    if not name:
        return Said("ok", "no Kueue queue used")
    groups = setup.cluster.ask(client.ApisApi(setup.cluster.api).get_api_versions).groups
    versions = [group.preferred_version.version for group in groups if group.name == KUEUE]
    if not versions:
        return Said(
            "failed", f"cluster.queue is {name}, and Kueue is not installed; install it, or leave the queue empty"
        )
    custom = client.CustomObjectsApi(setup.cluster.api)
    local = _find(
        setup.inside, custom.get_namespaced_custom_object, KUEUE, versions[0], setup.namespace, "localqueues", name
    )
    if local is None:
        return Said("failed", f"there is no LocalQueue {name} in {setup.namespace}; create it, or set cluster.queue")
    above = local["spec"]["clusterQueue"]
    whole = _find(setup.cluster, custom.get_cluster_custom_object, KUEUE, versions[0], "clusterqueues", above)
    if whole is None:
        return Said("failed", f"the LocalQueue {name} leads to the ClusterQueue {above}, which there is not")
    active = [entry for entry in whole.get("status", {}).get("conditions", []) if entry["type"] == "Active"]
    if not active or active[0]["status"] != "True":
        why = active[0].get("message", "") if active else "Kueue has skipped it; is its controller running?"
        return Said("failed", f"the ClusterQueue {above} is not active: {why}")
    return _covered(setup, name, above, whole["spec"].get("resourceGroups", []))


def _find(cluster: Cluster, call: Any, *arguments: Any) -> Any:
    """What Kubernetes has, or None where there is no such thing."""
    try:
        return cluster.ask(call, *arguments)
    except ServiceError as error:
        if getattr(error.__cause__, "status", None) == 404:
            return None
        raise


def _we(cluster: Cluster) -> str:
    """Who we are; empty where Kubernetes is too old (before 1.28) to say."""
    review = _find(cluster, client.AuthenticationV1Api(cluster.api).create_self_subject_review, {})
    return str(review.status.user_info.username) if review else ""


def _may(setup: Setup, namespace: str, right: Right, account: str = "") -> bool:
    """Whether we may do a thing, or whether a service account of the namespace may."""
    verb, kind = right
    resource, _, group = kind.partition(".")
    attributes = {"namespace": namespace, "verb": verb, "resource": resource, "group": group}
    api = client.AuthorizationV1Api(setup.cluster.api)
    if not account:
        review: dict[str, Any] = {"spec": {"resourceAttributes": attributes}}
        return bool(setup.cluster.ask(api.create_self_subject_access_review, review).status.allowed)
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"]
    user = f"{SERVICE_ACCOUNT}{namespace}:{account}"
    review = {"spec": {"resourceAttributes": attributes, "user": user, "groups": groups}}
    return bool(setup.cluster.ask(api.create_subject_access_review, review).status.allowed)


def _rights(setup: Setup, namespace: str, groups: Groups, account: str, role: str) -> Said:
    """What is missing, and the commands that an administrator gives it with."""
    user = f"{SERVICE_ACCOUNT}{namespace}:{account}" if account else _we(setup.cluster) or "YOU"
    pod = user.startswith(SERVICE_ACCOUNT)
    subject = f"--serviceaccount={user.removeprefix(SERVICE_ACCOUNT)}" if pod else f"--user={user}"
    missing: list[str] = []
    commands: list[str] = []
    for number, (verbs, resources) in enumerate(groups):
        lacking = {
            resource: denied
            for resource in resources
            if (denied := [verb for verb in verbs if not _may(setup, namespace, (verb, resource), account)])
        }
        missing += [f"{'/'.join(denied)} {resource}" for resource, denied in lacking.items()]
        if lacking:
            name = role if number == 0 else f"{role}-{number + 1}"
            commands += [
                f"kubectl -n {namespace} create role {name} --verb={','.join(verbs)} --resource={','.join(lacking)}",
                f"kubectl -n {namespace} create rolebinding {name} --role={name} {subject}",
            ]
    if missing:
        who = account or "we"
        return Said("failed", f"in {namespace} {who} may not {', '.join(missing)}; {' && '.join(commands)}")
    return Said("ok", f"{account or 'we'} may do all that is needed in {namespace}")


def _used(cluster: Cluster, resource: str) -> dict[str, int]:
    """How many of a resource the pods of each node hold."""
    selector = "status.phase!=Succeeded,status.phase!=Failed"
    used: dict[str, int] = {}
    for pod in cluster.ask(cluster.core.list_pod_for_all_namespaces, field_selector=selector).items:
        if pod.spec.node_name:
            held = sum(_requested(container, resource) for container in pod.spec.containers)
            first = max((_requested(container, resource) for container in pod.spec.init_containers or ()), default=0)
            used[pod.spec.node_name] = used.get(pod.spec.node_name, 0) + max(held, first)
    return used


def _requested(container: Any, resource: str) -> int:
    return int(((container.resources and container.resources.requests) or {}).get(resource, 0))


def _room(asked: dict[str, Asked], found: list[Any]) -> Said:
    """Whether each of some steps fits one of some nodes."""
    has = {
        node.metadata.name: {key: parse_quantity(value) for key, value in node.status.allocatable.items()}
        for node in found
    }

    def fits(wants: Asked) -> bool:
        return any(all(there.get(key, 0) >= amount for key, amount in wants.items()) for there in has.values())

    too_large = {step: wants for step, wants in asked.items() if not fits(wants)}
    if not too_large:
        return Said("ok", "there is room")
    largest = max(has, key=lambda name: (has[name]["memory"], has[name]["cpu"]))
    offers = {key: has[largest].get(key, Decimal(0)) for wants in too_large.values() for key in wants}
    asks = ", ".join(f"{step} ({_shown(wants)})" for step, wants in too_large.items())
    return Said(
        "failed",
        f"no node is large enough for {asks}: the largest open to it, {largest}, has {_shown(offers)}; lower "
        f"cluster.requests.{next(iter(too_large))}, or use larger nodes",
    )


def _claim(setup: Setup, name: str, steps: set[str]) -> Said:
    core = setup.inside.core
    claim = _find(setup.inside, core.read_namespaced_persistent_volume_claim, name, setup.namespace)
    if claim is None:
        return Said(
            "failed",
            f"there is no {name} in {setup.namespace}; create it, or correct the recipe's cluster section",
        )
    if claim.status.phase == "Lost":
        return Said("failed", f"{name} has lost its volume {claim.spec.volume_name}; make it anew")
    if claim.status.phase != "Bound" and (said := _unbound(setup, name, claim.spec.storage_class_name)):
        return said
    modes = set(claim.spec.access_modes)
    places = {node.metadata.name for node in setup.open_nodes()}
    if "train" in steps and setup.given_pool:
        places |= {node.metadata.name for node in setup.pool_nodes()}
    if not modes & {"ReadWriteMany", "ReadOnlyMany"} and len(places) > 1:
        return Said(
            "warning",
            f"{name} is {', '.join(sorted(modes))}, and {', '.join(sorted(steps))} may run on {len(places)} nodes: "
            "they would wait for one another's node; use ReadWriteMany",
        )
    return Said("ok", f"{name} is {claim.status.phase}, {', '.join(sorted(modes))}")


def _unbound(setup: Setup, name: str, class_name: str | None) -> Said | None:
    """What is wrong with a claim that has no volume yet; None where it gets one as soon as a pod uses it."""
    if class_name is None:
        return Said("failed", f"{name} names no storage class and there is no default; give it a storageClassName")
    if class_name == "":
        return Said(
            "failed", f"{name} waits for a volume made by hand; kubectl -n {setup.namespace} describe pvc {name}"
        )
    found = _find(setup.cluster, client.StorageV1Api(setup.cluster.api).read_storage_class, class_name)
    if found is None:
        return Said(
            "failed",
            f"{name} is of the storage class {class_name}, which there is not; kubectl get storageclass shows them",
        )
    if found.volume_binding_mode != "WaitForFirstConsumer":
        return Said("failed", f"{name} has no volume yet; kubectl -n {setup.namespace} describe pvc {name} says why")
    return None


def _is_ready(cluster: Cluster, service: str, namespace: str) -> bool:
    list_slices = client.DiscoveryV1Api(cluster.api).list_namespaced_endpoint_slice
    slices = cluster.ask(list_slices, namespace, label_selector=f"kubernetes.io/service-name={service}").items
    ends = [end for found in slices for end in found.endpoints or ()]
    return any(end.conditions is None or end.conditions.ready is not False for end in ends)


def _secret(setup: Setup, name: str, keys: list[str], kind: str = "generic") -> Said:
    found = _find(setup.inside, setup.inside.core.read_namespaced_secret, name, setup.namespace)
    create = f"kubectl -n {setup.namespace} create secret {kind} {name}"
    if found is None:
        literals = "--docker-server=... --docker-username=..." if kind == "docker-registry" else _literals(keys)
        return Said("failed", f"there is no {name} in {setup.namespace}; {create} {literals}")
    there = sorted(found.data or {})  # names only: values are nobody's business here
    if missing := [key for key in keys if key not in there]:
        return Said(
            "failed",
            f"{name} has no key {', '.join(missing)}, it has {', '.join(there) or 'none'}; add it, or correct the "
            "recipe's cluster section",
        )
    if kind == "docker-registry" and found.type != "kubernetes.io/dockerconfigjson":
        return Said("failed", f"{name} is of type {found.type}; it must be kubernetes.io/dockerconfigjson: {create}")
    return Said("ok", f"{name} has {', '.join(keys)}")


def _literals(keys: list[str]) -> str:
    return " ".join(f"--from-literal={key}=..." for key in keys)


def _within_quota(found: Any, asked: dict[str, Asked], ranges: list[Any]) -> Said:
    name = found.metadata.name
    if found.spec.scopes or found.spec.scope_selector:
        return Said("skipped", f"quota {name} is for some pods only")
    hard = {key: parse_quantity(value) for key, value in (found.spec.hard or {}).items()}
    used = {key: parse_quantity(value) for key, value in ((found.status and found.status.used) or {}).items()}
    if "limits.cpu" in hard and not any("cpu" in (entry.default or {}) for entry in ranges):
        return Said(
            "failed",
            f"quota {name} wants a CPU limit of each pod and steps have none; add a LimitRange with default.cpu",
        )
    for step, wants in asked.items():
        for key, amount in _counted(wants).items():
            asks = f"{step} asks for {_amount(key, amount)} {key}, quota {name}"
            if key in hard and amount > hard[key]:
                return Said("failed", f"{asks} allows {_amount(key, hard[key])} in all; raise it")
            if key in hard and amount > (left := hard[key] - used.get(key, 0)):
                return Said("warning", f"{asks} has {_amount(key, left)} left: it would wait")
    return Said("ok", f"quota {name} has room")


def _counted(wants: Asked) -> Asked:
    """What a quota counts of a pod, by its own names; steps limit memory to what they ask for."""
    counted = {"pods": Decimal(1), "count/pods": Decimal(1), "limits.memory": wants["memory"]}
    for key, amount in wants.items():
        counted |= {key: amount, f"requests.{key}": amount}
    return counted


def _within_limit(entry: Any, step: str, wants: Asked) -> Said:
    for key, amount in wants.items():
        most, least = (entry.max or {}).get(key), (entry.min or {}).get(key)
        if most and amount > parse_quantity(most):
            return Said(
                "failed",
                f"{step} asks for {_amount(key, amount)} {key}, a LimitRange allows a {entry.type} {most}; raise it",
            )
        if least and amount < parse_quantity(least):
            return Said(
                "failed",
                f"{step} asks for {_amount(key, amount)} {key}, a LimitRange wants {least} or more; "
                f"set cluster.requests.{step}",
            )
    return Said("ok", "within the LimitRange")


def _covered(setup: Setup, name: str, above: str, groups: list[Any]) -> Said:
    covered = {resource for group in groups for resource in group["coveredResources"]}
    needed = {"cpu", "memory"} | ({setup.pool.resource} if setup.given_pool and setup.gpus else set())
    if missing := sorted(needed - covered):
        return Said(
            "failed",
            f"the ClusterQueue {above} covers no {', '.join(missing)}: Kueue would never admit train; add it to the "
            "queue's resourceGroups",
        )
    return Said("ok", f"{name}, of the ClusterQueue {above}")


def _shown(wants: Asked) -> str:
    names = {"cpu": "CPU", "memory": "of memory"}
    return ", ".join(f"{_amount(key, amount)} {names.get(key, key)}" for key, amount in wants.items())


def _amount(key: str, amount: Decimal) -> str:
    if "memory" in key:
        return f"{amount / 2**30:.1f}".removesuffix(".0") + "Gi"
    return f"{amount.normalize():f}"


def _count(things: Sequence[Any], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"
