"""Security: pod security, secrets, tokens and the network."""

import json
from typing import Any

import pytest

from tests.helm.chart import NAMES, Document, containers_of, environment, needs_helm, render

pytestmark = needs_helm

# https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
ALL = [(example, name) for example in NAMES for name in ("Deployment/hotel", "Job/hotel-smoke", "Pod/hotel-test")]
ALL += [("everything", "Deployment/hotel-canary"), ("everything", "Deployment/hotel-anythingllm")]


def test_the_list_of_pods_is_complete() -> None:
    assert sorted(ALL) == sorted((example, name) for example in NAMES for name in render(example).pods())


@pytest.mark.parametrize(("example", "name"), ALL)
def test_every_pod_meets_the_restricted_standard(example: str, name: str) -> None:
    pod = render(example).pods()[name]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    for volume in pod["volumes"]:
        assert len(VOLUMES & volume.keys()) == 1, volume
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] > 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers_of(pod):
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert not {"privileged", "runAsUser", "runAsNonRoot", "seccompProfile", "procMount"} & own.keys()
        assert not [port for port in container.get("ports", []) if "hostPort" in port]


@pytest.mark.parametrize(("example", "name"), ALL)
def test_no_pod_has_a_kubernetes_token_or_variables_of_other_services(example: str, name: str) -> None:
    pod = render(example).pods()[name]
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False


@pytest.mark.parametrize(("example", "name"), ALL)
def test_every_container_has_limits_and_a_termination_message(example: str, name: str) -> None:
    for container in containers_of(render(example).pods()[name]):
        assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
        assert "memory" in container["resources"]["limits"]
        # AnythingLLM writes to its own folders when it starts.
        read_only = container["securityContext"].get("readOnlyRootFilesystem", False)
        assert read_only is (container["name"] != "anythingllm")


def secrets_of(container: Document) -> set[str]:
    """Names of the variables whose value comes from a Secret."""
    return {name for name, value in environment(container).items() if "secretKeyRef" in str(value)}


def test_only_the_init_container_has_s3_s_credentials() -> None:
    rendered = render()
    credentials = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert secrets_of(rendered.container("fetch")) == credentials
    for name in ("proxy", "ollama"):
        assert not [variable for variable in environment(rendered.container(name)) if variable.startswith("AWS_")]
        assert not secrets_of(rendered.container(name))
    # The Secret is not mounted either.
    assert "minio" not in {volume.get("secret", {}).get("secretName") for volume in rendered.pod()["volumes"]}


@pytest.mark.parametrize("example", NAMES)
@pytest.mark.parametrize(
    ("container", "allowed"),
    [
        (
            "fetch",
            {
                "CHATMETRICS_MEMORY_LIMIT",
                "AWS_ENDPOINT_URL_S3",
                "AWS_REGION",
                "AWS_MAX_ATTEMPTS",
                "CHATMETRICS_S3_MIN_KIB_PER_SECOND",
                "AWS_ACCESS_KEY_ID",
                "AWS_SECRET_ACCESS_KEY",
            },
        ),
        ("proxy", {"CHATMETRICS_OLLAMA", "CHATMETRICS_THREADS"}),
    ],
)
def test_a_container_has_only_the_variables_that_its_code_reads(
    example: str, container: str, allowed: set[str]
) -> None:
    assert environment(render(example).container(container)).keys() <= allowed


