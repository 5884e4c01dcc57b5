"""helm/deployer.yaml grants the rights that the chart's objects and the step need, and no others."""

import re
from pathlib import Path
from typing import Any

import yaml

from chatmetrics.components.deploy.settings import DeploySettings
from chatmetrics.pipelines.doctor.rights_checks import HELM_RIGHTS
from tests.helm.chart import needs_helm, render

HELM = Path(__file__).parents[2] / "helm"
OBJECTS = {document["kind"]: document for document in yaml.safe_load_all((HELM / "deployer.yaml").read_text("utf-8"))}
TEMPLATES = HELM / "chatmetrics-ollama" / "templates"
KIND = re.compile(r"^kind: (\w+)$", re.MULTILINE)  # the kind of an object, not of a reference, which is indented
WRITE = {"get", "list", "watch", "create", "patch", "delete"}  # what Helm does with a chart's objects
RELEASE = DeploySettings().release
Right = tuple[str, str, str]  # API group, resource and name; an empty name is any

# Rights that Helm and the step itself need, in addition to those for the chart's objects.
STEP_RIGHTS: dict[Right, set[str]] = {
    ("", "configmaps", ""): {"get", "list", "create", "update", "delete"},  # Helm's releases
    ("", "events", ""): {"list"},
    ("", "pods", ""): {"list"},
    ("", "pods/log", ""): {"get"},
    ("", "secrets", ""): {"create"},
    ("", "secrets", f"{RELEASE}-tokens"): {"get", "patch"},
    ("apps", "replicasets", ""): {"list"},
    ("coordination.k8s.io", "leases", ""): {"create"},
    ("coordination.k8s.io", "leases", RELEASE): {"get", "update"},
}


def granted() -> dict[Right, set[str]]:
    rules: list[dict[str, Any]] = OBJECTS["Role"]["rules"]
    return {
        (group, resource, name): set(rule["verbs"])
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", [""])
    }


def objects() -> list[dict[str, Any]]:
    """All objects that the chart creates for the step, which creates the tokens itself; not the pod of `helm test`."""
    documents = render("everything", f'auth.existingSecret="{RELEASE}-tokens"').documents
    return [document for document in documents if document["kind"] != "Pod"]


def resource_of(document: dict[str, Any]) -> Right:
    kind = document["kind"].lower()
    plural = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"
    return document["apiVersion"].rpartition("/")[0], plural, ""


@needs_helm
def test_the_role_has_the_rights_for_the_chart_s_objects_and_those_of_the_step_and_no_others() -> None:
    rights = dict.fromkeys(map(resource_of, objects()), WRITE)
    rights["", "persistentvolumeclaims", ""] = WRITE - {"delete"}
    assert granted() == rights | STEP_RIGHTS


@needs_helm
def test_the_example_of_the_chart_has_every_kind_of_object() -> None:
    kinds = {kind for path in TEMPLATES.rglob("*.*") for kind in KIND.findall(path.read_text("utf-8"))}
    assert len(kinds) > 10
    assert kinds == {document["kind"] for document in objects()} | {"Pod", "Secret"}


@needs_helm
def test_claims_are_kept_so_that_helm_needs_no_right_to_delete_them() -> None:
    claims = [document for document in objects() if document["kind"] == "PersistentVolumeClaim"]
    assert claims
    for claim in claims:
        assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_doctor_checks_no_right_that_the_role_lacks() -> None:
    role: dict[tuple[str, str], set[str]] = {}
    for (group, resource, _), verbs in granted().items():
        role.setdefault((group, resource), set()).update(verbs)
    for verbs, resources in HELM_RIGHTS:
        for resource in resources:
            name, _, group = resource.partition(".")
            assert set(verbs) == role[group, name], resource


def test_no_rule_has_a_wildcard_or_reaches_beyond_the_namespace() -> None:
    assert OBJECTS.keys() == {"ServiceAccount", "Secret", "Role", "RoleBinding"}
    assert "*" not in yaml.safe_dump(OBJECTS["Role"])


def test_the_names_are_the_defaults_of_the_recipe() -> None:
    settings = DeploySettings()
    account, secret = OBJECTS["ServiceAccount"]["metadata"], OBJECTS["Secret"]["metadata"]
    assert secret["name"] == settings.secret
    assert secret["namespace"] == account["namespace"] == "kubeflow"
    # Kubernetes adds a token that never expires to a secret of type kubernetes.io/service-account-token.
    assert OBJECTS["Secret"]["type"] == "Opaque"
    assert OBJECTS["ServiceAccount"]["automountServiceAccountToken"] is False
    assert OBJECTS["Role"]["metadata"]["namespace"] == OBJECTS["RoleBinding"]["metadata"]["namespace"]
    assert OBJECTS["Role"]["metadata"]["namespace"] == settings.namespace
    assert OBJECTS["RoleBinding"]["subjects"] == [
        {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
    ]
