"""The commands for runs on a cluster: compile, submit, status, logs, cancel, resume, reproduce, list."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chatmetrics.components import console
from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.pipelines.cli.options import (
    CLUSTER,
    CLUSTER_CREDENTIALS,
    DEFAULT_NAMESPACE,
    CacheOption,
    GpuPoolOption,
    HostOption,
    NamespaceOption,
    PoolsOption,
    RecipeArgument,
    RunArgument,
    SetOption,
    WaitOption,
)
from chatmetrics.pipelines.cli.output import output_console

if TYPE_CHECKING:
    from kfp import Client

    from chatmetrics.components.deploy.kubernetes_client import KubernetesClient
    from chatmetrics.pipelines.cluster.kubeflow import Access
    from chatmetrics.pipelines.pools import Pool

app = typer.Typer()


@dataclass(frozen=True)
class Connection:
    """Clients of KFP and, where we have access, of Kubernetes."""

    access: "Access"
    client: "Client"
    kubernetes: "KubernetesClient | None"


def _epilog(example: str) -> str:
    return f"Example: {example}\n\n{CLUSTER_CREDENTIALS}"


@app.command("compile", epilog="Example: chatmetrics compile spider-7b -o pipeline.yaml", rich_help_panel=CLUSTER)
def compile_recipe(
    recipe: RecipeArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="YAML file to write")],
    overrides: SetOption = None,
    gpu_pool: GpuPoolOption = "A100",
    pools: PoolsOption = None,
) -> None:
    """Compile a recipe to a Kubeflow Pipelines package. The recipe's values are the defaults of its parameters."""
    from chatmetrics.pipelines.cluster.package import compile_package, note_unpinned
    from chatmetrics.pipelines.pools import find_pool, load_pools
    from chatmetrics.pipelines.recipe import load_recipe

    known = load_pools(pools)
    pool = find_pool(gpu_pool, known)
    loaded = load_recipe(recipe, overrides or (), as_written=True)
    compile_package(loaded, output, pool, pools=known)
    note_unpinned(pool.image, loaded)


@app.command(
    epilog=_epilog("chatmetrics submit hotel-demo --kfp-host http://localhost:8888 --gpu-pool A100 --wait"),
    rich_help_panel=CLUSTER,
)
def submit(
    recipe: RecipeArgument,
    gpu_pool: GpuPoolOption,
    overrides: SetOption = None,
    host: HostOption = "",
    namespace: NamespaceOption = DEFAULT_NAMESPACE,
    experiment: Annotated[str, typer.Option(help="KFP experiment that lists the run")] = "chatmetrics",
    pools: PoolsOption = None,
    wait: WaitOption = False,
    cron: Annotated[
        str,
        typer.Option(
            "--schedule", metavar="CRON", help="Run repeatedly, for example '0 3 * * 0': every Sunday at three o'clock"
        ),
    ] = "",
    cache: CacheOption = True,
) -> None:
    """Run a recipe on a cluster with Kubeflow Pipelines."""
    from chatmetrics.pipelines.cluster import submission
    from chatmetrics.pipelines.cluster.package import note_unpinned
    from chatmetrics.pipelines.pools import find_pool, load_pools, step_pools
    from chatmetrics.pipelines.recipe import load_recipe

    if cron and wait:
        raise InputError("--wait: a schedule has no run to wait for; see `chatmetrics list`")
    known = load_pools(pools)
    pool = find_pool(gpu_pool, known)
    loaded = load_recipe(recipe, overrides or ())
    others = step_pools(loaded, known)
    connection = _connect(host, namespace)
    if connection.kubernetes and not loaded.cluster.scales_from_zero:
        _check_pool(connection.kubernetes, "train", f"--gpu-pool {gpu_pool}", pool, loaded.cluster.node_label)
        for step, other in others.items():
            where = f"cluster.pools.{step} {loaded.cluster.pools[step]}"
            _check_pool(connection.kubernetes, step, where, other, loaded.cluster.node_label)
    note_unpinned(pool.image, loaded)
    submitted = submission.Submission(loaded, gpu_pool, pool, experiment, cache, known)
    if cron:
        recurring = submission.schedule(connection.client, connection.access, submitted, cron)
        print(f"schedule {recurring}: {cron}; {connection.access.url}/#/recurringrun/details/{recurring}")
        return
    run_id = submission.submit(connection.client, connection.access, submitted)
    _report_start(connection, run_id, wait, loaded.cluster.pending_minutes)


