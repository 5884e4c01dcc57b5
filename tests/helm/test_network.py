"""The rendered NetworkPolicies, enforced: which connections pass and which are refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helm.chart import needs_helm, render
from tests.helm.network import Network, Party, needs_namespaces, network, ruleset

pytestmark = needs_helm

TESTS = Path(__file__).parents[1]
NAMESPACE = "serving"
HTTP, MANAGEMENT, ANYTHINGLLM, S3, DNS = 8080, 8081, 3001, 9000, 53


def own(component: str, address: str, **ports: int) -> Party:
    """A pod of the release."""
    labels = {
        "app.kubernetes.io/name": "chatmetrics-ollama",
        "app.kubernetes.io/instance": "hotel",
        "app.kubernetes.io/component": component,
    }
    return Party(address, NAMESPACE, labels, ports)


PARTIES = {
    "server": own("server", "10.1.0.1", http=HTTP, management=MANAGEMENT),
    "smoke": own("smoke", "10.1.0.2"),
    "anythingllm": own("anythingllm", "10.1.0.3", http=ANYTHINGLLM),
    "neighbor": Party("10.1.0.4", NAMESPACE),
    "dns": Party("10.1.1.1", "kube-system", {"k8s-app": "kube-dns"}),
    "system": Party("10.1.1.2", "kube-system"),  # a pod next to the name server
    "store": Party("10.1.2.1", "storage"),
    "prometheus": Party("10.1.3.1", "monitoring"),
    "stranger": Party("10.1.4.1", "elsewhere"),
    "internet": Party("203.0.113.7"),
    "metadata": Party("169.254.169.254"),
}
OPEN = {  # every port that something listens at
    "server": (HTTP, MANAGEMENT),
    "smoke": (HTTP,),
    "anythingllm": (ANYTHINGLLM,),
    "neighbor": (S3, HTTP),
    "dns": (DNS,),
    "system": (DNS,),
    "store": (S3, 9001),
    "prometheus": (9090,),
    "stranger": (HTTP, S3),
    "internet": (80, 443, S3, DNS),
    "metadata": (80, DNS, S3),
}
EVERYTHING = [(name, other, port) for name in PARTIES for other in OPEN if other != name for port in OPEN[other]]
MONITORING = (
    'networkPolicy.monitoring=[{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]'
)
PUBLIC_S3 = 'networkPolicy.s3=[{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}}]'
# Outgoing connections of the chart's pods that pass, with every other one refused.
OUTGOING = {
    "server": {("dns", DNS), ("store", S3)},
    "smoke": {("dns", DNS), ("server", HTTP)},
    "anythingllm": {("dns", DNS), ("server", HTTP)},
}


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network(PARTIES) as created:
        for name, ports in OPEN.items():
            for port in ports:
                created.listen(name, port)
        yield created


def table(*sets: str) -> str:
    rendered = render("hotel", "anythingllm.enabled=true", *sets)
    policies = [document for document in rendered.documents if document["kind"] == "NetworkPolicy"]
    assert len(policies) == 3
    return ruleset(policies, PARTIES, NAMESPACE)


def outgoing(net: Network, name: str) -> set[tuple[str, int]]:
    """What a party reaches."""
    return {(other, port) for one, other, port in EVERYTHING if one == name and net.reaches(name, other, port)}


def incoming(net: Network, name: str, port: int) -> set[str]:
    """Who reaches a port."""
    return {other for other in PARTIES if other != name and net.reaches(other, name, port)}


@needs_namespaces
def test_without_policies_everything_is_reached(net: Network) -> None:
    net.enforce("")
    assert [connection for connection in EVERYTHING if not net.reaches(*connection)] == []
    assert net.reaches("smoke", "dns", DNS, udp=True)


@needs_namespaces
@pytest.mark.parametrize("name", OUTGOING)
def test_each_pod_reaches_only_what_it_needs(net: Network, name: str) -> None:
    net.enforce(table())
    assert outgoing(net, name) == OUTGOING[name]
    assert net.reaches(name, "dns", DNS, udp=True)
    assert not net.reaches(name, "internet", DNS, udp=True)


@needs_namespaces
def test_the_serving_pods_are_reached_at_their_public_port_by_the_namespace_alone(net: Network) -> None:
    net.enforce(table())
    assert incoming(net, "server", HTTP) == {"smoke", "anythingllm", "neighbor"}
    assert incoming(net, "server", MANAGEMENT) == set()
    net.enforce(table(MONITORING, "networkPolicy.from=[]"))
    assert incoming(net, "server", HTTP) == {"smoke", "anythingllm"}
    assert incoming(net, "server", MANAGEMENT) == {"prometheus"}


@needs_namespaces
def test_the_other_pods_are_reached_by_clients_or_nobody(net: Network) -> None:
    net.enforce(table())
    assert incoming(net, "anythingllm", ANYTHINGLLM) == {"neighbor"}
    assert incoming(net, "smoke", HTTP) == set()


@needs_namespaces
def test_only_serving_pods_with_a_cloud_role_reach_link_local_addresses(net: Network) -> None:
    net.enforce(table('s3.existingSecret=""'))
    assert outgoing(net, "server") == OUTGOING["server"] | {("metadata", 80)}
    for name in ("smoke", "anythingllm"):
        assert outgoing(net, name) == OUTGOING[name]


@needs_namespaces
def test_a_public_store_opens_its_port_alone_and_no_link_local_address(net: Network) -> None:
    net.enforce(table(PUBLIC_S3))
    reached = outgoing(net, "server")
    assert ("internet", S3) in reached
    assert {(other, port) for other, port in reached if other in ("internet", "metadata")} == {("internet", S3)}


@needs_namespaces
def test_an_added_service_is_reached_by_its_pod_alone(net: Network) -> None:
    rule = '[{"to": [{"ipBlock": {"cidr": "203.0.113.7/32"}}], "ports": [{"port": 443}]}]'
    added = {("internet", 443)}
    net.enforce(table(f"networkPolicy.egress={rule}"))
    assert outgoing(net, "server") == OUTGOING["server"] | added
    assert outgoing(net, "anythingllm") == OUTGOING["anythingllm"]
    net.enforce(table(f"anythingllm.egress={rule}"))
    assert outgoing(net, "server") == OUTGOING["server"]
    assert outgoing(net, "anythingllm") == OUTGOING["anythingllm"] | added


@pytest.mark.parametrize(
    "change",
    [
        {"podSelector": {"matchExpressions": []}},
        {"egress": [{"to": [{"podSelector": {}}]}]},
        {"egress": [{"ports": [{"port": 53}]}]},
        {"egress": [{"to": [{"podSelector": {}}], "ports": [{"port": "http"}]}]},
        {"egress": [{"to": [{"podSelector": {}}], "ports": [{"port": 1, "endPort": 9}]}]},
        {"egress": [{"to": [{"serviceSelector": {}}], "ports": [{"port": 1}]}]},
        {"egress": [{"to": [{}], "ports": [{"port": 1}]}]},
    ],
)
def test_a_policy_that_is_not_understood_is_no_policy_that_passes(change: dict[str, Any]) -> None:
    (policy,) = (d for d in render().documents if (d["kind"], d["metadata"]["name"]) == ("NetworkPolicy", "hotel"))
    with pytest.raises(ValueError, match=r"unknown|needs ports"):
        ruleset([{**policy, "spec": {**policy["spec"], **change}}], PARTIES, NAMESPACE)
