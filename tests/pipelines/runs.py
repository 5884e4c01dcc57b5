"""Run `chatmetrics run` in a process of its own."""

from dataclasses import dataclass
from pathlib import Path

from tests.command import command_line, finished_process


@dataclass(frozen=True)
class FinishedRun:
    """Exit status, lines of standard output and text of standard error of a run."""

    status: int
    lines: list[str]
    error: str

    def state_of(self, step: str) -> str:
        """The last state shown for a step."""
        shown = [line.partition("|")[2].strip() for line in self.lines if line.split("|")[0].strip() == step]
        return shown[-1].split(" (")[0]


def run_command(recipe: Path, work: Path, *overrides: str) -> list[str]:
    return command_line(*_arguments(recipe, work, overrides))


def run_recipe(recipe: Path, work: Path, *overrides: str) -> FinishedRun:
    done = finished_process(*_arguments(recipe, work, overrides), timeout=900)
    return FinishedRun(done.returncode, done.stdout.splitlines(), done.stderr)


def _arguments(recipe: Path, work: Path, overrides: tuple[str, ...]) -> list[str | Path]:
    settings = [part for override in overrides for part in ("--set", override)]
    return ["run", recipe, "--work-dir", work, "--no-ask", *settings]
