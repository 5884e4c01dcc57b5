"""The Kubernetes API as the deploy step needs it, and who we are there."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException

from chatmetrics.components.deploy.settings import CREDENTIALS
from chatmetrics.components.errors import ServiceError

RIGHTS = "helm/deployer.yaml lists what is needed"
SECONDS = 30
RELEASE_LABEL = "app.kubernetes.io/instance"


@contextmanager
def kubeconfig(credentials: Path = CREDENTIALS) -> Iterator[str]:
    """The path of a kubeconfig for the deployer's service account; empty leaves it to the environment.

    The file names the token's file and does not hold the token.

    Args:
        credentials: folder of the mounted secret.

    Raises:
        ServiceError: the secret is mounted, but this is no pod or the secret holds no token.
    """
    if not credentials.is_dir():
        yield ""
        return
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise ServiceError(f"{credentials} is there, but KUBERNETES_SERVICE_HOST is not set: this is no pod")
    if not (credentials / "token").is_file():
        raise ServiceError(f"{credentials} holds no token: make the secret of helm/deployer.yaml anew")
    address = f"[{host}]" if ":" in host else host
    cluster = {"server": f"https://{address}:{port}", "certificate-authority": str(credentials / "ca.crt")}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "here", "cluster": cluster}],
        "users": [{"name": "deployer", "user": {"tokenFile": str(credentials / "token")}}],
        "contexts": [{"name": "deploy", "context": {"cluster": "here", "user": "deployer"}}],
        "current-context": "deploy",
    }
    with TemporaryDirectory(prefix="kubeconfig-") as folder:
        path = Path(folder) / "config"
        path.touch(mode=0o600)
        path.write_text(json.dumps(content), "utf-8")
        yield str(path)


class Cluster:
    """What Kubernetes says of a release's namespace.

    Args:
        namespace: of the release.
        kubeconfig: as `kubeconfig` yields it.

    Raises:
        ServiceError: there are no credentials, or they cannot be read.
    """

    def __init__(self, namespace: str, kubeconfig: str = "") -> None:
        self.namespace = namespace
        settings = client.Configuration()
        settings.retries = urllib3.Retry(2, backoff_factor=0.5)
        try:
            _load_credentials(settings, kubeconfig)
        except (ConfigException, OSError) as error:
            raise ServiceError(f"no access to Kubernetes: {' '.join(str(error).split())[:200]}") from error
        self.api = client.ApiClient(settings)
        self.core = client.CoreV1Api(self.api)
        self.apps = client.AppsV1Api(self.api)

    def pods(self, selector: str) -> list[Any]:
        """The pods with such labels, the oldest first.

        Raises:
            ServiceError: Kubernetes does not answer or refused.
        """
        found = self.ask(self.core.list_namespaced_pod, label_selector=selector).items
        return sorted(found, key=lambda pod: pod.metadata.creation_timestamp)

    def deployments(self, release: str) -> list[Any]:
        """The Deployments of a release.

        Raises:
            ServiceError: as `pods`.
        """
        return list(self.ask(self.apps.list_namespaced_deployment, label_selector=f"{RELEASE_LABEL}={release}").items)

    def services(self, release: str) -> list[Any]:
        """The Services of a release.

        Raises:
            ServiceError: as `pods`.
        """
        return list(self.ask(self.core.list_namespaced_service, label_selector=f"{RELEASE_LABEL}={release}").items)

    def warnings(self, about: str) -> list[str]:
        """The warnings about an object of this uid, the newest last.

        Raises:
            ServiceError: as `pods`.
        """
        selector = f"type=Warning,involvedObject.uid={about}"
        found = self.ask(self.core.list_namespaced_event, field_selector=selector).items
        found.sort(key=lambda event: event.last_timestamp or event.event_time or event.metadata.creation_timestamp)
        return [f"{event.reason}: {' '.join((event.message or '').split())}" for event in found]

    def log(self, pod: str, container: str, previous: bool = False, lines: int = 20) -> str:
        """The last lines that a container has printed; empty where there is nothing to be had.

        Args:
            pod: its name.
            container: its name.
            previous: of the container before the last restart.
            lines: at most so many.
        """
        try:
            said = self.ask(
                self.core.read_namespaced_pod_log,
                name=pod,
                container=container,
                previous=previous,
                tail_lines=lines,
            )
        except ServiceError:  # it has not started, or is gone by now
            return ""
        return str(said)

    def ask(self, call: Any, **options: Any) -> Any:
        """Call the API about the namespace.

        Raises:
            ServiceError: Kubernetes does not answer or refused.
        """
        try:
            return call(namespace=self.namespace, _request_timeout=SECONDS, **options)
        except ApiException as error:
            raise ServiceError(f"Kubernetes refused: {self._explained(error)}") from error
        except urllib3.exceptions.HTTPError as error:
            raise ServiceError(f"Kubernetes does not answer ({type(error).__name__}); check KUBECONFIG") from error

    def _explained(self, error: ApiException) -> str:
        try:
            said = str(json.loads(error.body)["message"])
        except (TypeError, ValueError, KeyError):  # what stands before it answers in its own way
            said = f"{error.status} {error.reason}"
        if error.status == 404 and said.startswith("namespaces "):
            return f"{said}; kubectl create namespace {self.namespace}"
        return f"{said}; {RIGHTS}" if error.status in (401, 403) else said


def _load_credentials(settings: client.Configuration, kubeconfig: str) -> None:
    default = Path(config.KUBE_CONFIG_DEFAULT_LOCATION.partition(os.pathsep)[0]).expanduser()
    if kubeconfig or os.environ.get("KUBECONFIG") or default.exists():
        config.load_kube_config(kubeconfig or None, client_configuration=settings)
    else:
        config.load_incluster_config(client_configuration=settings)
