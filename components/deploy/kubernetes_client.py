"""The one client of the Kubernetes API, used by the deploy step and by `chatmetrics submit`, `status` and `doctor`."""

import base64
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config import incluster_config
from kubernetes.config.config_exception import ConfigException
from yaml import YAMLError

from chatmetrics.components.credentials import checked_secret, read_secret_file
from chatmetrics.components.deploy.settings import CREDENTIALS
from chatmetrics.components.errors import ServiceError
from chatmetrics.components.redaction import one_line, redacted
from chatmetrics.components.responder import CheckedPool, what_answered

RIGHTS = "helm/deployer.yaml lists what is needed"
NEW_TOKEN = "the command in helm/deployer.yaml writes a new one"
SECONDS_PER_CALL = 30
BEARER = "Bearer "
RELEASE_LABEL = "app.kubernetes.io/instance"


@contextmanager
def kubeconfig(
    credentials: Path = CREDENTIALS, authority: str = incluster_config.SERVICE_CERT_FILENAME
) -> Iterator[str]:
    """Yield the path of a temporary kubeconfig for the deployer's service account, or "" if there is no such secret.

    The file refers to the token's file and does not contain the token.

    Args:
        credentials: folder where the secret with the service account's token is mounted.
        authority: file with the certificate of the cluster's authority, which Kubernetes mounts in every pod.

    Raises:
        ServiceError: the secret is mounted, but this process does not run in a pod, or the secret has no token, or the
            token has expired.
    """
    if not credentials.is_dir():
        yield ""
        return
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise ServiceError(f"{credentials} exists, but KUBERNETES_SERVICE_HOST is not set: this is not a pod")
    if not (credentials / "token").is_file():
        raise ServiceError(f"{credentials} has no token; {NEW_TOKEN}")
    expiry = token_expiry(read_secret_file(credentials / "token"))
    if expiry and expiry < datetime.now(UTC):
        raise ServiceError(f"the deployer's token expired at {expiry:%Y-%m-%d %H:%M} UTC; {NEW_TOKEN}")
    address = f"[{host}]" if ":" in host else host
    cluster = {"server": f"https://{address}:{port}", "certificate-authority": authority}
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


def token_expiry(token: str) -> datetime | None:
    """Return when a service account's token expires; None if it never does, or if it is not a JSON web token.

    The payload is read as RFC 7519 defines it; the signature is not verified.
    """
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return datetime.fromtimestamp(claims["exp"], UTC)
    except (ValueError, LookupError, TypeError, OverflowError):
        return None


