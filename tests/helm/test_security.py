"""Security: pod security, secrets, tokens and the network."""

import json
from typing import Any

import pytest

from tests.helm.chart import NAMES, Document, containers_of, environment, needs_helm, refusal, render, template

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
    peers = 'networkPolicy.s3=[{"ipBlock": {"cidr": "52.216.0.0/15"}}]'
    rendered = render("hotel", 's3.existingSecret=""', 's3.endpoint=""', peers)
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


def policy(example: str, *sets: str, name: str = "hotel") -> Any:
    return render(example, *sets).one("NetworkPolicy", name)["spec"]


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


@pytest.mark.parametrize("example", NAMES)
def test_every_rule_has_peers_and_every_pod_a_policy(example: str) -> None:
    rendered = render(example)
    policies = [document["spec"] for document in rendered.documents if document["kind"] == "NetworkPolicy"]
    for spec in policies:
        assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
        assert all(rule["to"] and rule["ports"] for rule in spec["egress"])
        assert all(rule["from"] and rule["ports"] for rule in spec["ingress"])
    for document in rendered.documents:
        pod = document if document["kind"] == "Pod" else document.get("spec", {}).get("template")
        if pod:
            labels = pod["metadata"]["labels"].items()
            assert [spec for spec in policies if spec["podSelector"]["matchLabels"].items() <= labels], document


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        ("http://minio:9000", 9000),
        ("http://s3.storage", 80),
        ("https://s3.storage.svc/", 443),
        ("https://s3.storage.svc.cluster.local:8443", 8443),
    ],
)
def test_the_port_of_s3_comes_from_its_endpoint(endpoint: str, port: int) -> None:
    assert ports(policy("hotel", f's3.endpoint="{endpoint}"')["egress"][1]) == {port}
    assert ports(policy("hotel", f's3.endpoint="{endpoint}"', "networkPolicy.s3Port=8333")["egress"][1]) == {8333}


@pytest.mark.parametrize(
    ("endpoint", "peer"),
    [
        ("http://minio:9000", "default"),  # the namespace in which the chart is rendered
        ("http://minio.storage:9000", "storage"),
        ("https://minio.storage.svc", "storage"),
        ("http://minio.storage.svc.example.local:9000/", "storage"),
        ("http://10.20.30.40:9000", "10.20.30.40/32"),
    ],
)
def test_the_peer_of_s3_comes_from_an_endpoint_in_the_cluster(endpoint: str, peer: str) -> None:
    (found,) = policy("hotel", f's3.endpoint="{endpoint}"')["egress"][1]["to"]
    block = {"ipBlock": {"cidr": peer}}
    namespace = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": peer}}}
    assert found == (block if "/" in peer else namespace)


@pytest.mark.parametrize("endpoint", ["", "https://s3.example.com", "https://s3.eu-west-1.amazonaws.com:443"])
def test_another_store_needs_peers(endpoint: str) -> None:
    error = refusal("hotel", f's3.endpoint="{endpoint}"')
    assert f"networkPolicy.s3 is empty: {endpoint or 'Amazon S3'} is no Service of this cluster" in error
    assert render("hotel", f's3.endpoint="{endpoint}"', "networkPolicy.enabled=false")
    # Without a model in S3 there is nothing to reach.
    volume = (
        'models=[{"name": "hotel", "uri": "file:///m/1"}]',
        'extraVolumeMounts=[{"name": "m", "mountPath": "/m"}]',
    )
    assert len(policy("hotel", f's3.endpoint="{endpoint}"', *volume)["egress"]) == 1


