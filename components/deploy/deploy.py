"""Deploy a published model with the chart, go back to an earlier one, and say what serves."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from chatmetrics.components.deploy.endpoint import (
    Endpoint,
    find_endpoint,
    last_good,
    serving,
    smoke_result,
)
from chatmetrics.components.deploy.helm import Helm, HelmError, Revision
from chatmetrics.components.deploy.kubernetes_client import RIGHTS, KubernetesClient, kubeconfig
from chatmetrics.components.deploy.lease import Lease, held
from chatmetrics.components.deploy.rollout_watch import Watch
from chatmetrics.components.deploy.settings import DeploySettings
from chatmetrics.components.deploy.values import chart_path, chart_values, content_hash, published
from chatmetrics.components.errors import GateError, InputError, ServiceError, UserError
from chatmetrics.components.storage.manifest import weights_of

UNFINISHED = ("pending-", "uninstalling")  # how Helm's words for an operation that did not end begin


@dataclass(frozen=True)
class Deployed:
    """What serves after a deployment.

    Attributes:
        endpoint: where.
        model: name and version.
        digest: sha256 of its GGUF.
        smoke: what was answered through the Service.
        changed: whether there was a rollout.
    """

    endpoint: Endpoint
    model: str
    digest: str
    smoke: str
    changed: bool

    def markdown(self) -> str:
        """The same for KFP's console."""
        rows = {
            "model": self.model,
            "sha256": self.digest,
            "endpoint": self.endpoint.url,
            "release": f"{self.endpoint.release} in {self.endpoint.namespace}",
            "revision": str(self.endpoint.revision) + ("" if self.changed else ", which had this model already"),
            "smoke test": self.smoke or "none",
        }
        lines = [f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows.items()]
        return "\n".join([f"# {self.model} is served", "", "| | |", "|---|---|", *lines, ""])


@dataclass(frozen=True)
class _Site:
    """A release, and the tools to change it."""

    release: str
    helm: Helm
    cluster: KubernetesClient


def deploy(settings: DeploySettings, manifest_uri: str, keep_values: bool = False) -> Deployed:
    """Serve a published model in the cluster; without success the old version goes on serving.

    Args:
        settings: where, and the chart's values.
        manifest_uri: of the model: manifest.json or its folder.
        keep_values: put the values over those that the release has, instead of over the chart's own.

    Raises:
        GateError: the model failed its acceptance test, or answers with another prompt than in training.
        InputError: the model is not published, or a value is wrong.
        ServiceError: no helm, no cluster, no permission, or the model did not become ready: says why.
        StorageError: there is no such model.
    """
    manifest = published(manifest_uri)
    name = settings.model or manifest.name
    model = f"{name}:{manifest.version}"
    chart = chart_path()
    with _held(settings) as (site, lease):
        _repair(site, settings, lease)
        history = site.helm.history(settings.release)
        before = last_good(history)
        kept = site.helm.values(settings.release, before.number) if keep_values and before else {}
        values = chart_values(_merged(kept, settings.values), name, manifest_uri)
        content = content_hash(chart, values)
        changed = not _serves_already(site, history, content)
        if changed:
            where = f"{settings.release} in {settings.namespace}"
            _say(f"{model} to {where} with helm {site.helm.version}; at most {settings.timeout_minutes:g} minutes")

            def upgrade(look: Callable[[], UserError | None]) -> UserError | None:
                seconds = 60 * settings.timeout_minutes
                return site.helm.upgrade(settings.release, chart, values, content, seconds, look)

            _change(site, settings, lease, upgrade, f"{model} is not deployed")
        else:
            _say(f"revision {history[-1].number} has this model, these values and this chart already: no rollout")
        smoke = smoke_result(site.helm, site.cluster, settings.release)
        endpoint = find_endpoint(site.helm, site.cluster, settings.release)
    _say(f"{model} is served at {endpoint.url}, revision {endpoint.revision}" + (f"; {smoke}" if smoke else ""))
    return Deployed(endpoint, model, weights_of(manifest, manifest_uri).sha256, smoke, changed)


def rollback(settings: DeploySettings, revision: int = 0) -> Endpoint:
    """Go back to an earlier revision of the release.

    Args:
        settings: which release.
        revision: of Helm; 0 is the newest one that served something else than what serves now.

    Raises:
        InputError: there is no such release or revision, or none to go back to.
        ServiceError: as `deploy`.
    """
    with _held(settings) as (site, lease):
        _repair(site, settings, lease)
        history = site.helm.history(settings.release)
        now = serving(history, settings.release, settings.namespace)
        target = _chosen(history, revision) if revision else _earlier(site, history, now)
        _say(f"revision {now.number} serves; back to revision {target.number}")

        def back(look: Callable[[], UserError | None]) -> UserError | None:
            return site.helm.rollback(settings.release, target.number, 60 * settings.timeout_minutes, look)

        _change(site, settings, lease, back, f"revision {target.number} does not serve again")
        return find_endpoint(site.helm, site.cluster, settings.release)


