"""What has become of a run, put together from KFP, from Kubernetes and from what its steps left in the store."""

import json
import sys
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

from chatmetrics.components.errors import InputError, ServiceError, StorageError, UserError
from chatmetrics.components.run_summary import accuracy_line
from chatmetrics.components.storage.store import Store
from chatmetrics.pipelines.cluster.kubeflow import Access, api_errors
from chatmetrics.pipelines.cluster.kubernetes import Cluster, Pod
from chatmetrics.pipelines.cluster.submission import ENDED, run_store
from chatmetrics.pipelines.distillation import distillation_pipeline
from chatmetrics.pipelines.local.display import STYLES, State
from chatmetrics.pipelines.local.kfp_hooks import labels_of
from chatmetrics.pipelines.local.step_process import StepError

SECONDS_BETWEEN_LOOKS = 3.0
SECONDS_WITHOUT_ANSWER = 300.0
LINE_BYTES = 2000
# KFP's words for a task, None being of one that was left out; others are of tasks that have not come to an end.
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
class StepView:
    """A step of a run.

    Attributes:
        label: its name.
        state: what has become of it.
        seconds: that it has run.
        node: where it runs or ran.
        pool: label of the nodes that it was asked to run on.
        line: the last thing it said, or why it failed or waits.
    """

    label: str
    state: State
    seconds: float = 0.0
    node: str = ""
    pool: str = ""
    line: str = ""


@dataclass(frozen=True)
class RunView:
    """A run: KFP's word for its state, its steps, and its outcome.json once there is one."""

    id: str
    name: str
    state: str
    steps: list[StepView]
    outcome: dict[str, Any]
    pending: list[Pod]

    @property
    def error(self) -> UserError | None:
        """Why it failed, as the same class of error that a run on this machine ends with."""
        if self.state not in ENDED or self.state == "SUCCEEDED":
            return None
        kind = locate(f"chatmetrics.components.errors.{self.outcome.get('kind', '')}")
        reason = self.outcome.get("message") or f"the run ended as {self.state}"
        return kind(reason) if isinstance(kind, type) and issubclass(kind, UserError) else StepError(reason)


class Watcher:
    """Looks at runs.

    Args:
        client: of KFP.
        access: the same.
        cluster: of Kubernetes, where we have access to it: it knows why a pod waits.
    """

    def __init__(self, client: Client, access: Access, cluster: Cluster | None) -> None:
        self._client, self._access, self._cluster = client, access, cluster
        self._store_answers = True

    def look(self, run_id: str) -> RunView:
        """See what has become of a run.

        Raises:
            ServiceError: KFP or Kubernetes does not answer.
        """
        with api_errors(self._access):
            run = self._client.get_run(run_id)
        store = run_store(run)
        pods = self._pods(run_id)
        tasks = {task.display_name: task for task in (run.run_details.task_details if run.run_details else None) or ()}
        with_pods = {pod.step: pod for pod in pods}
        pool = ", ".join(run.runtime_config.parameters.get("node_selector", {}).values())
        steps = [
            replace(
                self._step(label, tasks.get(name) or tasks.get(label), store, with_pods.get(file_name(label))),
                pool=pool if name == "train" else "",
            )
            for name, label in step_labels(run).items()
        ]
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
            run_id: of KFP.
            pending_minutes: that a pod may wait for a node; then the run is ended. None only watches.
            console: where it is shown.

        Raises:
            ServiceError: KFP or Kubernetes does not answer, or a pod waited too long: with the scheduler's reason.
        """
        shown: dict[str, StepView] = {}
        with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as live:
            while True:
                view = self._look_patiently(run_id)
                if live:
                    live.update(table(view), refresh=True)
                else:
                    _say_changes(shown, view, console)
                if view.state in ENDED:
                    return view
                if pending_minutes is not None:
                    self._end_if_late(view, pending_minutes)
                time.sleep(SECONDS_BETWEEN_LOOKS)

    def _look_patiently(self, run_id: str) -> RunView:
        """Look, and again for some minutes when there is no answer: a run goes on while a connection is down."""
        deadline = time.monotonic() + SECONDS_WITHOUT_ANSWER
        while True:
            try:
                return self.look(run_id)
            except ServiceError as error:
                if time.monotonic() > deadline:
                    raise
                print(f"warning: {error}; looking again", file=sys.stderr, flush=True)
                time.sleep(10 * SECONDS_BETWEEN_LOOKS)

    def _end_if_late(self, view: RunView, pending_minutes: float) -> None:
        late = next((pod for pod in view.pending if pod.pending_seconds > 60 * pending_minutes), None)
        if late is None:
            return
        with api_errors(self._access):
            self._client.terminate_run(view.id)
        raise ServiceError(
            f"{late.step}: its pod waited {late.pending_seconds / 60:.0f} minutes, the run is ended: {late.pending}"
        )

    def _pods(self, run_id: str) -> list[Pod]:
        """The run's pods; none where we may not see them, which is said once."""
        if self._cluster is None:
            return []
        try:
            return self._cluster.pods(run_id)
        except ServiceError as error:
            print(f"note: nodes and waiting pods are skipped: {error}", file=sys.stderr, flush=True)
            self._cluster = None
            return []

    def _read(self, store: Store, key: str) -> dict[str, Any]:
        """A JSON file of the run's folder; empty where there is none, or the store cannot be reached from here."""
        if not self._store_answers:
            return {}
        try:
            return dict(json.loads(store.read_bytes(key))) if store.exists(key) else {}
        except StorageError as error:
            print(f"warning: what the steps left is not to be seen from here: {error}", file=sys.stderr, flush=True)
            self._store_answers = False
            return {}

    def _step(self, label: str, task: Any, store: Store, pod: Pod | None) -> StepView:
        record = self._read(store, f"steps/{file_name(label)}.json")
        state: State = STATES.get(str(task.state), "running") if task else "waiting"
        started = record.get("started") or (task.start_time.isoformat() if task and task.start_time else "")
        ended = record.get("ended") or (task.end_time.isoformat() if task and state in ("done", "failed") else "")
        if state == "done" and not record and self._store_answers and label != "outcome":
            state = "cached"  # KFP 2.14 has no word for it; a step that ran leaves a record
        seconds, node = _seconds(started, ended), record.get("node", "")
        view = StepView(label, state, seconds, node, line=record.get("reason", ""))
        if state == "running" and pod and pod.pending:
            return replace(view, state="pending", line=pod.pending)
        if state == "running":
            line = last_line(store, label) if self._store_answers else ""
            return replace(view, line=line, node=view.node or (pod.node if pod else ""))
        return view


