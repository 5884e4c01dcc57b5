"""What a person sees of a run: a live table of the steps in a terminal, plain lines anywhere else."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from chatmetrics.components.console import is_notice, is_progress

State = Literal["waiting", "pending", "running", "cached", "done", "failed", "skipped"]
STYLES: dict[State, str] = {
    "waiting": "dim",
    "pending": "yellow",
    "running": "bold cyan",
    "cached": "green",
    "done": "green",
    "failed": "bold red",
    "skipped": "dim",
}


@dataclass
class Step:
    """One row: a step, what has become of it and the last thing it said."""

    label: str
    state: State = "waiting"
    started: float = 0.0
    seconds: float = 0.0
    line: str = ""

    def elapsed(self) -> float:
        """Return the seconds it has run, or ran."""
        return time.monotonic() - self.started if self.state == "running" else self.seconds


class Display:
    """Shows the steps of one run on a console, as a context manager."""

    def __init__(self, console: Console, labels: Mapping[str, str]) -> None:
        self._console = console
        self._width = max(map(len, labels.values()), default=0)
        self._steps = {name: Step(label) for name, label in labels.items()}
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
        """Return the name of a step as a person reads it."""
        return self._steps[name].label

    def started(self, name: str) -> None:
        """Say that a step runs now."""
        step = self._steps[name]
        step.state, step.started = "running", time.monotonic()
        self._say(step, "running")

    def ended(self, name: str, state: State) -> None:
        """Say what became of a step."""
        step = self._steps[name]
        step.seconds = step.elapsed()
        step.state = state
        if state != "skipped":
            self._say(step, f"{state} ({step.seconds:.1f} s)" if state in ("done", "failed") else state)

    def line(self, name: str, text: str) -> None:
        """Take a line of a step's output; progress, notes and warnings are shown."""
        notice = is_notice(text)
        if not notice and not is_progress(text):
            return
        step = self._steps[name]
        step.line = text
        if notice and self._live:  # stays above the table, where the next progress line does not replace it
            self._console.print(Text(f"{step.label}: {text}", style="yellow"))
        self._say(step, text)

    def _say(self, step: Step, text: str) -> None:
        if not self._live:
            self._console.print(f"{step.label:{self._width}} | {text}", markup=False, highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for step in self._steps.values():
            seconds = f"{step.elapsed():.0f} s" if step.state in ("running", "done", "failed") else ""
            said = step.line if step.state in ("running", "failed") else ""
            state = Text(step.state, style=STYLES[step.state])
            table.add_row(step.label, state, Text(seconds, justify="right"), Text(said, overflow="ellipsis"))
        return table
