"""Hooks into KFP's local runner: which step starts, ends or comes from the cache, where its outputs are, why it failed.

The local runner prints what happens and returns only whether the run succeeded. So two of its functions are replaced
during a run: the one that executes a task and the one that starts a task's process. Both are internal to KFP, which is
why it is pinned to a minor version.
"""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kfp.local import subprocess_task_handler
from kfp.local.orchestrator import task_executor
from kfp.local.status import Status

from chatmetrics.components.errors import UserError
from chatmetrics.pipelines.local.display import Display
from chatmetrics.pipelines.local.step_process import run_child, step_error

Outputs = dict[str, Any]


class KfpHooks:
    """Replacements for two functions of KFP's local runner, and what they recorded about the run.

    Args:
        display: shows the steps.
        logs: folder for a log of each step.
        always: KFP names of the tasks that run even after a failure.

    Attributes:
        outputs: outputs of each task that succeeded, by KFP name of the task.
        error: why the run failed; the first failure counts.
    """

    def __init__(self, display: Display, logs: Path, always: Sequence[str]) -> None:
        self.outputs: dict[str, Outputs] = {}
        self.error: UserError | None = None
        self._display, self._logs, self._always = display, logs, set(always)
        self._running = ""
        self._exit_status: int | None = None

    @contextlib.contextmanager
    def installed(self, log: Path) -> Iterator[None]:
        """Replace the two functions during the block, and send KFP's own output to `log`."""
        execute, run_process = task_executor.execute_single_task, subprocess_task_handler.run_local_subprocess
        task_executor.execute_single_task = lambda **arguments: self._execute(execute, **arguments)
        subprocess_task_handler.run_local_subprocess = self._run_process
        root = logging.getLogger()
        handlers = root.handlers[:]
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file), warnings.catch_warnings():
                # KFP warns that our images are not called python and that display names have no effect locally.
                warnings.filterwarnings("ignore", module=r"kfp\.local")
                root.handlers[:] = [logging.StreamHandler(file)]
                yield
        finally:
            root.handlers[:] = handlers
            task_executor.execute_single_task = execute
            subprocess_task_handler.run_local_subprocess = run_process

    def folder(self, task: str, artifact: str) -> Path | None:
        """Return the folder of an output artifact; None if the task did not succeed."""
        outputs = self.outputs.get(task)
        return Path(outputs[artifact].path) if outputs else None

    def _execute(self, execute: Callable[..., tuple[Outputs, Status]], **arguments: Any) -> tuple[Outputs, Status]:
        """Execute a task with KFP's own function and record its result.

        After a failure no further task is started, although KFP would start those that do not depend on the failed
        one: the person waits for the error message. Tasks in `always` run nevertheless.
        """
        name = arguments["task_name"]
        if self.error and name not in self._always:
            self._display.ended(name, "skipped")
            return {}, Status.FAILURE
        self._running, self._exit_status = name, None
        outputs, status = execute(**arguments)
        if status == Status.SUCCESS:
            self.outputs[name] = outputs
            # Without an exit status no process was started: the outputs come from KFP's cache.
            self._display.ended(name, "cached" if self._exit_status is None else "done")
        else:
            self._display.ended(name, "failed")
            error = step_error(self._display.label(name), self._log(name), self._exit_status or 0)
            self.error = self.error or error
        return outputs, status

    def _run_process(self, full_command: Sequence[str], env_vars: Mapping[str, str] | None = None) -> int:
        """Run a task's process and return its exit status; KFP passes the arguments by these names."""
        variables = [f"{key}={value}" for key, value in (env_vars or {}).items()]
        name = self._running
        self._display.started(name)
        command = ["env", *variables, *full_command]
        self._exit_status = run_child(command, self._log(name), lambda line: self._display.line(name, line))
        return self._exit_status

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"
