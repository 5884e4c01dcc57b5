"""The verbs that speak to a cluster: submit, status, logs, cancel, resume, reproduce, list, doctor."""

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chatmetrics.components.errors import InputError, ServiceError

if TYPE_CHECKING:
    from kfp import Client
    from rich.console import Console

    from chatmetrics.components.deploy.kubernetes_client import KubernetesClient
    from chatmetrics.pipelines.cluster.kubeflow import Access
    from chatmetrics.pipelines.pools import Pool

HostOption = Annotated[
    str,
    typer.Option(
        "--kfp-host", envvar=["KFP_ENDPOINT", "KF_PIPELINES_ENDPOINT"], help="URL of the KFP API; empty in a pod."
    ),
]
NamespaceOption = Annotated[str, typer.Option("--namespace", "-n", envvar="KFP_NAMESPACE", help="Of the runs.")]
RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or a shipped one's name.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, the beginning of it, or its name.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting: cluster.queue=team-a.")
]
PoolOption = Annotated[str, typer.Option("--gpu-pool", help="Node pool of train, see pipelines/gpu_pools.yaml.")]
PoolsOption = Annotated[Path | None, typer.Option("--pools", help="YAML file of pools of your own.")]
WaitOption = Annotated[bool, typer.Option("--wait", help="Follow the run, and end with its exit status.")]
WIDTH_OF_A_LOG = 160
DEFAULT_NAMESPACE = "kubeflow"
AUTHENTICATION = (
    "Who we are comes from the environment: KFP_TOKEN (bearer), KFP_COOKIES, or KFP_DEX_USERNAME and KFP_DEX_PASSWORD; "
    "KFP_CA_CERTIFICATE is a file. In a pod it is the service account's token. The store's credentials are AWS_*."
)


@dataclass(frozen=True)
class Connection:
    """KFP and, where we have access to it, Kubernetes."""

    access: "Access"
    client: "Client"
    kubernetes: "KubernetesClient | None"


def submit(
    recipe: RecipeArgument,
    gpu_pool: PoolOption,
    overrides: SetOption = None,
    host: HostOption = "",
    namespace: NamespaceOption = DEFAULT_NAMESPACE,
    experiment: Annotated[str, typer.Option(help="Of KFP, that the run is listed under.")] = "chatmetrics",
    pools: PoolsOption = None,
    wait: WaitOption = False,
    cron: Annotated[
        str, typer.Option("--schedule", metavar="CRON", help="Again and again, as in '0 3 * * 0': Sundays at three.")
    ] = "",
    cache: Annotated[bool, typer.Option(help="Take over the results of steps that have not changed.")] = True,
) -> None:
    """Run a recipe on a cluster with Kubeflow Pipelines."""
    from chatmetrics.pipelines.cluster import submission
    from chatmetrics.pipelines.cluster.package import note_unpinned
    from chatmetrics.pipelines.pools import find_pool, load_pools
    from chatmetrics.pipelines.recipe import load_recipe

    if cron and wait:
        raise InputError("--wait: a schedule has no run to wait for; see `chatmetrics list`")
    pool = find_pool(gpu_pool, load_pools(pools))
    loaded = load_recipe(recipe, overrides or ())
    connection = _connect(host, namespace)
    if connection.kubernetes and not loaded.cluster.scales_from_zero:
        _check_pool(connection.kubernetes, gpu_pool, pool, loaded.cluster.node_label)
    note_unpinned(pool.image, loaded)
    submitted = submission.Submission(loaded, gpu_pool, pool, experiment, cache)
    if cron:
        recurring = submission.schedule(connection.client, connection.access, submitted, cron)
        print(f"schedule {recurring}: {cron}; {connection.access.url}/#/recurringrun/details/{recurring}")
        return
    run_id = submission.submit(connection.client, connection.access, submitted)
    _started(connection, run_id, wait, loaded.cluster.pending_minutes)


