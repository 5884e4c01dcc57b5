"""Runs of the command line, each as a process of its own."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CHATMETRICS = [sys.executable, "-c", "from chatmetrics.pipelines.cli.main import main; main()"]


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
    settings = [part for override in overrides for part in ("--set", override)]
    return [*CHATMETRICS, "run", str(recipe), "--work-dir", str(work), "--no-ask", *settings]


def run(recipe: Path, work: Path, *overrides: str) -> Run:
    done = subprocess.run(command(recipe, work, *overrides), capture_output=True, text=True, timeout=900)
    return Run(done.returncode, done.stdout.splitlines(), done.stderr)
