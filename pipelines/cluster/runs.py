"""The state of a run, from KFP, from Kubernetes and from what its steps wrote to the store."""

import json
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pydoc import locate
from typing import Any

from kfp import Client
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from chatmetrics.components.console import note, warning
from chatmetrics.components.deploy.kubernetes_client import KubernetesClient
from chatmetrics.components.distill.settings import SELF
from chatmetrics.components.errors import InputError, ServiceError, StorageError, UserError
from chatmetrics.components.run_summary import accuracy_line
from chatmetrics.components.storage.store import Store
from chatmetrics.pipelines.cluster.kubeflow import Access, AccessError, api_errors
from chatmetrics.pipelines.cluster.kubernetes import StepPod, Wait, pods_of_run
from chatmetrics.pipelines.cluster.submission import ENDED, run_store
from chatmetrics.pipelines.distillation import distillation_pipeline
from chatmetrics.pipelines.steps_view import (
    State,
    StepError,
    StepView,
    print_step_line,
    steps_table,
    task_labels,
)

SECONDS_BETWEEN_POLLS = 3.0
SECONDS_BETWEEN_RETRIES = 30.0
SECONDS_WITHOUT_ANSWER = 300.0
LAST_LINE_BYTES = 2000
WAITS: dict[Wait, str] = {"node": "for a node", "start": "on its node to start"}
# By KFP's state of a task; "None" is that of a task it left out. A task in any other state has not ended.
STATES: dict[str, State] = {
    "SUCCEEDED": "done",
    "CACHED": "cached",
    "SKIPPED": "cached",
    "FAILED": "failed",
    "CANCELED": "failed",
    "RUNNING": "running",
    "None": "skipped",
}


@dataclass(frozen=True)
class RunView:
    """A run.

    Attributes:
        id: KFP's id.
        name: display name.
        state: KFP's state, for example RUNNING.
        steps: its steps, in order of execution.
        outcome: content of its outcome.json; empty until the run has ended.
        pending: pods that have not started.
    """

    id: str
    name: str
    state: str
    steps: list[StepView]
    outcome: dict[str, Any]
    pending: list[StepPod]

    @property
    def error(self) -> UserError | None:
        """Why it failed, as the class of error that the same failure raises in a local run; None if it did not."""
        if self.state not in ENDED or self.state == "SUCCEEDED":
            return None
        kind = locate(f"chatmetrics.components.errors.{self.outcome.get('kind', '')}")
        reason = self.outcome.get("message") or f"the run ended as {self.state}"
        return kind(reason) if isinstance(kind, type) and issubclass(kind, UserError) else StepError(reason)

    @property
    def table(self) -> Table:
        """The steps as a table."""
        return steps_table(self.steps, f"{self.name}  {self.id}  {self.state}")