def test_the_name_servers_can_be_others() -> None:
    (by_default,) = policy("hotel")["egress"][0]["to"]
    assert by_default["podSelector"] == {"matchLabels": {"k8s-app": "kube-dns"}}
    assert by_default["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}
    node_local = '[{"ipBlock": {"cidr": "169.254.20.10/32"}}]'
    for name in ("hotel", "hotel-smoke", "hotel-anythingllm"):
        sets = (f"networkPolicy.dns.peers={node_local}", "networkPolicy.dns.port=5353")
        names = policy("everything", *sets, name=name)["egress"][0]
        assert (ports(names), names["to"]) == ({5353}, json.loads(node_local))


@pytest.mark.parametrize(
    ("block", "missing"),
    [
        ({"cidr": "0.0.0.0/0"}, ["169.254.0.0/16"]),
        ({"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}, ["169.254.0.0/16"]),
        ({"cidr": "128.0.0.0/1"}, ["169.254.0.0/16"]),
        ({"cidr": "168.0.0.0/6"}, ["169.254.0.0/16"]),
        ({"cidr": "169.254.0.0/15"}, ["169.254.0.0/16"]),
        ({"cidr": "169.254.0.0/16"}, ["169.254.0.0/16"]),
        ({"cidr": "169.254.169.254/32"}, ["169.254.0.0/16"]),
        ({"cidr": "::/0"}, ["fe80::/10", "fd00:ec2::/32"]),
        ({"cidr": "::/0", "except": ["fe80::/10"]}, ["fd00:ec2::/32"]),
        ({"cidr": "fc00::/7"}, ["fd00:ec2::/32"]),
        ({"cidr": "FE80::1/128"}, ["fe80::/10"]),
        ({"cidr": "fd00:0ec2:0::254/128"}, ["fd00:ec2::/32"]),
        ({"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}, []),
        ({"cidr": "::/0", "except": ["fd00:ec2::/32", "fe80::/10"]}, []),
        ({"cidr": "10.0.0.0/8"}, []),
        ({"cidr": "169.253.0.0/16"}, []),
        ({"cidr": "169.255.0.0/16"}, []),
        ({"cidr": "0.0.0.0/1"}, []),
        ({"cidr": "2000::/3"}, []),
        ({"cidr": "fd00::1/128"}, []),
        ({"cidr": "fd00:ec3::/32"}, []),
    ],
)
def test_no_block_of_addresses_opens_link_local_ones(block: dict[str, Any], missing: list[str]) -> None:
    peers = json.dumps([{"ipBlock": block}])
    rule = f'[{{"to": {peers}, "ports": [{{"port": 443}}]}}]'
    for name, value in (
        ("networkPolicy.s3", peers),
        ("networkPolicy.egress", rule),
        ("anythingllm.egress", rule),
    ):
        done = template("hotel", f"{name}={value}")
        lines = [line for line in done.stderr.splitlines() if "link-local" in line]
        assert len(lines) == len(missing), done.stderr
        for line, cidr in zip(lines, missing, strict=True):
            assert line.strip().startswith(f"- {name}") and f"add {cidr} to its except" in line
        assert (done.returncode == 0) is (not missing)


def test_a_rule_without_peers_is_refused() -> None:
    for name in ("networkPolicy.egress", "anythingllm.egress"):
        assert f"{name}[0] has no `to`" in refusal("hotel", f'{name}=[{{"ports": [{{"port": 5432}}]}}]')


def test_only_a_cloud_role_reaches_link_local_addresses() -> None:
    *_, metadata = policy("hotel", 's3.existingSecret=""')["egress"]
    assert ports(metadata) == {80}
    blocks = {peer["ipBlock"]["cidr"] for peer in metadata["to"]}
    assert {"169.254.169.254/32", "169.254.170.23/32"} <= blocks
    assert "169.254" not in str(policy("hotel", 's3.existingSecret="credentials"')["egress"])
    for name in ("hotel-smoke", "hotel-anythingllm"):
        assert "ipBlock" not in str(policy("everything", name=name))


def test_the_chart_s_other_pods_have_an_account_without_a_role() -> None:
    rendered = render("everything")
    assert rendered.pod()["serviceAccountName"] == "hotel"
    account = rendered.one("ServiceAccount", "hotel-clients")
    assert "annotations" not in account["metadata"]
    assert account["automountServiceAccountToken"] is False
    named = {name: pod["serviceAccountName"] for name, pod in rendered.pods().items()}
    others = ("Job/hotel-smoke", "Pod/hotel-test", "Deployment/hotel-anythingllm")
    assert {named[name] for name in others} == {"hotel-clients"}
    own = render("everything", "serviceAccount.create=false", 'serviceAccount.name="mine"')
    assert not own.has("ServiceAccount", "hotel-clients")
    assert {own.pods()[name]["serviceAccountName"] for name in others} == {"default"}
    assert not render("hotel", "smokeTest.enabled=false").has("ServiceAccount", "hotel-clients")


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
