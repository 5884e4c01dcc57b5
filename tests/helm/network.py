"""A network of namespaces in which nftables enforces rendered NetworkPolicies, as a cluster's network would.

Each party has its own network namespace, with one address, behind a router that filters what it forwards. The rules
follow https://kubernetes.io/docs/concepts/services-networking/network-policies/. What the translation does not know
raises ValueError, so that no test passes because a rule was ignored.
"""

import contextlib
import ctypes
import ipaddress
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

NEW_NETWORK = 0x40000000  # CLONE_NEWNET in sched.h
GATEWAY = "10.255.0.1"  # the router's address for every party
SECONDS = 3.0
# A reset ends a connection at once; how often ICMP messages are sent is limited.
REFUSE = ("meta l4proto tcp reject with tcp reset", "reject")
T = TypeVar("T")
Document = dict[str, Any]

needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("ip", "nft"))),
    reason="network namespaces need root, and the programs ip (iproute2) and nft (nftables)",
)


@dataclass(frozen=True)
class Party:
    """A pod, or a host outside the cluster, which has no namespace.

    Attributes:
        address: its IPv4 address.
        namespace: Kubernetes namespace.
        labels: labels of the pod.
        ports: its ports by name, for policies that name them.
    """

    address: str
    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)


def selects(selector: Document, labels: Mapping[str, str]) -> bool:
    """Whether a label selector matches; an empty one matches everything."""
    if selector.keys() - {"matchLabels"}:
        raise ValueError(f"unknown selector: {selector}")
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def ruleset(policies: list[Document], parties: Mapping[str, Party], namespace: str) -> str:
    """Translate the policies of a Kubernetes namespace into an nftables table that filters forwarded packets."""
    chains: list[str] = []
    jumps: list[str] = []
    for name, party in parties.items():
        selected = [
            policy["spec"]
            for policy in policies
            if party.namespace == namespace and selects(policy["spec"]["podSelector"], party.labels)
        ]
        for kind, ours, theirs in (("Egress", "saddr", "daddr"), ("Ingress", "daddr", "saddr")):
            specs = [spec for spec in selected if kind in spec["policyTypes"]]
            if not specs:
                continue
            rules = [line for spec in specs for line in _allowed(spec, kind, theirs, party, parties, namespace)]
            chains.append(_block(f"chain {name}_{kind}", [*rules, *REFUSE]))
            jumps.append(f"ip {ours} {party.address} jump {name}_{kind}")
    forward = ["type filter hook forward priority 0", "ct state established,related accept", *jumps]
    return _block("table inet policies", [*chains, _block("chain forward", forward)])


def _block(head: str, lines: list[str]) -> str:
    return "\n".join([f"{head} {{", *lines, "}"])


def _allowed(
    spec: Document, kind: str, direction: str, owner: Party, parties: Mapping[str, Party], namespace: str
) -> Iterator[str]:
    rules, peers_key = (spec["egress"], "to") if kind == "Egress" else (spec["ingress"], "from")
    for rule in rules:
        if rule.keys() != {"ports", peers_key}:
            raise ValueError(f"a rule needs ports and {peers_key}: {rule}")
        for peer in rule[peers_key]:
            for match in _matches(peer, direction, parties, namespace):
                for port in rule["ports"]:
                    if port.keys() - {"port", "protocol"}:
                        raise ValueError(f"unknown port: {port}")
                    named = port["port"] if isinstance(port["port"], int) else owner.ports.get(port["port"])
                    if named is None or (kind == "Egress" and not isinstance(port["port"], int)):
                        raise ValueError(f"unknown port: {port}")
                    yield f"{match} {port.get('protocol', 'TCP').lower()} dport {named} return"


