"""The Secret with the clients' tokens.

The chart can create it as well, but Helm stores what a chart creates with the release, which here is a ConfigMap.
"""

import secrets
from pathlib import Path
from typing import Any

from chatmetrics.components import console
from chatmetrics.components.deploy.kubernetes_client import RELEASE_LABEL, KubernetesClient
from chatmetrics.components.deploy.values import Values, default_values, merged
from chatmetrics.components.errors import InputError

PODS = ("smokeTest", "anythingllm")  # the chart's sections of its own pods that are clients
BYTES = 30  # of randomness: 40 characters


def with_token_secret(release: str, chart: Path, values: Values) -> Values:
    """Return the chart's values with the name of the Secret that `create_tokens` writes, unless they name another.

    Raises:
        InputError: a section of the values is not an object.
    """
    auth = _all(chart, values).get("auth") or {}
    if not auth.get("enabled") or auth.get("existingSecret"):
        return values
    return merged(values, {"auth": {"existingSecret": _secret_of(release)}})


def create_tokens(cluster: KubernetesClient, release: str, chart: Path, values: Values) -> None:
    """Create the tokens that clients of a release lack. Existing tokens stay, and another Secret is not touched.

    Args:
        cluster: client for the release's namespace.
        release: name of the release.
        chart: folder of the chart.
        values: the values that `with_token_secret` returned.

    Raises:
        InputError: the clients are not a list of names.
        ServiceError: Kubernetes does not answer, or refused.
    """
    all_values, name = _all(chart, values), _secret_of(release)
    auth = all_values.get("auth") or {}
    if not auth.get("enabled") or auth["existingSecret"] != name:
        return
    found = cluster.find(cluster.core.read_namespaced_secret, name, cluster.namespace)
    existing = (found.data if found else None) or {}
    missing = [client for client in _clients(all_values) if client not in existing]
    if not missing:
        return
    console.info(f"deploy: creating tokens in the secret {name} for {', '.join(missing)}")
    content: dict[str, Any] = {"stringData": {client: secrets.token_urlsafe(BYTES) for client in missing}}
    if found:
        cluster.call(cluster.core.patch_namespaced_secret, name, cluster.namespace, content)
    else:
        content["metadata"] = {"name": name, "labels": {RELEASE_LABEL: release}}
        cluster.call(cluster.core.create_namespaced_secret, cluster.namespace, content)


def _secret_of(release: str) -> str:
    return f"{release}-tokens"  # as in the chart, so that the tokens which it created stay


def _all(chart: Path, values: Values) -> Values:
    """The values with the chart's defaults. Helm checks them against the chart's schema only later."""
    for section in ("auth", *PODS):
        if not isinstance(values.get(section, {}), dict):
            raise InputError(f"deploy.values.{section}: write an object, such as {{enabled: true}}")
    return merged(default_values(chart), values)


def _clients(values: Values) -> list[str]:
    """The clients that need a token, as in the chart's template `chatmetrics.clients`."""
    clients = values["auth"]["clients"]
    if not isinstance(clients, list) or not all(isinstance(client, str) for client in clients):
        raise InputError("deploy.values.auth.clients: write a list of names")
    own = [values[pod]["tokenKey"] for pod in PODS if values[pod]["enabled"]]
    return list(dict.fromkeys([*clients, *own]))
