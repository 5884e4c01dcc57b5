"""Before anything is spent: whether a cluster has all that a run needs, a line for each thing.

What Kubernetes is asked is in checks.py; here is what is asked of KFP, the store, registries and the teacher.
"""

import json
import os
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import boto3
import httpx
from botocore.exceptions import BotoCoreError, ClientError

from chatmetrics.components.errors import ServiceError, StorageError, UserError
from chatmetrics.components.image import REGISTRY, image
from chatmetrics.components.storage.s3_store import CONFIG
from chatmetrics.components.storage.store import open_store
from chatmetrics.pipelines.cluster.kubeflow import api_errors, connect
from chatmetrics.pipelines.cluster.package import images_of
from chatmetrics.pipelines.doctor import cluster_checks as checks
from chatmetrics.pipelines.doctor.cluster_checks import Check, Said, Setup, Skipped, Verdict

OLDEST = (2, 14)  # of KFP: it has run workspaces and what kfp-kubernetes 2.17 writes
OLLAMA = {"repository": "docker.io/ollama/ollama", "tag": "0.34.0"}  # as in the chart's values
MANIFESTS = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)


@dataclass(frozen=True)
class Finding:
    """What one check came to.

    Attributes:
        name: of the check.
        verdict: how it is.
        line: what was found, or what to do.
    """

    name: str
    verdict: Verdict
    line: str


def diagnose(setup: Setup) -> Iterator[Finding]:
    """Look at everything, one finding at a time; no check keeps the next from being made."""
    for name, check in CHECKS.items():
        said = look(check, setup)
        yield Finding(name, said.verdict, said.line)


def look(check: Check, setup: Setup) -> Said:
    """Make one check; what it cannot look at, and what goes wrong meanwhile, is a finding too."""
    try:
        return check(setup)
    except Skipped as reason:
        return Said("skipped", str(reason))
    except UserError as error:
        return Said("skipped" if checks.is_refusal(error) else "failed", str(error))


def summary(findings: list[Finding]) -> str:
    """One line for all of them.

    Raises:
        ServiceError: some check failed; the line names them.
    """
    names = {verdict: [found.name for found in findings if found.verdict == verdict] for verdict in LABELS}
    if names["failed"]:
        raise ServiceError(f"{len(names['failed'])} of {len(findings)} checks failed: {', '.join(names['failed'])}")
    warnings, unseen = len(names["warning"]), len(names["skipped"])
    counted = [f"{len(names['ok'])} ok"]
    counted += [f"{warnings} warning{'s' if warnings > 1 else ''}"] if warnings else []
    counted += [f"{unseen} skipped"] if unseen else []
    return f"nothing failed: {', '.join(counted)}"


def api(setup: Setup) -> Said:
    """Whether KFP answers, knows us, and is new enough."""
    kfp = connect(setup.access)
    with api_errors(setup.access):
        # The answer as it came: KFP's own class for it leaves the version out.
        answer = kfp._healthz_api.healthz_service_get_healthz(_preload_content=False)
    try:
        health = dict(json.loads(answer.data))
    except (ValueError, TypeError) as error:
        raise ServiceError(f"{setup.access.url} does not say how it is; is that the API's address?") from error
    setup.multi_user = bool(health.get("multi_user"))
    where = f"at {setup.access.url}, {'multi-user' if setup.multi_user else 'single-user'}"
    oldest = ".".join(map(str, OLDEST))
    tag = str(health.get("tag_name") or "")
    version = re.match(r"v?(\d+)\.(\d+)", tag)
    if not version:
        return Said("warning", f"Kubeflow Pipelines {where}, does not tell its version; {oldest} or newer is needed")
    if (int(version[1]), int(version[2])) < OLDEST:
        return Said("failed", f"Kubeflow Pipelines {tag} {where}; {oldest} or newer is needed: upgrade it")
    return Said("ok", f"Kubeflow Pipelines {tag} {where}")


def store(setup: Setup) -> Said:
    """Whether an object can be written, read back and deleted, with the credentials of this machine."""
    uri = _bucket_uri(setup)
    objects = open_store(f"{uri}/doctor")
    key, data = uuid.uuid4().hex, os.urandom(1024)
    objects.put_bytes(data, key, overwrite=False)
    try:
        if objects.read_bytes(key) != data:
            raise StorageError(f"{objects.uri(key)}: what was read back is not what was written")
    finally:
        objects.delete(key)
    if objects.exists(key):
        return Said("failed", f"{objects.uri(key)} is still there after it was deleted; give the right s3:DeleteObject")
    return Said("ok", f"{uri} written, read back, deleted")