class RunMonitor:
    """Reads the state of runs.

    Args:
        client: KFP's client.
        access: where KFP is, for error messages.
        kubernetes: tells nodes and why a pod waits; None without access to Kubernetes.
    """

    def __init__(self, client: Client, access: Access, kubernetes: KubernetesClient | None) -> None:
        self._client, self._access, self._kubernetes = client, access, kubernetes
        self._store_answers = True
        self._damaged: set[str] = set()  # keys that were reported
        self._first_seen: dict[tuple[str, Wait], datetime] = {}  # by a pod's uid and what it waits for

    def view(self, run_id: str) -> RunView:
        """Return the current state of a run.

        Raises:
            ServiceError: KFP does not answer.
        """
        with api_errors(self._access):
            run = self._client.get_run(run_id)
        store = run_store(run)
        pods = self._pods(run_id)
        details = run.run_details.task_details if run.run_details else None
        tasks = {task.display_name: task for task in details or ()}
        newest_pods = {pod.step: pod for pod in pods}
        pool = ", ".join(run.runtime_config.parameters.get("node_selector", {}).values())
        steps = []
        for name, label in step_labels(run).items():
            task = tasks.get(name) or tasks.get(label)
            step = self._step(label, task, store, newest_pods.get(file_name(label)))
            steps.append(replace(step, pool=pool if name == "train" else ""))
        return RunView(
            id=run_id,
            name=run.display_name,
            state=str(run.state),
            steps=steps,
            outcome=self._read(store, "outcome.json"),
            pending=[pod for pod in pods if pod.pending],
        )

    def follow(self, run_id: str, pending_minutes: float | None, console: Console) -> RunView:
        """Show a run until it ends: a live table in a terminal, plain lines anywhere else.

        Args:
            run_id: KFP's id of the run.
            pending_minutes: minutes a pod may wait for a node, and again for its image, before the run is terminated;
                None never terminates it. How long a queue such as Kueue's holds a pod does not count.
            console: where the run is shown.

        Raises:
            ServiceError: KFP does not answer, or a pod waited too long; the latter has the scheduler's reason.
        """
        shown: dict[str, StepView] = {}
        with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as live:
            while True:
                view = self._view_with_retries(run_id)
                if live:
                    live.update(view.table, refresh=True)
                else:
                    _print_changes(shown, view, console)
                if view.state in ENDED:
                    return view
                if pending_minutes is not None:
                    self._terminate_if_late(view, pending_minutes)
                time.sleep(SECONDS_BETWEEN_POLLS)

    def _view_with_retries(self, run_id: str) -> RunView:
        """Return the state of a run; retry for some minutes, because the run continues while a connection is down."""
        deadline = time.monotonic() + SECONDS_WITHOUT_ANSWER
        while True:
            try:
                return self.view(run_id)
            except AccessError:
                raise  # a login that has expired does not come back by waiting
            except ServiceError as error:
                if time.monotonic() > deadline:
                    raise
                warning(f"{error}; trying again")
                time.sleep(SECONDS_BETWEEN_RETRIES)

    def _terminate_if_late(self, view: RunView, pending_minutes: float) -> None:
        waits = {pod: (datetime.now(UTC) - self._waiting_since(pod)).total_seconds() / 60 for pod in view.pending}
        late = next((pod for pod in waits if pod.waits_for != "admission" and waits[pod] > pending_minutes), None)
        if late is None:
            return
        with api_errors(self._access):
            self._client.terminate_run(view.id)
        raise ServiceError(
            f"{late.step}: its pod waited {waits[late]:.0f} minutes {WAITS[late.waits_for]}, so the run was "
            f"terminated: {late.pending}"
        )

    def _waiting_since(self, pod: StepPod) -> datetime:
        """Return when a pod began to wait for what it waits for; if Kubernetes does not tell, when we first saw it."""
        seen = self._first_seen.setdefault((pod.uid, pod.waits_for), datetime.now(UTC))
        was_held = pod.waits_for == "node" and (pod.uid, "admission") in self._first_seen
        return seen if pod.since is None or was_held else pod.since

    def _pods(self, run_id: str) -> list[StepPod]:
        """Return the run's pods; none if Kubernetes does not let us list them, which is reported once."""
        if self._kubernetes is None:
            return []
        try:
            return pods_of_run(self._kubernetes, run_id)
        except ServiceError as error:
            note(f"nodes and waiting pods are not shown: {error}")
            self._kubernetes = None
            return []

    def _read(self, store: Store, key: str) -> dict[str, Any]:
        """Return a JSON file of the run's folder; empty if it does not exist or the store does not answer."""
        if not self._store_answers:
            return {}
        try:
            return dict(json.loads(store.read_bytes(key))) if store.exists(key) else {}
        except StorageError as error:
            warning(f"logs and records of the steps are not available from here: {error}")
            self._store_answers = False
            return {}
        except (ValueError, TypeError):
            if key not in self._damaged:
                warning(f"{store.uri(key)} is damaged: it is no JSON object")
            self._damaged.add(key)
            return {}

    def _step(self, label: str, task: Any, store: Store, pod: StepPod | None) -> StepView:
        record = self._read(store, f"steps/{file_name(label)}.json")
        state: State = STATES.get(str(task.state), "running") if task else "waiting"
        started = record.get("started") or (task.start_time.isoformat() if task and task.start_time else "")
        ended = record.get("ended") or (task.end_time.isoformat() if task and state in ("done", "failed") else "")
        if state == "done" and not record and self._store_answers and label != "outcome":
            state = "cached"  # KFP 2.14 reports it as succeeded, but only a step that ran writes a record
        step = StepView(label, state, _seconds(started, ended), record.get("node", ""), line=record.get("reason", ""))
        if state == "running" and pod and pod.pending:
            return replace(step, state="pending", line=pod.pending)
        if state == "running":
            line = last_line(store, label) if self._store_answers else ""
            return replace(step, line=line, node=step.node or (pod.node if pod else ""))
        return step


