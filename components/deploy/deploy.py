"""Deploy a published model with the chart, roll back to an earlier revision, and report which one serves."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from chatmetrics.components import console
from chatmetrics.components.deploy.endpoint import (
    Endpoint,
    find_endpoint,
    last_good,
    serving,
    smoke_result,
)
from chatmetrics.components.deploy.helm import DRIVER, Helm, HelmError, Revision
from chatmetrics.components.deploy.kubernetes_client import RIGHTS, KubernetesClient, kubeconfig
from chatmetrics.components.deploy.lease import Lease, held
from chatmetrics.components.deploy.rollout_watch import RolloutWatch
from chatmetrics.components.deploy.settings import DeploySettings
from chatmetrics.components.deploy.tokens import create_tokens, with_token_secret
from chatmetrics.components.deploy.values import chart_path, chart_values, content_hash, merged, published
from chatmetrics.components.errors import GateError, InputError, ServiceError, UserError
from chatmetrics.components.markdown import markdown_table, markdown_text
from chatmetrics.components.storage.manifest import weights_of

UNFINISHED = ("pending-", "uninstalling")  # prefixes of Helm's statuses for an operation that did not finish


@dataclass(frozen=True)
class Deployed:
    """The result of a deployment.

    Attributes:
        endpoint: the release and its address.
        model: name and version of the model, as `name:version`.
        digest: sha256 of the model's GGUF.
        smoke: output of the smoke test, which queries the model through the Service; empty if the chart has none.
        changed: whether there was a rollout.
    """

    endpoint: Endpoint
    model: str
    digest: str
    smoke: str
    changed: bool

    def markdown(self) -> str:
        """Return the result as Markdown, for KFP's console."""
        rows = {
            "model": self.model,
            "sha256": self.digest,
            "endpoint": self.endpoint.url,
            "release": f"{self.endpoint.release} in {self.endpoint.namespace}",
            "revision": str(self.endpoint.revision) + ("" if self.changed else " (unchanged)"),
            "smoke test": self.smoke or "none",
        }
        return f"# {markdown_text(self.model)} is served\n\n{markdown_table(('', ''), rows.items())}\n"


@dataclass(frozen=True)
class _Site:
    """A release, and the clients that change it."""

    release: str
    helm: Helm
    cluster: KubernetesClient


def deploy(
    settings: DeploySettings, manifest_uri: str, manifest_sha256: str = "", keep_values: bool = False
) -> Deployed:
    """Serve a published model in the cluster. If that fails, the old version keeps serving.

    Args:
        settings: the release, its namespace, and the chart's values.
        manifest_uri: URI of the model's manifest.json or of its folder.
        manifest_sha256: sha256 of the manifest that passed the gate; empty takes that of the manifest as it is now.
        keep_values: merge the values into those of the current release, instead of into the chart's defaults.

    Raises:
        GateError: the model failed its acceptance test, or its prompt differs from the one used in training.
        InputError: the model is not published, or a value is wrong.
        ServiceError: Helm or the cluster is not available, permission is missing, or the model did not become ready;
            the message gives the reason.
        StorageError: the model does not exist, or its manifest is not the one that passed the gate.
    """
    manifest, sha256 = published(manifest_uri, manifest_sha256)
    name = settings.model or manifest.name
    model = f"{name}:{manifest.version}"
    chart = chart_path()
    with _held(settings) as (site, lease):
        _repair(site, settings, lease)
        history = site.helm.history(settings.release)
        if not history:
            _check_unknown(site)
        before = last_good(history)
        kept = site.helm.values(settings.release, before.number) if keep_values and before else {}
        given = chart_values(merged(kept, settings.values), name, manifest_uri, sha256)
        values = with_token_secret(settings.release, chart, given)
        content = content_hash(chart, values)
        changed = not _serves_already(site, history, content)
        if changed:
            where = f"{settings.release} in {settings.namespace}"
            limit = f"within {settings.timeout_minutes:g} minutes"
            console.info(f"deploy: {model} to {where} {limit}, with Helm {site.helm.version}")
            create_tokens(site.cluster, settings.release, chart, values)

            def upgrade(look: Callable[[], UserError | None]) -> UserError | None:
                seconds = 60 * settings.timeout_minutes
                return site.helm.upgrade(settings.release, chart, values, content, seconds, look)

            _change(site, settings, lease, upgrade, f"{model} is not deployed")
        else:
            same = "already has this model, these values and this chart"
            console.info(f"deploy: revision {history[-1].number} {same}: no rollout")
        smoke = smoke_result(site.helm, site.cluster, settings.release)
        endpoint = find_endpoint(site.helm, site.cluster, settings.release)
    tested = f"; {smoke}" if smoke else ""
    console.info(f"deploy: {model} is served at {endpoint.url}, revision {endpoint.revision}{tested}")
    return Deployed(endpoint, model, weights_of(manifest, manifest_uri).sha256, smoke, changed)