def endpoint(settings: DeploySettings) -> Endpoint:
    """What the release serves, and where.

    Raises:
        InputError: there is no such release.
        ServiceError: no helm, no cluster, no permission.
    """
    with kubeconfig() as path:
        helm = Helm(settings.namespace, path)
        return find_endpoint(helm, KubernetesClient(settings.namespace, path, RIGHTS), settings.release)


@contextmanager
def _held(settings: DeploySettings) -> Iterator[tuple[_Site, Lease]]:
    with kubeconfig() as path:
        site = _Site(
            settings.release, Helm(settings.namespace, path), KubernetesClient(settings.namespace, path, RIGHTS)
        )
        with held(site.cluster, settings.release) as lease:
            yield site, lease


def _change(
    site: _Site,
    settings: DeploySettings,
    lease: Lease,
    change: Callable[[Callable[[], UserError | None]], UserError | None],
    failure: str,
) -> None:
    """Let helm do something, and look at the new pods meanwhile; without success say why, and what serves now."""
    watch = Watch(site.cluster, site.release)
    try:
        verdict = change(lambda: lease.lost or watch.look())
        if verdict is None:
            return
        reason = str(verdict)
    except HelmError as error:
        verdict = watch.verdict
        reason = str(verdict) if verdict else watch.reason or "; ".join(filter(None, (watch.progress, str(error))))
    if lease.lost:
        raise lease.lost
    _repair(site, settings, lease)
    kind = GateError if isinstance(verdict, GateError) else ServiceError
    # The reason last: it may be long, and what is cut off must not be what serves.
    raise kind(f"{failure}, {_what_serves(site)}: {reason}")


def _repair(site: _Site, settings: DeploySettings, lease: Lease) -> None:
    """Bring back the last version that served, where the last operation did not end, or failed and left it at that."""
    history = site.helm.history(site.release)
    if not history or history[-1].was_good:
        return
    last, good = history[-1], last_good(history)
    if good is None and not last.status.startswith(UNFINISHED):
        return  # a first installation that failed: the next one goes on from it
    _say(f"revision {last.number} was left {last.status}: " + (f"back to {good.number}" if good else "removed"))
    if good is None:
        site.helm.uninstall(site.release)
        return
    try:
        site.helm.rollback(site.release, good.number, 60 * settings.timeout_minutes, lambda: lease.lost)
    except HelmError as error:
        raise ServiceError(f"{site.release} cannot be brought back to revision {good.number}: {error}") from error


def _what_serves(site: _Site) -> str:
    good = last_good(site.helm.history(site.release))
    return f"revision {good.number} goes on serving" if good else "there was no earlier version, so nothing serves"


def _serves_already(site: _Site, history: list[Revision], content: str) -> bool:
    if not history or history[-1].status != "deployed":
        return False
    if site.helm.content(site.release, history[-1].number) != content:
        return False
    deployments = site.cluster.deployments(site.release)
    return bool(deployments) and all(deployment.status.available_replicas for deployment in deployments)


def _chosen(history: list[Revision], number: int) -> Revision:
    good = [revision for revision in history if revision.was_good]
    found = next((revision for revision in good if revision.number == number), None)
    if found is None:
        there = ", ".join(str(revision.number) for revision in good)
        raise InputError(f"--revision {number}: is none that has served; there are {there}")
    return found


def _earlier(site: _Site, history: list[Revision], now: Revision) -> Revision:
    """The newest revision that served something else: a rollback leaves one that is the same as an older one."""

    def made_of(revision: Revision) -> tuple[str, str]:
        values = site.helm.values(site.release, revision.number)
        return revision.chart, json.dumps(values, sort_keys=True)

    current = made_of(now)
    earlier = (revision for revision in reversed(history) if revision.was_good and revision.number < now.number)
    found = next((revision for revision in earlier if made_of(revision) != current), None)
    if found is None:
        raise InputError(f"{site.release} has served nothing else than revision {now.number}: there is no way back")
    return found


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _say(text: str) -> None:
    print(f"deploy: {text}", file=sys.stderr, flush=True)