def test_a_cloud_role_needs_no_credentials() -> None:
    rendered = render("hotel", 's3.existingSecret=""', 's3.endpoint=""')
    assert environment(rendered.container("fetch")).keys() == {
        "CHATMETRICS_MEMORY_LIMIT",
        "AWS_REGION",
        "AWS_MAX_ATTEMPTS",
        "CHATMETRICS_S3_MIN_KIB_PER_SECOND",
    }
    account = render("everything").one("ServiceAccount")
    assert account["metadata"]["annotations"] == {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/models"}
    assert account["automountServiceAccountToken"] is False


def test_the_keys_of_the_s3_secret_can_be_set() -> None:
    rendered = render("hotel", 's3.accessKeyKey="user"', 's3.secretKeyKey="password"')
    variables = environment(rendered.container("fetch"))
    assert json.loads(variables["AWS_ACCESS_KEY_ID"])["secretKeyRef"] == {"name": "minio", "key": "user"}
    assert json.loads(variables["AWS_SECRET_ACCESS_KEY"])["secretKeyRef"] == {"name": "minio", "key": "password"}


def test_only_the_proxy_mounts_the_tokens() -> None:
    rendered = render()
    seeing = [
        container["name"]
        for container in containers_of(rendered.pod())
        if "tokens" in {mount["name"] for mount in container["volumeMounts"]}
    ]
    assert seeing == ["proxy"]


def test_the_proxy_cannot_change_models() -> None:
    def writes(container: str) -> set[str]:
        mounts = render().container(container)["volumeMounts"]
        return {f"{m['name']}/{m.get('subPath', '')}".rstrip("/") for m in mounts if not m.get("readOnly")}

    assert writes("proxy") == {"state", "tmp", "models/served"}  # records of the models in use, not the models
    assert writes("fetch") == {"models", "ollama", "tmp"}
    assert writes("ollama") == {"models", "ollama"}  # with models read-only, Ollama 0.34.0 refuses to create one


def test_tokens_are_long_and_random() -> None:
    def token() -> str:
        render.cache_clear()
        value: str = render().one("Secret", "hotel-tokens")["data"]["default"]
        return value

    first, second = token(), token()
    assert first != second
    assert len(first) >= 40


def test_ollama_listens_only_inside_the_pod() -> None:
    ollama = render().container("ollama")
    assert environment(ollama)["OLLAMA_HOST"] == "127.0.0.1:11434"
    assert "ports" not in ollama


def test_a_hung_container_is_killed_early() -> None:
    # Otherwise the kubelet waits for preStop as long as for a pod that terminates normally.
    for name in ("proxy", "ollama"):
        assert render().container(name)["livenessProbe"]["terminationGracePeriodSeconds"] <= 10


def policy(example: str, *sets: str) -> Any:
    return render(example, *sets).one("NetworkPolicy")["spec"]


def ports(rule: Document) -> set[Any]:
    return {port["port"] for port in rule["ports"]}


def test_by_default_only_the_namespace_has_access_and_nobody_reads_metrics() -> None:
    (ingress,) = policy("hotel")["ingress"]
    assert ports(ingress) == {"http"}
    assert {"podSelector": {}} in ingress["from"]


def test_the_network_policy_admits_the_named_peers() -> None:
    asking, reading = policy("everything")["ingress"]
    assert ports(asking) == {"http"}
    assert {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "gateways"}}} in asking["from"]
    assert {"podSelector": {}} not in asking["from"]
    assert ports(reading) == {"management"}
    assert reading["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]


def test_the_network_policy_admits_the_chart_s_own_pods() -> None:
    rendered = render("everything")
    (asking, _) = policy("everything")["ingress"]
    allowed = [peer["podSelector"]["matchLabels"] for peer in asking["from"] if peer.get("podSelector")]
    for kind, name in (("Job", "hotel-smoke"), ("Deployment", "hotel-anythingllm")):
        labels = rendered.one(kind, name)["spec"]["template"]["metadata"]["labels"]
        assert any(selector.items() <= labels.items() for selector in allowed)
    labels = rendered.one("Pod", "hotel-test")["metadata"]["labels"]
    assert any(selector.items() <= labels.items() for selector in allowed)


def test_the_pods_reach_dns_s3_and_added_peers() -> None:
    names, s3, *_, added = policy("everything")["egress"]
    assert ports(names) == {53}
    assert (ports(s3), s3["to"]) == ({443}, [{"ipBlock": {"cidr": "10.20.0.0/16"}}])
    assert ports(added) == {4317}
    assert set(policy("everything")["policyTypes"]) == {"Ingress", "Egress"}


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        ("http://minio:9000", 9000),
        ("http://s3.example.com", 80),
        ("https://s3.example.com/", 443),
        ("https://s3.example.com:8443", 8443),
    ],
)
def test_the_port_of_s3_comes_from_its_endpoint(endpoint: str, port: int) -> None:
    assert ports(policy("hotel", f's3.endpoint="{endpoint}"')["egress"][1]) == {port}


def test_a_cloud_role_reaches_its_services_and_a_secret_needs_none() -> None:
    *_, metadata, token_service = policy("hotel", 's3.existingSecret=""')["egress"]
    assert ports(metadata) == {80}
    blocks = {peer["ipBlock"]["cidr"] for peer in metadata["to"]}
    assert {"169.254.169.254/32", "169.254.170.23/32"} <= blocks
    assert (ports(token_service), "to" in token_service) == ({443}, False)
    with_secret = policy("hotel", 's3.existingSecret="credentials"')["egress"]
    assert "169.254" not in str(with_secret)


def test_the_store_has_an_addressing_style_and_a_ca() -> None:
    fetch = render("hotel", 's3.addressing="virtual"', 's3.caConfigMap="company-ca"').container("fetch")
    assert environment(fetch)["CHATMETRICS_S3_ADDRESSING"] == "virtual"
    ca_file = environment(fetch)["AWS_CA_BUNDLE"]
    (mount,) = (mount for mount in fetch["volumeMounts"] if ca_file.startswith(f"{mount['mountPath']}/"))
    volumes = render("hotel", 's3.addressing="virtual"', 's3.caConfigMap="company-ca"').pod()["volumes"]
    assert {"name": mount["name"], "configMap": {"name": "company-ca"}} in volumes
    assert not {"CHATMETRICS_S3_ADDRESSING", "AWS_CA_BUNDLE"} & environment(render("hotel").container("fetch")).keys()


def test_the_network_policy_covers_both_tracks_and_can_be_disabled() -> None:
    rendered = render("everything")
    for name in ("hotel", "hotel-canary"):
        labels = rendered.one("Deployment", name)["spec"]["template"]["metadata"]["labels"]
        assert policy("everything")["podSelector"]["matchLabels"].items() <= labels.items()
    assert not render("hotel", "networkPolicy.enabled=false").has("NetworkPolicy")