def rollback(settings: DeploySettings, revision: int = 0) -> Endpoint:
    """Roll the release back to an earlier revision.

    Args:
        settings: the release and its namespace.
        revision: number of the Helm revision; 0 is the newest one whose chart or values differ from the current ones.

    Raises:
        InputError: the release or the revision does not exist, or there is no revision to roll back to.
        ServiceError: as `deploy`.
    """
    with _held(settings) as (site, lease):
        _repair(site, settings, lease)
        history = site.helm.history(settings.release)
        now = serving(history, settings.release, settings.namespace)
        target = _chosen(history, revision) if revision else _earlier(site, history, now)
        console.info(f"deploy: rolling back from revision {now.number} to revision {target.number}")

        def back(look: Callable[[], UserError | None]) -> UserError | None:
            return site.helm.rollback(settings.release, target.number, 60 * settings.timeout_minutes, look)

        _change(site, settings, lease, back, f"revision {target.number} is not restored")
        return find_endpoint(site.helm, site.cluster, settings.release)


def endpoint(settings: DeploySettings) -> Endpoint:
    """Return the models that the release serves, and its address.

    Raises:
        InputError: the release does not exist.
        ServiceError: Helm or the cluster is not available, or permission is missing.
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
    """Run a Helm operation while watching the new pods. If it fails, raise an error that says why and what serves."""
    watch = RolloutWatch(site.cluster, site.release)
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
    # The reason comes last: it may be long, and if the line is cut, the serving revision must remain visible.
    raise kind(f"{failure}, {_what_serves(site)}: {reason}")


def _repair(site: _Site, settings: DeploySettings, lease: Lease) -> None:
    """Restore the last revision that served, if the last operation did not finish, or failed without a rollback."""
    history = site.helm.history(site.release)
    if not history or history[-1].was_good:
        return
    last, good = history[-1], last_good(history)
    if good is None and not last.status.startswith(UNFINISHED):
        return  # a first installation that failed: the next upgrade replaces it
    repair = f"rolling back to {good.number}" if good else "removing it"
    console.info(f"deploy: revision {last.number} was left {last.status}: {repair}")
    if good is None:
        site.helm.uninstall(site.release)
        return
    try:
        site.helm.rollback(site.release, good.number, 60 * settings.timeout_minutes, lambda: lease.lost)
    except HelmError as error:
        raise ServiceError(f"{site.release} cannot be rolled back to revision {good.number}: {error}") from error


def _check_unknown(site: _Site) -> None:
    """Refuse to install a release over objects of the same name: Helm would adopt them, and delete them if it fails.

    Raises:
        ServiceError: there are such objects.
    """
    if site.cluster.deployments(site.release):
        raise ServiceError(
            f"{site.cluster.namespace} has Deployments of {site.release}, but no record of Helm about it: if its "
            f"records are in Secrets, move them (docs/deploy.md, Existing releases) or set {DRIVER}=secret"
        )


def _what_serves(site: _Site) -> str:
    good = last_good(site.helm.history(site.release))
    return f"revision {good.number} keeps serving" if good else "there was no earlier version, so nothing serves"


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
        choices = ", ".join(str(revision.number) for revision in good)
        raise InputError(f"--revision {number}: this revision has never served; choose one of {choices}")
    return found


def _earlier(site: _Site, history: list[Revision], now: Revision) -> Revision:
    """Return the newest earlier revision whose chart or values differ from the current ones.

    The numbers alone do not tell: a rollback adds a revision that is the same as an older one.
    """

    def content(revision: Revision) -> tuple[str, str]:
        values = site.helm.values(site.release, revision.number)
        return revision.chart, json.dumps(values, sort_keys=True)

    current = content(now)
    earlier = (revision for revision in reversed(history) if revision.was_good and revision.number < now.number)
    found = next((revision for revision in earlier if content(revision) != current), None)
    if found is None:
        raise InputError(f"{site.release} has served nothing else than revision {now.number}: nothing to roll back to")
    return found
