"""Checks of rights: what we, the steps' service account and the deployer may do in Kubernetes."""

from collections.abc import Sequence
from typing import Any

from kubernetes import client

from chatmetrics.components.deploy.kubernetes_client import KubernetesClient
from chatmetrics.components.errors import ServiceError
from chatmetrics.pipelines.doctor.findings import Finding, combined, is_denied
from chatmetrics.pipelines.doctor.setup import Setup

Right = tuple[str, str]  # verb and resource, as kubectl writes them: create, workflowtaskresults.argoproj.io
RightGroups = Sequence[tuple[Sequence[str], Sequence[str]]]  # all verbs of a group are needed on all its resources

SERVICE_ACCOUNT = "system:serviceaccount:"  # prefix of the user name of a service account
OUR_RIGHTS = {  # with what is lost without each
    ("list", "pods"): "status does not show where steps run and why they wait",
    ("list", "nodes"): "a pool without nodes is not noticed before a pod waits for one",
}
# Argo's executor reports a pod's result in a workflowtaskresult; KFP's launcher reads where and how to store outputs.
ACCOUNT_RIGHTS = (
    (("create", "patch"), ("workflowtaskresults.argoproj.io",)),
    (("get",), ("configmaps", "secrets")),
)
# As in helm/deployer.yaml, without those that only some of the chart's values need, and for any name of a release.
HELM_RIGHTS = (
    (
        ("get", "list", "watch", "create", "patch", "delete"),
        (
            "deployments.apps",
            "services",
            "serviceaccounts",
            "jobs.batch",
            "networkpolicies.networking.k8s.io",
            "poddisruptionbudgets.policy",
        ),
    ),
    (("get", "list", "watch", "create", "patch"), ("persistentvolumeclaims",)),
    (("get", "list", "create", "update", "delete"), ("configmaps",)),  # Helm's releases
    (("get", "create", "patch"), ("secrets",)),  # the clients' tokens
    (("list",), ("pods", "replicasets.apps", "events")),
    (("get",), ("pods/log",)),
    (("get", "create", "update"), ("leases.coordination.k8s.io",)),
)


def our_rights(setup: Setup) -> Finding:
    """Whether we may list what `submit` and `status` show."""
    findings = []
    for (verb, resource), loss in OUR_RIGHTS.items():
        namespace = "" if resource == "nodes" else setup.kubernetes_in_namespace.namespace
        if _is_allowed(setup.kubernetes, namespace, (verb, resource)):
            findings.append(Finding("ok", f"{verb} {resource}"))
        else:
            findings.append(Finding("warning", f"we may not {verb} {resource}: {loss}"))
    return combined(findings)


def account_rights(setup: Setup) -> Finding:
    """Whether the steps' service account may do what KFP does in each pod."""
    kubernetes = setup.kubernetes_in_namespace
    return _rights(kubernetes, kubernetes.namespace, ACCOUNT_RIGHTS, setup.account, "chatmetrics-steps")


def helm_rights(setup: Setup) -> Finding:
    """Whether we may install a release where models are to be served."""
    namespace = setup.deploy_namespace or setup.kubernetes_in_namespace.namespace
    try:
        exists = setup.kubernetes.find(setup.kubernetes.core.read_namespace, namespace) is not None
    except ServiceError as error:
        if not is_denied(error):
            raise
        exists = True  # someone who may not read namespaces may still have rights in one
    if not exists:
        return Finding("failed", f"there is no namespace {namespace}; kubectl create namespace {namespace}")
    return _rights(setup.kubernetes, namespace, HELM_RIGHTS, "", "chatmetrics-deploy")


def our_name(kubernetes: KubernetesClient) -> str:
    """Return our user name; empty if Kubernetes is too old (before 1.28) to tell."""
    review = kubernetes.find(client.AuthenticationV1Api(kubernetes.api).create_self_subject_review, {})
    return str(review.status.user_info.username) if review else ""


def _rights(kubernetes: KubernetesClient, namespace: str, groups: RightGroups, account: str, role: str) -> Finding:
    """Return which rights are missing, with the commands that grant them.

    Args:
        kubernetes: the client.
        namespace: where the rights are needed.
        groups: the needed rights.
        account: service account whose rights are checked; empty is ourselves.
        role: name for the role in the commands.
    """
    user = f"{SERVICE_ACCOUNT}{namespace}:{account}" if account else our_name(kubernetes) or "YOU"
    if user.startswith(SERVICE_ACCOUNT):
        subject = f"--serviceaccount={user.removeprefix(SERVICE_ACCOUNT)}"
    else:
        subject = f"--user={user}"
    missing: list[str] = []
    commands: list[str] = []
    for number, (verbs, resources) in enumerate(groups):
        denied_verbs = {
            resource: [verb for verb in verbs if not _is_allowed(kubernetes, namespace, (verb, resource), account)]
            for resource in resources
        }
        lacking = {resource: denied for resource, denied in denied_verbs.items() if denied}
        missing += [f"{'/'.join(denied)} {resource}" for resource, denied in lacking.items()]
        if lacking:
            name = role if number == 0 else f"{role}-{number + 1}"
            commands += [
                f"kubectl -n {namespace} create role {name} --verb={','.join(verbs)} --resource={','.join(lacking)}",
                f"kubectl -n {namespace} create rolebinding {name} --role={name} {subject}",
            ]
    who = account or "we"
    if missing:
        return Finding("failed", f"in {namespace} {who} may not {', '.join(missing)}; {' && '.join(commands)}")
    return Finding("ok", f"{who} may do everything needed in {namespace}")


def _is_allowed(kubernetes: KubernetesClient, namespace: str, right: Right, account: str = "") -> bool:
    """Whether we have a right, or whether a service account of the namespace has it."""
    verb, kind = right
    name, _, group = kind.partition(".")
    resource, _, subresource = name.partition("/")
    attributes = {"namespace": namespace, "verb": verb, "resource": resource, "group": group}
    attributes |= {"subresource": subresource} if subresource else {}
    api = client.AuthorizationV1Api(kubernetes.api)
    if not account:
        review: dict[str, Any] = {"spec": {"resourceAttributes": attributes}}
        return bool(kubernetes.call(api.create_self_subject_access_review, review).status.allowed)
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"]
    user = f"{SERVICE_ACCOUNT}{namespace}:{account}"
    review = {"spec": {"resourceAttributes": attributes, "user": user, "groups": groups}}
    return bool(kubernetes.call(api.create_subject_access_review, review).status.allowed)
