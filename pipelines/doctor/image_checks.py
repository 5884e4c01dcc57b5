"""Checks of images: whether they are on the nodes or in a registry."""

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx

from chatmetrics.components.deploy.values import image_of
from chatmetrics.components.errors import ServiceError
from chatmetrics.components.image import REGISTRY, image
from chatmetrics.components.responder import UnexpectedAnswer, checked_json, what_answered
from chatmetrics.pipelines.cluster.package import images_of
from chatmetrics.pipelines.doctor.findings import Finding, Skipped, combined
from chatmetrics.pipelines.doctor.setup import Setup

MANIFESTS = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
NodeImages = list[set[str]] | None  # names of the images on each node; None if they are not known


def images(setup: Setup) -> Finding:
    """Whether the nodes have each step's image or can pull it."""
    train = setup.given_pool.image if setup.given_pool else "train"
    first, *others = images_of(setup.recipe)
    untainted_nodes = _node_images(setup.untainted_nodes)
    pool_nodes = _node_images(setup.pool_nodes) if setup.given_pool else untainted_nodes
    names_by_finding: dict[Finding, list[str]] = {}
    for name in (first, train, *others):
        finding = _image(setup, image(name), pool_nodes if name == train else untainted_nodes)
        names_by_finding.setdefault(finding, []).append(name)
    return combined(
        Finding(finding.verdict, f"{', '.join(names)}: {finding.line}{_build_hint(finding, names)}")
        for finding, names in names_by_finding.items()
    )


def ollama_image(setup: Setup) -> Finding:
    """Whether the image that serves models can be pulled; only a warning, because a run does not need it."""
    name = image_of("ollama", setup.recipe.deploy.values if setup.recipe else {})
    finding = _image(setup, name, _node_images(setup.untainted_nodes))
    return Finding("warning" if finding.verdict == "failed" else finding.verdict, f"{name}: {finding.line}")


def _node_images(find_nodes: Callable[[], list[Any]]) -> NodeImages:
    try:
        nodes = find_nodes()
    except (Skipped, ServiceError):
        return None  # the checks `kubernetes` and `nodes` report why
    return [{_full_name(name) for held in node.status.images or () for name in held.names or ()} for node in nodes]


def _build_hint(finding: Finding, names: list[str]) -> str:
    build = f"; build and push: chatmetrics images build {' '.join(names)} --registry REGISTRY --push"
    return build if finding.verdict == "failed" else ""


def _image(setup: Setup, reference: str, nodes: NodeImages) -> Finding:
    """Whether an image is on all nodes or in its registry."""
    holders = sum(_full_name(reference) in names for names in nodes or ())
    if nodes and holders == len(nodes):
        return Finding("ok", "on the nodes" if holders > 1 else "on the node")
    host = _full_name(reference).partition("/")[0]
    if host == "localhost" or reference.startswith(f"{REGISTRY}/"):
        if nodes is None:
            return Finding("skipped", "in no registry, and the images on the nodes are not known")
        finding = Finding("failed", f"in no registry, and not on {'every' if holders else 'any'} node")
    else:
        finding = _in_registry(setup, reference, host)
    if holders and finding.verdict != "ok":
        return Finding(
            "warning", f"on {holders} of {len(nodes or ())} nodes; {finding.line}; push it, or load it on all nodes"
        )
    return finding


def _in_registry(setup: Setup, reference: str, host: str) -> Finding:
    try:
        status = _manifest_status(_full_name(reference), host)
    except UnexpectedAnswer as error:
        return Finding("warning", f"{host} is not a registry: it sent {error}")
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return Finding("skipped", f"{host} does not answer from here ({type(error).__name__})")
    if status == 200:
        if "@" in reference:
            return Finding("ok", f"in {host}")
        return Finding(
            "warning",
            f"in {host}, but named by a tag, which can later name another image; build with --push to record a digest",
        )
    if status == 404:
        return Finding("failed", f"{host} has no {reference.partition('/')[2] or reference}")
    if status in (401, 403):
        secret = setup.settings.image_pull_secret
        hint = f"pods use the secret {secret}" if secret else "set cluster.image_pull_secret unless nodes have one"
        return Finding("skipped" if secret else "warning", f"{host} requires a login; {hint}")
    return Finding("warning", f"{host} answers {status} to a request for it")


def _manifest_status(full_name: str, host: str) -> int:
    """Return a registry's HTTP status for an image's manifest, requested anonymously.

    A registry may answer 401 and name a token server; then a token is requested there, also anonymously (the token
    authentication of the OCI distribution specification).

    Raises:
        UnexpectedAnswer: something else than a registry answered.
    """
    repository, separator, version = full_name.partition("/")[2].partition("@")
    if not separator:
        repository, _, version = repository.rpartition(":")
    plain = host.partition(":")[0] in ("localhost", "127.0.0.1")  # http for these, as in docker and containerd
    address = "registry-1.docker.io" if host == "docker.io" else host
    url = f"{'http' if plain else 'https'}://{address}/v2/{repository}/manifests/{version}"
    with httpx.Client(headers={"Accept": MANIFESTS}, timeout=10, follow_redirects=True) as registry:
        answer = registry.head(url)
        challenge = answer.headers.get("www-authenticate", "")
        if answer.status_code == 401 and challenge.lower().startswith("bearer "):
            parameters = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
            realm = parameters.pop("realm", "")
            if urlsplit(realm).scheme not in ("http", "https"):
                return 401
            granted = registry.get(realm, params={"scope": f"repository:{repository}:pull", **parameters})
            token = checked_json(granted.status_code, granted.headers, granted.content) if granted.is_success else {}
            bearer = token.get("token") or token.get("access_token") or ""
            answer = registry.head(url, headers={"Authorization": f"Bearer {bearer}"})
        if answer.is_success and "json" not in answer.headers.get("content-type", "json"):
            raise UnexpectedAnswer(what_answered(answer.status_code, answer.headers, registry.get(url).content))
        return answer.status_code


def _full_name(reference: str) -> str:
    """Return a reference with its registry, and with either a digest or a tag."""
    name, _, digest = reference.partition("@")
    host, slash, rest = name.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        host, rest = "docker.io", name if slash else f"library/{name}"
    repository, _, tag = rest.partition(":")
    return f"{host}/{repository}@{digest}" if digest else f"{host}/{repository}:{tag or 'latest'}"