def table(view: RunView) -> Table:
    """A run as a table: step, state, node, pool, age, and the last thing it said."""
    title = Text(f"{view.name}  {view.id}  {view.state}")
    shown = Table(title=title, title_justify="left", box=None, padding=(0, 2))
    for column in ("step", "state", "node", "pool", "age", ""):
        shown.add_column(column, no_wrap=column != "", overflow="fold")
    for step in view.steps:
        age = f"{step.seconds:.0f} s" if step.state in ("running", "done", "failed") else ""
        # As Text, because what a step says may hold brackets, which rich would take for markup.
        shown.add_row(step.label, Text(step.state, STYLES[step.state]), step.node, step.pool, age, Text(step.line))
    return shown


def list_table(runs: Iterable[Any], schedules: Iterable[Any]) -> Table:
    """Runs and schedules, the newest first."""
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
    """The tasks of a run as people call them, by KFP's name."""
    parameters = run.runtime_config.parameters
    rounds = int((parameters.get("distill_settings") or {}).get("rounds", 0))
    return _labels(bool(parameters.get("deploy_settings")), rounds)


@cache
def _labels(with_deploy: bool, rounds: int) -> dict[str, str]:
    return labels_of(distillation_pipeline(with_deploy=with_deploy, rounds=rounds))


def outcome_lines(view: RunView) -> list[str]:
    """What a run that has ended leaves to be said."""
    outcome = view.outcome
    lines = []
    if "gate_accuracy" in outcome:
        lines.append(accuracy_line(outcome))
    named = {"report": "report", "manifest_uri": "model", "endpoint": "endpoint"}
    return lines + [f"{label}: {outcome[key]}" for key, label in named.items() if outcome.get(key)]


def log(store: Store, step: str, labels: Iterable[str]) -> str:
    """What a step has said, also when its pod is long gone.

    Raises:
        InputError: there is no such step, or it has said nothing in this run.
        StorageError: the store did not answer.
    """
    known = [file_name(label) for label in labels]
    if file_name(step) not in known:
        raise InputError(f"{step}: there is no such step; there are {', '.join(known)}")
    key = f"steps/{file_name(step)}.log"
    if not store.exists(key):
        raise InputError(f"{step}: has no log in this run; it waits, or was taken from the cache")
    return store.read_bytes(key).decode(errors="replace")


def last_line(store: Store, label: str) -> str:
    """The last thing that a step said."""
    key = f"steps/{file_name(label)}.log"
    try:
        said = store.read_bytes(key)[-LINE_BYTES:].decode(errors="replace") if store.exists(key) else ""
    except StorageError:
        return ""
    return next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "")


def file_name(label: str) -> str:
    """What a step's files are called."""
    return label.replace(" ", "-")


def _seconds(started: str, ended: str) -> float:
    if not started:
        return 0.0
    end = datetime.fromisoformat(ended) if ended else datetime.now(UTC)
    return max(0.0, (end - datetime.fromisoformat(started)).total_seconds())


def _say_changes(shown: dict[str, StepView], view: RunView, console: Console) -> None:
    width = max(len(step.label) for step in view.steps)
    for step in view.steps:
        before = shown.get(step.label)
        said = " ".join(filter(None, (step.state, f"on {step.node}" if step.node else "", step.line)))
        if step.state not in ("waiting", "skipped") and (
            before is None or (before.state, before.line) != (step.state, step.line)
        ):
            console.print(f"{step.label:{width}} | {said}", markup=False, highlight=False, soft_wrap=True)
        shown[step.label] = step