@app.command(epilog=_epilog("chatmetrics status 1f22b957"), rich_help_panel=CLUSTER)
def status(
    run: RunArgument,
    host: HostOption = "",
    namespace: NamespaceOption = DEFAULT_NAMESPACE,
    wait: WaitOption = False,
) -> None:
    """Show the steps of a run: state, node, pool, duration and last log line."""
    from chatmetrics.pipelines.cluster.kubeflow import find_run
    from chatmetrics.pipelines.cluster.runs import RunMonitor

    connection = _connect(host, namespace)
    found = find_run(connection.client, connection.access, run)
    if wait:
        _follow(connection, found.run_id, None)
        return
    view = RunMonitor(connection.client, connection.access, connection.kubernetes).view(found.run_id)
    output = output_console()
    output.print(view.table)
    if view.error:
        output.print(f"reason: {view.error}", markup=False, highlight=False, soft_wrap=True)


@app.command(epilog=_epilog("chatmetrics logs 1f22b957 train"), rich_help_panel=CLUSTER)
def logs(
    run: RunArgument,
    step: Annotated[
        str,
        typer.Argument(help="Step: preprocess, train, merge, convert-student, convert-base, evaluate, gate or deploy"),
    ],
    host: HostOption = "",
    namespace: NamespaceOption = DEFAULT_NAMESPACE,
) -> None:
    """Print the log of a step. It is read from the store, so the pod may be gone."""
    from chatmetrics.pipelines.cluster.kubeflow import find_run
    from chatmetrics.pipelines.cluster.runs import log, step_labels
    from chatmetrics.pipelines.cluster.submission import run_store

    connection = _connect(host, namespace, with_cluster=False)
    found = find_run(connection.client, connection.access, run)
    print(log(run_store(found), step, step_labels(found).values()), end="")


@app.command(epilog=_epilog("chatmetrics cancel 1f22b957"), rich_help_panel=CLUSTER)
def cancel(run: RunArgument, host: HostOption = "", namespace: NamespaceOption = DEFAULT_NAMESPACE) -> None:
    """Cancel a run. Its checkpoints are kept for `resume`."""
    from chatmetrics.pipelines.cluster.kubeflow import api_errors, find_run
    from chatmetrics.pipelines.cluster.submission import ENDED

    connection = _connect(host, namespace, with_cluster=False)
    found = find_run(connection.client, connection.access, run)
    if found.state in ENDED:
        raise InputError(f"{found.run_id} has already ended: {found.state}")
    with api_errors(connection.access):
        connection.client.terminate_run(found.run_id)
    print(f"{found.run_id} is being cancelled; chatmetrics resume {found.run_id} resumes from its last checkpoint")


@app.command(epilog=_epilog("chatmetrics resume 1f22b957 --wait"), rich_help_panel=CLUSTER)
def resume(
    run: RunArgument,
    host: HostOption = "",
    namespace: NamespaceOption = DEFAULT_NAMESPACE,
    wait: WaitOption = False,
) -> None:
    """Start a new run that resumes from the last checkpoint of a failed or cancelled one."""
    from chatmetrics.pipelines.cluster import submission
    from chatmetrics.pipelines.cluster.kubeflow import find_run

    connection = _connect(host, namespace)
    found = find_run(connection.client, connection.access, run)
    run_id = submission.resume(connection.client, connection.access, found)
    _report_start(connection, run_id, wait, None)