def bucket_policy(setup: Setup) -> Said:
    """Whether the bucket is closed to strangers."""
    bucket = _bucket_uri(setup).removeprefix("s3://").partition("/")[0]
    try:
        answer = boto3.Session().client("s3", config=CONFIG).get_bucket_policy_status(Bucket=bucket)
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "an unknown error")
        if code == "NoSuchBucketPolicy":
            return Said("ok", f"{bucket} has none: closed to all but its owner")
        raise Skipped(f"the store does not say ({code})") from error
    except (BotoCoreError, ValueError) as error:
        raise Skipped(f"the store does not answer ({type(error).__name__})") from error
    if answer["PolicyStatus"]["IsPublic"]:
        return Said("failed", f"the bucket {bucket} is public: aws s3api delete-bucket-policy --bucket {bucket}")
    return Said("ok", f"{bucket} is not public")


def images(setup: Setup) -> Said:
    """Whether the nodes have each step's image or can pull it."""
    first, *others = images_of(setup.recipe)
    names = {step: step for step in (first, "train", *others)} | (
        {"train": setup.given_pool.image} if setup.given_pool else {}
    )
    open_nodes = _image_names(setup.open_nodes)
    pool_nodes = _image_names(setup.pool_nodes) if setup.given_pool else open_nodes
    found: dict[Said, list[str]] = {}
    for step, name in names.items():
        said = _image(setup, image(name), pool_nodes if step == "train" else open_nodes)
        found.setdefault(said, []).append(name)
    return checks.together(
        Said(said.verdict, f"{', '.join(steps)}: {said.line}{_cure(said, steps)}") for said, steps in found.items()
    )


def ollama_image(setup: Setup) -> Said:
    """Whether the image that serves models can be pulled; a run does not need it."""
    name = _ollama(setup)
    said = _image(setup, name, _image_names(setup.open_nodes))
    return Said("warning" if said.verdict == "failed" else said.verdict, f"{name}: {said.line}")


def _ollama(setup: Setup) -> str:
    """The chart's image of Ollama, or what the recipe has in its place."""
    values: Any = setup.recipe.deploy.values if setup.recipe else {}
    chosen = {**OLLAMA, **((values.get("ollama") or {}).get("image") or {})}
    return (
        f"{chosen['repository']}@{chosen['digest']}" if chosen.get("digest") else "{repository}:{tag}".format(**chosen)
    )


def teacher(setup: Setup) -> Said:
    """Whether the endpoint of the recipe's teacher answers, lets us in and has the model."""
    distill = setup.recipe.distill if setup.recipe else None
    if distill is None or not distill.enabled:
        return Said("ok", "the recipe names no teacher")
    if distill.is_scripted:
        return Said("ok", "scripted: the step brings it")
    variable = distill.api_key_variable
    key = os.environ.get(variable, "")
    url = f"{distill.base_url.rstrip('/')}/models"
    try:
        answer = httpx.get(url, headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=20)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        if (urlsplit(url).hostname or "").endswith((".svc", ".svc.cluster.local")):
            return Said("skipped", f"{url} is a name inside the cluster, and does not answer out here")
        return Said("failed", f"{url} does not answer ({type(error).__name__}); check base_url and the network")
    if answer.status_code in (401, 403):
        what = f"the key in {variable} is refused" if key else f"it wants a key: set {variable}"
        return Said("failed", f"{url}: {what} ({answer.status_code})")
    try:
        models = [str(entry["id"]) for entry in answer.raise_for_status().json()["data"]]
    except (httpx.HTTPStatusError, ValueError, KeyError, TypeError):
        return Said("failed", f"{url} answers {answer.status_code} and no list of models; is base_url right?")
    if distill.model not in models:
        return Said("failed", f"{url} has no {distill.model}; it has {', '.join(models[:5]) or 'none'}")
    return Said("ok", f"{distill.model} at {distill.base_url}")


CHECKS: dict[str, Check] = {
    "api": api,
    "kubernetes": checks.kubernetes,
    "namespace": checks.namespace,
    "service account": checks.service_account,
    "our rights": checks.our_rights,
    "account rights": checks.account_rights,
    "nodes": checks.nodes,
    "taints": checks.taints,
    "requests": checks.requests,
    "quota": checks.quota,
    "queue": checks.queue,
    "claims": checks.claims,
    "store": store,
    "store for pods": checks.s3_endpoint,
    "bucket policy": bucket_policy,
    "secrets": checks.secrets,
    "images": images,
    "teacher": teacher,
    "helm rights": checks.helm_rights,
    "ollama image": ollama_image,
}
LABELS: dict[Verdict, str] = {"ok": "ok", "warning": "warning", "failed": "failed", "skipped": "-"}