class KubernetesClient:
    """The Kubernetes API, with errors of one line, for work in one namespace.

    Credentials come from `kubeconfig`, else from KUBECONFIG or ~/.kube/config, else from the pod this process runs in.

    Args:
        namespace: where `pods`, `deployments`, `services`, `warnings` and `log` look.
        kubeconfig: path of a kubeconfig, as `kubeconfig()` yields it; empty uses the environment.
        rights_hint: appended to the error when Kubernetes denies a call; says where the needed rights are listed.

    Attributes:
        api: the underlying ApiClient, for API groups other than `core` and `apps`.
        core: CoreV1Api.
        apps: AppsV1Api.

    Raises:
        ServiceError: there are no credentials, or they cannot be read.
    """

    def __init__(self, namespace: str, kubeconfig: str = "", rights_hint: str = "") -> None:
        self.namespace = namespace
        self._rights_hint = rights_hint
        settings = client.Configuration()
        settings.retries = urllib3.Retry(2, backoff_factor=0.5)
        try:
            _load_credentials(settings, kubeconfig)
        except (ConfigException, OSError, ValueError, LookupError, TypeError, AttributeError, YAMLError) as error:
            raise ServiceError(f"no access to Kubernetes: {one_line(error, 200)}") from error
        _check_token(settings)
        if settings.refresh_api_key_hook:  # which reads the token again before each request
            settings.refresh_api_key_hook = partial(_refresh_token, settings.refresh_api_key_hook)
        self.api = client.ApiClient(settings)
        pool = self.api.rest_client.pool_manager
        self.api.rest_client.pool_manager = CheckedPool(pool, partial(_other_answer, settings.host), _expected)
        self.core = client.CoreV1Api(self.api)
        self.apps = client.AppsV1Api(self.api)

    def call(self, method: Any, *arguments: Any, **options: Any) -> Any:
        """Call a method of the API, for example `call(core.read_namespace, "kubeflow")`.

        Raises:
            ServiceError: Kubernetes does not answer or refused; its cause is the ApiException, which has the status.
        """
        try:
            return method(*arguments, _request_timeout=SECONDS_PER_CALL, **options)
        except ApiException as error:
            error.body = redacted(error.body or "")  # the cause of our error is printed too, in the log of a step
            raise ServiceError(f"Kubernetes refused ({error.status}): {self._explain(error)}") from error
        except urllib3.exceptions.HTTPError as error:
            raise ServiceError(f"Kubernetes does not answer ({type(error).__name__}); check KUBECONFIG") from error
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            # A token or an address that cannot be sent, or an answer that lacks the fields of its kind. The library's
            # text may quote the token.
            raise ServiceError(
                f"Kubernetes: the request or its answer is not valid ({type(error).__name__}); check the server and "
                "the token in KUBECONFIG"
            ) from None

    def pods(self, selector: str) -> list[Any]:
        """Return the pods that match a label selector, the oldest first.

        Raises:
            ServiceError: as `call`.
        """
        pods = self.call(self.core.list_namespaced_pod, self.namespace, label_selector=selector).items
        return sorted(pods, key=lambda pod: pod.metadata.creation_timestamp)

    def deployments(self, release: str) -> list[Any]:
        """Return the Deployments of a Helm release.

        Raises:
            ServiceError: as `call`.
        """
        selector = f"{RELEASE_LABEL}={release}"
        return list(self.call(self.apps.list_namespaced_deployment, self.namespace, label_selector=selector).items)

    def services(self, release: str) -> list[Any]:
        """Return the Services of a Helm release.

        Raises:
            ServiceError: as `call`.
        """
        selector = f"{RELEASE_LABEL}={release}"
        return list(self.call(self.core.list_namespaced_service, self.namespace, label_selector=selector).items)

    def find(self, method: Callable[..., Any], *arguments: Any) -> Any | None:
        """Call a method that reads an object, and return the object; None if it does not exist.

        Raises:
            ServiceError: as `call`.
        """
        try:
            return self.call(method, *arguments)
        except ServiceError as error:
            if getattr(error.__cause__, "status", None) == 404:
                return None
            raise

    def warnings(self, uid: str) -> list[str]:
        """Return the warning events about the object with this uid, the newest last.

        Raises:
            ServiceError: as `call`.
        """
        selector = f"type=Warning,involvedObject.uid={uid}"
        events = self.call(self.core.list_namespaced_event, self.namespace, field_selector=selector).items
        events.sort(key=lambda event: event.last_timestamp or event.event_time or event.metadata.creation_timestamp)
        return [f"{event.reason}: {' '.join((event.message or '').split())}" for event in events]

    def log(self, pod: str, container: str, previous: bool = False, lines: int = 20) -> str:
        """Return the last lines that a container printed; empty if its log is not available.

        Args:
            pod: name of the pod.
            container: name of the container.
            previous: whether to read the log from before the container's last restart.
            lines: maximum number of lines.
        """
        method = self.core.read_namespaced_pod_log
        options = {"container": container, "previous": previous, "tail_lines": lines}
        try:
            return str(self.call(method, pod, self.namespace, **options))
        except ServiceError:  # the container has not started yet, or its pod was deleted
            return ""

    def _explain(self, error: ApiException) -> str:
        try:
            message = str(json.loads(error.body)["message"])
        except (TypeError, ValueError, KeyError):  # a proxy in front of the API server answers in its own format
            message = one_line(error.reason)
        if error.status == 404 and message.startswith("namespaces "):
            return f"{message}; kubectl create namespace {self.namespace}"
        if error.status in (401, 403) and self._rights_hint:
            return f"{message}; {self._rights_hint}"
        return message


def _check_token(settings: client.Configuration) -> None:
    """Check the token before a library quotes it in an error.

    Raises:
        InputError: it has a character that cannot be sent.
    """
    for name, value in settings.api_key.items():
        token = checked_secret((value or "").removeprefix(BEARER), "the token of KUBECONFIG")
        settings.api_key[name] = f"{BEARER}{token}" if token else ""


def _refresh_token(refresh: Callable[[client.Configuration], None], settings: client.Configuration) -> None:
    refresh(settings)
    _check_token(settings)


def _expected(url: str) -> tuple[str, ...] | None:
    """The fields of the answer at a URL of the API; None for a log, which is text."""
    path = urlsplit(url).path
    if path.endswith("/log"):
        return None
    return ("gitVersion",) if path.endswith("/version") or path.endswith("/version/") else ("kind",)


def _other_answer(host: str, status: int, headers: Mapping[str, str], body: bytes) -> ServiceError:
    what = what_answered(status, headers, body)
    return ServiceError(
        f"{host} sent {what} instead of an answer of Kubernetes; check the server and the login in KUBECONFIG"
    )


@contextmanager
def _logged_as_error() -> Iterator[None]:
    """Raise what the library only logs: that a credential plugin fails. It would continue without a login.

    Raises:
        ConfigException: a plugin failed. What the plugin printed may hold a secret and is left out.
    """
    logged: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        logged.append(record.getMessage().partition(". ")[0])
        return False

    root = logging.getLogger()
    root.addFilter(collect)
    try:
        yield
    finally:
        root.removeFilter(collect)
    if logged:
        raise ConfigException(f"the credential plugin in KUBECONFIG fails: {logged[-1]}")


def _load_credentials(settings: client.Configuration, kubeconfig: str) -> None:
    default = Path(config.KUBE_CONFIG_DEFAULT_LOCATION.partition(os.pathsep)[0]).expanduser()
    if kubeconfig or os.environ.get("KUBECONFIG") or default.exists():
        with _logged_as_error():
            config.load_kube_config(kubeconfig or None, client_configuration=settings)
    else:
        config.load_incluster_config(client_configuration=settings)
