"""The address of a release, the models it serves, and the result of its smoke test."""

from dataclasses import dataclass
from typing import Any

from chatmetrics.components.deploy.helm import DRIVER, Helm, Revision
from chatmetrics.components.deploy.kubernetes_client import KubernetesClient
from chatmetrics.components.errors import InputError, ServiceError

# Names in the chart: labels of the Service for clients, its port, and the pods' volume with the tokens.
SERVER = {"app.kubernetes.io/component": "server", "track": "stable"}
PORT, TOKENS = "http", "tokens"
HOOK = {"post-install", "post-upgrade"}


@dataclass(frozen=True)
class Endpoint:
    """A release that serves.

    Attributes:
        release: name of the release.
        namespace: namespace of the release.
        revision: number of the Helm revision that serves.
        url: URL of the Service, reachable from pods of the cluster.
        service: name of the Service.
        port: port of the Service.
        models: the models' URIs by the names that clients use.
        token_secret: name of the Secret with one token per client; empty if clients need no token.
        ready: number of ready pods.
    """

    release: str
    namespace: str
    revision: int
    url: str
    service: str
    port: int
    models: dict[str, str]
    token_secret: str
    ready: int


def find_endpoint(helm: Helm, cluster: KubernetesClient, release: str) -> Endpoint:
    """Find the Service of a release and the models that it serves.

    Raises:
        InputError: the release does not exist, or it has never served.
        ServiceError: the cluster does not answer, or refused.
    """
    revision = serving(helm.history(release), release, cluster.namespace)
    service = _service(cluster, release)
    port = next(port.port for port in service.spec.ports if port.name == PORT)
    deployments = cluster.deployments(release)
    name = service.metadata.name
    return Endpoint(
        release=release,
        namespace=cluster.namespace,
        revision=revision.number,
        url=f"http://{name}.{cluster.namespace}.svc:{port}",
        service=name,
        port=port,
        models={model["name"]: model["uri"] for model in helm.values(release, revision.number).get("models") or ()},
        token_secret=next(filter(None, map(_token_secret, deployments)), ""),
        ready=sum(deployment.status.available_replicas or 0 for deployment in deployments),
    )


def serving(history: list[Revision], release: str, namespace: str) -> Revision:
    """Return the revision that serves.

    Raises:
        InputError: the release does not exist, or it has never served.
    """
    if not history:
        raise InputError(
            f"there is no release {release} in {namespace}; `chatmetrics deploy MANIFEST` creates one, and "
            f"{DRIVER}=secret finds one that was installed with helm alone"
        )
    found = last_good(history)
    if found is None:
        raise InputError(f"{release} in {namespace} has never served: {history[-1].description}")
    return found


def last_good(history: list[Revision]) -> Revision | None:
    """Return the newest deployed revision, else the newest that was deployed earlier, else None."""
    good = [revision for revision in history if revision.was_good]
    deployed = [revision for revision in good if revision.status == "deployed"]
    return next(reversed(deployed or good), None)


def smoke_result(helm: Helm, cluster: KubernetesClient, release: str) -> str:
    """Return the output of the chart's smoke test in one line; empty if the release has no smoke test.

    Raises:
        ServiceError: the cluster does not answer, or refused.
    """
    hooks = [hook for hook in helm.hooks(release) if hook["kind"] == "Job" and HOOK & set(hook["events"])]
    return "; ".join(_output(cluster, hook) for hook in hooks)


def _output(cluster: KubernetesClient, hook: dict[str, Any]) -> str:
    pods = cluster.pods(f"job-name={hook['name']}")
    log = cluster.log(pods[-1].metadata.name, pods[-1].spec.containers[0].name) if pods else ""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return "; ".join(lines) or f"{hook['name']}: {(hook.get('last_run') or {}).get('phase') or 'did not run'}"


def _service(cluster: KubernetesClient, release: str) -> Any:
    for service in cluster.services(release):
        if SERVER.items() <= service.metadata.labels.items():
            return service
    raise ServiceError(
        f"{release} in {cluster.namespace} has no Service: `chatmetrics deploy MANIFEST` creates it again"
    )


def _token_secret(deployment: Any) -> str:
    volumes = deployment.spec.template.spec.volumes or ()
    return next((volume.secret.secret_name for volume in volumes if volume.name == TOKENS and volume.secret), "")