def line(finding: Finding) -> str:
    """A finding as a person reads it."""
    unseen = "skipped: " if finding.verdict == "skipped" else ""
    return f"{LABELS[finding.verdict]:8} {finding.name}: {unseen}{finding.line}"


def _bucket_uri(setup: Setup) -> str:
    """The store's URI, if we can speak to it at all."""
    uri = setup.settings.store.rstrip("/")
    try:
        if boto3.Session().get_credentials() is None:
            raise Skipped("this machine has no AWS_ACCESS_KEY_ID; pods have theirs from the secret")
    except BotoCoreError as error:
        raise StorageError(f"the AWS environment is unusable ({type(error).__name__}); check AWS_PROFILE") from error
    return uri


def _image_names(find: Callable[[], list[Any]]) -> list[set[str]] | None:
    """What images each node has that a step may run on; None where that cannot be seen."""
    try:
        nodes = find()
    except (Skipped, ServiceError):
        return None  # the checks of access and nodes say why
    return [{_full(name) for held in node.status.images or () for name in held.names or ()} for node in nodes]


def _cure(said: Said, steps: list[str]) -> str:
    build = f"; build and push: chatmetrics images build {' '.join(steps)} --registry REGISTRY --push"
    return build if said.verdict == "failed" else ""


def _image(setup: Setup, reference: str, nodes: list[set[str]] | None) -> Said:
    """Whether an image is on all nodes or in its registry."""
    holders = sum(_full(reference) in names for names in nodes or ())
    if nodes and holders == len(nodes):
        return Said("ok", "on the nodes" if holders > 1 else "on the node")
    host = _full(reference).partition("/")[0]
    if host == "localhost" or reference.startswith(f"{REGISTRY}/"):
        if nodes is None:
            return Said("skipped", "in no registry, and what nodes hold is not seen")
        missing = Said("failed", f"in no registry, and not on {'every' if holders else 'any'} node")
    else:
        missing = _in_registry(setup, reference, host)
    if holders and missing.verdict != "ok":
        return Said("warning", f"on {holders} of {len(nodes or ())} nodes; {missing.line}; push it, or load it on all")
    return missing


def _in_registry(setup: Setup, reference: str, host: str) -> Said:
    try:
        status = _manifest_status(_full(reference), host)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return Said("skipped", f"{host} does not answer from here ({type(error).__name__})")
    if status == 200:
        if "@" in reference:
            return Said("ok", f"in {host}")
        return Said(
            "warning",
            f"in {host}, but named by a tag, which may come to mean another image; build with --push, for a digest",
        )
    if status == 404:
        return Said("failed", f"{host} has no {reference.partition('/')[2] or reference}")
    if status in (401, 403):
        secret = setup.settings.image_pull_secret
        with_what = f"pods use the secret {secret}" if secret else "set cluster.image_pull_secret unless nodes have one"
        return Said("skipped" if secret else "warning", f"{host} wants a login; {with_what}")
    return Said("warning", f"{host} answers {status} when asked for it")


def _manifest_status(full: str, host: str) -> int:
    """What a registry answers a HEAD of an image's manifest, asked as nobody in particular."""
    repository, separator, version = full.partition("/")[2].partition("@")
    if not separator:
        repository, _, version = repository.rpartition(":")
    plain = host.partition(":")[0] in ("localhost", "127.0.0.1")  # as docker and containerd do
    address = "registry-1.docker.io" if host == "docker.io" else host
    url = f"{'http' if plain else 'https'}://{address}/v2/{repository}/manifests/{version}"
    with httpx.Client(headers={"Accept": MANIFESTS}, timeout=10, follow_redirects=True) as registry:
        answer = registry.head(url)
        asks = answer.headers.get("www-authenticate", "")
        if answer.status_code == 401 and asks.lower().startswith("bearer "):
            wants = dict(re.findall(r'(\w+)="([^"]*)"', asks))
            realm = wants.pop("realm", "")
            if urlsplit(realm).scheme not in ("http", "https"):
                return 401
            granted = registry.get(realm, params={"scope": f"repository:{repository}:pull", **wants})
            token = granted.json() if granted.is_success else {}
            bearer = token.get("token") or token.get("access_token") or ""
            answer = registry.head(url, headers={"Authorization": f"Bearer {bearer}"})
        return answer.status_code


def _full(reference: str) -> str:
    """A reference with its registry, and with either a digest or a tag."""
    name, _, digest = reference.partition("@")
    host, slash, rest = name.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        host, rest = "docker.io", name if slash else f"library/{name}"
    repository, _, tag = rest.partition(":")
    return f"{host}/{repository}@{digest}" if digest else f"{host}/{repository}:{tag or 'latest'}"