@app.command(epilog=_epilog("chatmetrics reproduce 1f22b957"), rich_help_panel=CLUSTER)
def reproduce(
    run: RunArgument,
    host: HostOption = "",
    namespace: NamespaceOption = DEFAULT_NAMESPACE,
    wait: WaitOption = False,
) -> None:
    """Start the same run again: same images, recipe, base model and data, without the cache."""
    from chatmetrics.pipelines.cluster import submission
    from chatmetrics.pipelines.cluster.kubeflow import find_run

    connection = _connect(host, namespace)
    found = find_run(connection.client, connection.access, run)
    run_id = submission.reproduce(connection.client, connection.access, found)
    _report_start(connection, run_id, wait, None)


@app.command("list", epilog=_epilog("chatmetrics list"), rich_help_panel=CLUSTER)
def list_runs(
    host: HostOption = "",
    namespace: NamespaceOption = DEFAULT_NAMESPACE,
    number: Annotated[int, typer.Option("--number", help="Number of runs to list", min=1, max=200)] = 20,
) -> None:
    """List the newest runs and the schedules."""
    from chatmetrics.pipelines.cluster.kubeflow import api_errors
    from chatmetrics.pipelines.cluster.runs import list_table

    connection = _connect(host, namespace, with_cluster=False)
    with api_errors(connection.access):
        runs = connection.client.list_runs(page_size=number, sort_by="created_at desc", namespace=namespace).runs
        schedules = connection.client.list_recurring_runs(page_size=number, namespace=namespace).recurring_runs
    output_console().print(list_table(runs or [], schedules or []))


def access_from(host: str, namespace: str) -> "Access":
    """Return the address of KFP, with the credentials in the environment."""
    from chatmetrics.pipelines.cluster.kubeflow import Access

    credentials = ("token", "cookies", "dex_username", "dex_password", "ca_certificate")
    return Access(host, namespace, **{name: os.environ.get(f"KFP_{name.upper()}", "") for name in credentials})


def _connect(host: str, namespace: str, with_cluster: bool = True) -> Connection:
    """Connect to KFP and, if possible, to Kubernetes, which knows the nodes and the waiting pods."""
    from chatmetrics.components.deploy.kubernetes_client import KubernetesClient
    from chatmetrics.pipelines.cluster.kubeflow import connect

    access = access_from(host, namespace)
    client = connect(access)
    kubernetes = None
    try:
        kubernetes = KubernetesClient(namespace) if with_cluster else None
    except ServiceError as error:
        console.note(f"nodes and waiting pods are skipped: {error}")
    return Connection(access, client, kubernetes)


def _check_pool(kubernetes: "KubernetesClient", step: str, where: str, pool: "Pool", node_label: str) -> None:
    from chatmetrics.pipelines.cluster.kubernetes import check_pool_nodes

    try:
        check_pool_nodes(kubernetes, where, pool, node_label, step)
    except ServiceError as error:
        console.note(f"the check of the pool's nodes is skipped: {error}")


def _report_start(connection: Connection, run_id: str, wait: bool, pending_minutes: float | None) -> None:
    from chatmetrics.pipelines.cluster.submission import run_url

    print(f"run {run_id}", run_url(connection.access, run_id), sep="\n", flush=True)
    if wait:
        _follow(connection, run_id, pending_minutes)
    else:
        print(f"follow: chatmetrics status {shlex.quote(run_id)} --wait")


def _follow(connection: Connection, run_id: str, pending_minutes: float | None) -> None:
    from chatmetrics.pipelines.cluster.runs import RunMonitor, outcome_lines

    monitor = RunMonitor(connection.client, connection.access, connection.kubernetes)
    output = output_console()
    try:
        view = monitor.follow(run_id, pending_minutes, output)
    except KeyboardInterrupt:
        console.info(f"stopped waiting; the run continues: chatmetrics status {run_id} --wait")
        raise typer.Exit(130) from None
    for line in outcome_lines(view):
        output.print(line, markup=False, highlight=False, soft_wrap=True)
    if view.error:
        raise view.error