def status(
    run: RunArgument,
    host: HostOption = "",
    namespace: NamespaceOption = DEFAULT_NAMESPACE,
    wait: WaitOption = False,
) -> None:
    """Show the steps of a run: state, node, pool, age and the last thing each said."""
    from chatmetrics.pipelines.cluster.kubeflow import find_run
    from chatmetrics.pipelines.cluster.runs import RunMonitor

    connection = _connect(host, namespace)
    found = find_run(connection.client, connection.access, run)
    if wait:
        _follow(connection, found.run_id, None)
        return
    view = RunMonitor(connection.client, connection.access, connection.kubernetes).view(found.run_id)
    console = _console()
    console.print(view.table)
    if view.error:
        console.print(f"reason: {view.error}", markup=False, highlight=False, soft_wrap=True)


def logs(
    run: RunArgument,
    step: Annotated[
        str, typer.Argument(help="preprocess, train, merge, convert-student, convert-base, evaluate, gate, deploy")
    ],
    host: HostOption = "",
    namespace: NamespaceOption = DEFAULT_NAMESPACE,
) -> None:
    """Print what a step has said, also when its pod is gone; it is read from the store."""
    from chatmetrics.pipelines.cluster.kubeflow import find_run
    from chatmetrics.pipelines.cluster.runs import log, step_labels
    from chatmetrics.pipelines.cluster.submission import run_store

    connection = _connect(host, namespace, with_cluster=False)
    found = find_run(connection.client, connection.access, run)
    print(log(run_store(found), step, step_labels(found).values()), end="")


def cancel(run: RunArgument, host: HostOption = "", namespace: NamespaceOption = DEFAULT_NAMESPACE) -> None:
    """End a run; its checkpoints stay, for `resume`."""
    from chatmetrics.pipelines.cluster.kubeflow import api_errors, find_run
    from chatmetrics.pipelines.cluster.submission import ENDED

    connection = _connect(host, namespace, with_cluster=False)
    found = find_run(connection.client, connection.access, run)
    if found.state in ENDED:
        raise InputError(f"{found.run_id} has ended already: {found.state}")
    with api_errors(connection.access):
        connection.client.terminate_run(found.run_id)
    print(f"{found.run_id} is being ended; chatmetrics resume {found.run_id} goes on from its last checkpoint")


def resume(
    run: RunArgument,
    host: HostOption = "",
    namespace: NamespaceOption = DEFAULT_NAMESPACE,
    wait: WaitOption = False,
) -> None:
    """Start a new run that goes on from the last checkpoint of one that failed or was cancelled."""
    from chatmetrics.pipelines.cluster.kubeflow import find_run
    from chatmetrics.pipelines.cluster.submission import resume

    connection = _connect(host, namespace)
    found = find_run(connection.client, connection.access, run)
    _started(connection, resume(connection.client, connection.access, found), wait, None)


def reproduce(
    run: RunArgument,
    host: HostOption = "",
    namespace: NamespaceOption = DEFAULT_NAMESPACE,
    wait: WaitOption = False,
) -> None:
    """Start the same run again: same images, recipe, base and data, nothing taken from the cache."""
    from chatmetrics.pipelines.cluster.kubeflow import find_run
    from chatmetrics.pipelines.cluster.submission import reproduce

    connection = _connect(host, namespace)
    found = find_run(connection.client, connection.access, run)
    _started(connection, reproduce(connection.client, connection.access, found), wait, None)


def list_runs(
    host: HostOption = "",
    namespace: NamespaceOption = DEFAULT_NAMESPACE,
    number: Annotated[int, typer.Option("--number", help="The newest so many.", min=1, max=200)] = 20,
) -> None:
    """List the newest runs and the schedules."""
    from chatmetrics.pipelines.cluster.kubeflow import api_errors
    from chatmetrics.pipelines.cluster.runs import list_table

    connection = _connect(host, namespace, with_cluster=False)
    with api_errors(connection.access):
        runs = connection.client.list_runs(page_size=number, sort_by="created_at desc", namespace=namespace).runs
        schedules = connection.client.list_recurring_runs(page_size=number, namespace=namespace).recurring_runs
    _console().print(list_table(runs or [], schedules or []))


