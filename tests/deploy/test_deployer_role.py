"""helm/deployer.yaml grants the rights that the chart's objects and the step need, and no others."""

import re
from pathlib import Path
from typing import Any

import yaml

from chatmetrics.components.deploy.settings import DeploySettings

HELM = Path(__file__).parents[2] / "helm"
OBJECTS = {document["kind"]: document for document in yaml.safe_load_all((HELM / "deployer.yaml").read_text("utf-8"))}
TEMPLATES = HELM / "chatmetrics-ollama" / "templates"
WRITE = {"get", "list", "watch", "create", "update", "patch", "delete"}
READ = {"get", "list", "watch"}
KIND = re.compile(r"^kind: (\w+)$", re.MULTILINE)  # the kind of an object, not of a reference, which is indented
# Rights that the step itself needs, in addition to those for the chart's objects.
STEP_RIGHTS = {
    ("", "events"): READ,
    ("", "pods"): READ,
    ("", "pods/log"): READ,
    ("", "secrets"): WRITE,  # Helm's releases
    ("apps", "replicasets"): READ,
    ("coordination.k8s.io", "leases"): {"get", "create", "update"},
}


def granted() -> dict[tuple[str, str], set[str]]:
    rules: list[dict[str, Any]] = OBJECTS["Role"]["rules"]
    return {
        (group, resource): set(rule["verbs"])
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def rendered() -> set[tuple[str, str]]:
    """Groups and resources of all objects in the templates, except the pod of `helm test`, which a person runs."""
    found = set()
    for path in (path for path in TEMPLATES.rglob("*") if path.is_file() and path.parent.name != "tests"):
        text = path.read_text("utf-8")
        for match in KIND.finditer(text):
            version = re.findall(r"^apiVersion: (\S+)$", text[: match.start()], re.MULTILINE)[-1]
            kind = match[1].lower()
            plural = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"
            found.add((version.rpartition("/")[0], plural))
    return found


def test_the_role_has_the_rights_for_the_chart_s_objects_and_those_of_the_step() -> None:
    assert len(rendered()) > 8
    assert granted() == dict.fromkeys(rendered(), WRITE) | STEP_RIGHTS


def test_no_rule_has_a_wildcard_or_reaches_beyond_the_namespace() -> None:
    assert OBJECTS.keys() == {"ServiceAccount", "Secret", "Role", "RoleBinding"}
    assert "*" not in yaml.safe_dump(OBJECTS["Role"])


def test_the_names_are_the_defaults_of_the_recipe() -> None:
    settings = DeploySettings()
    account, secret = OBJECTS["ServiceAccount"]["metadata"], OBJECTS["Secret"]["metadata"]
    assert secret["name"] == settings.secret
    assert secret["annotations"]["kubernetes.io/service-account.name"] == account["name"]
    assert secret["namespace"] == account["namespace"] == "kubeflow"
    assert OBJECTS["Secret"]["type"] == "kubernetes.io/service-account-token"
    assert OBJECTS["Role"]["metadata"]["namespace"] == OBJECTS["RoleBinding"]["metadata"]["namespace"]
    assert OBJECTS["Role"]["metadata"]["namespace"] == settings.namespace
    assert OBJECTS["RoleBinding"]["subjects"] == [
        {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
    ]
