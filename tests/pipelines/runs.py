"""Runs of the command line, each as a process of its own."""

from dataclasses import dataclass
from pathlib import Path

from tests.command import command_line, finished_process


@dataclass(frozen=True)
class Run:
    """How a run ended."""

    status: int
    lines: list[str]
    error: str

    def state_of(self, step: str) -> str:
        """The last word on a step."""
        said = [line.partition("|")[2].strip() for line in self.lines if line.split("|")[0].strip() == step]
        return said[-1].split(" (")[0]


def command(recipe: Path, work: Path, *overrides: str) -> list[str]:
    return command_line(*_arguments(recipe, work, overrides))


def run(recipe: Path, work: Path, *overrides: str) -> Run:
    done = finished_process(*_arguments(recipe, work, overrides), timeout=900)
    return Run(done.returncode, done.stdout.splitlines(), done.stderr)


def _arguments(recipe: Path, work: Path, overrides: tuple[str, ...]) -> list[str | Path]:
    settings = [part for override in overrides for part in ("--set", override)]
    return ["run", recipe, "--work-dir", work, "--no-ask", *settings]
