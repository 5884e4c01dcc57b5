"""Where a release answers, and what it says of itself."""

from dataclasses import dataclass
from typing import Any

from chatmetrics.components.deploy.helm import Helm, Revision
from chatmetrics.components.deploy.kubernetes_client import KubernetesClient
from chatmetrics.components.errors import InputError, ServiceError

# The chart's words: labels of the one Service among others, its port, and the pods' volume of tokens.
SERVER = {"app.kubernetes.io/component": "server", "track": "stable"}
PORT, TOKENS = "http", "tokens"
HOOK = {"post-install", "post-upgrade"}


@dataclass(frozen=True)
class Endpoint:
    """A release that serves.

    Attributes:
        release: its name.
        namespace: where it is.
        revision: of Helm.
        url: for pods of the cluster.
        service: the Service's name.
        port: the Service's.
        models: URI by the name that clients say.
        token_secret: the Secret with a token for each client; empty where none is asked for.
        ready: pods that answer.
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
    """What a release serves and where.

    Raises:
        InputError: there is no such release, or it has never served.
        ServiceError: the cluster does not answer or refused.
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
    """The revision that serves.

    Raises:
        InputError: there is no such release, or it has never served.
    """
    if not history:
        raise InputError(f"there is no release {release} in {namespace}; `chatmetrics deploy MANIFEST` makes one")
    found = last_good(history)
    if found is None:
        raise InputError(f"{release} in {namespace} has never served: {history[-1].description}")
    return found


def last_good(history: list[Revision]) -> Revision | None:
    """The newest revision that is deployed, else the newest that was."""
    good = [revision for revision in history if revision.was_good]
    deployed = [revision for revision in good if revision.status == "deployed"]
    return next(reversed(deployed or good), None)


def smoke_result(helm: Helm, cluster: KubernetesClient, release: str) -> str:
    """What the chart's hook said when it asked through the Service, in one line; empty where it has no hook.

    Raises:
        ServiceError: the cluster does not answer or refused.
    """
    hooks = [hook for hook in helm.hooks(release) if hook["kind"] == "Job" and HOOK & set(hook["events"])]
    return "; ".join(_said(cluster, hook) for hook in hooks)


def _said(cluster: KubernetesClient, hook: dict[str, Any]) -> str:
    pods = cluster.pods(f"job-name={hook['name']}")
    said = cluster.log(pods[-1].metadata.name, pods[-1].spec.containers[0].name) if pods else ""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return "; ".join(lines) or f"{hook['name']}: {(hook.get('last_run') or {}).get('phase') or 'did not run'}"


def _service(cluster: KubernetesClient, release: str) -> Any:
    for service in cluster.services(release):
        if SERVER.items() <= service.metadata.labels.items():
            return service
    raise ServiceError(f"{release} in {cluster.namespace} has no Service: `chatmetrics deploy MANIFEST` makes it anew")


def _token_secret(deployment: Any) -> str:
    volumes = deployment.spec.template.spec.volumes or ()
    return next((volume.secret.secret_name for volume in volumes if volume.name == TOKENS and volume.secret), "")
