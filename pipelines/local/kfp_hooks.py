"""Follows kfp's local runner: which step starts, ends, was cached; where its output goes; why it failed.

The local runner prints what happens and returns nothing but success. Two functions of it are replaced while a run
lasts: the one that executes a task and the one that starts its process. kfp is pinned to a minor version for this.
"""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kfp.dsl.base_component import BaseComponent
from kfp.local import graph_utils, subprocess_task_handler
from kfp.local.orchestrator import task_executor
from kfp.local.status import Status

from chatmetrics.components.errors import UserError
from chatmetrics.pipelines.local.display import Display
from chatmetrics.pipelines.local.step_process import error_of, run_child

Outputs = dict[str, Any]


class Watch:
    """What is known of a run while it goes on and when it is over."""

    def __init__(self, display: Display, logs: Path, always: Sequence[str]) -> None:
        self.outputs: dict[str, Outputs] = {}
        self.error: UserError | None = None
        self._display, self._logs, self._always = display, logs, set(always)
        self._running = ""
        self._exit_status: int | None = None

    def execute(self, execute: Callable[..., tuple[Outputs, Status]], **arguments: Any) -> tuple[Outputs, Status]:
        """Execute a task by kfp's own function and note what became of it.

        After a failure no further task is started, though kfp would start those that do not depend on the failed
        one: a person waits for the reason. The exit task always runs.
        """
        name = arguments["task_name"]
        if self.error and name not in self._always:
            self._display.ended(name, "skipped")
            return {}, Status.FAILURE
        self._running, self._exit_status = name, None
        outputs, status = execute(**arguments)
        if status == Status.SUCCESS:
            self.outputs[name] = outputs
            self._display.ended(name, "cached" if self._exit_status is None else "done")
        else:
            self._display.ended(name, "failed")
            error = error_of(self._display.label(name), self._log(name), self._exit_status or 0)
            self.error = self.error or error
        return outputs, status

    def run_process(self, full_command: Sequence[str], env_vars: Mapping[str, str] | None = None) -> int:
        """Run a task's process and return its exit status."""
        variables = [f"{key}={value}" for key, value in (env_vars or {}).items()]
        name = self._running
        self._display.started(name)
        command = ["env", *variables, *full_command]
        self._exit_status = run_child(command, self._log(name), lambda line: self._display.line(name, line))
        return self._exit_status

    def folder(self, name: str, artifact: str) -> Path | None:
        """Return where an output artifact of a step is; None when the step did not end well."""
        outputs = self.outputs.get(name)
        return Path(outputs[artifact].path) if outputs else None

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"


@contextlib.contextmanager
def watching(watch: Watch, log: Path) -> Iterator[None]:
    """Let `watch` follow kfp's local runner, and send what kfp itself prints to `log`."""
    execute, run_process = task_executor.execute_single_task, subprocess_task_handler.run_local_subprocess
    task_executor.execute_single_task = lambda **arguments: watch.execute(execute, **arguments)
    subprocess_task_handler.run_local_subprocess = watch.run_process
    root = logging.getLogger()
    handlers = root.handlers[:]
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file), warnings.catch_warnings():
            # Our images are not called python and display names mean nothing to the local runner: both are meant.
            warnings.filterwarnings("ignore", module=r"kfp\.local")
            root.handlers[:] = [logging.StreamHandler(file)]
            yield
    finally:
        root.handlers[:] = handlers
        task_executor.execute_single_task = execute
        subprocess_task_handler.run_local_subprocess = run_process


def labels_of(pipeline: BaseComponent) -> dict[str, str]:
    """Return the tasks of a pipeline in the order in which the local runner takes them: display name by name."""
    spec = pipeline.pipeline_spec

    def walk(dag: Any) -> Iterator[tuple[str, str]]:
        for name in reversed(graph_utils.topological_sort_tasks(dag.tasks)):
            task = dag.tasks[name]
            component = spec.components[task.component_ref.name]
            if component.WhichOneof("implementation") == "dag":
                yield from walk(component.dag)
            else:
                yield name, task.task_info.name or name

    return dict(walk(spec.root.dag))