def list_table(runs: Iterable[Any], schedules: Iterable[Any]) -> Table:
    """Return a table of runs and schedules, the newest first."""
    shown = Table(box=None, padding=(0, 2))
    for column in ("id", "state", "started", "name"):
        shown.add_column(column, no_wrap=column != "name", min_width=36 if column == "id" else 0, overflow="fold")
    for run in runs:
        shown.add_row(run.run_id, str(run.state), f"{run.created_at:%Y-%m-%d %H:%M}", Text(run.display_name))
    for schedule in schedules:
        cron = schedule.trigger.cron_schedule if schedule.trigger else None
        when = cron.cron.partition(" ")[2] if cron else ""
        shown.add_row(schedule.recurring_run_id, f"schedule {schedule.status}", when, Text(schedule.display_name))
    return shown


def step_labels(run: Any) -> dict[str, str]:
    """Return the display name of each task of a run by its KFP name."""
    parameters = run.runtime_config.parameters
    # Not validated, because the run may be of a version with other settings.
    distill = parameters.get("distill_settings") or {}
    is_self = distill.get("base_url") == SELF
    return _labels(bool(parameters.get("deploy_settings")), int(distill.get("rounds", 0)) + is_self, is_self)


@cache
def _labels(with_deploy: bool, students: int, is_self: bool) -> dict[str, str]:
    return task_labels(distillation_pipeline(with_deploy=with_deploy, students=students, is_self=is_self))


def outcome_lines(view: RunView) -> list[str]:
    """Return the closing lines of a run that has ended: accuracy, report, model, endpoint."""
    outcome = view.outcome
    lines = []
    if "gate_accuracy" in outcome:
        lines.append(accuracy_line(outcome))
    named = {"report": "report", "manifest_uri": "model", "endpoint": "endpoint"}
    return lines + [f"{label}: {outcome[key]}" for key, label in named.items() if outcome.get(key)]


def log(store: Store, step: str, labels: Iterable[str]) -> str:
    """Return a step's log from the store, which outlives the step's pod.

    Raises:
        InputError: there is no such step, or it has no log in this run.
        StorageError: the store did not answer.
    """
    known = [file_name(label) for label in labels]
    if file_name(step) not in known:
        raise InputError(f"{step}: no such step; the steps are {', '.join(known)}")
    key = f"steps/{file_name(step)}.log"
    if not store.exists(key):
        raise InputError(f"{step}: has no log in this run; it has not started, or comes from the cache")
    return store.read_bytes(key).decode(errors="replace")


def last_line(store: Store, label: str) -> str:
    """Return the last line of a step's log; empty if there is none."""
    key = f"steps/{file_name(label)}.log"
    try:
        end = store.read_bytes(key)[-LAST_LINE_BYTES:].decode(errors="replace") if store.exists(key) else ""
    except StorageError:
        return ""
    return next((line.strip() for line in reversed(end.splitlines()) if line.strip()), "")


def file_name(label: str) -> str:
    """Return the name of a step's files in the run's folder, without suffix."""
    return label.replace(" ", "-")


def _seconds(started: str, ended: str) -> float:
    if not started:
        return 0.0
    end = datetime.fromisoformat(ended) if ended else datetime.now(UTC)
    return max(0.0, (end - datetime.fromisoformat(started)).total_seconds())


def _print_changes(shown: dict[str, StepView], view: RunView, console: Console) -> None:
    """Print a line for each step whose state or line has changed since it was last shown, and update `shown`."""
    width = max(len(step.label) for step in view.steps)
    for step in view.steps:
        before = shown.get(step.label)
        changed = before is None or (before.state, before.line) != (step.state, step.line)
        if changed and step.state not in ("waiting", "skipped"):
            node = f"on {step.node}" if step.node else ""
            print_step_line(console, step.label, width, " ".join(filter(None, (step.state, node, step.line))))
        shown[step.label] = step