Verbs = dict[str, tuple[Callable[..., None], str]]
VERBS: Verbs = {
    "submit": (
        submit,
        "Example: chatmetrics submit hotel-demo --kfp-host http://localhost:8888 --gpu-pool A100 --wait",
    ),
    "status": (status, "Example: chatmetrics status 1f22b957"),
    "logs": (logs, "Example: chatmetrics logs 1f22b957 train"),
    "cancel": (cancel, "Example: chatmetrics cancel 1f22b957"),
    "resume": (resume, "Example: chatmetrics resume 1f22b957 --wait"),
    "reproduce": (reproduce, "Example: chatmetrics reproduce 1f22b957"),
    "list": (list_runs, "Example: chatmetrics list"),
}


def add_verbs(app: typer.Typer, verbs: Verbs) -> None:
    """Make them verbs of the command, each with its example."""
    for name, (verb, example) in verbs.items():
        app.command(name, epilog=f"{example}\n\n{AUTHENTICATION}", rich_help_panel="On a cluster")(verb)


def access_from(host: str, namespace: str) -> "Access":
    """Where KFP is and, from the environment, who we are there."""
    from chatmetrics.pipelines.cluster.kubeflow import Access

    settings = ("token", "cookies", "dex_username", "dex_password", "ca_certificate")
    return Access(host, namespace, **{name: os.environ.get(f"KFP_{name.upper()}", "") for name in settings})


def _connect(host: str, namespace: str, with_cluster: bool = True) -> Connection:
    """Connect to KFP, and to Kubernetes if we can; without it a run's nodes and waiting pods are not seen."""
    from chatmetrics.components.deploy.kubernetes_client import KubernetesClient
    from chatmetrics.pipelines.cluster.kubeflow import connect

    access = access_from(host, namespace)
    client = connect(access)
    kubernetes = None
    try:
        kubernetes = KubernetesClient(namespace) if with_cluster else None
    except ServiceError as error:
        print(f"note: nodes and waiting pods are skipped: {error}", file=sys.stderr, flush=True)
    return Connection(access, client, kubernetes)


def _check_pool(kubernetes: "KubernetesClient", name: str, pool: "Pool", node_label: str) -> None:
    from chatmetrics.pipelines.cluster.kubernetes import check_pool_nodes

    try:
        check_pool_nodes(kubernetes, name, pool, node_label)
    except ServiceError as error:
        print(f"note: whether the pool has nodes is skipped: {error}", file=sys.stderr, flush=True)


def _started(connection: Connection, run_id: str, wait: bool, pending_minutes: float | None) -> None:
    from chatmetrics.pipelines.cluster.submission import run_url

    print(f"run {run_id}", run_url(connection.access, run_id), sep="\n", flush=True)
    if wait:
        _follow(connection, run_id, pending_minutes)
    else:
        print(f"follow: chatmetrics status {shlex.quote(run_id)} --wait")


def _follow(connection: Connection, run_id: str, pending_minutes: float | None) -> None:
    from chatmetrics.pipelines.cluster.runs import RunMonitor, outcome_lines

    monitor = RunMonitor(connection.client, connection.access, connection.kubernetes)
    console = _console()
    try:
        view = monitor.follow(run_id, pending_minutes, console)
    except KeyboardInterrupt:
        print(f"no longer watching; the run goes on. chatmetrics status {run_id} --wait", file=sys.stderr)
        raise typer.Exit(130) from None
    for line in outcome_lines(view):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if view.error:
        raise view.error


def _console() -> "Console":
    from rich.console import Console

    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDTH_OF_A_LOG)