def _matches(peer: Document, direction: str, parties: Mapping[str, Party], namespace: str) -> Iterator[str]:
    if peer.keys() == {"ipBlock"}:
        block = peer["ipBlock"]
        if block.keys() - {"cidr", "except"}:
            raise ValueError(f"unknown ipBlock: {block}")
        family = "ip6" if ipaddress.ip_network(block["cidr"]).version == 6 else "ip"
        excluded = "".join(f" {family} {direction} != {cidr}" for cidr in block.get("except", ()))
        yield f"{family} {direction} {block['cidr']}{excluded}"
    elif peer.keys() <= {"podSelector", "namespaceSelector"} and peer:
        for party in parties.values():
            own = {"kubernetes.io/metadata.name": party.namespace}  # Kubernetes' own label of a namespace
            inside = selects(peer["namespaceSelector"], own) if "namespaceSelector" in peer else True
            if "namespaceSelector" not in peer:
                inside = party.namespace == namespace
            if party.namespace and inside and selects(peer.get("podSelector", {}), party.labels):
                yield f"ip {direction} {party.address}"
    else:
        raise ValueError(f"unknown peer: {peer}")


def _run(*command: str, text: str = "") -> str:
    done = subprocess.run(command, input=text, text=True, capture_output=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


class Network:
    """The parties' network namespaces, connected by a router. Create it with `network`."""

    def __init__(self, parties: Mapping[str, Party]) -> None:
        self._parties = parties
        self._prefix = f"cm{os.getpid()}"
        self._listening: list[socket.socket] = []

    def start(self) -> None:
        router = self._namespace("router")
        for name in ("router", *self._parties):
            _run("ip", "netns", "add", self._namespace(name))
        routes = ["link set lo up"]
        for number, (name, party) in enumerate(self._parties.items()):
            own, device = self._namespace(name), f"v{number}"
            _run(*f"ip link add {device} netns {router} type veth peer name eth0 netns {own}".split())
            routes += [
                f"addr add {GATEWAY}/32 dev {device}",
                f"link set {device} up",
                f"route add {party.address}/32 dev {device}",
            ]
            addresses = [
                f"addr add {party.address}/32 dev eth0",
                "link set eth0 up",
                f"route add {GATEWAY} dev eth0",
                f"route add default via {GATEWAY}",
            ]
            _run("ip", "-n", own, "-batch", "-", text="\n".join(addresses))
        _run("ip", "-n", router, "-batch", "-", text="\n".join(routes))
        self._within("router", lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"))

    def stop(self) -> None:
        for listening in self._listening:
            listening.close()
        names = [self._namespace(name) for name in ("router", *self._parties)]
        for name in set(names) & set(_run("ip", "netns", "list").split()):
            _run("ip", "netns", "delete", name)

    def enforce(self, table: str) -> None:
        """Replace the router's rules."""
        nft = ("ip", "netns", "exec", self._namespace("router"), "nft", "-f", "-")
        _run(*nft, text=f"flush ruleset\n{table}\n")

    def listen(self, name: str, port: int) -> None:
        """Accept connections at a TCP port of a party, and answer datagrams at the UDP port of the same number."""
        address = (self._parties[name].address, port)

        def bound() -> tuple[socket.socket, socket.socket]:
            datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            datagrams.bind(address)
            return socket.create_server(address), datagrams

        connections, datagrams = self._within(name, bound)
        self._listening += [connections, datagrams]

        def echo() -> None:
            with contextlib.suppress(OSError):  # it was closed
                while True:
                    data, sender = datagrams.recvfrom(64)
                    datagrams.sendto(data, sender)

        threading.Thread(target=echo, daemon=True).start()

    def reaches(self, name: str, other: str, port: int, udp: bool = False) -> bool:
        """Whether a party gets an answer from a port of another one."""

        def answered() -> bool:
            kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
            with socket.socket(socket.AF_INET, kind) as client:
                client.settimeout(SECONDS)
                try:
                    client.connect((self._parties[other].address, port))
                    if udp:
                        client.send(b"?")
                        client.recv(64)
                except OSError:
                    return False
            return True

        return self._within(name, answered)

    def _namespace(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def _within(self, name: str, work: Callable[[], T]) -> T:
        """Do some work in a thread that has entered a party's network namespace."""
        result: list[T] = []

        def enter() -> None:
            with Path("/run/netns", self._namespace(name)).open("rb") as file:
                if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), NEW_NETWORK):
                    raise OSError(ctypes.get_errno(), f"setns {name}")
            result.append(work())

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        return result[0]


@contextlib.contextmanager
def network(parties: Mapping[str, Party]) -> Iterator[Network]:
    """Create the parties' network, and delete it at the end."""
    created = Network(parties)
    try:
        created.start()
        yield created
    finally:
        created.stop()
