"""The steps of a run as a person sees them: one table and one form of line, for local and for cluster runs."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from kfp.dsl.base_component import BaseComponent
from kfp.local import graph_utils
from rich.console import Console
from rich.table import Table
from rich.text import Text

from chatmetrics.components.errors import UserError

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


class StepError(UserError):
    """A step failed with an error that is not a `UserError`."""


@dataclass(frozen=True)
class StepView:
    """A step of a run.

    Attributes:
        label: display name of the step.
        state: its state.
        seconds: how long it has run.
        node: where it runs or ran, on a cluster.
        pool: label of the nodes it is to run on, on a cluster.
        line: last line of its output, or why it failed or waits.
    """

    label: str
    state: State = "waiting"
    seconds: float = 0.0
    node: str = ""
    pool: str = ""
    line: str = ""


def steps_table(steps: Iterable[StepView], title: str = "") -> Table:
    """Return the steps as a table; the columns node and pool are left out if no step has either."""
    steps = list(steps)
    on_cluster = any(step.node or step.pool for step in steps)
    columns = ("step", "state", *(("node", "pool") if on_cluster else ()), "age", "")
    # Title and cells as Text, because a step's output may contain brackets, which rich would read as markup.
    table = Table(title=Text(title) if title else None, title_justify="left", box=None, padding=(0, 2))
    for column in columns:
        table.add_column(column, no_wrap=column != "", overflow="fold")
    for step in steps:
        age = f"{step.seconds:.0f} s" if step.state in ("running", "done", "failed") else ""
        place = (step.node, step.pool) if on_cluster else ()
        table.add_row(step.label, Text(step.state, STYLES[step.state]), *place, age, Text(step.line))
    return table


def print_step_line(console: Console, label: str, width: int, text: str) -> None:
    """Print a line about a step for a console that is not a terminal; labels are padded to `width` characters."""
    console.print(f"{label:{width}} | {text}", markup=False, highlight=False, soft_wrap=True)


def task_labels(pipeline: BaseComponent) -> dict[str, str]:
    """Return the display name of each task by its KFP name, in the order in which the local runner executes them."""
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
