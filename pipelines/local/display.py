"""The steps of a local run on a console: a live table in a terminal, plain lines anywhere else."""

import time
from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from chatmetrics.components.console import is_notice, is_progress
from chatmetrics.pipelines.steps_view import State, StepView, print_step_line, steps_table


class Display:
    """Shows the steps of one run, as a context manager.

    Args:
        console: where they are shown.
        labels: display name of each step by its KFP name, in order.
    """

    def __init__(self, console: Console, labels: Mapping[str, str]) -> None:
        self._console = console
        self._width = max(map(len, labels.values()), default=0)
        self._steps = {name: StepView(label) for name, label in labels.items()}
        self._started: dict[str, float] = {}
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(
                get_renderable=self._table,
                console=console,
                refresh_per_second=4,
                redirect_stdout=False,
                redirect_stderr=False,
            )

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def label(self, name: str) -> str:
        """Return the display name of a step."""
        return self._steps[name].label

    def started(self, name: str) -> None:
        """Show that a step is running."""
        self._started[name] = time.monotonic()
        self._update(name, state="running")
        self._print(name, "running")

    def ended(self, name: str, state: State) -> None:
        """Show the final state of a step."""
        step = self._current(name)
        # The last line stays only if it may tell why the step failed.
        self._update(name, state=state, seconds=step.seconds, line=step.line if state == "failed" else "")
        if state != "skipped":
            self._print(name, f"{state} ({step.seconds:.1f} s)" if state in ("done", "failed") else state)

    def line(self, name: str, text: str) -> None:
        """Show a line of a step's output if it is a progress line, a note or a warning."""
        notice = is_notice(text)
        if not notice and not is_progress(text):
            return
        self._update(name, line=text)
        if notice and self._live:  # above the table, where the next progress line does not replace it
            self._console.print(Text(f"{self.label(name)}: {text}", style="yellow"))
        self._print(name, text)

    def _update(self, name: str, **changes: object) -> None:
        self._steps[name] = replace(self._steps[name], **changes)  # type: ignore[arg-type]

    def _current(self, name: str) -> StepView:
        """Return a step with its seconds up to now."""
        step = self._steps[name]
        if step.state != "running":
            return step
        return replace(step, seconds=time.monotonic() - self._started[name])

    def _print(self, name: str, text: str) -> None:
        if not self._live:
            print_step_line(self._console, self.label(name), self._width, text)

    def _table(self) -> Table:
        return steps_table(map(self._current, self._steps))
